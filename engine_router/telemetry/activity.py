"""Activity: the past requests of the history, filtered, sorted and in pages, or all of them as CSV."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from engine_router.errors import BadRequest
from engine_router.guards.foreign_text import printable, shown
from engine_router.telemetry.history import History
from engine_router.telemetry.records import as_text

if TYPE_CHECKING:
    import sqlite3

COLUMNS: Final = (
    "at",
    "id",
    "model",
    "engine",
    "endpoint",
    "key",
    "client",
    "status",
    "tokens_in",
    "tokens_cached",
    "tokens_out",
    "first_token_s",
    "tokens_per_s",
    "queue_wait_s",
    "load_wait_s",
    "duration_s",
    "error",
)
"""What is known of a past request. `at` is its end, in seconds since the epoch."""

SORTED_BY: Final = tuple(name for name in COLUMNS if name not in ("id", "error"))
"""The columns by which requests may be sorted."""

FILTERS: Final = ("model", "engine", "endpoint", "key", "client", "status", "since", "until", "q")
"""The filters, by the names that queries use."""

_EXACT: Final = FILTERS[:5]
_SEARCHED: Final = ("id", *_EXACT, "error")
_CSV_ROWS: Final = 1000  # that are read at once
# What a spreadsheet takes for the beginning of a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


@frozen
class Where:
    """A condition on requests, in SQL, with its values."""

    text: str
    values: tuple[str | float, ...]

    def of_key(self, key: str | None) -> Where:
        """Return the same condition for the requests of one key alone; of none where it has no name."""
        return Where(f"({self.text}) AND key = ?", (*self.values, as_text(key or "")))


def where_of(wanted: Mapping[str, str]) -> Where:
    """Return the condition that filters ask for, given by their names; those that are empty do not count.

    Raises:
        BadRequest: the status, or a time, cannot be meant.
    """
    parts: list[str] = []
    values: list[str | float] = []
    for name in _EXACT:
        if wanted.get(name):
            parts.append(f"{name} = ?")
            values.append(as_text(wanted[name]))
    if status := wanted.get("status"):
        parts.append(_status(status))
    for name, sign in (("since", ">="), ("until", "<")):
        if wanted.get(name):
            parts.append(f"at {sign} ?")
            values.append(_time(name, wanted[name]))
    if searched := wanted.get("q"):
        pattern = "".join(f"\\{char}" if char in "\\%_" else char for char in as_text(searched))
        each = (f"{name} LIKE ? ESCAPE '\\'" for name in _SEARCHED)
        parts.append(f"({' OR '.join(each)})")
        values += [f"%{pattern}%"] * len(_SEARCHED)
    return Where(" AND ".join(parts) or "1", tuple(values))


def _status(wanted: str) -> str:
    if wanted in ("ok", "error"):
        return f"(status {'<' if wanted == 'ok' else '>='} 400 {'AND error IS NULL' if wanted == 'ok' else 'OR error IS NOT NULL'})"
    if not (wanted.isascii() and wanted.isdigit() and len(wanted) == 3):
        raise BadRequest('"status" must be ok, error, or a number such as 404')
    return f"status = {int(wanted)}"


def _time(name: str, wanted: str) -> float:
    try:
        at = float(wanted)
    except ValueError:
        at = -1.0
    if not 0 <= at < 1e12:
        raise BadRequest(f'"{name}" must be a time in seconds since the epoch')
    return at


async def listed(
    history: History,
    where: Where,
    *,
    sort: str = "at",
    descending: bool = True,
    limit: int,
    offset: int,
    has_capture: Callable[[str, float], bool],
) -> dict[str, Any]:
    """Return a page of past requests, and how many there are in all.

    Args:
        sort: one of `SORTED_BY`.
        has_capture: tells whether a request, by its id and its end, is kept whole.

    Raises:
        BadRequest: that is no column to sort by.
        HistoryTooSlow: it took too long.
    """
    if sort not in SORTED_BY:
        raise BadRequest(f'cannot sort by "{shown(sort)}"; there are: {", ".join(SORTED_BY)}')
    order = "DESC" if descending else "ASC"
    # What is not known stands at the end either way. The names are constants of this module.
    by = f"at {order}" if sort == "at" else f"{sort} IS NULL, {sort} {order}"
    names = ", ".join(("row", *COLUMNS))
    page = f"SELECT {names} FROM requests WHERE {where.text} ORDER BY {by}, row {order} LIMIT ? OFFSET ?"  # noqa: S608
    count = f"SELECT count(*) FROM requests WHERE {where.text}"  # noqa: S608

    def query(connection: sqlite3.Connection) -> tuple[int, list[tuple[Any, ...]]]:
        (total,) = connection.execute(count, where.values).fetchone()
        return total, connection.execute(page, (*where.values, limit, offset)).fetchall()

    total, rows = await history.read(query) or (0, [])
    requests = [dict(zip(("row", *COLUMNS), row, strict=True)) for row in rows]
    for request in requests:
        request["has_capture"] = has_capture(request["id"] or "", request["at"])
    return {
        "enabled": history.why_off is None,
        "why_off": history.why_off,
        "requests": requests,
        "total": total,
        "limit": limit,
        "offset": offset,
    }


async def as_csv(history: History, where: Where) -> AsyncIterator[bytes]:
    """Yield past requests as CSV, the last one first, some thousand at a time.

    Raises:
        HistoryTooSlow: it took too long.
    """
    yield _csv_lines([("time", *COLUMNS)])
    names = ", ".join(("row", *COLUMNS))
    page = f"SELECT {names} FROM requests WHERE ({where.text}) AND (at, row) < (?, ?) ORDER BY at DESC, row DESC LIMIT ?"  # noqa: S608
    last: tuple[float, int] = (1e15, 0)
    while True:
        values = (*where.values, *last, _CSV_ROWS)

        def query(
            connection: sqlite3.Connection, values: Sequence[str | float] = values
        ) -> list[tuple[Any, ...]]:
            return connection.execute(page, values).fetchall()

        rows = await history.read(query)
        if not rows:
            return
        yield _csv_lines([(_iso(at), at, *others) for _, at, *others in rows])
        last = (rows[-1][1], rows[-1][0])


def _csv_lines(rows: Sequence[Sequence[Any]]) -> bytes:
    lines = io.StringIO()
    csv.writer(lines).writerows([_cell(value) for value in row] for row in rows)
    return lines.getvalue().encode()


def _cell(value: Any) -> Any:
    """Return a value as it may stand in a cell: a client's words are no formula, and do nothing to a terminal."""
    if not isinstance(value, str):
        return value
    plain = printable(value, keep_lines=True)
    return f"'{plain}" if value.lstrip(" ").startswith(_FORMULA) else plain


def _iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
