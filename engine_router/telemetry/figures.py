"""Figures: memory, requests, swaps, queues and GPUs over time, from the history and the samples of the last hour."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field, frozen

from engine_router.errors import BadRequest
from engine_router.guards.limits import FIGURE_MODELS, FIGURE_POINTS
from engine_router.telemetry.history import History
from engine_router.telemetry.records import SUMMED, Series
from engine_router.telemetry.sampling import MINUTE_S, SAMPLE_INTERVAL_S, Sampler, Tick

if TYPE_CHECKING:
    import sqlite3

SHORTEST_S: Final = 60
LONGEST_S: Final = 31 * 86400
_RING_S: Final = 3600  # for which there is more than one sample a minute
_OTHERS: Final = "(other models)"
_MOST_SWAPS: Final = 100_000

Line = list[float | None]


@frozen
class Grid:
    """The points of a figure: equal spans of time, of which each gets one value.

    Attributes:
        since: where the first one begins, in seconds since the epoch.
        step_s: how long each is.
    """

    since: float
    step_s: float
    count: int

    @classmethod
    def of(cls, span_s: int, points: int, now: float) -> Grid:
        """Return the points for the last seconds, not closer together than what is measured.

        They stay where they are as time goes on, so that a figure that is asked for again only moves.

        Raises:
            BadRequest: the span, or the number of points, is out of bounds.
        """
        if not SHORTEST_S <= span_s <= LONGEST_S:
            raise BadRequest(f'"span_s" must be from {SHORTEST_S} to {LONGEST_S}: a minute to 31 days')
        if not 1 <= points <= FIGURE_POINTS:
            raise BadRequest(f'"points" must be from 1 to {FIGURE_POINTS}')
        finest_s = SAMPLE_INTERVAL_S if span_s <= _RING_S else MINUTE_S
        step_s = max(math.ceil(span_s / points), finest_s)
        count = math.ceil(span_s / step_s)
        return cls((math.floor(now / step_s) + 1 - count) * step_s, step_s, count)

    def place(self, at: float) -> int:
        """Return the number of the point that a time belongs to; it may be none of them."""
        return math.floor((at - self.since) / self.step_s)

    def line(self) -> Line:
        """Return a line without values."""
        return [None] * self.count


@define(eq=False, repr=False)
class Sums:
    """Sums of values, and how many there were, by series and point."""

    grid: Grid
    lines: dict[Series, list[tuple[float, int]]] = field(factory=dict)

    def add(self, series: Series, place: int, total: float, count: int) -> None:
        """Add values to a point."""
        if 0 <= place < self.grid.count:
            line = self.lines.get(series)
            if line is None:
                line = self.lines[series] = [(0.0, 0)] * self.grid.count
            before, had = line[place]
            line[place] = before + total, had + count

    def line(self, series: Series) -> Line:
        """Return the values of one series: sums of what adds up, and means."""
        return [
            None if not count else round(total if series.kind in SUMMED else total / count, 3)
            for total, count in self.lines.get(series, [(0.0, 0)] * self.grid.count)
        ]

    def names(self, kind: str, pool: str | None = None) -> list[str]:
        """Return the names in the series of a kind, of one pool where one is given."""
        return sorted(s.name for s in self.lines if s.kind == kind and pool in (None, s.pool))


@define(eq=False, repr=False)
class ModelLines:
    """What one model did."""

    requests: Line
    tokens_out: Line
    tokens_per_s: Line


@define(eq=False, repr=False)
class Answer:
    """What the file says."""

    sums: Sums
    models: dict[str, ModelLines] = field(factory=dict)
    models_left_out: int = 0
    swaps: list[tuple[float, float]] = field(factory=list)
    waits: tuple[Line, Line] = ((), ())  # type: ignore[assignment]
    today: tuple[int, float, float] = (0, 0.0, 0.0)


async def figures(
    history: History, sampler: Sampler, *, span_s: int, points: int, now: float | None = None
) -> dict[str, Any]:
    """Return the figures of the last seconds.

    Raises:
        BadRequest: the span, or the number of points, is out of bounds.
        HistoryTooSlow: it took too long.
    """
    now = time.time() if now is None else now
    grid = Grid.of(span_s, points, now)
    midnight = _midnight(now)
    ring = [*sampler.ring]
    # What is in memory counts from its first whole minute on, or from where it began; before that the file does.
    edge = math.ceil if len(ring) == sampler.ring.maxlen else math.floor
    ring_at = edge(ring[0].at / MINUTE_S) * MINUTE_S if ring else math.inf
    found = await history.read(lambda connection: _asked(connection, grid, ring_at, midnight))
    answer = found or Answer(Sums(grid), waits=(grid.line(), grid.line()))
    for tick in ring:
        if tick.at >= ring_at:
            for series, value in tick.values.items():
                answer.sums.add(series, grid.place(tick.at), value, 1)
    served_s = answer.today[2] + _served_s(ring, max(ring_at, midnight))
    return {
        "enabled": history.why_off is None,
        "why_off": history.why_off,
        "since": grid.since,
        "step_s": grid.step_s,
        **_shown(answer, grid),
        "today": _today(answer.today[0], answer.today[1], served_s),
    }


def _served_s(ring: Iterable[Tick], since: float) -> float:
    serving = Series("serving")
    return sum(tick.values.get(serving, 0.0) for tick in ring if tick.at >= since)


def _shown(answer: Answer, grid: Grid) -> dict[str, Any]:
    sums = answer.sums
    pools = sorted({series.pool for series in sums.lines if series.pool})
    seconds, count = _spread(answer.swaps, grid)
    gpus = sorted(
        {*sums.names("gpu_use"), *sums.names("gpu_temperature")}, key=lambda name: (len(name), name)
    )
    return {
        "pools": {
            pool: {
                "capacity_bytes": _whole(sums.line(Series("capacity", pool))),
                "used_bytes": _whole(sums.line(Series("used", pool))),
                "residents": {
                    name: _whole(sums.line(Series("resident", pool, name)))
                    for name in sums.names("resident", pool)
                },
            }
            for pool in pools
        },
        "models": {
            name: {
                "requests": lines.requests,
                "tokens_out": lines.tokens_out,
                "tokens_per_s": lines.tokens_per_s,
            }
            for name, lines in answer.models.items()
        },
        "models_left_out": answer.models_left_out,
        "swaps": {"seconds": seconds, "count": count},
        "serving_s": sums.line(Series("serving")),
        "queue": {
            "length": _added([sums.line(Series("queue", pool)) for pool in pools], grid),
            "wait_p50_s": answer.waits[0],
            "wait_p95_s": answer.waits[1],
        },
        "gpu": {
            name: {
                "use": sums.line(Series("gpu_use", "", name)),
                "temperature_c": sums.line(Series("gpu_temperature", "", name)),
            }
            for name in gpus
        },
    }


def _whole(line: Line) -> list[int | None]:
    return [None if value is None else round(value) for value in line]


def _added(lines: Sequence[Line], grid: Grid) -> Line:
    """Return the sum of lines; None where none has a value."""
    found = grid.line()
    for line in lines:
        for place, value in enumerate(line):
            if value is not None:
                found[place] = (found[place] or 0.0) + value
    return found


def _spread(swaps: Iterable[tuple[float, float]], grid: Grid) -> tuple[Line, Line]:
    """Return the seconds of swaps in each point, and how many ended there. A swap may take longer than a point."""
    seconds, count = [0.0] * grid.count, [0] * grid.count
    for at, duration_s in swaps:
        last = grid.place(at)
        if 0 <= last < grid.count:
            count[last] += 1
        for place in range(max(0, grid.place(at - duration_s)), min(last, grid.count - 1) + 1):
            begin = grid.since + place * grid.step_s
            seconds[place] += max(0.0, min(at, begin + grid.step_s) - max(at - duration_s, begin))
    return [round(value, 3) for value in seconds], [float(value) for value in count]


# What is asked of the file, in a thread.


def _asked(connection: sqlite3.Connection, grid: Grid, ring_at: float, midnight: float) -> Answer:
    answer = Answer(Sums(grid))
    place = "CAST((at - :since) / :step AS INTEGER)"
    values = {"since": grid.since, "step": grid.step_s, "until": min(ring_at, 1e15), "midnight": midnight}
    rows = connection.execute(
        f"SELECT kind, pool, name, {place} AS place, sum(value), count(*) FROM samples JOIN series ON id = series"  # noqa: S608
        " WHERE at >= :since AND at < :until GROUP BY series, place",
        values,
    )
    for kind, pool, name, number, total, count in rows:
        answer.sums.add(Series(kind, pool, name), number, total, count)
    _ask_models(connection, answer, place, values)
    swaps = f"SELECT at, duration_s FROM swaps WHERE at >= :since ORDER BY at DESC LIMIT {_MOST_SWAPS}"  # noqa: S608
    answer.swaps = connection.execute(swaps, values).fetchall()
    answer.waits = _waits(connection, grid, place, values)
    today = connection.execute(
        "SELECT count(*), coalesce(sum(duration_s), 0) FROM swaps WHERE at >= :midnight", values
    ).fetchone()
    (served_s,) = connection.execute(
        "SELECT coalesce(sum(value), 0) FROM samples JOIN series ON id = series"
        " WHERE kind = 'serving' AND at >= :midnight AND at < :until",
        values,
    ).fetchone()
    answer.today = (today[0], today[1], served_s)
    return answer


def _ask_models(connection: sqlite3.Connection, answer: Answer, place: str, values: dict[str, float]) -> None:
    grid = answer.sums.grid
    known = "FROM requests WHERE at >= :since AND model IS NOT NULL AND engine IS NOT NULL"
    names = [
        name
        for (name,) in connection.execute(
            f"SELECT model {known} GROUP BY model ORDER BY count(*) DESC", values
        )
    ]
    shown = set(names[:FIGURE_MODELS])
    answer.models_left_out = len(names) - len(shown)
    speeds: dict[tuple[str, int], tuple[float, int]] = {}
    rows = connection.execute(
        f"SELECT model, {place} AS place, count(*), sum(tokens_out), sum(tokens_per_s), count(tokens_per_s)"
        f" {known} GROUP BY model, place",
        values,
    )
    for model, number, requests, tokens, speed, counted in rows:
        if not 0 <= number < grid.count:
            continue
        name = model if model in shown else _OTHERS
        lines = answer.models.setdefault(name, ModelLines([0.0] * grid.count, grid.line(), grid.line()))
        lines.requests[number] = (lines.requests[number] or 0.0) + requests
        if tokens is not None:
            lines.tokens_out[number] = (lines.tokens_out[number] or 0.0) + tokens
        if counted:
            before, had = speeds.get((name, number), (0.0, 0))
            speeds[name, number] = before + speed, had + counted
            lines.tokens_per_s[number] = round((before + speed) / (had + counted), 3)


def _waits(
    connection: sqlite3.Connection, grid: Grid, place: str, values: dict[str, float]
) -> tuple[Line, Line]:
    """Return the median and the 95th percentile of the waits for a lease that ended in each point."""
    rows = connection.execute(
        f"WITH waits AS (SELECT {place} AS place, queue_wait_s AS wait FROM requests"  # noqa: S608
        " WHERE at >= :since AND queue_wait_s IS NOT NULL),"
        " ranked AS (SELECT place, wait, row_number() OVER (PARTITION BY place ORDER BY wait) AS number,"
        " count(*) OVER (PARTITION BY place) AS count FROM waits)"
        " SELECT place, min(CASE WHEN number >= count * 0.5 THEN wait END),"
        " min(CASE WHEN number >= count * 0.95 THEN wait END) FROM ranked GROUP BY place",
        values,
    )
    medians, high = grid.line(), grid.line()
    for number, median, percentile in rows:
        if 0 <= number < grid.count:
            medians[number], high[number] = round(median, 3), round(percentile, 3)
    return medians, high


# Today.


def _midnight(now: float) -> float:
    """Return when this day began where the router runs."""
    day = time.localtime(now)
    return time.mktime((day.tm_year, day.tm_mon, day.tm_mday, 0, 0, 0, 0, 0, -1))


def _today(swaps: int, swap_s: float, serving_s: float) -> dict[str, Any]:
    cost = f"{swaps} swap{'' if swaps == 1 else 's'} took {duration(swap_s)}" if swaps else "no swaps"
    served = f"models served for {duration(serving_s)}" if serving_s >= 1 else "no model has served yet"
    return {
        "swaps": swaps,
        "swap_s": round(swap_s, 3),
        "serving_s": round(serving_s, 3),
        "text": f"{cost}; {served}",
    }


def duration(seconds: float) -> str:
    """Return a duration in its two largest units.

    >>> [duration(value) for value in (0.4, 59.6, 250, 7500, 90_000)]
    ['0.4 s', '1 min', '4 min 10 s', '2 h 5 min', '25 h']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    units: list[tuple[int, str]] = [(whole // 3600, "h"), (whole % 3600 // 60, "min"), (whole % 60, "s")]
    first = next((index for index, (count, _) in enumerate(units) if count), 2)
    return " ".join(f"{count} {name}" for count, name in units[first : first + 2] if count)
