"""`/admin/queue`, `/admin/residents`, `/admin/failed`: the read model as plain data for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from engine_router.engines.base import ResidentId
from engine_router.in_flight import InFlightRequest
from engine_router.proxy.wait_status import step_of
from engine_router.residency.messages import Ticket
from engine_router.residency.read_model import Outlook, PoolStatus, ResidentStatus, TurnStatus
from engine_router.residency.resident_state import Phase
from engine_router.residency.swap_status import SwapStatus
from engine_router.router import Router
from engine_router.web.state_words import OWN
from engine_router.web.status import failure_entry, resident_entry

Entry = dict[str, Any]


def queue(router: Router, limit: int) -> Entry:
    """Return the requests that wait in each pool, in the order of their arrival; each once, in its first pool.

    Args:
        limit: the most that are listed; all are counted.
    """
    waiting: list[Entry] = []
    counted: dict[Ticket, None] = {}
    for name, pool in router.read_model.pools().items():
        tickets = router.read_model.queue(name)
        if tickets and len(waiting) < limit:
            outlooks = router.read_model.outlooks(pool)
            entries = waiting_entries(
                router, pool, tickets[:limit], outlooks, reasons(pool, outlooks, step_of)
            )
            listed = zip(tickets, entries, strict=False)
            waiting += [entry for ticket, entry in listed if ticket not in counted][: limit - len(waiting)]
        counted.update(dict.fromkeys(tickets))
    return {"total": len(counted), "waiting": waiting}


def waiting_entries(
    router: Router,
    pool: PoolStatus,
    tickets: Sequence[Ticket],
    outlooks: Mapping[ResidentId, Outlook],
    reasons: Mapping[ResidentId, str],
) -> list[Entry]:
    """Return the entries of tickets that wait in a pool, the first ones in the order of their arrival."""
    now = trio.current_time()
    requests = router.in_flight.by_ticket()
    # Of all models only where somebody waits who is no request: there may be thousands.
    models = {} if all(ticket in requests for ticket in tickets) else _models(router)
    entries: list[Entry] = []
    for place, ticket in enumerate(tickets, start=1):
        resident = ticket.resident
        request = requests.get(ticket)
        scope = None if request is None else request.scope
        entries.append(
            {
                "id": None if request is None else request.id,
                "key": None if scope is None else scope.key_name,
                "client": None if scope is None else scope.client or None,
                "pool": pool.name,
                "place": place,
                "model": models.get(resident, str(resident)) if request is None else request.model,
                "resident": str(resident),
                "path": None if request is None else request.path,
                "priority": ticket.priority,
                "waited_s": round(now - ticket.arrived_at, 3),
                "overdue_in_s": _rounded(ticket.deadline - now),
                "waits_for": reasons[resident],
                "estimate_s": _rounded(outlooks[resident].estimate_s),
            }
        )
    return entries


def reasons(
    pool: PoolStatus, outlooks: Mapping[ResidentId, Outlook], step: Callable[[SwapStatus, float], str]
) -> dict[ResidentId, str]:
    """Return what has to happen before each resident can serve that is waited for, in words.

    Args:
        step: puts the step of a swap into words.
    """
    now = trio.current_time()
    return {resident: _reason(pool, resident, outlook, now, step) for resident, outlook in outlooks.items()}


def _reason(
    pool: PoolStatus,
    resident: ResidentId,
    outlook: Outlook,
    now: float,
    step: Callable[[SwapStatus, float], str],
) -> str:
    if outlook.swap is not None:
        return step(outlook.swap, now)
    if outlook.present is not None:
        if outlook.present.is_shut:
            return f"{resident} to be reached again"
        if (most := outlook.present.most_leases) is not None:
            return f"one of {most} place{'' if most == 1 else 's'} at {resident}"
        words = {
            Phase.STARTING: f"loading {resident}",
            Phase.READY: "others, who have waited longer than they should",
            Phase.STUCK: f"{resident}, which could not be stopped",
        }
        return words.get(
            outlook.present.phase or Phase.READY, f"{resident} to be gone; then it is started again"
        )
    if outlook.turn is None:
        return "its turn: others are next"
    return _turn_reason(pool, outlook.turn, now)


def _turn_reason(pool: PoolStatus, turn: TurnStatus, now: float) -> str:
    if turn.victims:
        return f"{', '.join(map(str, turn.victims))} to make way"
    if turn.is_blocked:
        return "; ".join(_obstacle(resident, now) for resident in pool.residents) or "room in the memory"
    if pool.settling:
        return f"the memory of {', '.join(map(str, pool.settling))}"
    return "room in the memory"


def _obstacle(resident: ResidentStatus, now: float) -> str:
    """Return who is in the way, and why it stays."""
    name, count = str(resident.resident), len(resident.leases)
    if count:
        return f"{name}, busy with {count} request{'' if count == 1 else 's'}"
    if resident.pinned:
        return f"{name}, which is pinned"
    if resident.held_for_s(now):
        return f"{name}, which is held for a follow-up"
    return f"{name} ({OWN.of(resident)})"


def residents(router: Router) -> Entry:
    """Return the residents of each pool, with the requests that use them; each once, in its first pool."""
    requests = router.in_flight.by_ticket()
    return {
        "residents": [
            _resident(router, pool, resident, requests)
            for pool in router.read_model.pools().values()
            for resident in pool.residents
            if resident.pool == pool.name
        ]
    }


def _resident(
    router: Router, pool: PoolStatus, resident: ResidentStatus, requests: Mapping[Ticket, InFlightRequest]
) -> Entry:
    now = trio.current_time()
    return {
        "pool": pool.name,
        "pools": resident.pools,
        **resident_entry(resident, now),
        "need_bytes": router.read_model.profile(resident.resident).need_bytes,
        "held_for_s": _rounded(resident.held_for_s(now)),
        "waiting": pool.waiting.get(resident.resident, 0),
        "requests": [_using(requests.get(ticket), ticket, now) for ticket in resident.leases],
    }


def _using(request: InFlightRequest | None, ticket: Ticket, now: float) -> Entry:
    return {
        "id": None if request is None else request.id,
        "model": None if request is None else request.model,
        "path": None if request is None else request.path,
        "for_s": round(now - ticket.arrived_at, 3),
    }


def failed(router: Router) -> Entry:
    """Return the residents that failed and have not worked since, with the reason."""
    now, models = trio.current_time(), _models(router)
    return {
        "failed": [
            {
                "model": models.get(resident, str(resident)),
                "resident": str(resident),
                "pool": pool.name,
                **failure_entry(failure, now),
            }
            for pool in router.read_model.pools().values()
            for resident, failure in pool.failures.items()
            if router.read_model.resident(resident).pool == pool.name
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
