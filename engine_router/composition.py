"""The composition root, and the library's front door: `open_router`."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from engine_router.config import REMOTES, Config, load_config
from engine_router.config.memories import spans_of
from engine_router.config.values import expanded
from engine_router.engines.base import LogRing, ResidentId
from engine_router.engines.build import EngineFactory
from engine_router.engines.context.keeper import ContextKeeper
from engine_router.engines.context.sealing import Sealer
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.events import EventHub, RequestEnded, ResidentReady
from engine_router.memory import make_gauge
from engine_router.models.facts import keep_fresh
from engine_router.models.learned import Learned
from engine_router.proxy.sessions import Sessions
from engine_router.proxy.snapshot import make_snapshot
from engine_router.reload import ConfigSource, Reloader
from engine_router.residency.measurements import read_state, state_file_of
from engine_router.residency.read_model import ReadModel
from engine_router.residency.settings import gauges_of, make_rules
from engine_router.residency.supervisor import Supervisor
from engine_router.residency.tenant_calls import TenantCalls
from engine_router.router import Router
from engine_router.telemetry.metrics import Metrics
from engine_router.telemetry.router_gauges import router_gauges
from engine_router.telemetry.router_log import logged_into
from engine_router.upstream.client import Upstream
from engine_router.upstream.control_client import ControlClient, control_client

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup  # type: ignore[import-not-found,unused-ignore]

if TYPE_CHECKING:
    from quart_trio import QuartTrio


@contextlib.asynccontextmanager
async def open_router(
    config: Config | str | os.PathLike[str],
    *,
    source: ConfigSource | None = None,
    await_adoption: bool = True,
) -> AsyncIterator[Router]:
    """Run a router inside the block.

    Args:
        config: a configuration, or the path of one.
        source: where a configuration is read again from, for `Router.reload`; a path needs none.
        await_adoption: begin the block once every engine was asked what it has running already, which takes up to
            5 s where one does not answer. Otherwise leases wait for that.

    Raises:
        ConfigError: the file has faults.
        Exception: what the block raises comes out as it is, not in a group.

    However the block ends, by an exception too, what the router started or loaded is let go. When it is
    cancelled, processes are killed at once, without waiting.
    """
    if not isinstance(config, Config):
        source = source or ConfigSource(os.fspath(config), functools.partial(load_config, config))
        config = await trio.to_thread.run_sync(source.read)
    failure: BaseException | None = None
    try:
        async with (
            # Every control call is bounded by a scope of its own.
            control_client() as client,
            trio.open_nursery() as nursery,
        ):
            sleep_registry = SleepRegistry()
            await nursery.start(sleep_registry.run)
            keeper = _context_keeper(config)
            factory = EngineFactory(client, nursery, sleep_registry, keeper)
            router = await _compose(config, factory)
            router.sleeping = lambda: sleep_registry.residents
            with logged_into(router.own_log):
                await _start(router, factory, source, await_adoption=await_adoption)
                try:
                    try:
                        yield router
                    except (Exception, BaseExceptionGroup, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001
                        failure = error  # raised below: the nursery would put it into a group
                    await _let_go(router, sleep_registry, client)
                finally:
                    router.upstream.close()
            nursery.cancel_scope.cancel()
    finally:
        # Worth more than that the end took too long, was cancelled, or failed.
        if failure is not None:
            raise failure


async def _start(
    router: Router, factory: EngineFactory, source: ConfigSource | None, *, await_adoption: bool
) -> None:
    """Start the tasks of a router."""
    nursery = factory.nursery
    reloader = Reloader(source, factory)
    router.config_file = None if source is None else Path(source.path)
    router.set_reloader(reloader.reload if source is not None else None, reloader.rescan)
    nursery.start_soon(reloader.watch, router)
    if await_adoption:
        await nursery.start(router.supervisor.run)
    else:
        nursery.start_soon(router.supervisor.run)
    nursery.start_soon(reloader.keep_scanning, router)
    await nursery.start(router.jobs.run)
    nursery.start_soon(factory.client.load_when_calm)
    nursery.start_soon(router.lister.run)
    nursery.start_soon(
        keep_fresh,
        lambda: router.known_models,
        factory.client,
        lambda: _serving(router.read_model),
        router.hub.subscribe(ResidentReady),
    )
    nursery.start_soon(router.peers.run, factory.client, factory.instance_id, factory.hidden)
    nursery.start_soon(router.keep_saving)
    nursery.start_soon(router.history.run)
    nursery.start_soon(router.traces.run, factory.client)
    nursery.start_soon(factory.keeper.run)
    nursery.start_soon(router.sampler.run)


async def _let_go(router: Router, sleep_registry: SleepRegistry, client: ControlClient) -> None:
    """Let running requests end, stop what was started or loaded, and remember what was learned.

    Where this is cancelled, nothing is saved.
    """
    failure: Exception | None = None
    try:
        await router.close()
        await sleep_registry.close()
    except Exception as error:  # noqa: BLE001 - a defect on the way must not cost what was learned
        failure = error
    router.sampler.close()
    await router.traces.close(client)
    await router.history.close()
    await router.save()
    if failure is not None:
        raise failure


async def _compose(config: Config, factory: EngineFactory) -> Router:
    state_file = state_file_of(config)
    state = await trio.to_thread.run_sync(read_state, state_file)
    hub = EventHub()
    engines = {name: await factory.make(name, config) for name in config.engines}
    upstream, learned = Upstream(), Learned()
    snapshot = await make_snapshot(config, engines, upstream, state, learned, Sessions(), factory.instance_id)
    supervisor = Supervisor(
        engines=engines,
        gauges={**gauges_of(config), REMOTES: make_gauge("none")},
        pools_of=spans_of(config),
        rules=make_rules(config),
        settle_timeout_s=config.scheduling.settle_timeout_s,
        health_interval_s=config.scheduling.health_interval_s,
        hub=hub,
        measurements=state,
        settings=snapshot.residency,
    )
    metrics = Metrics()
    hub.listen(metrics.observe)
    hub.listen(learned.observe, ResidentReady)
    hub.listen(state.speeds.note, RequestEnded)
    hub.listen(state.held_context.note, RequestEnded, ResidentReady)
    router = Router(
        snapshot,
        hub,
        supervisor,
        upstream,
        state,
        learned,
        metrics,
        state_file,
        time.time(),
        _make_app,
        LogRing(mask=factory.hidden),
        context=factory.keeper,
    )
    factory.keeper.settings = lambda: router.config.context
    factory.keeper.notice = router.note
    factory.keeper.figures.on_count = metrics.count_context

    def let_go(base_url: str) -> None:
        upstream.forget(base_url)
        router.engine_metrics.let_go(base_url)

    supervisor.on_stop(let_go)
    supervisor.ask_tenants(TenantCalls(factory.client).ask)
    metrics.read = lambda: router_gauges(
        router.read_model,
        router.sampler,
        router.sleeping(),
        router.started_at,
        {name: factory.keeper.status(name) for name in router.config.keeping_engines},
    )
    router.history.listen(hub)
    router.traces.swaps.listen(hub)
    return router


def _context_keeper(config: Config) -> ContextKeeper:
    """Make what keeps conversations: in a folder beside the state file, or nothing where there is no such file."""
    state_file, options = state_file_of(config), config.context
    is_nowhere = Path(os.devnull) in state_file.parents
    return ContextKeeper(
        None if is_nowhere else state_file.with_name("context").absolute(),
        sealer=None if options.encryption_key is None else Sealer(options.encryption_key),
        plain_folder=None if options.plain_dir is None else expanded(options.plain_dir).absolute(),
    )


def _serving(read_model: ReadModel) -> dict[ResidentId, str]:
    """Return where the residents answer that are ready now."""
    return {
        status.resident: status.base_url for status in read_model.present() if status.base_url is not None
    }


def _make_app(router: Router) -> QuartTrio:
    from engine_router.web.app import create_app  # noqa: PLC0415 - who only leases needs no web

    return create_app(router)
