"""The protocol of an engine, as `residency/` knows it, with the values that both sides share."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol
from weakref import WeakValueDictionary

import trio
from attrs import define, field, frozen

from engine_router.errors import RouterError
from engine_router.guards.foreign_text import output_line, shown
from engine_router.guards.limits import RESIDENT_LOG_LINES, RESIDENT_LOGS

DOUBT_S: Final = 2.0
"""Within so many seconds of a doubt an engine has seen whether its resident is still there."""

WAKING: Final = "waking it up"
"""The step of a start that is a machine's wake: it takes as long as it did the last time."""


@frozen(order=True, cache_hash=True)  # it is the key of nearly everything
class ResidentId:
    """The name of a resident: what holds memory, and is started and stopped as a whole.

    Attributes:
        engine: name of the engine in the configuration.
        model: the model, by the name that the engine knows, where the engine loads models one by one or is a
            template; None where the engine itself is the resident.
    """

    engine: str
    model: str | None = None

    def __str__(self) -> str:
        return self.engine if self.model is None else f"{self.engine}/{self.model}"


@frozen
class Endpoint:
    """The address of a ready resident.

    Attributes:
        base_url: `http://host:port`, without a path.
        pid: process id, where the router knows it.
        on_use: called with the path of each request that is sent there; what it returns is called when the
            request has ended. Neither waits.
        let_go: called when the router ends and leaves the resident as it was found: undoes what the router has
            set there.
        is_lasting: it is always there. That a request cannot reach it is all that is to be known then: no news of its
            end will come.
    """

    base_url: str
    pid: int | None = None
    on_use: Callable[[str], Callable[[], None]] | None = field(default=None, eq=False, repr=False)
    let_go: Callable[[], Awaitable[None]] | None = field(default=None, eq=False, repr=False)
    is_lasting: bool = False


@frozen
class Ended:
    """The end of a resident.

    Attributes:
        stopped: True when the supervisor had asked for it.
        message: one clause for people, such as "exited with code 1".
        log_tail: its last log lines, oldest first.
        asleep: it was not stopped but sleeps: most of its memory is free, the rest is not. The next `run_resident` of
            the same resident wakes it.
    """

    stopped: bool
    message: str
    log_tail: tuple[str, ...] = ()
    asleep: bool = False


def _nothing() -> None:
    """Do nothing."""


def _to_nobody(_error: RouterError | None, _until: float) -> None:
    """Report nothing."""


@define(eq=False, repr=False)
class Supervision:
    """The signals between a running resident and its supervisor.

    The supervisor calls `stop()` and `doubt()`; both are synchronous and may be called at any time and more
    than once. The engine calls `ready()` once, when the first request can be served, and waits for the rest.

    Attributes:
        on_ready: called by `ready()` with the endpoint.
        on_shut: called by `shut()` and `opened()`.
        on_used: called by `used()`.
        stop_asked: set when the resident shall end, be it ready yet or not.
        for_good: set when it shall really be stopped then: to sleep would not do.
        is_last: it shall end because the router does.
        woken: it was not started but woken; set before `on_ready` is called.
        was_there: it was there already, so that nothing can be learned from how long that took; set likewise.
        step: what its start does just now, in words, where that is more than to load.
    """

    on_ready: Callable[[Endpoint], None]
    on_shut: Callable[[RouterError | None, float], None] = _to_nobody
    on_used: Callable[[], None] = _nothing
    stop_asked: trio.Event = field(factory=trio.Event)
    for_good: trio.Event = field(factory=trio.Event)
    is_last: bool = False
    woken: bool = False
    was_there: bool = False
    step: str | None = None
    _doubted: trio.Event = field(factory=trio.Event)

    def ready(self, endpoint: Endpoint, *, woken: bool = False, was_there: bool = False) -> None:
        """Report that the first request can be served."""
        self.woken, self.was_there = woken, was_there
        self.on_ready(endpoint)

    def shut(self, error: RouterError, until: float) -> None:
        """Report that it cannot be reached: others are refused until then, and wait from then on for the next report."""
        self.on_shut(error, until)

    def opened(self) -> None:
        """Report that it can be reached again."""
        self.on_shut(None, 0.0)

    def used(self) -> None:
        """Report that others use it, by another way than through the router: it is not idle."""
        self.on_used()

    def tell(self, step: str | None) -> None:
        """Tell what the start does just now, in words; None where it is nothing more than to load."""
        self.step = step

    def stop(self, *, for_good: bool = False, is_last: bool = False) -> None:
        """Ask the resident to end; `for_good`: to be stopped really, also where it could sleep; `is_last`: see there."""
        self.is_last = self.is_last or is_last
        if for_good:
            self.for_good.set()
        self.stop_asked.set()

    def doubt(self) -> None:
        """Tell that a request could not reach the resident: it should look, for `DOUBT_S`, whether it is still there."""
        self._doubted.set()

    async def doubted(self) -> None:
        """Wait for the next `doubt()`. Cancellation loses nothing: a doubt stays until it is waited for."""
        await self._doubted.wait()
        self._doubted = trio.Event()


