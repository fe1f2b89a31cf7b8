"""`engine-router queue`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from engine_router.cli.client import get, not_understood
from engine_router.cli.terminal import Table, say, show_json
from engine_router.cli.units import counted, seconds
from engine_router.cli.where import locate

NOTHING = "-"
HEADINGS = ("Id", "Place", "Model", "Priority", "Waited", "Overdue", "Estimate", "Waits for")


def run(options: argparse.Namespace) -> int:
    """Show who waits.

    Raises:
        CommandFailed: the router is not there, says no, or is none.
    """
    where = locate(options)
    answer = get(where, "/admin/queue")
    if options.json:
        show_json(answer)
        return 0
    try:
        rows = [_row(entry) for entry in answer["waiting"]]
        more = answer["total"] - len(rows)
    except (KeyError, TypeError):
        raise not_understood(where) from None
    if not rows:
        say("no request is waiting")
        return 0
    Table(HEADINGS, rows, frozenset((1, 4, 5, 6))).show()
    if more > 0:
        say(f"and {counted(more, 'other')}")
    return 0


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    overdue_in_s, estimate_s = entry["overdue_in_s"], entry["estimate_s"]
    return (
        entry["id"] or NOTHING,
        str(entry["place"]),
        entry["model"],
        entry["priority"],
        seconds(entry["waited_s"]),
        _overdue(overdue_in_s),
        NOTHING if estimate_s is None else seconds(estimate_s),
        entry["waits_for"],
    )


def _overdue(in_s: float | None) -> str:
    if in_s is None:
        return NOTHING
    return f"in {seconds(in_s)}" if in_s > 0 else f"for {seconds(-in_s)}"
