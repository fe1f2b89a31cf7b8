"""Who waits, who is resident, who failed: plain data for JSON, made from what is known, without waiting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import trio

from engine_router.engines.base import ResidentId
from engine_router.in_flight import Request
from engine_router.proxy.wait_status import step_of
from engine_router.residency.ledger import Phase
from engine_router.residency.messages import Ticket
from engine_router.residency.pool import Pool
from engine_router.residency.resident_state import ResidentState
from engine_router.residency.scheduling import Turn
from engine_router.residency.swap_tracker import Swap
from engine_router.router import Router
from engine_router.web.status import failure_entry, resident_entry

Entry = dict[str, Any]


def queue(router: Router, limit: int) -> Entry:
    """Return who waits in each pool, in the order in which they came.

    Args:
        limit: so many are told of at most; all are counted.
    """
    requests, models = router.in_flight.by_ticket(), _models(router)
    waiting: list[Entry] = []
    total = 0
    for pool in router.supervisor.pools.values():
        tickets = sorted(pool.ledger.waiting(), key=lambda ticket: ticket.arrived_at)
        total += len(tickets)
        waiting += _waiting(router, pool, tickets[: limit - len(waiting)], requests, models)
    return {"total": total, "waiting": waiting}


def _waiting(
    router: Router,
    pool: Pool,
    tickets: Iterable[Ticket],
    requests: Mapping[Ticket, Request],
    models: Mapping[ResidentId, str],
) -> list[Entry]:
    now = trio.current_time()
    turns = {turn.resident: turn for turn in pool.ledger.turns(now)}
    prospects: dict[ResidentId, tuple[str, float | None]] = {}
    entries: list[Entry] = []
    for place, ticket in enumerate(tickets, start=1):
        resident = ticket.resident
        if resident not in prospects:
            prospects[resident] = _prospect(router, pool, resident, turns.get(resident), now)
        waits_for, estimate_s = prospects[resident]
        request = requests.get(ticket)
        entries.append(
            {
                "id": None if request is None else request.id,
                "pool": pool.name,
                "place": place,
                "model": models.get(resident, str(resident)) if request is None else request.model,
                "resident": str(resident),
                "path": None if request is None else request.path,
                "priority": ticket.priority,
                "waited_s": round(now - ticket.arrived_at, 3),
                "overdue_in_s": _rounded(ticket.deadline - now),
                "waits_for": waits_for,
                "estimate_s": _rounded(estimate_s),
            }
        )
    return entries


def _prospect(
    router: Router, pool: Pool, resident: ResidentId, turn: Turn | None, now: float
) -> tuple[str, float | None]:
    """Say what has to happen before a resident can serve, and how long that takes, as far as is known.

    The estimate is of swaps alone: how long others' requests go on, nobody can know.
    """
    supervisor = router.supervisor
    for swap in pool.journal.swaps:
        if swap.target == resident:
            return step_of(supervisor, swap, now), _left_s(swap, supervisor.profile(resident).start_s, now)
    if (residence := pool.ledger.residence(resident)) is not None:
        return _prospect_of_present(residence), supervisor.profile(resident).start_s
    return _prospect_of_turn(router, pool, turn, now)


def _left_s(swap: Swap, start_s: float | None, now: float) -> float | None:
    """Return how long a swap goes on, by what it took the last time."""
    if swap.phase == "start" and start_s is not None:
        return max(0.0, start_s - (now - swap.phase_began_at))
    return start_s if swap.expected_s is None else max(0.0, swap.expected_s - (now - swap.began_at))


def _prospect_of_present(residence: ResidentState) -> str:
    name = residence.resident
    words = {
        Phase.STARTING: f"loading {name}",
        Phase.READY: "others, who have waited longer than they should",
        Phase.STUCK: f"{name}, which could not be stopped",
    }
    return words.get(residence.phase, f"{name} to be gone; then it is started again")


def _prospect_of_turn(router: Router, pool: Pool, turn: Turn | None, now: float) -> tuple[str, float | None]:
    if turn is None:
        return "its turn: others are next", None
    if turn.victims:
        words = f"{', '.join(str(victim.resident) for victim in turn.victims)} to make way"
    elif turn.is_blocked:
        words = _in_the_way(pool, now)
    elif settling := ", ".join(map(str, pool.ledger.settling)):
        words = f"the memory of {settling}"
    else:
        words = "room in the memory"
    return words, _swap_s(router, turn)


def _swap_s(router: Router, turn: Turn) -> float | None:
    start_s = router.supervisor.profile(turn.resident).start_s
    if start_s is None:
        return None
    stops = [router.supervisor.profile(victim.resident).stop_s or 0.0 for victim in turn.victims]
    return start_s + max(stops, default=0.0)


def _in_the_way(pool: Pool, now: float) -> str:
    """Say who keeps others waiting, and why."""
    parts = []
    for residence in pool.ledger.residences:
        name = str(residence.resident)
        if residence.leases:
            count = len(residence.leases)
            parts.append(f"{name}, busy with {count} request{'' if count == 1 else 's'}")
        elif residence.pinned:
            parts.append(f"{name}, which is pinned")
        elif held_for_s(residence, now):
            parts.append(f"{name}, which is held for a follow-up")
        else:
            parts.append(f"{name} ({residence.phase.value})")
    return "; ".join(parts) or "room in the memory"


def held_for_s(residence: ResidentState, now: float) -> float | None:
    """Return for how many seconds more an idle resident is kept from making way; None where it is not."""
    if residence.held_until is None or not residence.is_idle or residence.held_until <= now:
        return None
    return residence.held_until - now


def residents(router: Router) -> Entry:
    """Return who is resident in each pool, with the requests that use them."""
    now = trio.current_time()
    requests = router.in_flight.by_ticket()
    return {
        "residents": [
            {
                "pool": pool.name,
                **resident_entry(router, pool, residence, now),
                "need_bytes": router.supervisor.profile(residence.resident).need_bytes,
                "held_for_s": _rounded(held_for_s(residence, now)),
                "waiting": pool.ledger.waiting_counts().get(residence.resident, 0),
                "requests": [_using(requests.get(ticket), ticket, now) for ticket in residence.leases],
            }
            for pool in router.supervisor.pools.values()
            for residence in pool.ledger.residences
        ]
    }


def _using(request: Request | None, ticket: Ticket, now: float) -> Entry:
    return {
        "id": None if request is None else request.id,
        "model": None if request is None else request.model,
        "path": None if request is None else request.path,
        "for_s": round(now - ticket.arrived_at, 3),
    }


def failed(router: Router) -> Entry:
    """Return who failed and has not worked since, with the reason."""
    now, models = trio.current_time(), _models(router)
    return {
        "failed": [
            {
                "model": models.get(resident, str(resident)),
                "resident": str(resident),
                "pool": pool.name,
                **failure_entry(failure, now),
            }
            for pool in router.supervisor.pools.values()
            for resident, failure in pool.ledger.failures().items()
        ]
    }


def _models(router: Router) -> dict[ResidentId, str]:
    """Return one model for each resident that serves some: the first that is configured."""
    models: dict[ResidentId, str] = {}
    for target in router.registry.targets():
        models.setdefault(target.resident, target.model)
    return models


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None or not math.isfinite(seconds) else round(seconds, 3)
