"""Metrics for Prometheus: fed by the events, and made into its families when they are asked for."""

from __future__ import annotations

import itertools
import os
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from attrs import define, field

from engine_router.events import Event, MemorySettled, RequestEnded, ResidentDied, ResidentReady, SwapEnded
from engine_router.guards.limits import MAX_COUNTED_MODELS

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

LAST_DURATIONS = 1000
SLOW = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_PREFIX: Final = "engine_router_"
_PAIR: Final = ("pool", "resident")

Labels = tuple[str, ...]

Reading = Mapping[Labels, float]
"""The values of a gauge, by their labels."""


@define(eq=False, repr=False)
class _Gauge:
    """A gauge that is read when it is asked for."""

    name: str
    text: str
    labels: Labels
    read: Callable[[], Reading]

    def collect(self) -> Metric:
        """Return it for Prometheus."""
        from prometheus_client.metrics_core import GaugeMetricFamily  # noqa: PLC0415 - see `Metrics.exposition`

        family = GaugeMetricFamily(_PREFIX + self.name, self.text, labels=self.labels)
        for labels, value in self.read().items():
            family.add_metric(labels, value)
        return family


@define(eq=False, repr=False)
class _Count:
    """A count, and since when there is one."""

    value: int = 0
    created_at: float = field(factory=time.time)


@define(eq=False, repr=False)
class _Counter:
    """Counts, by labels."""

    name: str
    text: str
    labels: Labels
    counts: dict[Labels, _Count] = field(factory=dict)

    def inc(self, *labels: str, by: int = 1) -> None:
        """Count one more, or so many."""
        if (count := self.counts.get(labels)) is None:
            count = self.counts[labels] = _Count()
        count.value += by

    def collect(self) -> Metric:
        """Return them for Prometheus."""
        from prometheus_client.metrics_core import CounterMetricFamily  # noqa: PLC0415 - see `Metrics.exposition`

        family = CounterMetricFamily(_PREFIX + self.name, self.text, labels=self.labels)
        for labels, count in self.counts.items():
            family.add_metric(labels, count.value, created=count.created_at if _shows_created() else None)
        return family


@define(eq=False, repr=False)
class _Durations:
    """Durations of one kind: how many there were up to each bound, and their sum."""

    counts: list[int]
    sum_s: float = 0.0
    created_at: float = field(factory=time.time)


@define(eq=False, repr=False)
class _Histogram:
    """Durations, by labels.

    Attributes:
        bounds: the upper bounds of the buckets, in seconds; one without bound comes behind them.
    """

    name: str
    text: str
    bounds: Sequence[float]
    labels: Labels = ()
    durations: dict[Labels, _Durations] = field(factory=dict)

    def observe(self, seconds: float, *labels: str) -> None:
        """Take in a duration."""
        if (found := self.durations.get(labels)) is None:
            found = self.begin(*labels)
        found.counts[bisect_left(self.bounds, seconds)] += 1
        found.sum_s += seconds

    def begin(self, *labels: str) -> _Durations:
        """Have a series without a duration in it."""
        begun = self.durations[labels] = _Durations([0] * (len(self.bounds) + 1))
        return begun

    def collect(self) -> Metric:
        """Return them for Prometheus."""
        from prometheus_client.metrics_core import HistogramMetricFamily  # noqa: PLC0415 - see `Metrics.exposition`

        family = HistogramMetricFamily(_PREFIX + self.name, self.text, labels=self.labels)
        bounds = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        for labels, found in self.durations.items():
            family.add_metric(
                labels, list(zip(bounds, itertools.accumulate(found.counts), strict=True)), found.sum_s
            )
            if _shows_created():
                created = dict(zip(self.labels, labels, strict=True))
                family.add_sample(f"{family.name}_created", created, found.created_at)
        return family


