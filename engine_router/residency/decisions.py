"""Decisions in words: who starts, who goes for whom, and why.

Pure, like the ledger: made from the effects that it returned and the state that it left, at the same moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from attrs import frozen

from engine_router.engines.base import ResidentId
from engine_router.residency import messages
from engine_router.residency.memory_budget import MemoryBudget
from engine_router.residency.messages import Effect
from engine_router.residency.resident_state import Phase, ResidentState

# The most residents of which one sentence says why they stay.
MOST_STAYING: Final = 3

_Leaving = messages.Stop | messages.Drain


@frozen(kw_only=True)
class Decision:
    """A decision of the supervisor.

    Attributes:
        at: wall-clock time, seconds since the epoch.
        pool: the pools in which lies what it is about, such as `gpu0+gpu1`.
    """

    at: float
    pool: str
    text: str


def explained(effects: Sequence[Effect], budget: MemoryBudget, now: float) -> list[tuple[ResidentId, str]]:
    """Return a sentence for each decision among some effects, in their order, with the first resident that it is about.

    Args:
        effects: what the ledger returned.
        budget: the state of the pool after them.
        now: when that was, by the supervisor's clock.
    """
    leaving: dict[tuple[str, ResidentId | None], list[_Leaving]] = {}
    texts: list[tuple[ResidentId, str]] = []
    for effect in effects:
        match effect:
            case messages.Start(resident, cause, adopt):
                texts.append((resident, _start(resident, cause, budget, is_adopted=adopt)))
            case messages.Stop(_, cause, wanted) | messages.Drain(_, cause, wanted):
                leaving.setdefault((cause, wanted), []).append(effect)
            case messages.Resume(resident):
                texts.append((resident, f"{resident} stays: its room is not needed any more"))
            case _:
                pass
    if not leaving:
        return texts
    revoked = [effect.ticket.resident for effect in effects if isinstance(effect, messages.Revoke)]
    goings = (
        (those[0].resident, _going(cause, wanted, those, revoked, budget, now))
        for (cause, wanted), those in leaving.items()
    )
    return [*goings, *texts]


def _start(resident: ResidentId, cause: str, budget: MemoryBudget, *, is_adopted: bool) -> str:
    if is_adopted:
        return f"{resident} is taken over: {cause}"
    return "; ".join((f"{resident} starts: {cause}", *_room(resident, budget)))


def _going(
    cause: str,
    wanted: ResidentId | None,
    leaving: Iterable[_Leaving],
    revoked: Sequence[ResidentId],
    budget: MemoryBudget,
    now: float,
) -> str:
    parts = [_leaving(effect, revoked.count(effect.resident), budget, now) for effect in leaving]
    if wanted is not None and wanted not in budget.states:
        parts += [*_staying(wanted, budget, now), *_room(wanted, budget)]
    return f"{cause}: {'; '.join(parts)}"


def _leaving(effect: _Leaving, revoked: int, budget: MemoryBudget, now: float) -> str:
    """Return that a resident goes, and what it was doing."""
    name, state = str(effect.resident), budget.states.get(effect.resident)
    if state is None:
        return f"{name} stops"
    if isinstance(effect, messages.Drain):
        limit = "" if math.isinf(state.drain_deadline) else f" within {_seconds(state.drain_deadline - now)}"
        return f"{name} closes, {_requests(len(state.leases))} may finish{limit}"
    if state.ready_at == math.inf:
        return f"{name} stops before it was ready"
    if revoked:
        return f"{name} stops, {_requests(revoked)} cut off"
    if now - state.idle_since < 1:
        return f"{name} stops, just done"
    return f"{name} stops, idle {_seconds(now - state.idle_since)}{_held(state, now)}"


def _held(state: ResidentState, now: float) -> str:
    if state.held_until is None or state.held_until <= state.idle_since:
        return ""
    return (
        ", held no longer" if state.held_until <= now else f", held {_seconds(state.held_until - now)} more"
    )


def _staying(wanted: ResidentId, budget: MemoryBudget, now: float) -> Iterator[str]:
    """Yield who stays beside what is wanted, and why it was not chosen to go."""
    staying = [
        state
        for state in budget.states.values()
        if state.phase in (Phase.STARTING, Phase.READY)
        and state.resident != wanted
        and budget.are_neighbours(state.resident, wanted)
    ]
    for state in staying[:MOST_STAYING]:
        yield f"{state.resident} stays, {_reason_to_stay(state, budget, now)}"
    if len(staying) > MOST_STAYING:
        yield f"{len(staying) - MOST_STAYING} more stay"


def _reason_to_stay(state: ResidentState, budget: MemoryBudget, now: float) -> str:
    if state.leases:
        return f"busy with {_requests(len(state.leases))}"
    if state.pinned:
        return "pinned"
    if state.phase is Phase.STARTING:
        return "starting"
    if state.held_until is not None and state.held_until > now:
        return f"held {_seconds(state.held_until - now)} more"
    start_s = budget.profile(state.resident).start_s
    return "its room is not needed" if start_s is None else f"{_seconds(start_s)} to load again"


def _room(resident: ResidentId, budget: MemoryBudget) -> Iterator[str]:
    """Yield what memory a resident needs, and what of the budget is free."""
    profile = budget.profile(resident)
    pools = budget.pools_of(profile)
    for pool in pools:
        need, free = "", ""
        if (need_bytes := profile.need_in(pool)) is not None:
            need = f"{'about ' if profile.is_estimated else ''}{_gib(need_bytes)} GiB needed"
        if budget.limit_bytes(pool) < math.inf:
            free = f"{_gib(budget.free_beside(resident, pool))} GiB free"
        if need or free:
            place = f"{pool}: " if len(pools) > 1 else ""
            yield place + ", ".join(filter(None, (need, free)))


def _requests(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"


def _gib(size_bytes: float) -> str:
    return f"{max(0.0, size_bytes) / 2**30:.1f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
