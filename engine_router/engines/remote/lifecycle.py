"""The lifecycle of a resident that is controlled from outside, from its start to its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio
from attrs import frozen

from engine_router.config import EngineConfig
from engine_router.engines.base import Ended, Endpoint, LogRing, Supervision
from engine_router.engines.sleep.resident_sleep import ASLEEP, ResidentSleep, WakeResult
from engine_router.errors import EngineError, EngineStartFailed, EngineStartTimeout, EngineStopFailed

T = TypeVar("T")

LOG_TAIL_LINES = 15
"""The number of an engine's last lines that go into an error message."""


class RemoteLifecycle(Protocol):
    """The steps of one resident, which `run_lifecycle` takes it through."""

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
        """The last thing seen to be in the way; one clause, or empty."""
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


async def run_lifecycle(
    lifecycle: RemoteLifecycle, supervision: Supervision, *, adopt: bool, sleep: ResidentSleep | None = None
) -> Ended:
    """Take one resident through its steps; `Engine.run_resident` says what is returned and raised.

    With `sleep` it is put to sleep rather than ended where that is wanted, and woken rather than started.

    Cancellation cancels the call in progress and asks nothing more of the engine: a server that the router
    did not start stays as it is, and the next router finds it.
    """
    is_wanted_asleep = supervision.stop_asked.is_set() and not supervision.for_good.is_set()
    if sleep is not None and is_wanted_asleep and sleep.resident in sleep.engine.registry.residents:
        return ASLEEP
    woken_at = None if sleep is None else await woken(lifecycle, supervision, sleep)
    began_at = trio.current_time()
    begun = woken_at or await _begin(lifecycle, supervision, adopt=adopt)
    if isinstance(begun, Ended):
        return begun
    if begun is None:
        return Ended(stopped=True, message=await lifecycle.end(aborted=lifecycle.began and not adopt))
    if sleep is not None and woken_at is None and not adopt:
        sleep.engine.started(sleep.resident, trio.current_time() - began_at)
    supervision.ready(begun, woken=woken_at is not None)
    death = await _until_stop(supervision, lambda: _death(lifecycle, supervision))
    if death is not None:
        lifecycle.log.write(death)
        return Ended(stopped=False, message=death, log_tail=lifecycle.log.tail(LOG_TAIL_LINES))
    if sleep is not None and await sleep.fall_asleep(supervision):
        sleep.engine.registry.put(sleep.resident, _SleepingRemote(lifecycle, not adopt))
        return ASLEEP
    return Ended(stopped=True, message=await lifecycle.end(aborted=False))


async def ended_after_doubt(
    lifecycle: RemoteLifecycle, look: Callable[[], Awaitable[str | None]]
) -> str | None:
    """Look after a doubt, and end what does not serve any more; see `RemoteLifecycle.gone`.

    Args:
        look: returns what has become of it; None while it is there.
    """
    try:
        reason = await look()
    except EngineError as error:
        lifecycle.log.write(error.summary)
        return None
    if reason is not None:
        await lifecycle.end(aborted=False)
    return reason


async def woken(
    lifecycle: RemoteLifecycle, supervision: Supervision, sleep: ResidentSleep
) -> Endpoint | None:
    """Wake a resident that sleeps, whoever has put it to sleep.

    Returns:
        where it answers; None where it does not sleep, was not woken before a stop was asked for, or could not be
        woken and was ended.

    Raises:
        EngineStopFailed: it could neither be woken nor ended.
    """
    sleeper = await sleep.engine.registry.take(sleep.resident, _SleepingRemote)
    if sleeper is None and await sleep.client.is_asleep() is not True:
        return None
    begun: list[Endpoint | Ended] = []

    async def until_ready() -> None:
        lifecycle.log.write("awake")
        begun.append(await lifecycle.adopt())

    result = await sleep.wake(supervision, until_ready, start_timeout_s=lifecycle.config.start_timeout_s)
    if result is WakeResult.AWAKE:
        if isinstance(begun[0], Endpoint):
            return begun[0]
        lifecycle.log.write(f"{begun[0].message}, while it slept")
    elif result is not WakeResult.STOP_ASKED:
        await lifecycle.end(aborted=False)
    return None


async def _until_stop(supervision: Supervision, work: Callable[[], Awaitable[T]]) -> T | None:
    """Do some work until a stop is asked for: then it is cancelled at once, and None returned.

    Raises:
        EngineError: as the work raised it.

    Cancellation cancels the work.
    """
    result: T | None = None
    failure: EngineError | None = None
    if supervision.stop_asked.is_set():
        return None
    async with trio.open_nursery() as nursery:

        async def interrupt() -> None:
            await supervision.stop_asked.wait()
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


async def _begin(
    lifecycle: RemoteLifecycle, supervision: Supervision, *, adopt: bool
) -> Endpoint | Ended | None:
    """Start or adopt within `start_timeout_s`; None where a stop was asked for. A failed start leaves nothing behind."""
    timeout_s = lifecycle.config.start_timeout_s
    try:
        with trio.move_on_after(timeout_s):
            return await _until_stop(supervision, lifecycle.adopt if adopt else lifecycle.start)
        seen = f"; last seen: {lifecycle.obstacle}" if lifecycle.obstacle else ""
        raise EngineStartTimeout(
            lifecycle.name,
            f"was not ready within {timeout_s:g} s (start_timeout_s in engines.toml){seen}",
            log_tail=lifecycle.log.tail(LOG_TAIL_LINES),
        )
    except EngineError as error:
        failure = error
    lifecycle.log.write(f"start failed: {failure.summary}")
    if lifecycle.began:
        await _clean_up(lifecycle, failure)
    if isinstance(failure, EngineStartFailed):
        raise failure
    raise EngineStartFailed(lifecycle.name, failure.summary, log_tail=failure.log_tail) from failure


async def _clean_up(lifecycle: RemoteLifecycle, failure: EngineError) -> None:
    try:
        await lifecycle.end(aborted=True)
    except EngineStopFailed as error:
        raise EngineStopFailed(
            lifecycle.name, f"{failure.summary}; after that it {error.summary}", log_tail=error.log_tail
        ) from failure


async def _death(lifecycle: RemoteLifecycle, supervision: Supervision) -> str:
    """Wait until a doubt proves right; return how it ended."""
    while True:
        await supervision.doubted()
        if (death := await lifecycle.gone()) is not None:
            return death


@frozen(eq=False, repr=False)
class _SleepingRemote:
    """A sleeping resident of a server that is not the router's; see `SleepingResident`."""

    lifecycle: RemoteLifecycle
    is_ours: bool

    async def watch(self) -> str:
        """Wait: whether it is still there shows when it is woken."""
        await trio.sleep_forever()

    async def end(self) -> None:
        """End it as if it were awake."""
        await self.lifecycle.end(aborted=False)

    def kill(self) -> None:
        """Leave it: it is not the router's process."""
