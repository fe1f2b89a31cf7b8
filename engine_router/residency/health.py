"""Health checks: whether a resident that is there still does its work, and whether one can be started at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

import trio
from attrs import define

from engine_router.engines.base import Engine, ResidentId
from engine_router.errors import EngineDied, EngineError, EngineStartFailed
from engine_router.events import EventHub, ResidentDied
from engine_router.residency import messages
from engine_router.residency.domain import Domain
from engine_router.residency.resident_task import ResidentTask

logger = logging.getLogger(__name__)

FAILURES_TO_BE_DOWN: Final = 3

# A check that takes longer has failed. Seconds.
CHECK_TIMEOUT_S: Final = 5.0

# Nobody waits longer for a look before a start. Seconds.
PRECHECK_TIMEOUT_S: Final = 2.0


@define(eq=False, kw_only=True, repr=False)
class HealthChecks:
    """The looks at residents: one before a start, and one after another while they are ready.

    Attributes:
        engines: by name, those of the configuration in force.
        interval_s: seconds between two checks of a ready resident; 0 for none.
    """

    engines: Mapping[str, Engine]
    hub: EventHub
    wall_clock: Callable[[], float]
    interval_s: float

    async def check_start(self, domain: Domain, resident: ResidentId) -> None:
        """Look whether a start would be in vain, and tell."""
        objection = await objection_of(self.engines[resident.engine], resident)
        domain.tell(messages.Checked(resident, objection))

    def tell_death(self, domain: Domain, resident: ResidentId, message: str) -> None:
        """Publish that a resident has died, or does its work no more."""
        pools = domain.places(resident)
        self.hub.publish(
            ResidentDied(
                at=self.wall_clock(), pool=pools[0], pools=pools, resident=str(resident), message=message
            )
        )

    async def watch(self, domain: Domain, task: ResidentTask) -> None:
        """Check a resident that has become ready, until its `health_scope` is cancelled, and tell when it is down."""
        resident = task.resident

        def is_used() -> bool:
            state = domain.ledger.state(resident)
            return state is not None and bool(state.leases)

        if self.interval_s <= 0:
            return
        with task.health_scope:
            fault = await until_down(self.engines[resident.engine], resident, self.interval_s, is_used)
            self.tell_death(domain, resident, fault)
            domain.tell(messages.Down(resident, EngineDied(resident.engine, fault)))


async def objection_of(engine: Engine, resident: ResidentId) -> EngineStartFailed | None:
    """Look whether a start would be in vain; None where it need not be, or nothing can be said in time."""
    with trio.move_on_after(PRECHECK_TIMEOUT_S):
        try:
            fault = await engine.obstacle(resident)
        except EngineError as error:
            logger.info("%s", error)
        except Exception:
            logger.exception("engine %s: unexpected error", engine.name)
        else:
            return None if fault is None else EngineStartFailed(engine.name, fault)
    return None


async def until_down(
    engine: Engine, resident: ResidentId, interval_s: float, is_used: Callable[[], bool]
) -> str:
    """Check a ready resident again and again. Returns what was seen when it failed three times in a row.

    A check that merely gets no answer in time says nothing while the resident is used: many engines answer
    nobody else while they generate, and requests that hang have their own ends.
    """
    failures = 0
    while True:
        await trio.sleep(interval_s)
        fault = await _fault(engine, resident, is_used)
        failures = 0 if fault is None else failures + 1
        if fault is None:
            continue
        logger.info("%s: health check %d of %d failed: %s", resident, failures, FAILURES_TO_BE_DOWN, fault)
        if failures >= FAILURES_TO_BE_DOWN:
            return f"failed {failures} health checks in a row: {fault}"


async def _fault(engine: Engine, resident: ResidentId, is_used: Callable[[], bool]) -> str | None:
    with trio.move_on_after(CHECK_TIMEOUT_S):
        try:
            return await engine.check(resident, used=is_used())
        except EngineError as error:
            return error.summary
        except Exception as error:
            logger.exception("engine %s: unexpected error", engine.name)
            return repr(error)
    return None if is_used() else f"did not answer within {CHECK_TIMEOUT_S:g} s"
