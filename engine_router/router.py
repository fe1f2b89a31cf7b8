"""The composition root, and the library's front door: `open_router`."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import trio
from attrs import define, frozen

from engine_router._version import __version__
from engine_router.config import Config, PoolConfig, ProcessConfig, load_config
from engine_router.discovery import Discovery, Target
from engine_router.engines.base import Engine, ResidentId
from engine_router.engines.build import build_engines
from engine_router.engines.family import Guardian
from engine_router.errors import EngineError, LeaseRevoked, UnknownModel
from engine_router.events import Event, EventHub, RouterNotice
from engine_router.memory import Gauge, make_gauge
from engine_router.metrics import Metrics
from engine_router.residency.ledger import Phase, Rules
from engine_router.residency.supervisor import Supervisor
from engine_router.state import State, default_state_file, read_state, save_state
from engine_router.upstream import Upstream

if TYPE_CHECKING:
    from engine_router.web import App

logger = logging.getLogger(__name__)

DISCOVERY_INTERVAL_S = 30.0
# An unknown model is worth asking the engines again, but not more often than this.
DISCOVERY_MIN_INTERVAL_S = 2.0
DISCOVERY_TIMEOUT_S = 3.0
SAVE_INTERVAL_S = 5.0


@frozen
class HeldLease:
    """A resident that stays until the `async with` block ends.

    Attributes:
        base_url: where it answers, `http://host:port`.
        engine: the engine's name.
        model: the name that the engine knows the model by.
    """

    base_url: str
    engine: str
    model: str


@define(eq=False)
class Router:
    """A running router. Made by `open_router`."""

    config: Config
    hub: EventHub
    engines: Mapping[str, Engine]
    discovery: Discovery
    supervisor: Supervisor
    upstream: Upstream
    state: State
    metrics: Metrics
    state_file: Path | None
    started_at: float
    _app: App | None = None
    _asked_at: float = -math.inf

    @property
    def app(self) -> App:
        """The ASGI app; runs under any ASGI server on trio."""
        if self._app is None:
            from engine_router.web import create_app  # noqa: PLC0415 - a library that only leases needs no web

            self._app = create_app(self)
        return self._app

    @contextlib.asynccontextmanager
    async def lease(self, model: str) -> AsyncIterator[HeldLease]:
        """Make a model resident and keep it so until the block ends.

        Raises:
            UnknownModel: nobody serves it.
            RouterError: it cannot be made resident.
            LeaseRevoked: the block was ended because the drain deadline passed.

        Cancellation gives the lease back, or leaves the queue, at once.
        """
        target = await self.resolve(model)
        lease = self.supervisor.request(target.resident)
        try:
            with trio.CancelScope() as scope:
                endpoint = await lease.granted()
                lease.on_revoke(scope.cancel)
                yield HeldLease(endpoint.base_url, target.engine, target.upstream)
        finally:
            lease.release()
        if scope.cancelled_caught:
            raise lease.error or LeaseRevoked("the lease was taken away")

    async def resolve(self, model: str) -> Target:
        """Find a model. Where it is unknown, running engines are asked (once in a while) before giving up.

        Raises:
            UnknownModel: nobody serves it; close matches are named.
        """
        try:
            return self.discovery.resolve(model)
        except UnknownModel:
            if trio.current_time() - self._asked_at < DISCOVERY_MIN_INTERVAL_S:
                raise
        await self.discover()
        return self.discovery.resolve(model)

    async def discover(self) -> None:
        """Ask every engine that runs now which models it lists. Errors are logged; what was known stays."""
        self._asked_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            for name, engine in self.engines.items():
                if self.config.engines[name].discover:
                    nursery.start_soon(self._discover, name, engine)

    def events(self) -> AsyncIterator[Event]:
        """Iterate over everything that happens from now on."""
        return self.hub.subscribe()

    def note(self, message: str, *, severity: str = "warning") -> None:
        """Tell the person who runs the router something."""
        level = "error" if severity == "error" else "info" if severity == "info" else "warning"
        self.hub.publish(RouterNotice(at=time.time(), severity=level, message=message))  # type: ignore[arg-type]

    async def close(self) -> None:
        """Refuse new requests, let running ones end for `shutdown_timeout_s`, stop what the router started."""
        await self.supervisor.close(self.config.server.shutdown_timeout_s)

    async def _discover(self, name: str, engine: Engine) -> None:
        with trio.move_on_after(DISCOVERY_TIMEOUT_S):
            try:
                models = await engine.list_models()
            except EngineError as error:
                logger.info("%s", error)
                return
            if models is not None:
                self.discovery.set_listed(name, models)
                self.state.set_models(name, models)

    async def keep_discovering(self) -> None:
        """Ask again every half minute, and whenever something became ready; runs until cancelled."""
        while True:
            await self.discover()
            await trio.sleep(DISCOVERY_INTERVAL_S)

    async def keep_saving(self) -> None:
        """Write the state file whenever there is something new; runs until cancelled."""
        while True:
            await trio.sleep(SAVE_INTERVAL_S)
            await self.save()

    async def save(self) -> None:
        """Write the state file. A failure is told once; the router works without."""
        if self.state_file is None:
            return
        try:
            await save_state(self.state, self.state_file)
        except OSError as error:
            self.note(f"the state file {self.state_file} cannot be written: {error}")
            self.state_file = None


@contextlib.asynccontextmanager
async def open_router(config: Config | str | os.PathLike[str]) -> AsyncIterator[Router]:
    """Run a router inside the block.

    Args:
        config: a configuration, or the path of one.

    Raises:
        ConfigError: the file has faults.

    When the block ends, what the router started is stopped. When it is cancelled, processes are killed at
    once, without waiting.
    """
    config = config if isinstance(config, Config) else await trio.to_thread.run_sync(load_config, config)
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
        finally:
            router.upstream.close()
        nursery.cancel_scope.cancel()


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
        config, hub, engines, discovery, supervisor, Upstream(), state, metrics, state_file, time.time()
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


def version() -> str:
    """Return the router's version."""
    return __version__
