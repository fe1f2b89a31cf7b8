"""The lives of residents: each is a task that stays with one from its start to its end and reports to the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import trio
from attrs import define

from engine_router.engines.base import Ended, Endpoint, Engine, ResidentId, Supervision
from engine_router.errors import EngineDied, EngineError, EngineStartFailed, EngineStopFailed, RouterError
from engine_router.events import EventHub, MemorySettled, ResidentDied, ResidentReady, RouterNotice
from engine_router.residency import messages as book
from engine_router.residency.ledger import Phase, Profile
from engine_router.residency.life import Life
from engine_router.residency.pool import Pool
from engine_router.state import State

logger = logging.getLogger(__name__)


def is_stopping(pool: Pool, resident: ResidentId) -> bool:
    """Tell whether the end of a resident is wanted."""
    residence = pool.ledger.residence(resident)
    return residence is not None and residence.phase is Phase.STOPPING


@define(eq=False, kw_only=True)
class Lives:
    """Begins and ends the lives of residents.

    Attributes:
        tell: hands an event to the ledger of a pool.
        spawn: runs a task until it ends, or the router does.
        on_ready: called when a resident can serve.
        profile: what is known of a resident.
        settle_timeout_s: longest wait for memory to come back, in seconds.
        is_closing: the router goes down.
    """

    engines: Mapping[str, Engine]
    hub: EventHub
    state: State
    tell: Callable[[Pool, book.Event], None]
    spawn: Callable[..., None]
    on_ready: Callable[[Pool, Life], None]
    profile: Callable[[ResidentId], Profile]
    wall_clock: Callable[[], float]
    settle_timeout_s: float
    is_closing: bool = False

    def begin(self, pool: Pool, resident: ResidentId, *, found: bool) -> None:
        """Start a resident; or take it over, where it was found running."""
        self._begin(pool, resident, adopted=found, found=found)

    def end(self, pool: Pool, resident: ResidentId) -> None:
        """Ask a resident to end."""
        self.spawn(self._stop, pool, resident)

    def settle(self, pool: Pool, resident: ResidentId) -> None:
        """Wait for the memory of a resident that has gone."""
        self.spawn(self._settle, pool, resident)

    def notice(self, message: str) -> None:
        """Tell the person who runs the router something."""
        self.hub.publish(RouterNotice(at=self.wall_clock(), severity="warning", message=message))

    async def clear_away(self, resident: ResidentId) -> EngineStopFailed | None:
        """End whatever runs of a resident that no task lives with. Return why it could not be ended."""
        supervision = Supervision(lambda _: None)
        supervision.stop()
        try:
            await self.engines[resident.engine].live(resident, supervision, adopt=True)
        except EngineStopFailed as failure:
            return failure
        except EngineError as error:
            logger.warning("%s", error)  # nothing of it is left
        except Exception:
            logger.exception("engine %s: unexpected error", resident.engine)
        return None

    # A life.

    def _begin(self, pool: Pool, resident: ResidentId, *, adopted: bool, found: bool) -> Life:
        def ready(endpoint: Endpoint) -> None:
            self._ready(pool, life, endpoint)

        life = Life(resident, Supervision(ready), trio.current_time(), adopted, found)
        pool.lives[resident] = life
        self.spawn(self._live, pool, life)
        return life

    async def _live(self, pool: Pool, life: Life) -> None:
        """Stay with a resident from its start to its end, and report how it ended."""
        resident = life.resident
        error: RouterError | None = None
        try:
            with life.scope:
                error = await self._lead(pool, life)
        except EngineStopFailed as failure:
            self._stuck(pool, life, failure)
            return
        except EngineError as failure:
            error = failure
        except Exception as failure:
            # A defect of ours must not take the router down, nor leave anybody waiting, nor anything behind.
            logger.exception("engine %s: unexpected error", resident.engine)
            error = EngineStartFailed(resident.engine, f"failed unexpectedly: {failure!r}")
            if (left := await self.clear_away(resident)) is not None:
                self._stuck(pool, life, left)
                return
        self._gone(pool, life, error)

    async def _lead(self, pool: Pool, life: Life) -> RouterError | None:
        """Start a resident and stay with it. Returns the error where it died by itself."""
        resident = life.resident
        if not life.adopted:
            await self._look_before_start(pool, life)
            if life.supervision.stop_asked.is_set():
                return None
        ended = await self.engines[resident.engine].live(resident, life.supervision, adopt=life.adopted)
        if ended.stopped or is_stopping(pool, resident):
            return None
        return self._death(pool, resident, ended)

    async def _look_before_start(self, pool: Pool, life: Life) -> None:
        def on_short(missing_bytes: int) -> None:
            self.tell(pool, book.Short(life.resident, missing_bytes))

        counted = not pool.ledger.capacity.is_exclusive
        need_bytes = self.profile(life.resident).need_bytes if counted else None
        await pool.look_before_start(life, need_bytes, self.settle_timeout_s, on_short)

    def _ready(self, pool: Pool, life: Life, endpoint: Endpoint) -> None:
        if life.endpoint is not None:
            return
        now, resident = trio.current_time(), life.resident
        life.endpoint = endpoint
        if not life.adopted:
            pool.start_succeeded(life)
            self.state.of(resident).start_s = now - life.started_at
            self.state.touch()
        residence = pool.ledger.residence(resident)
        if residence is not None and residence.phase is Phase.STARTING:
            pool.journal.arrived(resident, now)
            self.hub.publish(
                ResidentReady(
                    at=self.wall_clock(),
                    pool=pool.name,
                    resident=str(resident),
                    start_s=now - life.started_at,
                    adopted=life.adopted,
                )
            )
        self.tell(pool, book.BecameReady(resident))
        self.on_ready(pool, life)
        if not life.adopted:
            self.spawn(self._measure, pool, life)

    async def _measure(self, pool: Pool, life: Life) -> None:
        measured = self.state.of(life.resident)
        if await pool.measure_start(life, measured) and measured.footprint_bytes is not None:
            need_bytes = self.profile(life.resident).need_bytes
            if need_bytes is not None:
                self.tell(pool, book.Weighed(life.resident, need_bytes))
        self.state.touch()

    def _death(self, pool: Pool, resident: ResidentId, ended: Ended) -> RouterError:
        self.hub.publish(
            ResidentDied(at=self.wall_clock(), pool=pool.name, resident=str(resident), message=ended.message)
        )
        return EngineDied(resident.engine, ended.message, log_tail=ended.log_tail)

    def _gone(self, pool: Pool, life: Life, error: RouterError | None) -> None:
        now, resident = trio.current_time(), life.resident
        life.health_scope.cancel()
        pool.ended(life)
        if life.stop_asked_at < now:
            self.state.of(resident).stop_s = now - life.stop_asked_at
            self.state.touch()
        if is_stopping(pool, resident):
            error = None  # its end was wanted, however it came about
        if error is not None:
            pool.journal.end(resident, "error", now, str(error))
        pool.lives.pop(resident, None)
        pool.gone[resident] = life
        self.tell(pool, book.HasEnded(resident, error))

    def _stuck(self, pool: Pool, life: Life, failure: EngineStopFailed) -> None:
        resident = life.resident
        life.health_scope.cancel()
        pool.journal.end(resident, "error", trio.current_time(), str(failure))
        pool.lives.pop(resident, None)
        pool.stop_failed(life)
        self.tell(pool, book.StopFailed(resident, failure))
        if self.is_closing:
            # Nothing more can be done: the router goes, and says what stays behind.
            self.notice(f"{failure}; it is left behind")

    async def _stop(self, pool: Pool, resident: ResidentId) -> None:
        """Ask a resident to end. What could not be stopped before is taken up again first."""
        life = pool.lives.get(resident)
        if life is None and (stuck := pool.stuck.pop(resident, None)) is not None:
            life = self._begin(pool, resident, adopted=True, found=stuck.found)
            life.before, life.endpoint = stuck.before, stuck.endpoint
            life.footprint_bytes = stuck.footprint_bytes
        if life is None:
            return  # it ended by itself; the news is on its way
        if self.is_closing and life.found:
            life.scope.cancel()
            return
        if await pool.look_before_stop(life):
            life.stop_asked_at = trio.current_time()
            life.supervision.stop()

    async def _settle(self, pool: Pool, resident: ResidentId) -> None:
        scope = pool.settles[resident] = trio.CancelScope()
        if self.is_closing:
            scope.cancel()
        began = trio.current_time()
        pool.journal.settle(resident, began)
        life, measured = pool.gone.get(resident), self.state.of(resident)
        with scope:
            expected = await pool.expected_release(life, measured, self.profile(resident).need_bytes)
            seen, warning = await pool.settle(life, measured, expected, self.settle_timeout_s)
            measured.settle_s = trio.current_time() - began
            self.state.touch()
            self.hub.publish(
                MemorySettled(
                    at=self.wall_clock(),
                    pool=pool.name,
                    resident=str(resident),
                    outcome=seen.outcome.value if seen is not None else "missing",
                    released_bytes=seen.released_bytes if seen is not None else None,
                    expected_bytes=expected,
                    waited_s=measured.settle_s,
                    warning=warning,
                )
            )
        pool.has_settled(resident)
        self.tell(pool, book.Settled(resident))
