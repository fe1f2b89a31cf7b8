"""Metrics for Prometheus, fed by the events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from engine_router.events import Event, MemorySettled, RequestEnded, ResidentDied, ResidentReady, SwapEnded
from engine_router.guards.limits import MAX_COUNTED_MODELS

LAST_DURATIONS = 1000
SLOW = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

Reading = Mapping[tuple[str, ...], float]
"""The values of a gauge, by their labels."""


class _Now(Collector):
    """A gauge that is read when it is asked for."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Reading]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._read = read

    def collect(self) -> list[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in self._read().items():
            family.add_metric(labels, value)
        return [family]


class Metrics:
    """All metrics of one router, in a registry of its own.

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
        registry = self._registry = CollectorRegistry()
        prefix = "engine_router"
        pair = ("pool", "resident")
        registry.register(_Now(f"{prefix}_in_flight", "Requests that hold a lease.", pair, in_flight))
        registry.register(_Now(f"{prefix}_waiting", "Requests that wait for a resident.", pair, waiting))
        registry.register(_Now(f"{prefix}_resident", "1 for each ready resident.", pair, resident))
        self._swaps = Counter(
            f"{prefix}_swaps",
            "Swaps by transition and result.",
            ("source", "target", "result"),
            registry=registry,
        )
        self._swap = Histogram(f"{prefix}_swap_seconds", "Whole swaps.", buckets=SLOW, registry=registry)
        self._phase = Histogram(
            f"{prefix}_swap_phase_seconds", "Phases of swaps.", ("phase",), buckets=SLOW, registry=registry
        )
        self._settle = Histogram(
            f"{prefix}_settle_seconds",
            "Waits for memory to come back.",
            ("outcome",),
            buckets=FAST,
            registry=registry,
        )
        self._start = Histogram(
            f"{prefix}_start_seconds",
            "Starts that became ready.",
            ("resident",),
            buckets=SLOW,
            registry=registry,
        )
        self._deaths = Counter(
            f"{prefix}_deaths", "Residents that ended by themselves.", ("resident",), registry=registry
        )
        self._requests = Counter(
            f"{prefix}_requests", "Requests by model and HTTP status.", ("model", "status"), registry=registry
        )
        self._queue_wait = Histogram(
            f"{prefix}_queue_wait_seconds", "Waits for a lease.", ("engine",), buckets=FAST, registry=registry
        )
        self._first_byte = Histogram(
            f"{prefix}_first_byte_seconds",
            "Time to the first byte.",
            ("engine",),
            buckets=FAST,
            registry=registry,
        )
        self._duration = Histogram(
            f"{prefix}_request_seconds", "Whole requests.", ("engine",), buckets=FAST, registry=registry
        )

        self.last_durations_s: deque[float] = deque(maxlen=LAST_DURATIONS)
        self.broken_off: dict[int, int] = {}
        self._counted: set[str] = set()
        self._counts: dict[tuple[str, int], Counter] = {}
        self._times: dict[tuple[Histogram, str], Histogram] = {}

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def requests_ended(self) -> Mapping[tuple[str, int], int]:
        """Return how many requests for known models ended, by model and HTTP status."""
        return {
            (sample.labels["model"], int(sample.labels["status"])): int(sample.value)
            for metric in self._requests.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and sample.labels["model"] != "none"
        }

    def observe(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, RequestEnded):
            if event.engine is not None:
                self._observe_request(event, event.engine)
            return
        match event:
            case SwapEnded():
                self._swaps.labels(event.source or "none", event.target or "none", event.result).inc()
                self._swap.observe(event.duration_s)
                for phase, seconds in event.phases.items():
                    self._phase.labels(phase).observe(seconds)
            case MemorySettled():
                self._settle.labels(event.outcome).observe(event.waited_s)
            case ResidentReady():
                self._start.labels(event.resident).observe(event.start_s)
            case ResidentDied():
                self._deaths.labels(event.resident).inc()
            case _:
                pass

    def _observe_request(self, event: RequestEnded, engine: str) -> None:
        """Take in the one event that comes with every request, without looking its labels up again each time."""
        model = event.model or "none"
        if model not in self._counted:
            if len(self._counted) < MAX_COUNTED_MODELS:
                self._counted.add(model)
            else:
                model = "(other models)"
        key = (model, event.status)
        if (count := self._counts.get(key)) is None:
            count = self._counts[key] = self._requests.labels(key[0], str(key[1]))
        count.inc()
        if event.model is not None:
            self.last_durations_s.append(event.duration_s)
            if event.error is not None and event.status < 400:
                self.broken_off[event.status] = self.broken_off.get(event.status, 0) + 1
        for histogram, seconds in (
            (self._duration, event.duration_s),
            (self._queue_wait, event.queue_wait_s),
            (self._first_byte, event.first_byte_s),
        ):
            if seconds is None:
                continue
            if (child := self._times.get((histogram, engine))) is None:
                child = self._times[histogram, engine] = histogram.labels(engine)
            child.observe(seconds)
