"""When a resident could take up one more request: worked out of the state of its memories, without a plan being made for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from engine_router.engines.base import ResidentId
from engine_router.models.availability import Availability
from engine_router.residency.domain import Domain
from engine_router.residency.resident_state import Phase, ResidentState
from engine_router.residency.swap_status import SwapStatus

# Seconds that a request takes, where nobody knows how long those of others take.
_UNKNOWN_LEASE_S: Final = 5.0


def availability_of(
    domain: Domain, resident: ResidentId, swaps: Sequence[SwapStatus], now: float
) -> Availability:
    """Return when a resident could begin with one more request.

    What counts is the rest of a swap that brings it; else the requests of others in its way, the swaps for those that
    wait already, the stop of what makes way, its own start, and the reading of a conversation that is lost.

    Args:
        swaps: those under way in its memories.
    """
    ledger, budget = domain.ledger, domain.ledger.budget
    state, profile = ledger.state(resident), budget.profile(resident)
    failure = ledger.failures().get(resident)
    waiting = ledger.waiting_counts()
    own = waiting.get(resident, 0)
    leases = 0 if state is None else len(state.leases)
    failed_for_s = 0.0 if failure is None else max(0.0, failure.until - now)
    coming = next((swap for swap in swaps if swap.target == resident), None)
    if state is None and profile.is_always_there:
        return Availability(presence="ready", fits=True, requests=own, failed_for_s=failed_for_s)
    if state is not None and state.phase is Phase.READY:
        return Availability(
            presence="ready",
            fits=True,
            requests=own + leases,
            wait_s=_turn_s(state, own),
            failed_for_s=failed_for_s,
        )
    read_s = ledger.costs.reading(resident).one_s
    start_s = profile.likely_start_s + read_s
    if coming is not None or (state is not None and state.phase is Phase.STARTING):
        left_s = None if coming is None else coming.left_s(now)
        return Availability(
            presence="starting",
            fits=True,
            requests=own,
            wait_s=start_s if left_s is None else left_s + read_s,
            is_guessed=left_s is None and profile.start_s is None,
        )
    fits = state is None and budget.fits_now(resident)
    return Availability(
        fits=fits,
        requests=own + leases,
        wait_s=start_s if fits else start_s + _room_s(domain, resident),
        is_guessed=profile.start_s is None,
        failed_for_s=failed_for_s,
    )


def _turn_s(state: ResidentState, waiting: int) -> float:
    """Return the seconds until one of a resident's places is free for whoever comes now."""
    if len(state.leases) < state.most_leases and not waiting:
        return 0.0
    lease_s = _UNKNOWN_LEASE_S if state.lease_s is None else state.lease_s
    places = state.most_leases if 1 <= state.most_leases < math.inf else 1.0
    return lease_s * (waiting + 1) / places


def _room_s(domain: Domain, resident: ResidentId) -> float:
    """Return the seconds until there is room for a resident, if all that is present makes way."""
    ledger, budget = domain.ledger, domain.ledger.budget
    profile = budget.profile
    beside = [state for state in ledger.states if budget.are_neighbours(state.resident, resident)]
    others = [state for state in beside if state.resident != resident]
    busy_s = max((_lease_s(state) for state in others if state.leases), default=0.0)
    stop_s = max((profile(state.resident).stop_s or 0.0 for state in others), default=0.0)
    present = {state.resident for state in others if state.phase is Phase.READY}
    ahead = [
        other
        for other in ledger.waiting_counts()
        if other != resident and other not in present and budget.are_neighbours(other, resident)
    ]
    return busy_s + stop_s + sum(profile(other).likely_start_s for other in ahead)


def _lease_s(state: ResidentState) -> float:
    return _UNKNOWN_LEASE_S if state.lease_s is None else state.lease_s
