"""Metrics for Prometheus: fed by the events, and made into its families when they are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from engine_router.engines.context.figures import RESTORES, REUSED, SAVES
from engine_router.events import (
    Event,
    MemorySettled,
    RequestEnded,
    ResidentDied,
    ResidentReady,
    RouteChosen,
    SwapBegan,
    SwapEnded,
    TenantAsked,
    place_of,
)
from engine_router.guards.limits import MAX_COUNTED_MODELS
from engine_router.residency.causes import cause_kind
from engine_router.telemetry.metric_families import BoundedLabels, Counter, Gauge, Histogram, Labels, Reading

LAST_DURATIONS = 1000
SLOW = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
COUNTS: Final = (0, 1, 2, 4, 8, 16, 32, 64, 128)
_PAIR: Final = ("pool", "resident")
_STARTED: Final = Gauge(
    "resident_start_time_seconds", "When the start of each ready resident began, since the epoch.", _PAIR
)

GAUGES: Final = (
    Gauge("in_flight", "Requests that hold a lease.", _PAIR),
    Gauge("waiting", "Requests that wait for a resident.", _PAIR),
    Gauge("resident", "1 for each ready resident.", _PAIR),
    Gauge("residents", "Residents by phase.", ("pool", "phase")),
    Gauge("failed_resident", "1 for each resident that failed and has not worked since.", _PAIR),
    Gauge("oldest_wait_seconds", "The longest wait of those who wait now.", ("pool",)),
    Gauge("swaps_in_progress", "Swaps under way.", ("pool",)),
    Gauge("memory_total_bytes", "All memory of a pool.", ("pool",)),
    Gauge("memory_free_bytes", "Memory that a start could take now.", ("pool",)),
    Gauge("memory_budget_bytes", "The budget of a pool for its residents.", ("pool",)),
    Gauge("memory_foreign_bytes", "Memory that other programs have.", ("pool",)),
    Gauge("memory_asleep_bytes", "Memory held for residents that sleep.", ("pool",)),
    Gauge("resident_memory_bytes", "Memory that a present resident takes, as measured.", _PAIR),
    Gauge("context_saved_bytes", "Disk space of saved conversations.", ("engine",)),
    Gauge("context_saved_conversations", "Saved conversations.", ("engine",)),
    Gauge("context_kept", "1 for an engine that keeps context, 0 where that was of no use.", ("engine",)),
    Gauge("gpu_use_ratio", "The part of its time in which a GPU worked.", ("gpu",)),
    Gauge("gpu_temperature_celsius", "Temperature of a GPU.", ("gpu",)),
    Gauge("start_time_seconds", "When the router began, since the epoch.", ()),
    Gauge("build_info", "1, with the versions of the router and of Python.", ("version", "python")),
)
"""The gauges; `router_gauges` reads them."""


class Metrics:
    """All metrics of one router.

    Args:
        read: returns the values of `GAUGES` as they are now, by name.

    Attributes:
        read: as given; may be replaced.
        traces: counted by what sends them.
        last_durations_s: seconds that each of the last requests for known models took.
        broken_off: how many answers failed after a status below 400 had been sent, by that status.
    """

    def __init__(self, read: Callable[[], Mapping[str, Reading]] = dict) -> None:
        self.read = read
        self._swaps = Counter("swaps", "Swaps by transition and result.", ("source", "target", "result"))
        self._swap = Histogram("swap_seconds", "Whole swaps.", SLOW)
        self._swap.begin()
        self._phase = Histogram("swap_phase_seconds", "Phases of swaps.", SLOW, ("phase",))
        self._drained = Histogram(
            "in_flight_at_swap_start", "Requests of the resident that makes way, as a swap began.", COUNTS
        )
        self._drained.begin()
        self._settle = Histogram("settle_seconds", "Waits for memory to come back.", FAST, ("outcome",))
        self._start = Histogram("start_seconds", "Starts that became ready.", SLOW, ("resident",))
        self._starts = Counter("starts", "Starts that became ready, by kind.", ("resident", "kind"))
        self._start_failures = Counter("start_failures", "Starts that failed.", ("resident",))
        self._swap_causes = Counter("swap_causes", "Swaps by cause and result.", ("cause", "result"))
        self._evictions = Counter("evictions", "Stops of residents by reason.", ("reason",))
        self._route_choices = Counter("route_choices", "Models that routes chose.", ("route", "model"))
        self._tenant_asks = Counter(
            "tenant_asks", "Times that a tenant was asked to free memory, by outcome.", ("tenant", "outcome")
        )
        self._tenant_freed = Counter(
            "tenant_freed_bytes", "Memory that came back after a tenant was asked.", ("tenant",)
        )
        self._missing = Counter(
            "settle_failures", "Waits for memory that did not bring enough back.", ("pool", "outcome")
        )
        self._load_wait = Histogram(
            "load_wait_seconds", "Waits for a model's start, where there was one.", SLOW, ("engine",)
        )
        self._residents, self._transitions, self._tenants = (
            BoundedLabels(),
            BoundedLabels(),
            BoundedLabels(),
        )
        self._deaths = Counter("deaths", "Residents that ended by themselves.", ("resident",))
        self._requests = Counter("requests", "Requests by model and HTTP status.", ("model", "status"))
        self._queue_wait = Histogram("queue_wait_seconds", "Waits for a lease.", FAST, ("engine",))
        self._first_byte = Histogram("first_byte_seconds", "Time to the first byte.", FAST, ("engine",))
        self._duration = Histogram("request_seconds", "Whole requests.", FAST, ("engine",))
        # What engines count: an answer of which one tells nothing is in none of these.
        self._tokens_in = Counter("tokens_in", "Tokens of prompts, the cached ones included.", ("model",))
        self._tokens_cached = Counter("tokens_cached", "Tokens of prompts found in a cache.", ("model",))
        self._tokens_out = Counter("tokens_out", "Tokens that models wrote.", ("model",))
        self._first_token = Histogram(
            "first_token_seconds", "Time to the first token of streams.", FAST, ("engine",)
        )
        self._per_token = Histogram(
            "time_per_output_token_seconds", "Time for each token written.", TOKENS, ("engine",)
        )
        self.traces = Counter("traces", "Traces of requests and swaps, by what became of them.", ("result",))
        self._context = {
            SAVES: Counter(SAVES, "Conversations that were saved, or could not be.", ("engine", "result")),
            RESTORES: Counter(
                RESTORES,
                "Conversations that were not in a slot, by what became of them.",
                ("engine", "result"),
            ),
            REUSED: Counter(REUSED, "Tokens that had not to be read again.", ("engine", "source")),
        }
        self.last_durations_s: deque[float] = deque(maxlen=LAST_DURATIONS)
        self.broken_off: dict[int, int] = {}
        self._counted: set[str] = set()
        self._started: dict[Labels, float] = {}

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return "".join(self._lines()).encode("utf-8", "replace")

    def _lines(self) -> Iterator[str]:
        readings = self.read()
        for gauge in GAUGES:
            yield from gauge.lines(readings.get(gauge.name, {}))
        yield from _STARTED.lines(self._started_at(readings))
        families: Iterable[Counter | Histogram] = (
            self._swaps,
            self._swap,
            self._phase,
            self._drained,
            self._settle,
            self._start,
            self._starts,
            self._start_failures,
            self._swap_causes,
            self._evictions,
            self._route_choices,
            self._tenant_asks,
            self._tenant_freed,
            self._missing,
            self._deaths,
            self._requests,
            self._queue_wait,
            self._load_wait,
            self._first_byte,
            self._duration,
            self._tokens_in,
            self._tokens_cached,
            self._tokens_out,
            self._first_token,
            self._per_token,
            self.traces,
            *self._context.values(),
        )
        for family in families:
            yield from family.lines()

    def _started_at(self, readings: Mapping[str, Reading]) -> Reading:
        """Return when the start of each ready resident began, and forget residents that are gone."""
        present, ready = readings.get("in_flight", {}), readings.get("resident", {})
        self._started = {labels: at for labels, at in self._started.items() if labels in present}
        return {labels: at for labels, at in self._started.items() if labels in ready}

    def requests_ended(self) -> Mapping[tuple[str, int], int]:
        """Return how many requests for known models ended, by model and HTTP status."""
        return {
            (model, int(status)): count.value
            for (model, status), count in self._requests.counts.items()
            if model != "none"
        }

    def count_context(self, what: str, engine: str, result: str, by: int) -> None:
        """Count what kept context was worth; see `ContextFigures.on_count`."""
        self._context[what].inc(engine, result, by=by)

    def observe(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, RequestEnded):
            self._observe_request(event)
            return
        match event:
            case SwapBegan(source=str()):
                self._drained.observe(event.in_flight)
            case SwapEnded():
                self._observe_swap(event)
            case MemorySettled():
                self._observe_settle(event)
            case ResidentReady():
                self._observe_start(event)
            case RouteChosen():
                self._route_choices.inc(event.route, event.model)
            case TenantAsked():
                self._observe_tenant(event)
            case ResidentDied():
                self._deaths.inc(*self._residents.of(event.resident))

    def _observe_start(self, event: ResidentReady) -> None:
        self._started[place_of(event.pools) or event.pool, event.resident] = event.at - event.start_s
        self._start.observe(event.start_s, *self._residents.of(event.resident))
        kind = "adopted" if event.adopted else "wake" if event.woken else "cold"
        self._starts.inc(*self._residents.of(event.resident), kind)

    def _observe_tenant(self, event: TenantAsked) -> None:
        self._tenant_asks.inc(*self._tenants.of(event.tenant), event.outcome)
        if event.freed_bytes is not None:
            self._tenant_freed.inc(*self._tenants.of(event.tenant), by=event.freed_bytes)

    def _observe_settle(self, event: MemorySettled) -> None:
        self._settle.observe(event.waited_s, event.outcome)
        if event.warning is not None:
            self._missing.inc(event.pool, event.outcome)

    def _observe_swap(self, event: SwapEnded) -> None:
        self._swaps.inc(*self._transitions.of(event.source or "none", event.target or "none"), event.result)
        self._swap.observe(event.duration_s)
        for phase, seconds in event.phases.items():
            self._phase.observe(seconds, phase)
        cause = cause_kind(event.cause)
        self._swap_causes.inc(cause, event.result)
        if "stop" in event.phases:
            self._evictions.inc(cause)
        if event.result == "error" and event.target is not None and "start" in event.phases:
            self._start_failures.inc(*self._residents.of(event.target))

    def _observe_request(self, event: RequestEnded) -> None:
        if (engine := event.engine) is None:
            return
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
        if event.load_wait_s:
            self._load_wait.observe(event.load_wait_s, engine)
        if event.first_byte_s is not None:
            self._first_byte.observe(event.first_byte_s, engine)
        if event.first_token_s is not None:
            self._first_token.observe(event.first_token_s, engine)
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
