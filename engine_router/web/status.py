"""What the router can tell about itself: plain data for JSON, made from what is known, without waiting."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import trio

from engine_router import __version__
from engine_router.events import MemorySettled, ResidentDied, RouterNotice, SwapEnded
from engine_router.models.registry import Target
from engine_router.residency.failures import Failure
from engine_router.residency.ledger import Phase, ResidentState
from engine_router.residency.pool import Pool
from engine_router.residency.scheduling import Turn
from engine_router.residency.swap_tracker import Swap
from engine_router.router import Router

_STATUS = {
    Phase.STARTING: "loading",
    Phase.READY: "loaded",
    Phase.DRAINING: "loaded",
    Phase.STUCK: "failed",
}

RECENT_SWAPS = 10
RECENT_NOTICES = 10


def status(router: Router) -> dict[str, Any]:
    """Return the whole status."""
    recent = router.hub.recent
    targets = router.registry.targets()
    models: dict[str, list[str]] = {name: [] for name in router.engines}
    for target in targets:
        models[target.engine].append(target.model)
    swaps = [event.as_dict() for event in recent if isinstance(event, SwapEnded)]
    notices = [event.as_dict() for event in recent if isinstance(event, (RouterNotice, ResidentDied))]
    settles = [event.as_dict() for event in recent if isinstance(event, MemorySettled)]
    return {
        "version": __version__,
        "uptime_s": round(time.time() - router.started_at, 3),
        "pools": {name: _pool(router, pool) for name, pool in router.supervisor.pools.items()},
        "engines": {name: _engine(router, name, models[name]) for name in router.engines},
        "models": [
            {"id": t.model, "engine": t.engine, "state": state_of(router, t), "aliases": list(t.aliases)}
            for t in targets
        ],
        "last_swap": swaps[-1] if swaps else None,
        "swaps": swaps[-RECENT_SWAPS:],
        "settles": settles[-RECENT_SWAPS:],
        "notices": notices[-RECENT_NOTICES:],
    }


def _pool(router: Router, pool: Pool) -> dict[str, Any]:
    now = trio.current_time()
    ledger = pool.ledger
    residents = [resident_entry(router, pool, residence, now) for residence in ledger.residences]
    swaps = [_swap(router, swap, now) for swap in pool.journal.swaps]
    return {
        "gauge": pool.gauge.name,
        "mode": "exclusive" if ledger.capacity.is_exclusive else "budget",
        "budget_bytes": ledger.capacity.budget_bytes,
        "resident": residents[0] if residents else None,
        "residents": residents,
        "settling": ", ".join(map(str, ledger.settling)) or None,
        "waiting": {str(resident): count for resident, count in ledger.waiting_counts().items()},
        "next": [_turn(turn) for turn in ledger.turns(now)],
        "failed": {
            str(resident): failure_entry(failure, now) for resident, failure in ledger.failures().items()
        },
        "swap": swaps[0] if swaps else None,
        "swaps": swaps,
    }


def failure_entry(failure: Failure, now: float) -> dict[str, Any]:
    """Tell why something failed, how often in a row, and when it is tried again."""
    return {
        "error": str(failure.error),
        "count": failure.count,
        "again_in_s": round(max(0.0, failure.until - now), 3),
    }


def resident_entry(router: Router, pool: Pool, residence: ResidentState, now: float) -> dict[str, Any]:
    """Tell what is known of a resident that is there."""
    resident = residence.resident
    life = pool.lives.get(resident)
    endpoint = life.endpoint if life is not None else None
    expires_at = pool.ledger.expires_at(resident, now)
    return {
        "resident": str(resident),
        "engine": resident.engine,
        "model": resident.model,
        "phase": residence.phase.value,
        "in_flight": len(residence.leases),
        "for_s": round(now - life.started_at, 3) if life is not None else None,
        "base_url": endpoint.base_url if endpoint is not None else None,
        "pid": endpoint.pid if endpoint is not None else None,
        "adopted": life.adopted if life is not None else False,
        "footprint_bytes": router.state.of(resident).footprint_bytes,
        "group": residence.group,
        "pinned": residence.pinned,
        "idle_s": round(now - residence.idle_since, 3) if residence.is_idle else None,
        "expires_in_s": None if expires_at in (None, math.inf) else round(expires_at - now, 3),
        "error": str(residence.failure) if residence.failure is not None else None,
    }


def _turn(turn: Turn) -> dict[str, Any]:
    """Say what is done for a resident that is waited for, and why it does not start at once."""
    return {
        "resident": str(turn.resident),
        "cause": turn.cause,
        "overdue": turn.is_overdue,
        "blocked": turn.is_blocked,
        "instead_of": [str(victim.resident) for victim in turn.victims],
    }


def _swap(router: Router, swap: Swap, now: float) -> dict[str, Any]:
    target = swap.target
    return {
        "source": swap.source,
        "target": None if target is None else str(target),
        "cause": swap.cause,
        "phase": swap.phase,
        "elapsed_s": round(now - swap.began_at, 3),
        "phase_elapsed_s": round(now - swap.phase_began_at, 3),
        "expected_s": router.supervisor.expected_s(target, "start") if target is not None else None,
        "expected_total_s": swap.expected_s,
    }


def _engine(router: Router, name: str, models: Sequence[str]) -> dict[str, Any]:
    config = router.config.engines[name]
    ledger = router.supervisor.pools[config.pool].ledger
    phases = [residence.phase.value for residence in ledger.residences if residence.resident.engine == name]
    has_failed = any(resident.engine == name for resident in ledger.failures())
    return {
        "type": config.type,
        "pool": config.pool,
        "state": phases[0] if phases else "failed" if has_failed else "stopped",
        "base_url": config.base_url,
        "models": list(models),
        "endpoints": dict(router.endpoint_support.shown(name)),
    }


def state_of(router: Router, target: Target) -> str:
    """Return the state of one model: `ready`, another phase, `failed`, or `off`."""
    ledger = router.supervisor.pool(target.resident).ledger
    residence = ledger.residence(target.resident)
    if residence is None:
        return "failed" if target.resident in ledger.failures() else "off"
    return residence.phase.value


def status_of(router: Router, target: Target) -> str:
    """Return the state of one model in llama.cpp's words, by which clients tell what is loaded."""
    ledger = router.supervisor.pool(target.resident).ledger
    residence = ledger.residence(target.resident)
    if residence is not None and residence.phase is not Phase.STOPPING:
        return _STATUS[residence.phase]
    if target.resident in router.sleeping():
        return "sleeping"
    return "failed" if residence is None and target.resident in ledger.failures() else "unloaded"
