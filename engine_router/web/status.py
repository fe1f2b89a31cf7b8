"""What the router can tell about itself: plain data for JSON, made from what is known, without waiting."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import trio

from engine_router._version import __version__
from engine_router.discovery import Target
from engine_router.events import MemorySettled, ResidentDied, RouterNotice, SwapEnded
from engine_router.residency.pool import Pool
from engine_router.router import Router

RECENT_SWAPS = 10
RECENT_NOTICES = 10


def status(router: Router) -> dict[str, Any]:
    """Return the whole status."""
    recent = router.hub.recent
    targets = router.discovery.targets()
    swaps = [event.as_dict() for event in recent if isinstance(event, SwapEnded)]
    notices = [event.as_dict() for event in recent if isinstance(event, (RouterNotice, ResidentDied))]
    settles = [event.as_dict() for event in recent if isinstance(event, MemorySettled)]
    return {
        "version": __version__,
        "uptime_s": round(time.time() - router.started_at, 3),
        "pools": {name: _pool(router, pool) for name, pool in router.supervisor.pools.items()},
        "engines": {name: _engine(router, name, targets) for name in router.engines},
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
    present = pool.ledger.present
    swap = pool.journal.current
    waiting: dict[str, int] = {}
    for ticket in pool.ledger.waiting():
        waiting[str(ticket.resident)] = waiting.get(str(ticket.resident), 0) + 1
    resident = None
    if present is not None:
        life = pool.lives.get(present.resident)
        measured = router.state.of(present.resident)
        resident = {
            "resident": str(present.resident),
            "engine": present.resident.engine,
            "model": present.resident.model,
            "phase": present.phase.value,
            "in_flight": len(present.leases),
            "for_s": round(now - life.started_at, 3) if life is not None else None,
            "base_url": life.endpoint.base_url if life is not None and life.endpoint is not None else None,
            "pid": life.endpoint.pid if life is not None and life.endpoint is not None else None,
            "adopted": life.adopted if life is not None else False,
            "footprint_bytes": measured.footprint_bytes,
            "error": str(present.failure) if present.failure is not None else None,
        }
    return {
        "gauge": pool.gauge.name,
        "resident": resident,
        "settling": str(pool.ledger.settling) if pool.ledger.settling is not None else None,
        "waiting": waiting,
        "swap": None
        if swap is None
        else {
            "source": str(swap.source) if swap.source is not None else None,
            "target": str(swap.target) if swap.target is not None else None,
            "cause": swap.cause,
            "phase": swap.phase,
            "elapsed_s": round(now - swap.began_at, 3),
            "phase_elapsed_s": round(now - swap.phase_began_at, 3),
            "expected_s": router.supervisor.expected_s(swap.target, "start")
            if swap.target is not None
            else None,
        },
    }


def _engine(router: Router, name: str, targets: Sequence[Target]) -> dict[str, Any]:
    config = router.config.engines[name]
    present = router.supervisor.pools[config.pool].ledger.present
    state = present.phase.value if present is not None and present.resident.engine == name else "stopped"
    return {
        "type": config.type,
        "pool": config.pool,
        "state": state,
        "base_url": config.base_url,
        "models": [target.model for target in targets if target.engine == name],
    }


def state_of(router: Router, target: Target) -> str:
    """Return the state of one model: `ready`, another phase, or `off`."""
    present = router.supervisor.pool(target.resident).ledger.present
    return present.phase.value if present is not None and present.resident == target.resident else "off"
