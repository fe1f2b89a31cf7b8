"""`engine-router reload`."""

from __future__ import annotations

import argparse
import json

from engine_router.cli.client import not_understood, post
from engine_router.cli.where import locate

_SAID = {
    "added": "new engines",
    "removed": "engines that go",
    "restarted": "engines that start anew once their requests are done",
    "settings": "in force now",
    "needs_restart": "in force when the router starts again",
}


def run(options: argparse.Namespace) -> int:
    """Have the router read its configuration again, and show what has changed.

    Raises:
        CommandFailed: it refuses; what is wrong with the file is in the message.
    """
    where = locate(options)
    answer = post(where, "/admin/reload", {})
    if options.json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return 0
    try:
        said = [f"{words}: {', '.join(answer[name])}" for name, words in _SAID.items() if answer[name]]
    except (KeyError, TypeError):
        raise not_understood(where) from None
    print("\n".join(said) or "nothing has changed")
    return 0
