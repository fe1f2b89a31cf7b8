"""`engine-router failed`."""

from __future__ import annotations

import argparse

from engine_router.cli.client import get, not_understood
from engine_router.cli.terminal import say, show_json
from engine_router.cli.units import counted, seconds
from engine_router.cli.where import locate
from engine_router.guards.foreign_text import indented_values


def run(options: argparse.Namespace) -> int:
    """Show what failed, with the engine's own words.

    Raises:
        CommandFailed: the router is not there, says no, or is none.
    """
    where = locate(options)
    answer = get(where, "/admin/failed")
    if options.json:
        show_json(answer)
        return 0
    answer = indented_values(answer)
    try:
        for entry in answer["failed"]:
            again_s = entry["again_in_s"]
            when = f"tried again in {seconds(again_s)}" if again_s else "the next request tries it again"
            say(f"{entry['model']}: failed {counted(entry['count'], 'time')}, {when}\n  {entry['error']}")
        if not answer["failed"]:
            say("nothing has failed")
    except (KeyError, TypeError):
        raise not_understood(where) from None
    return 0
