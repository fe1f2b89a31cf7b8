"""The history: what happened, kept in a file that is written and read in a thread."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from attrs import define, field

from engine_router.config import HistoryConfig
from engine_router.events import Event, EventHub, RequestEnded, ResidentReady, SwapEnded
from engine_router.guards.limits import HISTORY_BACKLOG
from engine_router.telemetry.records import (
    HistoryDamaged,
    HistoryRefused,
    HistoryTooSlow,
    HistoryUnwritable,
    Sample,
)

if TYPE_CHECKING:
    import sqlite3

    from engine_router.telemetry.history_sql import HistoryFile

logger = logging.getLogger(__name__)
T = TypeVar("T")

WRITE_INTERVAL_S: Final = 5.0
"""Seconds after which what has happened is written; whoever asks sees it at once."""
_TRIM_INTERVAL_S: Final = 60.0
_LONGEST_PAUSE_S: Final = 60.0  # between two tries to write what cannot be written
_LAST_WRITE_S: Final = 5.0  # a disk that hangs must not keep the router from ending
_KINDS: Final = (RequestEnded, SwapEnded, ResidentReady)
_OFF: Final = "[history] enabled is false"
_OVER: Final = "the router has ended"


def history_file_of(config: HistoryConfig, state_file: Path | None) -> Path | None:
    """Return the file of the history; None where none is kept.

    A state file below the null device, which keeps nothing either, has no history beside it.
    """
    if not config.enabled:
        return None
    if config.file is not None:
        return Path(config.file).expanduser()
    if state_file is None or Path(os.devnull) in state_file.parents:
        return None
    return state_file.with_name("history.db")


@define(eq=False, repr=False)
class History:
    """The history of one router.

    An event costs its listener one append. All else is done by `run`, and, in a thread, by a connection to the file.

    Args:
        path: the file; None keeps nothing.
        settings: returns the options in force.
        note: tells the person who runs the router.

    Attributes:
        why_off: why nothing is kept; None where it is.
        on_events: is told of what has happened, some seconds later.
    """

    path: Path | None
    _settings: Callable[[], HistoryConfig]
    _note: Callable[..., object]
    why_off: str | None = field(init=False)
    on_events: Callable[[Sequence[Event]], object] | None = None
    _events: deque[Event] = field(factory=lambda: deque(maxlen=HISTORY_BACKLOG))
    _unwritten: deque[Event] = field(factory=lambda: deque(maxlen=HISTORY_BACKLOG))
    _samples: deque[Sample] = field(factory=lambda: deque(maxlen=HISTORY_BACKLOG))
    _file: HistoryFile | None = None
    # One thread at a time, whoever asks: there is one connection.
    _one_thread: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))
    _cannot_write: bool = False
    _tries: int = 0
    _next_try_at: float = 0.0
    _trimmed_at: float = -math.inf

    @why_off.default
    def _first_why_off(self) -> str | None:
        return _OFF if self.path is None else None

    def listen(self, hub: EventHub) -> None:
        """Take in what happens from now on."""
        if self.path is not None:
            hub.listen(self._events.append, *_KINDS)

    def drain(self) -> None:
        """Take what has happened from its listener. Never waits."""
        events = [*self._events]
        self._events.clear()
        if self.why_off is not None:
            self._unwritten.clear()
            self._samples.clear()
            return
        self._unwritten.extend(events)
        if events and self.on_events is not None:
            self.on_events(events)

    def add_samples(self, samples: Sequence[Sample]) -> None:
        """Take in measurements."""
        self._samples.extend(samples)

    async def run(self) -> None:
        """Write what has happened, every few seconds; runs until cancelled."""
        if self.path is None:
            return
        while True:
            await trio.sleep(WRITE_INTERVAL_S)
            await self.flush()
            is_kept = self._file is not None and self.why_off is None
            if is_kept and trio.current_time() - self._trimmed_at >= _TRIM_INTERVAL_S:
                self._trimmed_at = trio.current_time()
                await self._trim()

    async def close(self) -> None:
        """Write what is left and close the file, within some seconds."""
        with trio.move_on_after(_LAST_WRITE_S):
            self._next_try_at = 0.0
            await self.flush()
            if (file := self._file) is not None:
                await trio.to_thread.run_sync(file.close, abandon_on_cancel=True, limiter=self._one_thread)
        self.why_off = self.why_off or _OVER

    async def flush(self) -> None:
        """Write what has happened and is not written yet. A failure is told once, until it works again.

        Cancellation leaves a thread behind that ends by itself.
        """
        self.drain()
        if (self._unwritten or self._samples) and trio.current_time() >= self._next_try_at:
            events, samples = [*self._unwritten], [*self._samples]
            self._unwritten.clear()
            self._samples.clear()
            if await self._in_thread(lambda file: file.write(events, samples)):
                self._works()
            else:
                _put_back(self._unwritten, events)
                _put_back(self._samples, samples)

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T | None:
        """Return what a question to the file gives, everything that has happened by now in it; None where none is kept.

        Raises:
            HistoryTooSlow: it took too long, or nothing could be read.

        Cancellation leaves a thread behind that ends by itself.
        """
        await self.flush()
        found: list[T] = []
        for _ in range(2):  # what turns out to be damaged is set aside, and a new file asked
            if self.why_off is not None or await self._in_thread(lambda file: found.append(file.read(query))):
                break
        return found[0] if found else None

    async def _trim(self) -> None:
        settings = self._settings()
        oldest_at = time.time() - settings.max_days * 86400 if settings.max_days else None
        await self._in_thread(lambda file: file.trim(oldest_at, settings.max_mb * 1e6))

    async def _in_thread(self, work: Callable[[HistoryFile], object]) -> bool:
        """Do something with the file. Returns False where it could not be done now and should be tried again."""
        try:
            await trio.to_thread.run_sync(self._do, work, abandon_on_cancel=True, limiter=self._one_thread)
        except HistoryTooSlow:
            raise
        except HistoryRefused as refused:
            self.why_off = str(refused)
            self._note(f"no history is kept: {refused}")
        except HistoryUnwritable as error:
            self._tries += 1
            self._next_try_at = trio.current_time() + min(2.0**self._tries, _LONGEST_PAUSE_S)
            if not self._cannot_write:
                self._cannot_write = True
                self._note(f"the history cannot be written: {error}; it is tried again")
            return False
        except HistoryDamaged as damaged:
            await self._set_aside(str(damaged))
            return False
        except Exception:
            # A defect here must not end the router; what it was about is lost.
            logger.exception("the history failed")
        return True

    def _works(self) -> None:
        """Note that something was written."""
        self._tries, self._next_try_at = 0, 0.0
        if self._cannot_write:
            self._cannot_write = False
            self._note("the history is written again", severity="info")

    def _do(self, work: Callable[[HistoryFile], object]) -> None:
        """Do something with the file; in the thread, which imports what it takes: many routers are never asked."""
        if self._file is None:
            from engine_router.telemetry.history_sql import HistoryFile  # noqa: PLC0415 - see above

            self._file = HistoryFile(self.path or Path())
        work(self._file)

    async def _set_aside(self, damage: str) -> None:
        file = self._file
        if file is None:
            return
        try:
            kept = await trio.to_thread.run_sync(
                file.set_aside, abandon_on_cancel=True, limiter=self._one_thread
            )
        except OSError as error:
            self.why_off = (
                f"{self.path} is damaged ({damage}) and cannot be renamed: {error.strerror or error}"
            )
            self._note(f"no history is kept: {self.why_off}")
            return
        if kept is not None:
            self._note(f"the history was damaged ({damage}); a new one begins, and {kept} is the old one")


def _put_back(pending: deque[T], first: Sequence[T]) -> None:
    """Put what could not be written in front of what came meanwhile; the oldest are lost where that is too much."""
    later = [*pending]
    pending.clear()
    pending.extend((*first, *later))
