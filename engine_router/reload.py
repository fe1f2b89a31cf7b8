"""Reload: a running router takes over another configuration, or models that were found; the rest goes on undisturbed."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import define, field, frozen

from engine_router.config import Config, rights_of
from engine_router.config.diff import Changes, compare
from engine_router.config.memories import spans_of
from engine_router.engines.base import ResidentId
from engine_router.engines.build import EngineFactory
from engine_router.engines.first_of import first_of
from engine_router.errors import ConfigError
from engine_router.models.found import moved, scan_requests, served_by_file, taken_names, with_found
from engine_router.models.scan import ScanRequest, ScanResult
from engine_router.proxy.snapshot import make_snapshot
from engine_router.residency.settings import make_rules
from engine_router.router import Router

if TYPE_CHECKING:
    from engine_router.models.header_memory import HeaderMemory
    from engine_router.models.scan.scanner import Scanner

logger = logging.getLogger(__name__)

# Seconds between two looks at the file, where it is watched, and between two at the folders of models.
WATCH_INTERVAL_S = 2.0
WATCH_FOLDERS_INTERVAL_S = 10.0
# The most names, and the most faults, that one message tells.
SHOWN_NAMES = 20
SHOWN_FAULTS = 10


@frozen
class ConfigSource:
    """The origin of a configuration.

    Attributes:
        path: the file.
        read: reads it. Blocks; raises ConfigError.
    """

    path: str
    read: Callable[[], Config]


@define(eq=False, repr=False)
class Reloader:
    """The reload of one router's configuration, and the scan of its folders.

    Attributes:
        source: the file; None where the configuration is none's.
        factory: makes engines, and renews the headers and models of those that go on.
    """

    source: ConfigSource | None
    factory: EngineFactory
    _scanner: Scanner | None = None
    _seen: tuple[int, int] | None = None
    _one_at_a_time: trio.Lock = field(factory=trio.Lock)
    _one_scan: trio.Lock = field(factory=trio.Lock)

    async def reload(self, router: Router) -> Changes:
        """Read the file again, and put the configuration in force.

        A changed engine gets no new requests, ends those that it has, stops, and starts anew when it is wanted;
        this does not wait for that. So does a model that shall lie in other pools. All other streams go on. What a scan
        found stays, as far as it is still looked for; other folders are looked through by the scan that follows.

        Raises:
            ConfigError: it has faults, or what only a new start can take over; nothing was changed.

        Cancellation before the end changes nothing.
        """
        if self.source is None:
            raise ConfigError("reload", [("", "this router was not made from a file")])
        async with self._one_at_a_time:
            self._seen = await trio.to_thread.run_sync(_signature, self.source.path, abandon_on_cancel=True)
            new = await trio.to_thread.run_sync(self.source.read, abandon_on_cancel=True)
            scanned_before = scan_requests(router.config)
            changes = await self._put_in_force(router, new, router.scans.result)
        if scan_requests(router.config) != scanned_before:
            router.scans.rounds.want()
        return changes

    async def rescan(self, router: Router) -> Changes:
        """Look through the folders of models, and put what is there in force.

        Models that are new are known at once; those whose files are gone, or others now, end their requests and stop.

        Cancellation before the end changes nothing.
        """
        async with self._one_scan:
            with router.scans.around():
                return await self._rescan(router)

    async def _rescan(self, router: Router) -> Changes:
        began, at = trio.current_time(), time.time()
        scanner = await self._loaded_scanner(router)
        result = await scanner.scan(
            scan_requests(router.config), taken_names(router.config), served_by_file(router.config)
        )
        async with self._one_at_a_time:
            changes = await self._put_in_force(router, router.config, result)
            router.scans.note(result, at=at, took_s=trio.current_time() - began)
        return changes

    async def _loaded_scanner(self, router: Router) -> Scanner:
        """Return what looks for models, which is loaded by the first scan: many routers never scan."""
        if self._scanner is None:
            self._scanner = await trio.to_thread.run_sync(_make_scanner, router.learned.headers)
        return self._scanner

    async def _put_in_force(self, router: Router, new: Config, result: ScanResult) -> Changes:
        """Take over another configuration, with what was found; what is resident and did not change goes on."""
        await router.supervisor.until_adopted()  # what runs is looked for by the engines that began
        before = router.config
        # In a thread: with thousands of models this takes a while.
        new, changes = await trio.to_thread.run_sync(self._compared, before, new, result)
        if not changes:
            return changes
        anew = (*changes.added, *changes.restarted)
        engines = {
            name: await self.factory.make(name, new) if name in anew else router.engines[name]
            for name in new.engines
        }
        sessions, instance_id = router.snapshot.sessions, router.snapshot.instance_id
        snapshot = await make_snapshot(
            new, engines, router.upstream, router.state, router.learned, sessions, instance_id
        )
        # From here on there is no checkpoint: nobody sees a router that is half one thing and half another.
        self._refuse_moved_engines(router, new)
        router.supervisor.reconfigure(
            engines=engines,
            pools_of=spans_of(new),
            rules=make_rules(new),
            settings=snapshot.residency,
            settle_timeout_s=new.scheduling.settle_timeout_s,
            health_interval_s=new.scheduling.health_interval_s,
        )
        self.factory.renew(engines, new)
        router.snapshot = snapshot
        snapshot.sessions.keep_for(rights.key.encode() for rights in rights_of(new.server.api_keys))
        router.captures.reconfigure()
        others = (*changes.removed, *changes.restarted)
        router.learned.forget(others)
        moved_models = {ResidentId(engine, name) for engine, name in moved(before.models, new.models)}
        moved_models.update(router.supervisor.misplaced())
        for resident in router.supervisor.residents():
            if resident.engine in others or resident in moved_models:
                router.supervisor.unload(resident)
        await self.factory.forget(others)
        return changes

    def _compared(self, before: Config, new: Config, result: ScanResult) -> tuple[Config, Changes]:
        """Return a configuration with what was found, and what is different in it."""
        whole = with_found(new, result.models)
        return whole, compare(before, whole, self._place)

    @property
    def _place(self) -> str:
        """What a fault of the configuration is said to be in."""
        return "engines.toml" if self.source is None else self.source.path

    def _refuse_moved_engines(self, router: Router, new: Config) -> None:
        """Refuse an engine that is to come back in another pool before it has left the one that it was in."""
        remedy = "is still on its way out of pool '{}', which it was in; read the configuration again when it has gone"
        faults = [
            (f"engines.{engine}.pool", remedy.format("' and '".join(domain.pools)))
            for engine, domain in router.supervisor.places().items()
            if engine in new.engines and not set(new.engines[engine].memories) <= domain.pools.keys()
        ]
        if faults:
            raise ConfigError(self._place, faults)

    async def watch(self, router: Router) -> None:
        """Reload whenever the file has changed and `server.watch_config` is set; runs until cancelled."""
        if self.source is None:
            return
        self._seen = await trio.to_thread.run_sync(_signature, self.source.path)
        while True:
            await trio.sleep(WATCH_INTERVAL_S)
            if not router.config.server.watch_config:
                continue
            now = await trio.to_thread.run_sync(_signature, self.source.path)
            if now not in (self._seen, None):
                self._seen = now
                await reload_and_note(router)

    async def keep_scanning(self, router: Router) -> None:
        """Scan at the start, when it is wanted, and when watched folders have changed; runs until cancelled."""
        requests: Sequence[ScanRequest] = ()
        headers = router.learned.headers
        file = None if router.state_file is None else headers_file(router.state_file)
        while True:
            before, requests = requests, scan_requests(router.config)
            router.scans.is_active = bool(requests)
            router.scans.rounds.begin()
            try:
                if file is not None and requests and not len(headers):
                    await trio.to_thread.run_sync(headers.load, file, abandon_on_cancel=True)
                if requests != before or (requests and await self._has_changed(router)):
                    await self._rescan_and_note(router)
                    if file is not None:
                        await trio.to_thread.run_sync(headers.save, file)
            except OSError as error:
                logger.info("what is known of model files cannot be remembered: %s", error)
            except Exception:
                # A defect in reading somebody's files must not end the router.
                logger.exception("the folders of models cannot be scanned: unexpected error")
            finally:
                router.scans.rounds.end()
            await first_of(
                wanted=router.scans.rounds.until_wanted, due=functools.partial(self._pause, router)
            )

    async def _has_changed(self, router: Router) -> bool:
        return await (await self._loaded_scanner(router)).has_changed()

    async def _pause(self, router: Router) -> None:
        watches = router.config.server.watch_config and scan_requests(router.config)
        await trio.sleep(WATCH_FOLDERS_INTERVAL_S if watches else math.inf)

    async def _rescan_and_note(self, router: Router) -> None:
        faults = set(router.scans.result.skipped)
        changes = await self.rescan(router)
        said = [
            f"{word} {_listed(names)}"
            for word, names in (("found", changes.found), ("gone", changes.gone))
            if names
        ]
        if said:
            router.note(f"models in folders: {'; '.join(said)}", severity="info")
        new = [
            skipped for skipped in router.scans.result.skipped if skipped.is_fault and skipped not in faults
        ]
        for skipped in new[:SHOWN_FAULTS]:
            router.note(f"{skipped.path} is no model that can be served: {skipped.reason}")
        if len(new) > SHOWN_FAULTS:
            router.note(f"{len(new) - SHOWN_FAULTS} more files cannot be served: see engine-router check")


def _make_scanner(headers: HeaderMemory) -> Scanner:
    from engine_router.models.scan.scanner import Scanner  # noqa: PLC0415 - see `Reloader._loaded_scanner`

    return Scanner(headers)


def headers_file(state_file: Path) -> Path:
    """Return where the headers of model files are remembered: beside the state file."""
    return state_file.with_name("model-headers.jsonl")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


async def reload_and_note(router: Router) -> None:
    """Reload, and note the outcome for the person who runs the router."""
    try:
        changes = await router.reload()
    except ConfigError as error:
        router.note(f"the configuration is not taken over: {error}", severity="error")
        return
    said = [
        f"{name.replace('_', ' ')} {_listed(places)}" for name, places in changes.as_dict().items() if places
    ]
    router.note(f"configuration read again: {'; '.join(said) or 'nothing is different'}", severity="info")


def _signature(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:  # it is being written, or gone: what is in force stays
        return None
    return found.st_mtime_ns, found.st_size