class LogRing:
    """The last lines that an engine wrote, with a way to follow new ones.

    Memory is bounded: `lines` lines of at most `line_bytes` bytes each. They are kept as a terminal may show them:
    without colours, with every other control character written out, and without the secrets that `mask` takes out.
    `on_line` is called with each line as it is kept; it must not wait.
    """

    def __init__(
        self,
        lines: int = 2000,
        line_bytes: int = 4096,
        *,
        mask: Callable[[str], str] = str,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self._lines: deque[str] = deque(maxlen=lines)
        self._line_bytes = line_bytes
        self._mask = mask
        self._on_line = on_line
        self._partial = b""
        self._count = 0
        self._grown = trio.Event()

    @property
    def count(self) -> int:
        """The number of lines ever written."""
        return self._count

    def feed(self, data: bytes) -> None:
        """Add output as it was read; lines may be split anywhere."""
        *whole, rest = (self._partial + data).split(b"\n")
        for line in whole:
            self.write(line)
        while len(rest) > self._line_bytes:
            self.write(rest[: self._line_bytes])
            rest = rest[self._line_bytes :]
        self._partial = rest

    def write(self, line: bytes | str) -> None:
        """Add one line."""
        text = line if isinstance(line, str) else line.decode("utf-8", "replace")
        # A progress bar rewrites its line with carriage returns: its last state is what a reader saw.
        printed = output_line(text.rstrip("\r").rpartition("\r")[2][: self._line_bytes])
        self.keep(self._mask(printed))

    def keep(self, line: str) -> None:
        """Add one line that is printable and free of secrets already."""
        self._lines.append(line)
        self._count += 1
        self._grown.set()
        self._grown = trio.Event()
        if self._on_line is not None:
            self._on_line(line)

    def flush(self) -> None:
        """End the line that has no newline yet, when the writer has gone."""
        if self._partial:
            self.write(self._partial)
            self._partial = b""

    def tail(self, lines: int) -> tuple[str, ...]:
        """Return the last lines, oldest first."""
        return tuple(self._lines)[-lines:] if lines > 0 else ()

    def since(self, count: int) -> tuple[str, ...]:
        """Return the lines written after the first `count`, as far as they are still kept."""
        return self.tail(min(self._count - count, len(self._lines)))

    def missed_since(self, count: int) -> int:
        """Return how many of the lines written after the first `count` are not kept any more."""
        return max(0, self._count - count - len(self._lines))

    async def grown(self) -> None:
        """Wait until another line is written."""
        await self._grown.wait()


class EngineLogs:
    """The logs of one engine.

    An engine that is one resident has one log. Where each model is a resident, each has a log of its own; the
    engine's has the lines of all, each after the name of its model (`qwen3-8b | loading weights`).

    Memory is bounded: besides those that are being written to or read, the latest `RESIDENT_LOGS` are kept.

    Args:
        mask: takes secrets out of a line.

    Attributes:
        engine: the engine's own log.
    """

    def __init__(self, mask: Callable[[str], str] = str) -> None:
        self._mask = mask
        self.engine = LogRing(mask=self._masked)
        self._rings: WeakValueDictionary[ResidentId, LogRing] = WeakValueDictionary()
        self._kept: deque[LogRing] = deque(maxlen=RESIDENT_LOGS)

    def of(self, resident: ResidentId) -> LogRing:
        """Return a resident's log; it is empty where the resident has never run."""
        if resident.model is None:
            return self.engine
        ring = self._rings.get(resident)
        if ring is None:
            prefix = self._masked(f"{shown(resident.model)} | ")
            ring = LogRing(
                RESIDENT_LOG_LINES, mask=self._masked, on_line=lambda line: self.engine.keep(prefix + line)
            )
            self._rings[resident] = ring
            self._kept.append(ring)
        return ring

    def hide(self, mask: Callable[[str], str]) -> None:
        """Have one more mask take something out of each line that is written from now on."""
        first = self._mask
        self._mask = lambda text: mask(first(text))

    def _masked(self, line: str) -> str:
        return self._mask(line)


class Engine(Protocol):
    """One configured engine.

    An engine does I/O and decides nothing: the supervisor tells it what to do.
    """

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        ...

    @property
    def logs(self) -> EngineLogs:
        """The last lines that it and its residents wrote, or what the router did to them where it cannot read those."""
        ...

    def resident_of(self, model: str) -> ResidentId:
        """Return the resident that serves a model, given by the name that the engine knows."""
        ...

    def command(self, resident: ResidentId) -> Sequence[str] | None:
        """Return the command that starts a resident; None where it is not started by one."""
        ...

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        """Make a resident ready, stay with it, end it when asked, and return how it ended.

        `supervision.ready()` is called when the first request can be served. With `adopt` the resident is
        already running (`find` named it): nothing is started.

        Returns:
            how it ended: `stopped` when `supervision.stop_asked` was set, else it died by itself. When this
            returns, nothing of it is left in memory, as far as the engine can see; or, with `asleep`, little.

        An engine that can sleep does so when a stop is asked for, unless `supervision.for_good` is set, and
        is woken by the next call. Where a stop for good is asked for before the call, what sleeps is stopped.

        Raises:
            EngineStartFailed: it could not be made ready; nothing of it is left running.
            EngineStopFailed: it is still there `stop_timeout_s` after the stop was asked for. Calling `run_resident`
                again with `adopt` takes up from there.

        Cancellation ends the resident as fast as the platform can without waiting (a process is killed);
        the supervisor cancels only when the router itself goes down.
        """
        ...

    async def check(self, resident: ResidentId, *, used: bool = False) -> str | None:
        """Look whether a ready resident still does its work. Return None if so, else what is wrong.

        `used`: somebody uses it right now. A server that loads models by itself may be loading it again, for a
        request that needs it so, and not list it meanwhile: that is nothing wrong.

        Not bounded in time: the caller does that. Cancellation ends the check and leaves nothing behind.
        """
        ...

    async def obstacle(self, resident: ResidentId) -> str | None:
        """Say why a start would be in vain, as far as can be seen without one; None where nothing is known.

        Cheap: it is asked before others are stopped for the resident. Not bounded in time: the caller does that.
        """
        ...

    async def find(self) -> Sequence[ResidentId]:
        """Return the residents that run already, started by someone else, and whose identity is sure.

        An error while asking means that nothing can be said: it is raised, never taken for "nothing runs".

        Raises:
            EngineUnreachable: something answers, but not in a way that can be understood.
        """
        ...

    async def list_models(self) -> Sequence[str] | None:
        """Return the models that the running engine itself lists; None when it is not running.

        Raises:
            EngineUnreachable: it runs, but does not answer sensibly.
        """
        ...
