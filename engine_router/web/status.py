"""`/status` and the parts of it that other lists share: the read model as plain data for JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import attrs
import trio

from engine_router import __version__
from engine_router.config import RemoteConfig
from engine_router.config.routes import models_of
from engine_router.events import MemorySettled, ResidentDied, RouterNotice, SwapEnded
from engine_router.models.peer_watch import peer_entry
from engine_router.models.registry import Target
from engine_router.models.route_choice import RouteChoice
from engine_router.residency.memory_status import memory_status
from engine_router.residency.read_model import (
    FailureStatus,
    PoolStatus,
    ResidentStatus,
    TurnStatus,
)
from engine_router.residency.swap_status import SwapStatus
from engine_router.router import Router
from engine_router.web.scan_entries import scan_entry
from engine_router.web.state_words import OWN

RECENT_SWAPS = 10
RECENT_NOTICES = 10


def status(router: Router) -> dict[str, Any]:
    """Return the whole status."""
    recent = router.hub.recent
    targets = router.registry.targets()
    pools = router.read_model.pools()
    models: dict[str, list[str]] = {name: [] for name in router.engines}
    for target in targets:
        models[target.engine].append(target.model)
    swaps = [event.as_dict() for event in recent if isinstance(event, SwapEnded)]
    notices = [event.as_dict() for event in recent if isinstance(event, (RouterNotice, ResidentDied))]
    settles = [event.as_dict() for event in recent if isinstance(event, MemorySettled)]
    return {
        "version": __version__,
        "uptime_s": round(time.time() - router.started_at, 3),
        "adopting": router.read_model.is_adopting,
        "pools": {name: _pool(router, pool) for name, pool in pools.items()},
        "engines": {
            name: {**engine_entry(router, name, pools), "models": models[name]} for name in router.engines
        },
        "models": [
            {
                "id": t.model,
                "engine": t.engine,
                "state": state_of(router, t),
                "resident": str(t.resident),
                "start_s": router.read_model.profile(t.resident).start_s,
                "origin": t.origin,
                "aliases": list(t.aliases),
            }
            for t in targets
        ],
        "routes": {name: route_status(router, name) for name in router.config.routes},
        "scan": scan_entry(router.scans),
        "last_swap": swaps[-1] if swaps else None,
        "swaps": swaps[-RECENT_SWAPS:],
        "settles": settles[-RECENT_SWAPS:],
        "notices": notices[-RECENT_NOTICES:],
        "decisions": [attrs.asdict(decision) for decision in router.read_model.decisions()],
    }


def state_of(router: Router, target: Target) -> str:
    """Return the state of a model in a word; that of a peer's as the peer tells it, where it can be reached."""
    status = router.read_model.resident(target.resident)
    if target.is_peers and status.is_usable:
        model = router.peers.status(target.engine).model(target.upstream, trio.current_time())
        return OWN.of(status) if model is None else model.state
    return OWN.of(status)


def route_status(router: Router, name: str) -> dict[str, Any]:
    """Return what a route would choose now for a request without any conditions."""
    route = router.config.routes[name]
    choice = router.routing.choice(router.snapshot, name, lambda _: True, None)
    return {
        "strategy": route.strategy,
        "models": list(models_of(route)),
        "leads_to": choice.model if isinstance(choice, RouteChoice) else None,
        "reason": choice.reason,
    }


def _pool(router: Router, pool: PoolStatus) -> dict[str, Any]:
    now = trio.current_time()
    residents = [resident_entry(resident, now) for resident in pool.residents]
    swaps = [swap_entry(swap, now) for swap in pool.swaps]
    return {
        "gauge": pool.gauge,
        "mode": pool.mode,
        "budget_bytes": pool.budget_bytes,
        "memory": _memory(router, pool),
        "other_programs": other_programs(router, pool.name),
        "resident": residents[0] if residents else None,
        "residents": residents,
        "settling": ", ".join(map(str, pool.settling)) or None,
        "waiting": {str(resident): count for resident, count in pool.waiting.items()},
        "next": [turn_entry(turn) for turn in router.read_model.turns(pool.name)],
        "failed": {str(resident): failure_entry(failure, now) for resident, failure in pool.failures.items()},
        "swap": swaps[0] if swaps else None,
        "swaps": swaps,
    }


def _memory(router: Router, pool: PoolStatus) -> dict[str, Any]:
    read_model = router.read_model
    asleep = [r for r in router.sleeping() if pool.name in router.read_model.resident(r).pools]
    held = [resident.footprint_in(pool.name) for resident in pool.residents]
    slept = [read_model.measured(resident).within(pool.name).asleep_bytes for resident in asleep]
    return attrs.asdict(memory_status(read_model.last_reading(pool.name), held, slept))


