"""`engine-router residents`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from engine_router.cli.client import get, not_understood
from engine_router.cli.terminal import Table, say, show_json
from engine_router.cli.units import gigabytes, seconds
from engine_router.cli.where import locate

NOTHING = "-"
HEADINGS = ("Pool", "Resident", "State", "Since", "Memory", "Idle", "Goes in", "Waiting", "Running")


def run(options: argparse.Namespace) -> int:
    """Show what is in memory.

    Raises:
        CommandFailed: the router is not there, says no, or is none.
    """
    where = locate(options)
    answer = get(where, "/admin/residents")
    if options.json:
        show_json(answer)
        return 0
    try:
        rows = [_row(entry) for entry in answer["residents"]]
    except (KeyError, TypeError):
        raise not_understood(where) from None
    if rows:
        Table(HEADINGS, rows, frozenset((3, 4, 5, 6, 7))).show()
    else:
        say("nothing is resident")
    return 0


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    size_bytes = entry["footprint_bytes"] or entry["need_bytes"]
    ids = [request["id"] or NOTHING for request in entry["requests"]]
    return (
        entry["pool"],
        entry["resident"],
        entry["phase"],
        _seconds(entry["for_s"]),
        gigabytes(size_bytes) if size_bytes else NOTHING,
        _seconds(entry["idle_s"]),
        "pinned" if entry["pinned"] else _seconds(entry["expires_in_s"]),
        str(entry["waiting"]),
        ", ".join(ids) or NOTHING,
    )


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else seconds(value)
