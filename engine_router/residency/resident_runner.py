"""The tasks of residents: each stays with one from its start to its end, and tells the supervisor what happens."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import trio
from attrs import define, field

from engine_router.engines.base import Ended, Endpoint, Engine, ResidentId, Supervision
from engine_router.errors import (
    EngineDied,
    EngineError,
    EngineStartFailed,
    EngineStopFailed,
    RouterError,
)
from engine_router.events import EventHub, MemorySettled, ResidentReady, RouterNotice
from engine_router.memory import SettleResult
from engine_router.residency import messages
from engine_router.residency.domain import Domain
from engine_router.residency.files import ReadAhead, drop_files
from engine_router.residency.health import HealthChecks
from engine_router.residency.ledger import Phase, Profile
from engine_router.residency.measurements import Measurements
from engine_router.residency.pool import Pool
from engine_router.residency.pressure_watch import PressureWatch
from engine_router.residency.reclaim import Reclaim
from engine_router.residency.resident_task import MemoryShare, ResidentTask
from engine_router.residency.rules import ResidencySettings
from engine_router.residency.sleepers import Sleepers
from engine_router.residency.start_memory import StartMemory
from engine_router.residency.tenants import Tenants

logger = logging.getLogger(__name__)

# Seconds that an engine gets to be as it was found, when the router ends.
LET_GO_S = 5.0


def is_stopping(domain: Domain, resident: ResidentId) -> bool:
    """Tell whether the end of a resident is wanted."""
    state = domain.ledger.state(resident)
    return state is not None and state.phase is Phase.STOPPING


@define(eq=False, kw_only=True, repr=False)
class ResidentRunner:
    """Starts and ends the tasks of residents. Decides nothing: what happens is told to the supervisor.

    Attributes:
        nursery: the supervisor's, while it runs.
        settings: how residents share the memories.
        settle_timeout_s: longest wait for memory to come back, in seconds.
        on_stop: called with a resident's address just before it is asked to end.
        is_closing: the router goes down.
    """

    engines: Mapping[str, Engine]
    hub: EventHub
    measurements: Measurements
    health: HealthChecks
    settings: ResidencySettings
    settle_timeout_s: float
    wall_clock: Callable[[], float]
    nursery: trio.Nursery | None = None
    on_stop: Callable[[str], object] = lambda _: None
    is_closing: bool = False
    sleepers: Sleepers = field(init=False)
    tenants: Tenants = field(init=False)
    reclaim: Reclaim = field(init=False)
    start_memory: StartMemory = field(init=False)
    pressure: PressureWatch = field(init=False)
    _read_ahead: ReadAhead = field(factory=ReadAhead)

    def __attrs_post_init__(self) -> None:
        self.sleepers = Sleepers(self.engines)
        self.tenants = Tenants(lambda: self.settings.tenants, self.spawn, self.hub.publish, self.wall_clock)
        self.pressure = PressureWatch(spawn=self.spawn, notice=self.notice)
        self.reclaim = Reclaim(
            profile=self.profile,
            settings=lambda: self.settings,
            measurements=self.measurements,
            sleepers=self.sleepers,
            wall_clock=self.wall_clock,
        )
        self.start_memory = StartMemory(reclaim=self.reclaim, spawn=self.spawn, tenants=self.tenants)

    def spawn(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run a function until it ends, or the router does."""
        if self.nursery is not None:
            self.nursery.start_soon(function, *arguments)

    def profile(self, resident: ResidentId) -> Profile:
        """Return what is known of a resident: as configured, as measured, or as estimated."""
        return self.settings.traits(resident).profile(self.measurements.of(resident))

    def begin(self, domain: Domain, resident: ResidentId, *, found: bool) -> None:
        """Start a resident; or take it over, where it was found running."""
        self._begin(domain, resident, adopted=found, found=found)

    def end(self, domain: Domain, resident: ResidentId, wanted: ResidentId | None) -> None:
        """Ask a resident to end, so that `wanted` can start where somebody waits for that."""
        if (task := domain.tasks.get(resident)) is not None:
            task.health_scope.cancel()  # whether it does its work is of no interest any more
        self.prepare(domain, wanted)
        self.spawn(self._stop, domain, resident, wanted)

    def prepare(self, domain: Domain, wanted: ResidentId | None) -> None:
        """Read the files of a resident ahead that starts, or will as soon as there is room."""
        if wanted is not None and wanted not in domain.tasks and (scope := self._read_ahead.begin(wanted)):
            asleep = wanted in self.sleepers.all
            self.spawn(self._read_ahead.read, self.settings.files, wanted, scope, asleep)

    def settle(self, domain: Domain, resident: ResidentId) -> None:
        """Wait for the memory of a resident that has gone."""
        self.spawn(self._settle, domain, resident)

    def notice(self, message: str, severity: Literal["info", "warning"] = "warning") -> None:
        """Tell the person who runs the router something."""
        self.hub.publish(RouterNotice(at=self.wall_clock(), severity=severity, message=message))

    # One resident, from its start to its end.

    def _begin(self, domain: Domain, resident: ResidentId, *, adopted: bool, found: bool) -> ResidentTask:
        supervision = Supervision(
            on_ready=lambda endpoint: self._ready(domain, task, endpoint),
            on_shut=lambda fault, until: self._shut(domain, resident, fault, until),
            on_used=lambda: domain.tell(messages.KeepAlive(resident, None)),
        )
        task = ResidentTask(resident, supervision, trio.current_time(), adopted, found, self.settings.files)
        task.shares = {pool.name: MemoryShare(task) for pool in domain.pools_of(resident)}
        domain.tasks[resident] = task
        self.spawn(self._live, domain, task)
        return task

    async def _live(self, domain: Domain, task: ResidentTask) -> None:
        """Stay with a resident from its start to its end, and report how it ended."""
        resident = task.resident
        error: RouterError | None = None
        try:
            with task.scope:
                error = await self._lead(domain, task)
        except EngineStopFailed as failure:
            self._stuck(domain, task, failure)
            return
        except EngineError as failure:
            error = failure
        except Exception as failure:
            # A defect of ours must not take the router down, nor leave anybody waiting, nor anything behind.
            logger.exception("engine %s: unexpected error", resident.engine)
            error = EngineStartFailed(resident.engine, f"failed unexpectedly: {failure!r}")
            if (left := await self.sleepers.clear_away(resident)) is not None:
                self._stuck(domain, task, left)
                return
        self._gone(domain, task, error)

    async def _lead(self, domain: Domain, task: ResidentTask) -> RouterError | None:
        """Start a resident and stay with it. Returns the error where it died by itself."""
        resident = task.resident
        if not task.adopted:
            await self.start_memory.wait(domain, task, self.settle_timeout_s)
            if task.supervision.stop_asked.is_set():
                return None
        await self.sleepers.taken_up(resident)
        ended = await self.engines[resident.engine].run_resident(
            resident, task.supervision, adopt=task.adopted
        )
        task.is_asleep = ended.asleep
        if ended.stopped or is_stopping(domain, resident):
            return None
        return self._death(domain, resident, ended)

    def _ready(self, domain: Domain, task: ResidentTask, endpoint: Endpoint) -> None:
        if task.endpoint is not None:
            return
        now, resident = trio.current_time(), task.resident
        task.endpoint, task.ready_at = endpoint, now
        self._read_ahead.stop(resident)
        self._note_start(domain, task, now - task.started_at)
        state = domain.ledger.state(resident)
        if state is not None and state.phase is Phase.STARTING:
            domain.swap_tracker.arrived(resident, now)
            pools = domain.places(resident)
            self.hub.publish(
                ResidentReady(
                    at=self.wall_clock(),
                    pool=pools[0],
                    pools=pools,
                    resident=str(resident),
                    start_s=now - task.started_at,
                    adopted=task.adopted,
                    woken=task.supervision.woken,
                )
            )
        domain.tell(messages.BecameReady(resident))
        self.spawn(self.health.watch, domain, task)
        for pool in domain.pools_of(resident):
            self.pressure.begin(domain, pool)
        if not (task.adopted or task.supervision.woken):
            self.spawn(self._measure, domain, task)

    def _shut(self, domain: Domain, resident: ResidentId, error: RouterError | None, until: float) -> None:
        state = domain.ledger.state(resident)
        was_shut = state is not None and state.is_shut
        if error is None:
            domain.tell(messages.Opened(resident))
            self.notice(f"engine '{resident.engine}' can be reached again", severity="info")
            return
        domain.tell(messages.Shut(resident, error, until))
        if not was_shut:
            self.notice(f"{error}; requests to it are refused until it can be reached")

    def _note_start(self, domain: Domain, task: ResidentTask, seconds: float) -> None:
        if task.adopted or task.supervision.was_there:
            return
        measured = self.measurements.of(task.resident)
        if task.supervision.woken:
            measured.wake_s = seconds
        else:
            measured.start_s = seconds
        for pool, share in domain.shares(task):
            if task.supervision.woken:
                pool.memory.woke(share)
            else:
                pool.memory.start_succeeded(share)
        self.measurements.touch()

    async def _measure(self, domain: Domain, task: ResidentTask) -> None:
        resident, measured = task.resident, self.measurements.of(task.resident)
        done = [
            pool.name
            for pool, share in domain.shares(task)
            if await pool.memory.measure_start(share, measured.share(pool.name, task.shares))
        ]
        measured.add_up(task.shares)
        profile = self.profile(resident)
        for name in done:
            if (need_bytes := profile.need_in(name)) is not None:
                domain.tell(messages.Weighed(resident, need_bytes, name))
        self.measurements.touch()

    def _death(self, domain: Domain, resident: ResidentId, ended: Ended) -> RouterError:
        self.health.tell_death(domain, resident, ended.message)
        return EngineDied(resident.engine, ended.message, log_tail=ended.log_tail)

    def _gone(self, domain: Domain, task: ResidentTask, error: RouterError | None) -> None:
        now, resident = trio.current_time(), task.resident
        task.health_scope.cancel()
        for pool, share in domain.shares(task):
            pool.memory.ended(share)
        if task.is_asleep:
            self.sleepers.add(resident, task.shares)
        if task.stop_asked_at < now and not task.is_asleep:
            self.measurements.of(resident).stop_s = now - task.stop_asked_at
            self.measurements.touch()
        if is_stopping(domain, resident):
            error = None  # its end was wanted, however it came about
        if error is not None:
            domain.swap_tracker.end(resident, "error", now, str(error))
        domain.tasks.pop(resident, None)
        domain.gone[resident] = task
        domain.tell(messages.HasEnded(resident, error))

    def _stuck(self, domain: Domain, task: ResidentTask, cause: EngineStopFailed) -> None:
        resident = task.resident
        failure = EngineStopFailed(
            cause.engine,
            f"{cause.summary}; so nothing is started in its memory: `engine-router unload` tries again to stop it, "
            "`engine-router reset` takes your word that it is gone",
            log_tail=cause.log_tail,
        )
        task.health_scope.cancel()
        domain.swap_tracker.end(resident, "error", trio.current_time(), str(failure))
        domain.tasks.pop(resident, None)
        domain.stuck[resident] = task
        for pool, share in domain.shares(task):
            pool.memory.stop_failed(share)
        domain.tell(messages.StopFailed(resident, failure))
        if self.is_closing:
            # Nothing more can be done: the router goes, and says what stays behind.
            self.notice(f"{failure}; it is left behind")

    async def _stop(self, domain: Domain, resident: ResidentId, wanted: ResidentId | None) -> None:
        """Ask a resident to end. What could not be stopped before is taken up again first."""
        task = domain.tasks.get(resident)
        if task is None and (stuck := domain.stuck.pop(resident, None)) is not None:
            task = self._begin(domain, resident, adopted=True, found=stuck.found)
            task.endpoint = stuck.endpoint
            for name, share in task.shares.items():
                share.take_up(stuck.shares[name])
        if task is None:
            return  # it ended by itself; the news is on its way
        if self.is_closing and task.found:
            await self._let_go(task)
            task.scope.cancel()
            return
        if all([await pool.memory.look_before_stop(share) for pool, share in domain.shares(task)]):
            task.stop_asked_at = trio.current_time()
            if task.endpoint is not None:
                self.on_stop(task.endpoint.base_url)
            task.supervision.stop(for_good=not self._may_sleep(domain, task, wanted), is_last=self.is_closing)

    async def _let_go(self, task: ResidentTask) -> None:
        """Leave a resident that was found running as it was."""
        if task.endpoint is None or task.endpoint.let_go is None:
            return
        try:
            with trio.move_on_after(LET_GO_S):
                await task.endpoint.let_go()
        except Exception:
            logger.exception("engine %s: unexpected error", task.resident.engine)

    def _may_sleep(self, domain: Domain, task: ResidentTask, wanted: ResidentId | None) -> bool:
        """Tell whether it is enough if a resident sleeps, where its engine can."""
        state = domain.ledger.state(task.resident)
        if self.is_closing or state is None or state.unloading or state.down is not None:
            return False
        if wanted is not None:
            task.wanted = wanted
            task.missing = task.missing_for(self.profile(wanted), self.sleepers.kept(wanted))
        return self.reclaim.prefers_sleep(domain, task)

    async def _settle(self, domain: Domain, resident: ResidentId) -> None:
        task = domain.gone[resident]
        if self.is_closing:
            task.settle_scope.cancel()
        domain.swap_tracker.settle(resident, trio.current_time())
        with task.settle_scope:
            if not task.is_asleep:
                await drop_files(task.files, resident)
            pending = set(task.shares)
            async with trio.open_nursery() as nursery:
                for pool, share in domain.shares(task):
                    nursery.start_soon(self._settle_in, domain, pool, share, pending)
            if task.is_asleep:
                await self._fell_asleep(domain, task)
        del domain.gone[resident]
        for pool, share in domain.shares(task):
            pool.memory.has_settled(share)
        domain.tell(messages.Settled(resident))

    async def _settle_in(self, domain: Domain, pool: Pool, share: MemoryShare, pending: set[str]) -> None:
        """Wait for what one pool gets back, and tell of it while others still wait for theirs."""
        task, began = share.task, trio.current_time()
        resident, measured = task.resident, self.measurements.of(task.resident)
        part, profile = measured.share(pool.name, task.shares), self.profile(task.resident)
        expected = part.sleep_freed_bytes
        if not task.is_asleep:
            known = None if profile.is_guessed else profile.need_in(pool.name)
            expected = await pool.memory.expected_release(share, part, known)
        seen, warning = await pool.memory.settle(share, part, expected, self.settle_timeout_s)
        if not task.is_asleep:
            measured.settle_s = trio.current_time() - began
        elif seen is not None and share.baseline is not None and pool.memory.is_clear(share):
            part.sleep_freed_bytes = seen.released_bytes
            if (taken := share.footprint_bytes or part.footprint_bytes) is not None:
                self.sleepers.note_kept(resident, pool.name, max(0, taken - seen.released_bytes))
        self._settled(pool, resident, seen, expected, trio.current_time() - began, warning)
        pending.discard(pool.name)
        if pending and not task.is_asleep:
            domain.tell(messages.Settled(resident, pool.name))

    async def _fell_asleep(self, domain: Domain, task: ResidentTask) -> None:
        """Stop a resident after all that fell asleep, and set too little free by that."""
        self.measurements.of(task.resident).add_up(task.shares)
        if self.reclaim.prefers_sleep(domain, task):
            return
        if (left := await self.sleepers.clear_away(task.resident)) is not None:
            self.notice(str(left))

    def _settled(
        self,
        pool: Pool,
        resident: ResidentId,
        seen: SettleResult | None,
        expected: int | None,
        waited_s: float,
        warning: str | None,
    ) -> None:
        self.measurements.touch()
        self.hub.publish(
            MemorySettled(
                at=self.wall_clock(),
                pool=pool.name,
                resident=str(resident),
                outcome=seen.outcome.value if seen is not None else "missing",
                released_bytes=seen.released_bytes if seen is not None else None,
                expected_bytes=expected,
                waited_s=waited_s,
                warning=warning,
            )
        )