def other_programs(router: Router, pool: str) -> list[dict[str, Any]] | None:
    """Return the programs that hold most of a pool's memory beside its residents; None where that is not known."""
    listed = router.read_model.other_programs(pool)
    if listed is None:
        return None
    tenants = [tenant for tenant in router.config.tenants if tenant.pool == pool]
    return [
        {
            "name": one.name,
            "pid": one.pid,
            "held_bytes": one.held_bytes,
            "tenant": next((t.name for t in tenants if t.is_process(one.name, one.command)), None),
        }
        for one in listed
    ]


def _absent(router: Router) -> str:
    return "unknown" if router.read_model.is_adopting else OWN.absent


def failure_entry(failure: FailureStatus, now: float) -> dict[str, Any]:
    """Return a failure: its reason, how often in a row, and when the next try may begin."""
    return {
        "error": str(failure.error),
        "count": failure.count,
        "again_in_s": round(max(0.0, failure.again_at - now), 3),
    }


def resident_entry(resident: ResidentStatus, now: float) -> dict[str, Any]:
    """Return the entry of a present resident."""
    endpoint, expires_at = resident.endpoint, resident.expires_at
    return {
        "resident": str(resident.resident),
        "engine": resident.resident.engine,
        "model": resident.resident.model,
        "phase": OWN.of(resident),
        "in_flight": len(resident.leases),
        "for_s": None if resident.started_at is None else round(now - resident.started_at, 3),
        "base_url": resident.base_url,
        "pid": None if endpoint is None else endpoint.pid,
        "adopted": resident.adopted,
        "footprint_bytes": resident.footprint_bytes,
        "group": ", ".join(resident.groups) or None,
        "pinned": resident.pinned,
        "idle_s": None if resident.idle_since is None else round(now - resident.idle_since, 3),
        "expires_in_s": None if expires_at in (None, math.inf) else round(expires_at - now, 3),
        "error": None if resident.stop_error is None else str(resident.stop_error),
    }


def turn_entry(turn: TurnStatus) -> dict[str, Any]:
    """Return what is done for a resident that is waited for, and why it does not start at once."""
    return {
        "resident": str(turn.resident),
        "cause": turn.cause,
        "overdue": turn.is_overdue,
        "blocked": turn.is_blocked,
        "instead_of": [str(victim) for victim in turn.victims],
    }


def swap_entry(swap: SwapStatus, now: float) -> dict[str, Any]:
    """Return the entry of a swap under way."""
    return {
        "source": swap.source,
        "target": None if swap.target is None else str(swap.target),
        "cause": swap.cause,
        "phase": swap.phase,
        "step": swap.step,
        "elapsed_s": round(now - swap.began_at, 3),
        "phase_elapsed_s": round(now - swap.phase_began_at, 3),
        "expected_s": swap.start_s,
        "expected_total_s": swap.expected_s,
        "phases": [attrs.asdict(phase) for phase in swap.phases],
    }


def engine_entry(router: Router, name: str, pools: Mapping[str, PoolStatus]) -> dict[str, Any]:
    """Return the entry of an engine, but for its models."""
    config = router.config.engines[name]
    pool = pools[config.pool]
    words = [OWN.of(resident) for resident in pool.residents if resident.resident.engine == name]
    has_failed = any(resident.engine == name for resident in pool.failures)
    return {
        "type": config.type,
        "pool": config.pool,
        "state": words[0] if words else "failed" if has_failed else _absent(router),
        "base_url": config.base_url,
        "endpoints": dict(router.endpoint_support.shown(name)),
        "prefix_cache": prefix_cache_entry(router, name),
        "kept_context": kept_context_entry(router, name),
        **(_remote_entry(config) if isinstance(config, RemoteConfig) else {}),
        **_peer_entry(router, name),
    }


def prefix_cache_entry(router: Router, engine: str) -> dict[str, Any] | None:
    """Return what an engine keeps of the prompts that it has read, and what of that survives; None where unknown."""
    cache = router.known_models.prefix_cache_of(engine)
    return None if cache is None else attrs.asdict(cache)


def kept_context_entry(router: Router, engine: str) -> dict[str, Any] | None:
    """Return what is kept of the conversations with an engine; None where it is to keep none."""
    if router.context is None or engine not in router.config.keeping_engines:
        return None
    return attrs.asdict(router.context.status(engine))


def _remote_entry(config: RemoteConfig) -> dict[str, Any]:
    return {"max_in_flight": config.max_in_flight or None, "paid": config.paid}


def _peer_entry(router: Router, name: str) -> dict[str, Any]:
    """Return what a peer tells of itself."""
    if name not in router.config.peers:
        return {}
    return {"peer": dict(peer_entry(router.peers.status(name)))}
