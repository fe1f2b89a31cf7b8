"""The last use of each model, as the history knows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from attrs import frozen

from engine_router.telemetry.history import History

if TYPE_CHECKING:
    import sqlite3

# Of the rows of a model SQLite takes the one with the highest `at`.
_QUERY: Final = """
SELECT model, MAX(at), tokens_per_s FROM requests WHERE model IS NOT NULL GROUP BY model ORDER BY 2 DESC LIMIT ?
"""


@frozen
class LastUse:
    """The last request for a model.

    Attributes:
        at: when it ended, seconds since the epoch.
        tokens_per_s: how fast the model wrote at the last one of which that is known; None where it never was.
    """

    at: float
    tokens_per_s: float | None = None


async def last_uses(history: History, most: int) -> Mapping[str, LastUse]:
    """Return the last uses of models, those that were used last; none where no history is kept.

    Raises:
        HistoryTooSlow: it took too long.
    """

    def query(connection: sqlite3.Connection) -> list[tuple[str, float, float | None]]:
        return connection.execute(_QUERY, (most,)).fetchall()

    found = await history.read(query) or []
    return {model: LastUse(at, tokens_per_s) for model, at, tokens_per_s in reversed(found)}
