"""A running router: it holds the parts together, and is what callers of the library see."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import Factory, define, field, frozen

from engine_router.config import Config, HttpConfig, OllamaConfig, RemoteConfig
from engine_router.config.diff import Changes
from engine_router.config.remote import own_headers
from engine_router.engines.base import Engine, LogRing, ResidentId
from engine_router.engines.context.keeper import ContextKeeper
from engine_router.errors import ConfigError, LeaseRevoked, UnknownModel
from engine_router.events import Event, EventHub, RouterNotice
from engine_router.in_flight import InFlight
from engine_router.jobs import Jobs
from engine_router.models.discovery import Discovery
from engine_router.models.endpoints import EndpointSupport
from engine_router.models.facts import KnownModels
from engine_router.models.folder_scans import FolderScans
from engine_router.models.hub.queue import DownloadQueue
from engine_router.models.learned import Learned
from engine_router.models.lister import ModelLister
from engine_router.models.peer_watch import PeerWatch
from engine_router.models.registry import ModelRegistry, Target
from engine_router.proxy.handler import ProxyHandler
from engine_router.proxy.held_bodies import HeldBodies
from engine_router.proxy.placement import Placement
from engine_router.proxy.routing import Routing
from engine_router.proxy.snapshot import Snapshot
from engine_router.residency.measurements import Measurements, save_state
from engine_router.residency.read_model import ReadModel
from engine_router.residency.resident_state import Phase
from engine_router.residency.supervisor import Supervisor
from engine_router.telemetry.captures import Captures
from engine_router.telemetry.engine_metrics import EngineMetrics
from engine_router.telemetry.history import History, history_file_of
from engine_router.telemetry.metrics import Metrics
from engine_router.telemetry.sampling import Sampler
from engine_router.telemetry.traces.sender import Traces
from engine_router.upstream.client import Upstream

if TYPE_CHECKING:
    from quart_trio import QuartTrio

SAVE_INTERVAL_S = 5.0


@frozen
class HeldLease:
    """A resident that stays until the `async with` block ends.

    Attributes:
        base_url: where it answers, `http://host:port`; ahead of `/v1` in any case.
        engine: the engine's name.
        model: the name that the engine knows the model by.
        headers: those that the engine wants with each request, its key among them.
    """

    base_url: str
    engine: str
    model: str
    headers: Mapping[str, str] = field(factory=dict, repr=False)


@define(eq=False, repr=False)
class Router:
    """A running router. Made by `engine_router.open_router`.

    Attributes:
        own_log: the last lines of the router's own log.
        context: the keeper of the context of engines that keep it.
        config_file: the file that the configuration was read from; None where it is none's.
    """

    snapshot: Snapshot
    hub: EventHub
    supervisor: Supervisor
    upstream: Upstream
    state: Measurements
    learned: Learned
    metrics: Metrics
    state_file: Path | None
    started_at: float
    _make_app: Callable[[Router], QuartTrio]
    own_log: LogRing = field(factory=LogRing)
    context: ContextKeeper | None = None
    read_model: ReadModel = field(
        init=False, default=Factory(lambda self: ReadModel(self.supervisor, self.state), takes_self=True)
    )
    peers: PeerWatch = field(
        init=False,
        default=Factory(
            lambda self: PeerWatch(
                lambda: self.config, lambda name: bool(self.read_model.resident(ResidentId(name)).leases)
            ),
            takes_self=True,
        ),
    )
    in_flight: InFlight = field(init=False, factory=InFlight)
    held_bodies: HeldBodies = field(
        init=False,
        default=Factory(
            lambda self: HeldBodies(lambda: int(self.config.server.max_held_mb * 1_000_000)), takes_self=True
        ),
    )
    captures: Captures = field(
        init=False, default=Factory(lambda self: Captures(lambda: self.config.history), takes_self=True)
    )
    traces: Traces = field(
        init=False,
        default=Factory(
            lambda self: Traces(lambda: self.snapshot.traces, self.note, self.metrics.traces.inc),
            takes_self=True,
        ),
    )
    placement: Placement = field(
        init=False, default=Factory(lambda self: Placement(self.read_model, self.peers), takes_self=True)
    )
    routing: Routing = field(
        init=False,
        default=Factory(lambda self: Routing(self.placement, self.supervisor, self.hub), takes_self=True),
    )
    handler: ProxyHandler = field(
        init=False,
        default=Factory(
            lambda self: ProxyHandler(
                lambda: self.snapshot,
                self.find,
                self.supervisor,
                self.read_model,
                self.upstream,
                self.in_flight,
                self.held_bodies,
                self.captures,
                self.traces,
                self.routing,
                self.context,
                self.placement,
            ),
            takes_self=True,
        ),
    )
    engine_metrics: EngineMetrics = field(
        init=False,
        default=Factory(
            lambda self: EngineMetrics(lambda: self.snapshot, self.read_model, self.upstream, self.note),
            takes_self=True,
        ),
    )
    jobs: Jobs = field(init=False, factory=Jobs)
    downloads: DownloadQueue = field(
        init=False, default=Factory(lambda self: DownloadQueue(self._starting), takes_self=True)
    )
    history: History = field(
        init=False,
        default=Factory(
            lambda self: History(
                history_file_of(self.config.history, self.state_file), lambda: self.config.history, self.note
            ),
            takes_self=True,
        ),
    )
    sampler: Sampler = field(
        init=False,
        default=Factory(
            lambda self: Sampler(self.history, self.read_model, self.in_flight.serving_since), takes_self=True
        ),
    )
    sleeping: Callable[[], Collection[ResidentId]] = tuple
    scans: FolderScans = field(init=False, factory=FolderScans)
    config_file: Path | None = None
    _reloader: Callable[[Router], Awaitable[Changes]] | None = None
    _rescanner: Callable[[Router], Awaitable[Changes]] | None = None
    _app: QuartTrio | None = None
    discovery: Discovery = field(
        init=False,
        default=Factory(
            lambda self: Discovery(lambda: self.snapshot, self.state, self.learned, self.note),
            takes_self=True,
        ),
    )
    lister: ModelLister = field(
        init=False,
        default=Factory(
            lambda self: ModelLister(
                self.hub,
                self.discovery.asked,
                self.discovery.learn,
                self.discovery.read_files,
                self.discovery.round_over,
            ),
            takes_self=True,
        ),
    )
    _cannot_save: bool = False

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.snapshot.config

    @property
    def engines(self) -> Mapping[str, Engine]:
        """The configured engines, by name."""
        return self.snapshot.engines

    @property
    def registry(self) -> ModelRegistry:
        """The models, by all their names."""
        return self.snapshot.registry

    @property
    def known_models(self) -> KnownModels:
        """The facts that are known of each model."""
        return self.snapshot.known_models

    @property
    def endpoint_support(self) -> EndpointSupport:
        """The endpoints of every engine, as far as they are known."""
        return self.snapshot.endpoint_support

    @property
    def app(self) -> QuartTrio:
        """The ASGI app; runs under any ASGI server on trio."""
        if self._app is None:
            self._app = self._make_app(self)
        return self._app

    @property
    def has_app(self) -> bool:
        """True if the app was asked for."""
        return self._app is not None

    @contextlib.asynccontextmanager
    async def lease(self, model: str) -> AsyncIterator[HeldLease]:
        """Make a model resident and keep it so until the block ends.

        Args:
            model: its id, another name of it, or a route. Nothing is known of a request then: of a route's rules those
                count that have no condition, or only one on the time of day.

        Raises:
            UnknownModel: nobody serves it.
            RouterError: it cannot be made resident.
            LeaseRevoked: the block was ended because the drain deadline passed.

        Cancellation gives the lease back, or leaves the queue, at once.
        """
        with contextlib.ExitStack() as held:
            target, lease, endpoint = await self.routing.lease(
                self.snapshot, model, self.resolve, self.in_flight, held
            )
            with trio.CancelScope() as scope:
                lease.on_revoke(scope.cancel)
                settings = self.config.engines[target.engine]
                base_url = endpoint.base_url
                if isinstance(settings, RemoteConfig):
                    base_url = settings.base_url.removesuffix("/v1")
                yield HeldLease(base_url, target.engine, target.upstream, own_headers(settings))
        if scope.cancelled_caught:
            raise lease.error or LeaseRevoked("the lease was taken away")

    async def resolve(self, model: str) -> Target:
        """Find a model by its id, or by another name of it; see `find`.

        Raises:
            UnknownModel: nobody serves it; close matches are named.
        """
        return (await self.find(model))[1]

    async def find(self, model: str, snapshot: Snapshot | None = None) -> tuple[Snapshot, Target]:
        """Find a model, and the configuration that has it.

        Where it is unknown, running engines are asked and folders looked through (once in a while) before giving up.

        Args:
            model: its id, or another name of it.
            snapshot: where it is looked for first; the configuration in force when absent.

        Raises:
            UnknownModel: nobody serves it; close matches are named.
        """
        snapshot = snapshot or self.snapshot
        try:
            return snapshot, snapshot.registry.resolve(model)
        except UnknownModel as error:
            unknown = error
        for ask in (self.lister.ask_if_due, self.scans.ask_if_due):
            if await ask():
                snapshot = self.snapshot  # what a scan has found is in another one
                try:
                    return snapshot, snapshot.registry.resolve(model)
                except UnknownModel as error:
                    unknown = error
        raise UnknownModel(unknown.model, unknown.suggestions, [*self._silent()])

    def _silent(self) -> Iterator[str]:
        """Tell of each engine that runs by itself, may have models that nobody else knows, and does not say which."""
        for name in sorted(self.lister.silent):
            config = self.config.engines.get(name)
            if isinstance(config, (HttpConfig, OllamaConfig, RemoteConfig)) and config.discover:
                yield f"engine '{name}' does not answer at {config.base_url}"

    def _starting(self) -> list[str]:
        """Return what is starting now, or is read ahead for its start."""
        pools = self.read_model.pools().values()
        coming = [swap.target for pool in pools for swap in pool.swaps if swap.target is not None]
        starting = [
            status.resident for pool in pools for status in pool.residents if status.phase is Phase.STARTING
        ]
        return [str(resident) for resident in dict.fromkeys([*coming, *starting])]

    async def discover(self) -> None:
        """Ask every engine that runs now which models it lists. Errors are logged; what was known stays.

        Cancellation ends only the wait for it.
        """
        await self.lister.ask()

    def events(self) -> AsyncIterator[Event]:
        """Iterate over everything that happens from now on."""
        return self.hub.subscribe()

    def note(self, message: str, *, severity: str = "warning") -> None:
        """Tell the person who runs the router something."""
        level = "error" if severity == "error" else "info" if severity == "info" else "warning"
        self.hub.publish(RouterNotice(at=time.time(), severity=level, message=message))  # type: ignore[arg-type]

    async def reload(self) -> Changes:
        """Read the configuration file again and take over what is different; see `Reloader.reload`.

        Raises:
            ConfigError: it has faults, or the router was not made from a file; nothing was changed.
        """
        if self._reloader is None:
            raise ConfigError("reload", [("", "this router was not made from a file")])
        return await self._reloader(self)

    @property
    def can_reload(self) -> bool:
        """True if there is a file that can be read again."""
        return self._reloader is not None

    def set_reloader(
        self,
        reloader: Callable[[Router], Awaitable[Changes]] | None,
        rescanner: Callable[[Router], Awaitable[Changes]],
    ) -> None:
        """Say how the configuration is read again, if it can be, and how folders are scanned."""
        self._reloader, self._rescanner = reloader, rescanner

    async def rescan(self) -> Changes:
        """Look through the folders that engines `scan`; see `Reloader.rescan`. What was found is in `scans`.

        Cancellation before the end changes nothing.
        """
        if self._rescanner is None:
            return Changes()
        return await self._rescanner(self)

    async def close(self) -> None:
        """Refuse new requests, let running ones end for `shutdown_timeout_s`, stop what the router started."""
        await self.supervisor.close(self.config.server.shutdown_timeout_s)

    async def keep_saving(self) -> None:
        """Write the state file whenever there is something new; runs until cancelled."""
        while True:
            await trio.sleep(SAVE_INTERVAL_S)
            await self.save()

    async def save(self) -> None:
        """Write the state file. A failure is told once, until it works again; the router works without."""
        if self.state_file is None:
            return
        why_not = await self._save_to(self.state_file)
        if why_not is not None and not self._cannot_save:
            self.note(why_not)
        self._cannot_save = why_not is not None

    async def _save_to(self, path: Path) -> str | None:
        """Write the state. Returns why it cannot be written; None where it was, or need not be."""
        if (version := self.state.newer_version) is not None:
            return (
                f"{path} was written by a newer engine-router (format {version}): it is neither used nor replaced; "
                "upgrade engine-router, or remove the file"
            )
        try:
            await save_state(self.state, path)
        except OSError as error:
            return f"the state file {path} cannot be written: {error}"
        return None
