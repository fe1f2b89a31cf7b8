"""The past starts of a resident, as the history knows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from attrs import frozen

from engine_router.telemetry.history import History

if TYPE_CHECKING:
    import sqlite3

MOST_STARTS: Final = 100

_QUERY: Final = "SELECT at, took_s, result, error FROM starts WHERE resident = ? ORDER BY at DESC LIMIT ?"


@frozen(kw_only=True)
class Start:
    """A start that has ended.

    Attributes:
        at: when it ended, in seconds since the epoch.
        took_s: how long it took; None where that is not known.
        result: `ok`, `error`, or `abandoned`: nobody waited for it any more.
        error: why it failed.
    """

    at: float
    took_s: float | None
    result: str
    error: str | None


async def past_starts(history: History, resident: str) -> Sequence[Start] | None:
    """Return the last starts of a resident, the oldest first; None where no history is kept.

    Raises:
        HistoryTooSlow: it took too long.
    """

    def query(connection: sqlite3.Connection) -> list[Start]:
        rows = connection.execute(_QUERY, (resident, MOST_STARTS)).fetchall()
        return [
            Start(at=at, took_s=took_s, result=result, error=error) for at, took_s, result, error in rows
        ][::-1]

    return await history.read(query)
