"""The composition root, and the library's front door: `open_router`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import trio

from engine_router.config import Config, PoolConfig, ProcessConfig, load_config
from engine_router.discovery import Discovery
from engine_router.engines.base import ResidentId
from engine_router.engines.build import build_engines
from engine_router.engines.family import Guardian
from engine_router.events import EventHub
from engine_router.memory import Gauge, make_gauge
from engine_router.metrics import Metrics
from engine_router.residency.ledger import Phase, Rules
from engine_router.residency.supervisor import Supervisor
from engine_router.router import Router
from engine_router.state import default_state_file, read_state
from engine_router.wire.upstream import Upstream

if TYPE_CHECKING:
    from quart_trio import QuartTrio


@contextlib.asynccontextmanager
async def open_router(config: Config | str | os.PathLike[str]) -> AsyncIterator[Router]:
    """Run a router inside the block.

    Args:
        config: a configuration, or the path of one.

    Raises:
        ConfigError: the file has faults.
        Exception: what the block raises comes out as it is, not in a group.

    When the block ends, what the router started is stopped. When it is cancelled, processes are killed at
    once, without waiting.
    """
    config = config if isinstance(config, Config) else await trio.to_thread.run_sync(load_config, config)
    failure: Exception | None = None
    async with (
        # Every control call is bounded by a scope of its own.
        httpx.AsyncClient(trust_env=False, timeout=None, limits=httpx.Limits(max_connections=None)) as client,  # noqa: S113
        trio.open_nursery() as nursery,
    ):
        guardian = None
        if sys.platform != "win32" and any(isinstance(e, ProcessConfig) for e in config.engines.values()):
            guardian = Guardian()
            await nursery.start(guardian.run)
        router = await _compose(config, client, guardian)
        await nursery.start(router.supervisor.run)
        nursery.start_soon(router.keep_discovering)
        nursery.start_soon(router.keep_saving)
        try:
            yield router
            await router.close()
            await router.save()
        except Exception as error:  # noqa: BLE001 - raised below: the nursery would put it into a group
            failure = error
        finally:
            router.upstream.close()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _compose(config: Config, client: httpx.AsyncClient, guardian: Guardian | None) -> Router:
    state_file = default_state_file() if config.state_file is None else Path(config.state_file)
    state = await trio.to_thread.run_sync(read_state, state_file)
    hub = EventHub()
    engines = build_engines(config, client, guardian)
    discovery = Discovery(config, engines)
    for name, models in state.models.items():
        if name in config.engines and config.engines[name].discover:
            discovery.set_listed(name, models)
    rules = config.scheduling
    supervisor = Supervisor(
        engines=engines,
        gauges=_gauges(config),
        pool_of={name: engine.pool for name, engine in config.engines.items()},
        rules=Rules(
            drain_timeout_s=rules.drain_timeout_s,
            max_wait_s=rules.max_wait_s,
            abandon_grace_s=rules.abandon_grace_s,
            failed_start_memory_s=rules.failed_start_memory_s,
            max_queue=rules.max_queue,
        ),
        settle_timeout_s=rules.settle_timeout_s,
        hub=hub,
        state=state,
        declared=lambda resident: _declared(config, resident),
    )
    metrics = _metrics(supervisor)
    hub.listen(metrics.observe)
    return Router(
        config,
        hub,
        engines,
        discovery,
        supervisor,
        Upstream(),
        state,
        metrics,
        state_file,
        time.time(),
        _make_app,
    )


def _gauges(config: Config) -> dict[str, Gauge]:
    pools = {"default": PoolConfig(), **{str(name): pool for name, pool in config.pools.items()}}
    return {
        name: make_gauge(pool.gauge, gpu=pool.gpu, command=pool.command or ()) for name, pool in pools.items()
    }


def _declared(config: Config, resident: ResidentId) -> int | None:
    """Return the memory that the configuration declares for a resident, in bytes."""
    for name, model in config.models.items():
        if model.engine == resident.engine and (model.upstream or name) == resident.model and model.memory_gb:
            return int(model.memory_gb * 1e9)
    declared = config.engines[resident.engine].memory_gb
    return None if declared is None else int(declared * 1e9)


def _metrics(supervisor: Supervisor) -> Metrics:
    def in_flight() -> dict[tuple[str, ...], float]:
        return {
            (pool.name, str(pool.ledger.present.resident)): float(len(pool.ledger.present.leases))
            for pool in supervisor.pools.values()
            if pool.ledger.present is not None
        }

    def waiting() -> dict[tuple[str, ...], float]:
        counts: dict[tuple[str, ...], float] = {}
        for pool in supervisor.pools.values():
            for ticket in pool.ledger.waiting():
                key = (pool.name, str(ticket.resident))
                counts[key] = counts.get(key, 0.0) + 1.0
        return counts

    def resident() -> dict[tuple[str, ...], float]:
        return {
            (pool.name, str(pool.ledger.present.resident)): 1.0
            for pool in supervisor.pools.values()
            if pool.ledger.present is not None and pool.ledger.present.phase is Phase.READY
        }

    return Metrics(in_flight=in_flight, waiting=waiting, resident=resident)


def _make_app(router: Router) -> QuartTrio:
    from engine_router.web import create_app  # noqa: PLC0415 - who only leases needs no web

    return create_app(router)
