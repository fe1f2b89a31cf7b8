"""`engine-router pin` and `engine-router unpin`."""

from __future__ import annotations

import argparse

from engine_router.cli.client import post
from engine_router.cli.terminal import say, show_json
from engine_router.cli.where import locate


def run(options: argparse.Namespace) -> int:
    """Pin a model, or take its pin away.

    Raises:
        CommandFailed: the router is not there, says no, or is none.
    """
    is_pinned = options.command == "pin"
    answer = post(locate(options), "/admin/pin", {"model": options.name, "pinned": is_pinned})
    if options.json:
        show_json(answer)
    elif not is_pinned:
        say(f"{options.name} is not pinned any more")
    elif answer["is_resident"]:
        say(f"{options.name} is pinned: it stays until it is unpinned or unloaded")
    else:
        say(f"{options.name} is pinned: it stays once it is loaded (engine-router load {options.name})")
    return 0
