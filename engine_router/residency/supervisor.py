"""The supervisor: the one task that owns all residency.

It receives events on one memory channel, lets the ledger of the pool decide at once, and performs what was
decided as child tasks of its nursery. It never waits for a swap inside its loop: one that did could not hear
the releases that it drains for.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import trio

from engine_router.engines.base import Ended, Endpoint, Engine, ResidentId, Supervision
from engine_router.errors import (
    EngineDied,
    EngineError,
    EngineStartFailed,
    EngineStopFailed,
    RouterClosing,
    RouterError,
)
from engine_router.events import EventHub, MemorySettled, Phase, ResidentDied, ResidentReady, RouterNotice
from engine_router.memory import Gauge
from engine_router.residency import messages as book
from engine_router.residency.journal import SwapJournal
from engine_router.residency.lease import Lease
from engine_router.residency.ledger import Phase as LifePhase
from engine_router.residency.ledger import Rules
from engine_router.residency.messages import Ticket
from engine_router.residency.pool import Life, Pool
from engine_router.state import State

logger = logging.getLogger(__name__)

# Seconds that one engine may take to say what it has running, when the router starts.
ADOPTION_TIMEOUT_S = 5.0


def _is_stopping(pool: Pool, resident: ResidentId) -> bool:
    present = pool.ledger.present
    return present is not None and present.resident == resident and present.phase is LifePhase.STOPPING


class Supervisor:
    """Owns the residents of all pools.

    Args:
        engines: by name.
        gauges: each pool's gauge, by the pool's name.
        pool_of: the pool of each engine, by the engine's name.
        settle_timeout_s: longest wait for memory to come back, in seconds.
        declared: memory that the configuration declares for a resident, in bytes, or None.
    """

    def __init__(
        self,
        *,
        engines: Mapping[str, Engine],
        gauges: Mapping[str, Gauge],
        pool_of: Mapping[str, str],
        rules: Rules,
        settle_timeout_s: float,
        hub: EventHub,
        state: State,
        declared: Callable[[ResidentId], int | None] = lambda _: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._engines = engines
        self._pool_of = pool_of
        self._settle_timeout_s = settle_timeout_s
        self._hub = hub
        self._state = state
        self._declared = declared
        self._wall_clock = wall_clock
        self._closing = False
        self._over = False
        self.pools: dict[str, Pool] = {
            name: Pool(name, rules, gauge, SwapJournal(name, hub, wall_clock, self.expected_s))
            for name, gauge in gauges.items()
        }
        self._nursery: trio.Nursery | None = None
        self._send: trio.MemorySendChannel[tuple[Pool, book.Event]]
        self._inbox: trio.MemoryReceiveChannel[tuple[Pool, book.Event]]
        self._send, self._inbox = trio.open_memory_channel(math.inf)

    # What others call: synchronous, from any task.

    def request(self, resident: ResidentId) -> Lease:
        """Enter a request for a resident; wait for it with `Lease.granted`, end it with `Lease.release`."""
        pool = self.pool(resident)
        lease = Lease(Ticket(resident), trio.current_time(), self._give_back)
        if self._over:
            lease.refuse(RouterClosing("the router is not running any more"))
            return lease
        pool.leases[lease.ticket] = lease
        self._tell(pool, book.Acquire(lease.ticket))
        return lease

    def unload(self, resident: ResidentId) -> None:
        """Ask for a resident to be drained and stopped."""
        self._tell(self.pool(resident), book.Unload(resident))

    async def until_unloaded(self, resident: ResidentId) -> None:
        """Have a resident drained and stopped, and wait until it is gone.

        Raises:
            RouterError: it could not be stopped.

        Cancellation ends only the wait.
        """
        pool = self.pool(resident)
        self.unload(resident)
        residence = pool.ledger.present
        while residence is not None and pool.ledger.present is residence:
            await pool.change()
            if residence.phase is LifePhase.STUCK and residence.failure is not None:
                raise residence.failure

    def doubt(self, resident: ResidentId) -> None:
        """Tell that a resident could not be reached, so that its engine looks whether it is still there."""
        if (life := self.pool(resident).lives.get(resident)) is not None:
            life.supervision.doubt()

    def pool(self, resident: ResidentId) -> Pool:
        """Return the pool of a resident."""
        return self.pools[self._pool_of[resident.engine]]

    def expected_s(self, resident: ResidentId, phase: Phase) -> float | None:
        """Return what a phase took the last time for this resident, in seconds; None where unknown."""
        measured = self._state.of(resident)
        return {"start": measured.start_s, "stop": measured.stop_s, "settle": measured.settle_s}.get(phase)

    async def close(self, grace_s: float) -> None:
        """Refuse new requests, let leases end for `grace_s`, stop what the router started, and return.

        Cancellation leaves the rest to the cancellation of `run`, which kills without waiting.
        """
        self._closing = True
        deadline = trio.current_time() + grace_s
        for pool in self.pools.values():
            self._tell(pool, book.Close(deadline))
            pool.settle_scope.cancel()  # nothing will be started into that memory
        for pool in self.pools.values():
            while not (pool.is_closed or self._over):
                await pool.change()

    # The task.

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Reports started once every engine was asked what it has running already."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._adopt()
                task_status.started()
                await self._decide(nursery)
        finally:
            self._end()

    async def _decide(self, nursery: trio.Nursery) -> NoReturn:
        while True:
            wake_at = min(pool.ledger.wake_at() for pool in self.pools.values())
            if wake_at == math.inf:
                pool, event = await self._inbox.receive()
                self._apply(pool, event, nursery)
            else:
                with trio.move_on_at(wake_at):
                    pool, event = await self._inbox.receive()
                    self._apply(pool, event, nursery)
                    continue
                self._tick(nursery)

    def _tick(self, nursery: trio.Nursery) -> None:
        for pool in self.pools.values():
            if pool.ledger.wake_at() <= trio.current_time():
                self._apply(pool, book.Tick(), nursery)

    def _end(self) -> None:
        """Tell everybody who waits or holds a lease that nobody is there any more to decide anything."""
        self._over = True
        for pool in self.pools.values():
            for lease in tuple(pool.leases.values()):
                lease.refuse(RouterClosing("the router has ended"))
            pool.note_change()

    def _apply(self, pool: Pool, event: book.Event, nursery: trio.Nursery) -> None:
        for effect in pool.ledger.apply(event, trio.current_time()):
            self._perform(pool, effect, nursery)
        if pool.ledger.is_empty:
            pool.journal.end_empty(trio.current_time())
        pool.note_change()

    def _tell(self, pool: Pool, event: book.Event) -> None:
        self._send.send_nowait((pool, event))

    def _give_back(self, lease: Lease) -> None:
        pool = self.pool(lease.resident)
        pool.leases.pop(lease.ticket, None)
        self._tell(pool, book.Release(lease.ticket))

    def _notice(self, message: str) -> None:
        self._hub.publish(RouterNotice(at=self._wall_clock(), severity="warning", message=message))

    # Effects: each is done at once or handed to a child task.

    def _perform(self, pool: Pool, effect: book.Effect, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        match effect:
            case book.Grant(ticket):
                self._grant(pool, ticket, now)
            case book.Refuse(ticket, error) | book.Revoke(ticket, error):
                if (lease := pool.leases.get(ticket)) is not None:
                    lease.refuse(error)
            case book.Start(resident, cause, adopt):
                if not adopt:
                    pool.journal.phase("start", now, target=resident, cause=cause)
                life = self._new_life(pool, resident, adopted=adopt, found=adopt)
                nursery.start_soon(self._live, pool, resident, life)
            case book.Drain(resident, cause, wanted):
                pool.journal.phase("drain", now, source=resident, target=wanted, cause=cause)
            case book.Resume():
                pool.journal.end("abandoned", now)
            case book.Stop(resident, cause, wanted):
                self._begin_stop(pool, resident, cause, wanted)
                nursery.start_soon(self._stop, pool, resident)
            case book.Settle(resident):
                nursery.start_soon(self._settle, pool, resident)

    def _grant(self, pool: Pool, ticket: Ticket, now: float) -> None:
        lease, life = pool.leases.get(ticket), pool.lives.get(ticket.resident)
        if lease is not None and life is not None and life.endpoint is not None:
            lease.grant(life.endpoint, now)

    def _new_life(self, pool: Pool, resident: ResidentId, *, adopted: bool, found: bool) -> Life:
        def on_ready(endpoint: Endpoint) -> None:
            self._on_ready(pool, resident, life, endpoint)

        life = pool.lives[resident] = Life(Supervision(on_ready), trio.current_time(), adopted, found)
        return life

    def _begin_stop(self, pool: Pool, resident: ResidentId, cause: str, wanted: ResidentId | None) -> None:
        now = trio.current_time()
        swap = pool.journal.current
        if swap is not None and swap.target == resident:
            pool.journal.end("abandoned", now)  # it was still starting
        pool.journal.phase("stop", now, source=resident, target=wanted, cause=cause)

    # The life of a resident.

    async def _live(self, pool: Pool, resident: ResidentId, life: Life) -> None:
        """Stay with a resident from its start to its end, and report how it ended."""
        engine = self._engines[resident.engine]
        error: RouterError | None = None
        try:
            with life.scope:
                if not life.adopted:
                    await pool.look_before_start(life)
                if life.adopted or not life.supervision.stop_asked.is_set():
                    ended = await engine.live(resident, life.supervision, adopt=life.adopted)
                    if not (ended.stopped or _is_stopping(pool, resident)):
                        error = self._death(pool, resident, ended)
        except EngineStopFailed as failure:
            self._stuck(pool, resident, life, failure)
            return
        except EngineError as failure:
            error = failure
        except Exception as failure:
            # A defect of ours must not take the router down, nor leave anybody waiting, nor anything behind.
            logger.exception("engine %s: unexpected error", resident.engine)
            error = EngineStartFailed(resident.engine, f"failed unexpectedly: {failure!r}")
            if (left := await self._clear_away(resident)) is not None:
                self._stuck(pool, resident, life, left)
                return
        self._gone(pool, resident, life, error)

    async def _clear_away(self, resident: ResidentId) -> EngineStopFailed | None:
        """End whatever runs of a resident that no task lives with. Return why it could not be ended."""
        supervision = Supervision(lambda _: None)
        supervision.stop()
        try:
            await self._engines[resident.engine].live(resident, supervision, adopt=True)
        except EngineStopFailed as failure:
            return failure
        except EngineError as error:
            logger.warning("%s", error)  # nothing of it is left
        except Exception:
            logger.exception("engine %s: unexpected error", resident.engine)
        return None

    def _on_ready(self, pool: Pool, resident: ResidentId, life: Life, endpoint: Endpoint) -> None:
        if life.endpoint is not None:
            return
        now = trio.current_time()
        life.endpoint = endpoint
        if not life.adopted:
            self._state.of(resident).start_s = now - life.started_at
            self._state.touch()
        present = pool.ledger.present
        if present is not None and present.phase is LifePhase.STARTING:
            pool.journal.end("ok", now)
            self._hub.publish(
                ResidentReady(
                    at=self._wall_clock(),
                    pool=pool.name,
                    resident=str(resident),
                    start_s=now - life.started_at,
                    adopted=life.adopted,
                )
            )
        self._tell(pool, book.BecameReady(resident))
        if self._nursery is not None and not life.adopted:
            self._nursery.start_soon(self._measure, pool, resident, life)

    async def _measure(self, pool: Pool, resident: ResidentId, life: Life) -> None:
        await pool.measure_start(resident, life, self._state.of(resident))
        self._state.touch()

    def _death(self, pool: Pool, resident: ResidentId, ended: Ended) -> RouterError:
        self._hub.publish(
            ResidentDied(at=self._wall_clock(), pool=pool.name, resident=str(resident), message=ended.message)
        )
        return EngineDied(resident.engine, ended.message, log_tail=ended.log_tail)

    def _gone(self, pool: Pool, resident: ResidentId, life: Life, error: RouterError | None) -> None:
        now = trio.current_time()
        if life.stop_asked_at < now:
            self._state.of(resident).stop_s = now - life.stop_asked_at
            self._state.touch()
        if _is_stopping(pool, resident):
            error = None  # its end was wanted, however it came about
        if error is not None:
            pool.journal.end("error", now, str(error))
        pool.lives.pop(resident, None)
        pool.last_gone = life
        self._tell(pool, book.HasEnded(resident, error))

    def _stuck(self, pool: Pool, resident: ResidentId, life: Life, failure: EngineStopFailed) -> None:
        pool.journal.end("error", trio.current_time(), str(failure))
        pool.lives.pop(resident, None)
        pool.stuck[resident] = life
        self._tell(pool, book.StopFailed(resident, failure))
        if self._closing:
            # Nothing more can be done: the router goes, and says what stays behind.
            self._notice(f"{failure}; it is left behind")

    async def _stop(self, pool: Pool, resident: ResidentId) -> None:
        """Ask a resident to end. What could not be stopped before is taken up again first."""
        life = pool.lives.get(resident)
        if (
            life is None
            and self._nursery is not None
            and (stuck := pool.stuck.pop(resident, None)) is not None
        ):
            life = self._new_life(pool, resident, adopted=True, found=stuck.found)
            life.before, life.endpoint = stuck.before, stuck.endpoint
            life.footprint_bytes = stuck.footprint_bytes
            self._nursery.start_soon(self._live, pool, resident, life)
        if life is None:
            return  # it ended by itself; the news is on its way
        if self._closing and life.found:
            life.scope.cancel()
            return
        baseline = await pool.read_gauge()
        if pool.lives.get(resident) is not life:
            return  # it ended by itself while the gauge was read
        life.baseline = baseline
        life.stop_asked_at = trio.current_time()
        life.supervision.stop()

    async def _settle(self, pool: Pool, resident: ResidentId) -> None:
        """Wait for the memory of a resident that has gone."""
        pool.settle_scope = trio.CancelScope()
        if self._closing:
            pool.settle_scope.cancel()
        began = trio.current_time()
        if pool.journal.current is not None:
            pool.journal.phase("settle", began, source=resident)
        with pool.settle_scope:
            measured = self._state.of(resident)
            expected = await pool.expected_release(pool.last_gone, measured, self._declared(resident))
            seen, warning = await pool.settle(measured, expected, self._settle_timeout_s)
            measured.settle_s = trio.current_time() - began
            self._state.touch()
            self._hub.publish(
                MemorySettled(
                    at=self._wall_clock(),
                    pool=pool.name,
                    resident=str(resident),
                    outcome=seen.outcome.value if seen is not None else "missing",
                    released_bytes=seen.released_bytes if seen is not None else None,
                    expected_bytes=expected,
                    waited_s=measured.settle_s,
                    warning=warning,
                )
            )
        self._tell(pool, book.Settled())

    # What runs already.

    async def _adopt(self) -> None:
        """Ask every engine what it has running, and take that over, one resident for each pool."""
        found: dict[str, list[ResidentId]] = {name: [] for name in self.pools}

        async def look(engine: Engine) -> None:
            found[self._pool_of[engine.name]].extend(await self._find(engine))

        async with trio.open_nursery() as nursery:
            for engine in self._engines.values():
                nursery.start_soon(look, engine)
        order = list(self._engines)
        for name, residents in found.items():
            residents.sort(key=lambda resident: order.index(resident.engine))
            for extra in residents[1:]:
                self._notice(
                    f"{extra} was found running beside {residents[0]} and is stopped: one memory, one resident"
                )
            await self._stop_extras(self.pools[name], residents[1:])
            if residents:
                self._tell(self.pools[name], book.Adopt(residents[0]))

    async def _find(self, engine: Engine) -> Sequence[ResidentId]:
        with trio.move_on_after(ADOPTION_TIMEOUT_S):
            try:
                return await engine.find()
            except EngineError as error:
                self._notice(f"{error}; whatever it has running is not taken over")
                return ()
            except Exception as error:
                logger.exception("engine %s: unexpected error", engine.name)
                self._notice(f"engine '{engine.name}': {error!r}; whatever it has running is not taken over")
                return ()
        self._notice(
            f"engine '{engine.name}' did not say within {ADOPTION_TIMEOUT_S:g} s what it has running"
        )
        return ()

    async def _stop_extras(self, pool: Pool, extras: Sequence[ResidentId]) -> None:
        for resident in extras:
            if (left := await self._clear_away(resident)) is not None:
                logger.warning("pool %s: %s", pool.name, left)
                self._notice(str(left))
