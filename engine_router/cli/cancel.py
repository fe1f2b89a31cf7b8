"""`engine-router cancel`."""

from __future__ import annotations

import argparse

from engine_router.cli.client import post
from engine_router.cli.terminal import show_json
from engine_router.cli.where import locate


def run(options: argparse.Namespace) -> int:
    """End one request.

    Raises:
        CommandFailed: the router is not there, says no, or is none.
    """
    answer = post(locate(options), "/admin/cancel", {"id": options.id})
    if options.json:
        show_json(answer)
    else:
        print(f"ended {answer['cancelled']}: {answer['path']} {answer['model']}")
    return 0
