"""A swap under way as a frozen value: its phases, what each takes as a rule, and what this one took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from attrs import frozen

from engine_router.engines.base import ResidentId
from engine_router.events import SwapStep
from engine_router.residency.swap_tracker import Swap

_LEAVING: Final[tuple[SwapStep, ...]] = ("drain", "stop", "settle")

Expected = Callable[[ResidentId, SwapStep], float | None]
"""Returns what a phase of a resident took the last time, in seconds; None where unknown."""


@frozen(kw_only=True, repr=False)
class PhaseStatus:
    """A phase of a swap.

    Attributes:
        usual_s: the seconds that it took the last time; None where unknown.
        took_s: the seconds that it took this time, once it is over.
    """

    name: SwapStep
    usual_s: float | None
    took_s: float | None


@frozen(kw_only=True, repr=False)
class SwapStatus:
    """A swap under way.

    Attributes:
        id: that of the swap in its events.
        pools: the pools in which those lie that make way, and the target.
        sources: the residents that make way.
        expected_s: the seconds that all of it should take; None where unknown.
        start_s: the same, of the target's start.
        step: what the target's start does just now, in words, where that is more than to load.
        phases: those that it has been through, is in, and will be in, in their order.
    """

    id: str
    pools: tuple[str, ...]
    sources: tuple[ResidentId, ...]
    target: ResidentId | None
    cause: str
    phase: SwapStep | None
    began_at: float
    phase_began_at: float
    expected_s: float | None
    start_s: float | None
    step: str | None = None
    phases: tuple[PhaseStatus, ...] = ()

    @property
    def source(self) -> str | None:
        """The names of the residents that make way; None where none does."""
        return ", ".join(map(str, self.sources)) or None

    def left_s(self, now: float) -> float | None:
        """Return the seconds that it still takes, by what it took the last time."""
        if self.phase == "start" and self.start_s is not None:
            return max(0.0, self.start_s - (now - self.phase_began_at))
        return self.start_s if self.expected_s is None else max(0.0, self.expected_s - (now - self.began_at))


def swap_status(
    swap: Swap,
    pools: tuple[str, ...],
    expected: Expected,
    start_s: float | None,
    step: str | None = None,
) -> SwapStatus:
    """Return a swap as it is now.

    Args:
        pools: in which those lie that it is about.
        start_s: the seconds that its target's start takes; None where unknown.
        step: what that start does just now, in words.
    """
    return SwapStatus(
        id=swap.id,
        pools=pools,
        sources=tuple(swap.sources),
        target=swap.target,
        cause=swap.cause,
        phase=swap.phase,
        began_at=swap.began_at,
        phase_began_at=swap.phase_began_at,
        expected_s=swap.expected_s,
        start_s=start_s,
        step=step,
        phases=tuple(_phases(swap, expected)),
    )


def _phases(swap: Swap, expected: Expected) -> Iterator[PhaseStatus]:
    for step in _LEAVING if swap.sources else ():
        if step != "drain" or step == swap.phase or step in swap.phases:
            known = [took for source in swap.sources if (took := expected(source, step)) is not None]
            yield _phase(swap, step, max(known, default=None))
    if swap.target is not None:
        yield _phase(swap, "start", expected(swap.target, "start"))


def _phase(swap: Swap, step: SwapStep, usual_s: float | None) -> PhaseStatus:
    took_s = None if step == swap.phase else swap.phases.get(step)
    return PhaseStatus(name=step, usual_s=usual_s, took_s=took_s)
