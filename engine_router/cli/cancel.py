"""`engine-router cancel`."""

from __future__ import annotations

import argparse

from engine_router.cli.client import post
from engine_router.cli.terminal import say, show_json
from engine_router.cli.where import locate
from engine_router.guards.foreign_text import indented_values


def run(options: argparse.Namespace) -> int:
    """End one request.

    Raises:
        CommandFailed: the router is not there, says no, or is none.
    """
    answer = post(locate(options), "/admin/cancel", {"id": options.id})
    if options.json:
        show_json(answer)
    else:
        answer = indented_values(answer)
        say(f"ended {answer['cancelled']}: {answer['path']} {answer['model']}")
    return 0
