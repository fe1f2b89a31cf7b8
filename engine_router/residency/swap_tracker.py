"""The story of each swap: what caused it, which phases it went through, how long each took and should have."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.events import EventHub, SwapBegan, SwapEnded, SwapPhase, SwapStep
from engine_router.residency.ledger import Ledger

Result = Literal["ok", "error", "abandoned"]

_new_id: Callable[[], str] = map("s{}".format, itertools.count(1)).__next__
"""Returns an id that no swap of this process has yet: `s1`, `s2` and so on."""


def _text(resident: ResidentId | None) -> str | None:
    return None if resident is None else str(resident)


@define(eq=False, repr=False)
class Swap:
    """A swap under way: some make way, one may start. Times are the supervisor's clock, in seconds.

    Attributes:
        id: by which its events are told from those of others.
        expected_s: what it should take in all, by what its phases took the last time; None where unknown.
    """

    sources: list[ResidentId]
    target: ResidentId | None
    cause: str
    began_at: float
    expected_s: float | None = None
    phase: SwapStep | None = None
    phase_began_at: float = 0.0
    phases: dict[str, float] = field(factory=dict)
    id: str = field(init=False, factory=_new_id)

    @property
    def source(self) -> str | None:
        """The residents that make way; None where none does."""
        return ", ".join(map(str, self.sources)) or None

    @property
    def residents(self) -> list[ResidentId]:
        """All that make way, and the one that may start."""
        return [*self.sources, *(() if self.target is None else (self.target,))]

    def concerns(self, resident: ResidentId) -> bool:
        """Tell whether a resident makes way or starts in it."""
        return resident == self.target or resident in self.sources


class SwapTracker:
    """Turns the supervisor's steps, in memories that are planned together, into the events of their swaps.

    Args:
        hub: where the events go.
        wall_clock: seconds since the epoch.
        expected: what a phase of a resident took the last time, in seconds, where known.
        ledger: what the state of the pools is read from.
    """

    def __init__(
        self,
        hub: EventHub,
        wall_clock: Callable[[], float],
        expected: Callable[[ResidentId, SwapStep], float | None],
        ledger: Ledger,
    ) -> None:
        self._hub = hub
        self._wall_clock = wall_clock
        self._expected = expected
        self._ledger = ledger
        self.swaps: list[Swap] = []

    def phase(
        self,
        phase: SwapStep,
        now: float,
        *,
        source: ResidentId | None = None,
        target: ResidentId | None = None,
        cause: str = "",
    ) -> None:
        """Enter a phase; the first one begins the swap."""
        swap = self._found(source, target) or self._begin(source, target, cause, now)
        if source is not None and source not in swap.sources:
            swap.sources.append(source)
        swap.target = target or swap.target
        _close_phase(swap, now)
        swap.phase, swap.phase_began_at = phase, now
        subject = swap.target if phase == "start" else source
        self._hub.publish(
            SwapPhase(
                at=self._wall_clock(),
                pool=self._pool_of(swap),
                pools=self.pools_of(swap),
                source=swap.source,
                target=_text(swap.target),
                phase=phase,
                expected_s=self._expected(subject, phase) if subject is not None else None,
                id=swap.id,
            )
        )

    def settle(self, resident: ResidentId, now: float) -> None:
        """Enter the wait for the memory of a resident, if that is part of a swap."""
        if any(resident in swap.sources for swap in self.swaps):
            self.phase("settle", now, source=resident)

    def end(self, resident: ResidentId, result: Result, now: float, error: str | None = None) -> None:
        """End the swaps in which a resident makes way or starts."""
        for swap in [swap for swap in self.swaps if swap.concerns(resident)]:
            self._end(swap, result, now, error)

    def arrived(self, resident: ResidentId, now: float) -> None:
        """End the swap whose target is ready."""
        for swap in [swap for swap in self.swaps if swap.target == resident]:
            self._end(swap, "ok", now)

    def give_up(self, resident: ResidentId, now: float) -> None:
        """End the swap whose target has to go, before it was ready."""
        for swap in [swap for swap in self.swaps if swap.target == resident and swap.phase == "start"]:
            self._end(swap, "abandoned", now)

    def tidy(self, now: float) -> None:
        """End the swaps that nothing more will come of: all have made way, and nobody starts."""
        for swap in tuple(self.swaps):
            is_over = not self._is_coming(swap.target) and not any(map(self._is_on_its_way, swap.sources))
            if is_over:
                self._end(swap, "ok" if swap.target is None else "abandoned", now)

    def _found(self, source: ResidentId | None, target: ResidentId | None) -> Swap | None:
        if target is not None:
            for swap in self.swaps:
                if swap.target == target:
                    return swap
        for swap in self.swaps:
            if source in swap.sources:
                return swap
        if source is None:
            # Who made way has gone, and now somebody else starts there than who was to.
            for swap in self.swaps:
                has_room = swap.phase != "start" and not any(map(self._ledger.state, swap.sources))
                if has_room and (target is None or self._are_neighbours(swap, target)):
                    return swap
        return None

    def _are_neighbours(self, swap: Swap, target: ResidentId) -> bool:
        budget = self._ledger.budget
        return any(budget.are_neighbours(source, target) for source in swap.sources)

    def pools_of(self, swap: Swap) -> tuple[str, ...]:
        """Return the pools in which those lie that make way, and the one that may start."""
        places = self._ledger.budget.places
        found = {pool for resident in swap.residents for pool in places(resident)}
        return tuple(pool for pool in self._ledger.budget.capacities if pool in found)

    def _pool_of(self, swap: Swap) -> str:
        """Return the first pool in which its target lies, or who makes way."""
        return self._ledger.budget.places(swap.target or swap.sources[0])[0]

    def _begin(self, source: ResidentId | None, target: ResidentId | None, cause: str, now: float) -> Swap:
        swap = Swap([] if source is None else [source], target, cause, now)
        swap.expected_s = self._whole(source, target)
        self.swaps.append(swap)
        leaving = None if source is None else self._ledger.state(source)
        self._hub.publish(
            SwapBegan(
                at=self._wall_clock(),
                pool=self._pool_of(swap),
                pools=self.pools_of(swap),
                source=_text(source),
                target=_text(target),
                cause=cause,
                expected_s=swap.expected_s,
                waiting=sum(self._ledger.waiting_counts().values()),
                in_flight=0 if leaving is None else len(leaving.leases),
                id=swap.id,
            )
        )
        return swap

    def _whole(self, source: ResidentId | None, target: ResidentId | None) -> float | None:
        parts: list[float | None] = []
        if source is not None:
            parts += [self._expected(source, "stop"), self._expected(source, "settle")]
        if target is not None:
            parts.append(self._expected(target, "start"))
        known = [part for part in parts if part is not None]
        return sum(known) if known and len(known) == len(parts) else None

    def _is_coming(self, resident: ResidentId | None) -> bool:
        if resident is None:
            return False
        ledger = self._ledger
        return resident in ledger.waiting_counts() or ledger.state(resident) is not None

    def _is_on_its_way(self, resident: ResidentId) -> bool:
        return self._ledger.state(resident) is not None or resident in self._ledger.settling

    def _end(self, swap: Swap, result: Result, now: float, error: str | None = None) -> None:
        self.swaps.remove(swap)
        _close_phase(swap, now)
        self._hub.publish(
            SwapEnded(
                at=self._wall_clock(),
                pool=self._pool_of(swap),
                pools=self.pools_of(swap),
                source=swap.source,
                target=_text(swap.target),
                cause=swap.cause,
                result=result,
                duration_s=now - swap.began_at,
                expected_s=swap.expected_s,
                phases=dict(swap.phases),
                error=error,
                id=swap.id,
            )
        )


def _close_phase(swap: Swap, now: float) -> None:
    if swap.phase is not None:
        spent = now - swap.phase_began_at
        swap.phases[swap.phase] = swap.phases.get(swap.phase, 0.0) + spent
        swap.phase = None
