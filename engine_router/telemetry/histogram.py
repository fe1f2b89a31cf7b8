"""Histograms of past requests: how long the first token took, and how fast the others came."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from engine_router.telemetry.activity import Where
from engine_router.telemetry.history import History

if TYPE_CHECKING:
    import sqlite3

FIGURES: Final = ("first_token_s", "tokens_per_s")
"""The columns that are shown so."""

MOST_COUNTED: Final = 10_000
"""The requests that are counted, the last ones: more say nothing else, and take longer."""

# About alike on a scale of factors, and round: six for each factor of ten.
_STEPS: Final = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
_BOUNDS: Final = tuple(round(step * 10.0**power, 6) for power in range(-3, 5) for step in _STEPS)


async def histograms(history: History, where: Where) -> dict[str, Any]:
    """Return the histogram of each figure of the last requests of which it is known.

    Raises:
        HistoryTooSlow: it took too long.
    """
    names = ", ".join(FIGURES)
    last = f"SELECT {names} FROM requests WHERE {where.text} ORDER BY at DESC LIMIT {MOST_COUNTED}"  # noqa: S608 - constants of this module

    def query(connection: sqlite3.Connection) -> list[tuple[float | None, ...]]:
        return connection.execute(last, where.values).fetchall()

    rows = await history.read(query) or []
    columns = zip(*rows, strict=True) if rows else ((),) * len(FIGURES)
    return {
        "enabled": history.why_off is None,
        "why_off": history.why_off,
        **{name: histogram([v for v in column if v is not None]) for name, column in zip(FIGURES, columns)},  # noqa: B905 - as many
    }


def histogram(values: Sequence[float]) -> dict[str, Any]:
    """Return how many values lie between bounds that grow by about the same factor, from the least to the greatest."""
    ordered = sorted(values)
    counts = [0] * (len(_BOUNDS) + 1)
    for value in ordered:
        counts[bisect.bisect_right(_BOUNDS, value)] += 1
    used = [index for index, count in enumerate(counts) if count]
    shown = range(used[0], used[-1] + 1) if used else range(0)
    return {
        "count": len(ordered),
        "p50": _quantile(ordered, 0.5),
        "p95": _quantile(ordered, 0.95),
        # The first one begins at nothing, and the last one has no end.
        "bins": [
            {
                "from": _BOUNDS[index - 1] if index else 0.0,
                "to": _BOUNDS[index] if index < len(_BOUNDS) else None,
                "count": counts[index],
            }
            for index in shown
        ],
    }


def _quantile(ordered: Sequence[float], part: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else None
