"""Reload: a running router takes over another configuration; unchanged engines go on undisturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio
from attrs import define, field, frozen

from engine_router.config import Config
from engine_router.config.diff import Changes, compare
from engine_router.engines.build import EngineFactory
from engine_router.errors import ConfigError
from engine_router.proxy.snapshot import make_snapshot
from engine_router.residency.settings import make_rules
from engine_router.router import Router

# Seconds between two looks at the file, where it is watched.
WATCH_INTERVAL_S = 2.0


@frozen
class ConfigSource:
    """The origin of a configuration.

    Attributes:
        path: the file.
        read: reads it. Blocks; raises ConfigError.
    """

    path: str
    read: Callable[[], Config]


@define(eq=False)
class Reloader:
    """The reload of one router's configuration.

    Attributes:
        factory: makes engines, and renews the headers of those that go on.
    """

    source: ConfigSource
    factory: EngineFactory
    _seen: tuple[int, int] | None = None
    _one_at_a_time: trio.Lock = field(factory=trio.Lock)

    async def reload(self, router: Router) -> Changes:
        """Read the file again, and put the configuration in force.

        A changed engine gets no new requests, ends those that it has, stops, and starts anew when it is wanted;
        this does not wait for that. Streams of engines that did not change go on.

        Raises:
            ConfigError: it has faults, or what only a new start can take over; nothing was changed.

        Cancellation before the end changes nothing.
        """
        async with self._one_at_a_time:
            self._seen = await trio.to_thread.run_sync(_signature, self.source.path, abandon_on_cancel=True)
            new = await trio.to_thread.run_sync(self.source.read, abandon_on_cancel=True)
            changes = compare(router.config, new, self.source.path)
            if not changes:
                return changes
            anew = (*changes.added, *changes.restarted)
            engines = {
                name: await self.factory.make(name, new) if name in anew else router.engines[name]
                for name in new.engines
            }
            snapshot = await make_snapshot(new, engines, router.upstream, router.state, router.learned)
            # From here on there is no checkpoint: nobody sees a router that is half one thing and half another.
            self._refuse_moved_engines(router, new)
            router.supervisor.reconfigure(
                engines=engines,
                pool_of={name: engine.pool for name, engine in new.engines.items()},
                rules=make_rules(new),
                settings=snapshot.residency,
                settle_timeout_s=new.scheduling.settle_timeout_s,
                health_interval_s=new.scheduling.health_interval_s,
            )
            self.factory.renew(engines, new)
            router.snapshot = snapshot
            others = (*changes.removed, *changes.restarted)
            router.learned.forget(others)
            for resident in router.supervisor.residents():
                if resident.engine in others:
                    router.supervisor.unload(resident)
            await self.factory.forget(others)
            return changes

    def _refuse_moved_engines(self, router: Router, new: Config) -> None:
        """Refuse an engine that is to come back in another pool before it has left the one that it was in."""
        remedy = "is still on its way out of pool '{}', which it was in; read the configuration again when it has gone"
        faults = [
            (f"engines.{engine}.pool", remedy.format(pool))
            for engine, pool in router.supervisor.places().items()
            if engine in new.engines and new.engines[engine].pool != pool
        ]
        if faults:
            raise ConfigError(self.source.path, faults)

    async def watch(self, router: Router) -> None:
        """Reload whenever the file has changed and `server.watch_config` is set; runs until cancelled."""
        self._seen = await trio.to_thread.run_sync(_signature, self.source.path)
        while True:
            await trio.sleep(WATCH_INTERVAL_S)
            if not router.config.server.watch_config:
                continue
            now = await trio.to_thread.run_sync(_signature, self.source.path)
            if now not in (self._seen, None):
                self._seen = now
                await reload_and_note(router)


async def reload_and_note(router: Router) -> None:
    """Reload, and note the outcome for the person who runs the router."""
    try:
        changes = await router.reload()
    except ConfigError as error:
        router.note(f"the configuration is not taken over: {error}", severity="error")
        return
    said = [
        f"{name.replace('_', ' ')} {', '.join(places)}"
        for name, places in changes.as_dict().items()
        if places
    ]
    router.note(f"configuration read again: {'; '.join(said) or 'nothing is different'}", severity="info")


def _signature(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:  # it is being written, or gone: what is in force stays
        return None
    return found.st_mtime_ns, found.st_size
