"""The story of each swap: what caused it, which phases it went through, how long each took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.events import EventHub, Phase, SwapBegan, SwapEnded, SwapPhase


def _text(resident: ResidentId | None) -> str | None:
    return None if resident is None else str(resident)


@define(eq=False)
class Swap:
    """A swap under way. Times are the supervisor's clock, in seconds."""

    source: ResidentId | None
    target: ResidentId | None
    cause: str
    began_at: float
    phase: Phase | None = None
    phase_began_at: float = 0.0
    phases: dict[str, float] = field(factory=dict)


class SwapJournal:
    """Turns the supervisor's steps in one pool into the events of a swap.

    Args:
        pool: the pool's name.
        hub: where the events go.
        wall_clock: seconds since the epoch.
        expected: what a phase of a resident took the last time, in seconds, where known.
    """

    def __init__(
        self,
        pool: str,
        hub: EventHub,
        wall_clock: Callable[[], float],
        expected: Callable[[ResidentId, Phase], float | None],
    ) -> None:
        self._pool = pool
        self._hub = hub
        self._wall_clock = wall_clock
        self._expected = expected
        self.current: Swap | None = None

    def phase(
        self,
        phase: Phase,
        now: float,
        *,
        source: ResidentId | None = None,
        target: ResidentId | None = None,
        cause: str = "",
    ) -> None:
        """Enter a phase; the first one begins the swap."""
        swap = self.current
        if swap is None:
            swap = self.current = Swap(source, target, cause, now)
            self._hub.publish(
                SwapBegan(
                    at=self._wall_clock(),
                    pool=self._pool,
                    source=_text(source),
                    target=_text(target),
                    cause=cause,
                )
            )
        swap.source = swap.source or source
        swap.target = target or swap.target
        self._close_phase(swap, now)
        swap.phase, swap.phase_began_at = phase, now
        subject = swap.target if phase == "start" else swap.source
        self._hub.publish(
            SwapPhase(
                at=self._wall_clock(),
                pool=self._pool,
                source=_text(swap.source),
                target=_text(swap.target),
                phase=phase,
                expected_s=self._expected(subject, phase) if subject is not None else None,
            )
        )

    def end(self, result: Literal["ok", "error", "abandoned"], now: float, error: str | None = None) -> None:
        """End the swap, if one is under way."""
        swap, self.current = self.current, None
        if swap is None:
            return
        self._close_phase(swap, now)
        self._hub.publish(
            SwapEnded(
                at=self._wall_clock(),
                pool=self._pool,
                source=_text(swap.source),
                target=_text(swap.target),
                cause=swap.cause,
                result=result,
                duration_s=now - swap.began_at,
                phases=dict(swap.phases),
                error=error,
            )
        )

    def end_empty(self, now: float) -> None:
        """End the swap, if one is under way, because memory is empty and nothing waits."""
        if self.current is not None:
            self.end("ok" if self.current.target is None else "abandoned", now)

    def _close_phase(self, swap: Swap, now: float) -> None:
        if swap.phase is not None:
            spent = now - swap.phase_began_at
            swap.phases[swap.phase] = swap.phases.get(swap.phase, 0.0) + spent
            swap.phase = None
