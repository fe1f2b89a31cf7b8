"""The life of a resident that is controlled from outside, from its start to its end."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Final, Literal, Protocol, TypeVar

import trio

from engine_router.config import EngineConfig
from engine_router.engines.base import Ended, Endpoint, LogRing, Supervision
from engine_router.errors import EngineError, EngineStartFailed, EngineStartTimeout, EngineStopFailed

T = TypeVar("T")

LOG_TAIL_LINES = 15
"""How many of an engine's last lines go into an error message."""


class Stop(enum.Enum):
    """The value that stands for an interrupted piece of work."""

    ASKED = "asked"


async def unless(stop: trio.Event, work: Callable[[], Awaitable[T]]) -> T | Literal[Stop.ASKED]:
    """Do some work, unless or until `stop` is set: then it is cancelled at once.

    Raises:
        EngineError: as the work raised it.

    Cancellation cancels the work.
    """
    result: T | Literal[Stop.ASKED] = Stop.ASKED
    failure: EngineError | None = None
    async with trio.open_nursery() as nursery:

        async def interrupt() -> None:
            await stop.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(interrupt)
        try:
            result = await work()
        except EngineError as error:
            failure = error  # raised outside of the nursery, which would wrap it into a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result


class RemoteLifecycle(Protocol):
    """One resident of an engine, in the steps that `lead` takes it through."""

    @property
    def name(self) -> str:
        """The engine's name."""
        ...

    @property
    def config(self) -> EngineConfig:
        """The engine's configuration."""
        ...

    @property
    def log(self) -> LogRing:
        """The engine's log."""
        ...

    @property
    def began(self) -> bool:
        """True as soon as something may be in memory, so that a failed start has to be cleaned up."""
        ...

    @property
    def obstacle(self) -> str:
        """What was last seen to be in the way; one clause, or empty."""
        ...

    async def start(self) -> Endpoint | Ended:
        """Make it ready. Cancelled when a stop is asked for, and after `start_timeout_s`."""
        ...

    async def adopt(self) -> Endpoint | Ended:
        """Wait for the readiness of what runs already; `Ended` when it does not run after all."""
        ...

    async def gone(self) -> str | None:
        """Look after a doubt. Return how it ended; None while it is there or nothing can be said."""
        ...

    async def end(self, *, aborted: bool) -> str:
        """End it, see that it is gone, and say how.

        Args:
            aborted: a start was interrupted or failed, so that more may be there than is listed.

        Raises:
            EngineStopFailed: it is still there after `stop_timeout_s`.
        """
        ...


class SleepControl(Protocol):
    """How one resident sleeps instead of being ended."""

    @property
    def is_in_bed(self) -> bool:
        """Whether this router has put it to sleep, and it was not woken since."""
        ...

    def started(self, seconds: float) -> None:
        """Note how long a start took, in seconds."""
        ...

    async def wake(
        self, life: RemoteLifecycle, supervision: Supervision
    ) -> Endpoint | Literal[Stop.ASKED] | None:
        """Wake it if it sleeps. Returns None where it does not, or could not be woken and was ended.

        Raises:
            EngineStopFailed: it could neither be woken nor ended.
        """
        ...

    async def fall_asleep(self, life: RemoteLifecycle, supervision: Supervision, *, adopted: bool) -> bool:
        """Put it to sleep where that is possible and wanted. Returns whether it sleeps."""
        ...


SLEEPS: Final = Ended(stopped=True, message="sleeps", asleep=True)
"""The end of a life that is no stop."""


async def lead(
    life: RemoteLifecycle, supervision: Supervision, *, adopt: bool, rest: SleepControl | None = None
) -> Ended:
    """Lead one resident through its life; `Engine.run_resident` says what is returned and raised.

    With `rest` it is put to sleep rather than ended where that is wanted, and woken rather than started.

    Cancellation cancels the call in progress and asks nothing more of the engine: a server that the router
    did not start stays as it is, and the next router finds it.
    """
    if rest is not None and rest.is_in_bed and _may_go_on_sleeping(supervision):
        return SLEEPS
    began_at = trio.current_time()
    begun: Endpoint | Ended | Literal[Stop.ASKED] | None
    begun = None if rest is None else await rest.wake(life, supervision)
    woken = begun is not None
    if begun is None:
        begun = await _begin(life, supervision, adopt=adopt)
    if isinstance(begun, Ended):
        return begun
    if begun is Stop.ASKED:
        return Ended(stopped=True, message=await life.end(aborted=life.began and not adopt))
    if rest is not None and not (woken or adopt):
        rest.started(trio.current_time() - began_at)
    supervision.ready(begun, woken=woken)
    while True:
        death = await unless(supervision.stop_asked, lambda: _doubted_to_death(life, supervision))
        if death is Stop.ASKED:
            if rest is not None and await rest.fall_asleep(life, supervision, adopted=adopt):
                return SLEEPS
            return Ended(stopped=True, message=await life.end(aborted=False))
        if death is not None:
            life.log.write(death)
            return Ended(stopped=False, message=death, log_tail=life.log.tail(LOG_TAIL_LINES))


def _may_go_on_sleeping(supervision: Supervision) -> bool:
    return supervision.stop_asked.is_set() and not supervision.for_good.is_set()


async def _begin(
    life: RemoteLifecycle, supervision: Supervision, *, adopt: bool
) -> Endpoint | Ended | Literal[Stop.ASKED]:
    """Start or adopt within `start_timeout_s`; a start that fails leaves nothing behind."""
    timeout_s = life.config.start_timeout_s
    try:
        with trio.move_on_after(timeout_s):
            return await unless(supervision.stop_asked, life.adopt if adopt else life.start)
        seen = f"; last seen: {life.obstacle}" if life.obstacle else ""
        raise EngineStartTimeout(
            life.name,
            f"was not ready within {timeout_s:g} s (start_timeout_s in engines.toml){seen}",
            log_tail=life.log.tail(LOG_TAIL_LINES),
        )
    except EngineError as error:
        failure = error
    life.log.write(f"start failed: {failure.summary}")
    if life.began:
        await _clean_up(life, failure)
    if isinstance(failure, EngineStartFailed):
        raise failure
    raise EngineStartFailed(life.name, failure.summary, log_tail=failure.log_tail) from failure


async def _clean_up(life: RemoteLifecycle, failure: EngineError) -> None:
    try:
        await life.end(aborted=True)
    except EngineStopFailed as error:
        raise EngineStopFailed(
            life.name, f"{failure.summary}; after that it {error.summary}", log_tail=error.log_tail
        ) from failure


async def _doubted_to_death(life: RemoteLifecycle, supervision: Supervision) -> str | None:
    await supervision.doubted()
    return await life.gone()
