"""The traces of swaps, made from their events: a span of the whole, and one of each phase."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from attrs import define, field

from engine_router.events import Event, EventHub, SwapBegan, SwapEnded, SwapPhase, SwapStep, place_of
from engine_router.guards.limits import LINKED_SWAPS
from engine_router.residency.causes import cause_kind
from engine_router.telemetry.traces.span import Span, SpanId, new_span_id, new_trace_id, without_unknown

if TYPE_CHECKING:
    from engine_router.telemetry.traces.sender import Traces

_NS: Final = 1_000_000_000


@define(eq=False, repr=False)
class _Swap:
    """A swap, under way or ended. Times are nanoseconds since the epoch.

    Attributes:
        phases: those that it entered, with the times.
    """

    place: SpanId
    began_ns: int
    target: str | None
    ended_ns: int | None = None
    phases: list[tuple[SwapStep, int]] = field(factory=list)


@define(eq=False, repr=False)
class SwapTraces:
    """The swaps of one router: those under way, and the last ones, to which the traces of requests link."""

    _traces: Traces
    _under_way: dict[str, _Swap] = field(factory=dict)
    _ended: deque[_Swap] = field(factory=lambda: deque(maxlen=LINKED_SWAPS))

    def listen(self, hub: EventHub) -> None:
        """Take in what happens from now on."""
        hub.listen(self.observe, SwapBegan, SwapPhase, SwapEnded)

    def observe(self, event: Event) -> None:
        """Take in an event of a swap."""
        if isinstance(event, SwapBegan):
            if event.id is not None and self._traces.is_on:
                place = SpanId(trace_id=new_trace_id(), span_id=new_span_id())
                self._under_way[event.id] = _Swap(place, _ns(event.at), event.target)
        elif isinstance(event, SwapPhase):
            if (swap := self._under_way.get(event.id or "")) is not None:
                swap.target = event.target or swap.target
                swap.phases.append((event.phase, _ns(event.at)))
        elif isinstance(event, SwapEnded) and (swap := self._under_way.pop(event.id or "", None)) is not None:
            swap.target, swap.ended_ns = event.target or swap.target, _ns(event.at)
            swap.phases.append(("start", swap.ended_ns))  # ends the last one
            self._ended.append(swap)
            self._traces.add([_whole(swap, event), *_phases(swap)])
            swap.phases.clear()

    def places(self, resident: str, begin_ns: int, end_ns: int) -> list[SpanId]:
        """Return the spans of the swaps that brought a resident while somebody waited for it."""
        return [
            swap.place
            for swap in (*self._ended, *self._under_way.values())
            if swap.target == resident
            and swap.began_ns <= end_ns
            and (swap.ended_ns is None or swap.ended_ns >= begin_ns)
        ]


def _whole(swap: _Swap, event: SwapEnded) -> Span:
    attributes = {
        "engine_router.pool": place_of(event.pools) or event.pool,
        "engine_router.swap.id": event.id,
        "engine_router.swap.source": event.source,
        "engine_router.swap.target": event.target,
        "engine_router.swap.cause": cause_kind(event.cause),
        "engine_router.swap.result": event.result,
        "engine_router.swap.expected_s": event.expected_s,
        "error.type": "swap_failed" if event.result == "error" else None,
    }
    return Span(
        place=swap.place,
        name="swap",
        begin_ns=swap.began_ns,
        end_ns=_ns(event.at),
        attributes=without_unknown(attributes),
        is_error=event.result == "error",
    )


def _phases(swap: _Swap) -> list[Span]:
    """Return a span for each phase, which lasts until the next one begins."""
    return [
        Span(
            place=SpanId(trace_id=swap.place.trace_id, span_id=new_span_id()),
            name=phase,
            begin_ns=begin_ns,
            end_ns=end_ns,
            parent_id=swap.place.span_id,
        )
        for (phase, begin_ns), (_, end_ns) in zip(swap.phases, swap.phases[1:], strict=False)
    ]


def _ns(at: float) -> int:
    return int(at * _NS)