class Metrics:
    """All metrics of one router.

    Args:
        in_flight: requests that hold a lease now, by (pool, resident).
        waiting: requests that wait now, by (pool, resident).
        resident: 1 for each resident that is ready, by (pool, resident).

    Attributes:
        last_durations_s: seconds that each of the last requests for known models took.
        broken_off: how many answers failed after a status below 400 had been sent, by that status.
    """

    def __init__(
        self,
        *,
        in_flight: Callable[[], Reading],
        waiting: Callable[[], Reading],
        resident: Callable[[], Reading],
    ) -> None:
        self._gauges = (
            _Gauge("in_flight", "Requests that hold a lease.", _PAIR, in_flight),
            _Gauge("waiting", "Requests that wait for a resident.", _PAIR, waiting),
            _Gauge("resident", "1 for each ready resident.", _PAIR, resident),
        )
        self._swaps = _Counter("swaps", "Swaps by transition and result.", ("source", "target", "result"))
        self._swap = _Histogram("swap_seconds", "Whole swaps.", SLOW)
        self._swap.begin()
        self._phase = _Histogram("swap_phase_seconds", "Phases of swaps.", SLOW, ("phase",))
        self._settle = _Histogram("settle_seconds", "Waits for memory to come back.", FAST, ("outcome",))
        self._start = _Histogram("start_seconds", "Starts that became ready.", SLOW, ("resident",))
        self._deaths = _Counter("deaths", "Residents that ended by themselves.", ("resident",))
        self._requests = _Counter("requests", "Requests by model and HTTP status.", ("model", "status"))
        self._queue_wait = _Histogram("queue_wait_seconds", "Waits for a lease.", FAST, ("engine",))
        self._first_byte = _Histogram("first_byte_seconds", "Time to the first byte.", FAST, ("engine",))
        self._duration = _Histogram("request_seconds", "Whole requests.", FAST, ("engine",))
        # What engines count: an answer of which one tells nothing is in none of these.
        self._tokens_in = _Counter("tokens_in", "Tokens of prompts, the cached ones included.", ("model",))
        self._tokens_cached = _Counter("tokens_cached", "Tokens of prompts found in a cache.", ("model",))
        self._tokens_out = _Counter("tokens_out", "Tokens that models wrote.", ("model",))
        self._first_token = _Histogram(
            "first_token_seconds", "Time to the first token of streams.", FAST, ("engine",)
        )
        self._per_token = _Histogram(
            "time_per_output_token_seconds", "Time for each token written.", TOKENS, ("engine",)
        )
        self.last_durations_s: deque[float] = deque(maxlen=LAST_DURATIONS)
        self.broken_off: dict[int, int] = {}
        self._counted: set[str] = set()

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        # Many routers are never asked: its library is imported, and takes its memory, when they are.
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415

        return generate_latest(self)  # which asks it to collect, and for nothing else

    def collect(self) -> Iterator[Metric]:
        """Yield the families of all metrics."""
        for family in (
            *self._gauges,
            self._swaps,
            self._swap,
            self._phase,
            self._settle,
            self._start,
            self._deaths,
            self._requests,
            self._queue_wait,
            self._first_byte,
            self._duration,
            self._tokens_in,
            self._tokens_cached,
            self._tokens_out,
            self._first_token,
            self._per_token,
        ):
            yield family.collect()

    def requests_ended(self) -> Mapping[tuple[str, int], int]:
        """Return how many requests for known models ended, by model and HTTP status."""
        return {
            (model, int(status)): count.value
            for (model, status), count in self._requests.counts.items()
            if model != "none"
        }

    def observe(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, RequestEnded):
            if event.engine is not None:
                self._observe_request(event, event.engine)
            return
        match event:
            case SwapEnded():
                self._swaps.inc(event.source or "none", event.target or "none", event.result)
                self._swap.observe(event.duration_s)
                for phase, seconds in event.phases.items():
                    self._phase.observe(seconds, phase)
            case MemorySettled():
                self._settle.observe(event.waited_s, event.outcome)
            case ResidentReady():
                self._start.observe(event.start_s, event.resident)
            case ResidentDied():
                self._deaths.inc(event.resident)
            case _:
                pass

    def _observe_request(self, event: RequestEnded, engine: str) -> None:
        model = event.model or "none"
        if model not in self._counted:
            if len(self._counted) < MAX_COUNTED_MODELS:
                self._counted.add(model)
            else:
                model = "(other models)"
        self._requests.inc(model, str(event.status))
        if event.model is not None:
            self.last_durations_s.append(event.duration_s)
            if event.error is not None and event.status < 400:
                self.broken_off[event.status] = self.broken_off.get(event.status, 0) + 1
        self._duration.observe(event.duration_s, engine)
        if event.queue_wait_s is not None:
            self._queue_wait.observe(event.queue_wait_s, engine)
        if event.first_byte_s is not None:
            self._first_byte.observe(event.first_byte_s, engine)
        if event.first_token_s is not None:
            self._first_token.observe(event.first_token_s, engine)
        if event.tokens_in is not None or event.tokens_out is not None:
            self._observe_tokens(event, model, engine)

    def _observe_tokens(self, event: RequestEnded, model: str, engine: str) -> None:
        if event.tokens_in is not None:
            self._tokens_in.inc(model, by=event.tokens_in)
        if event.tokens_cached is not None:
            self._tokens_cached.inc(model, by=event.tokens_cached)
        if event.tokens_out is not None:
            self._tokens_out.inc(model, by=event.tokens_out)
        if event.tokens_per_s:
            self._per_token.observe(1 / event.tokens_per_s, engine)


def _shows_created() -> bool:
    """Tell whether series say since when they are: as Prometheus' library does, by its environment variable."""
    return os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "false").lower() not in ("true", "1", "t")
