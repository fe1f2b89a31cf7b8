"""`engine-router reload`."""

from __future__ import annotations

import argparse

from engine_router.cli.client import not_understood, post
from engine_router.cli.failure import UNREACHABLE, CommandFailed
from engine_router.cli.terminal import say, show_json
from engine_router.cli.where import locate
from engine_router.guards.foreign_text import indented_values

_SAID = {
    "added": "new engines",
    "removed": "engines that go",
    "restarted": "engines that start anew once their requests are done",
    "settings": "in force now",
    "needs_restart": "takes effect after a restart of the router",
}

_OTHER_PORT = (
    "host and port are those of the configuration: if they were changed, the router that runs still uses the old ones "
    "until it starts again"
)


def run(options: argparse.Namespace) -> int:
    """Have the router read its configuration again, and show what has changed.

    Raises:
        CommandFailed: it refuses; what is wrong with the file is in the message.
    """
    where = locate(options)
    try:
        answer = post(where, "/admin/reload", {})
    except CommandFailed as failure:
        if failure.code == UNREACHABLE and not where.is_named:
            raise CommandFailed(f"{failure}; {_OTHER_PORT}", UNREACHABLE) from None
        raise
    if options.json:
        show_json(answer)
        return 0
    answer = indented_values(answer)
    try:
        said = [f"{words}: {', '.join(answer[name])}" for name, words in _SAID.items() if answer[name]]
    except (KeyError, TypeError):
        raise not_understood(where) from None
    say("\n".join(said) or "nothing has changed")
    return 0
