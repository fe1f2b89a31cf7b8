"""`engine-router reset`."""

from __future__ import annotations

import argparse

from engine_router.cli.client import post
from engine_router.cli.terminal import say, show_json
from engine_router.cli.units import counted
from engine_router.cli.where import locate


def run(options: argparse.Namespace) -> int:
    """Forget that a model failed.

    Raises:
        CommandFailed: the router is not there, says no, or is none.
    """
    answer = post(locate(options), "/admin/reset", {"model": options.name})
    if options.json:
        show_json(answer)
    elif answer["forgotten"]:
        failures = counted(answer["forgotten"], "failure")
        say(f"{options.name}: {failures} forgotten; the next request starts it")
    else:
        say(f"{options.name} had not failed")
    return 0
