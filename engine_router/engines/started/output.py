"""The output of an engine: read at a pace, kept as far as anybody can read it, and searched for what matters."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from io import FileIO
from typing import Final

import trio
from attrs import define

from engine_router.engines.base import LogRing
from engine_router.guards.limits import LINES_PER_S, LONG_LINE_BYTES

_WINDOW_S: Final = 1.0
# Of what was dropped the end is kept, because it tells how the flood ended.
_LAST_LINES: Final = 20
_LAST_BYTES: Final = 65_536
# Pause after a piece (64 KiB) of a flood. What cannot be read yet waits in the engine.
_PAUSE_S: Final = 0.002

LINES_IN_ERRORS: Final = 12
# How far back an error is looked for.
_SEARCHED_LINES: Final = 500
_ERROR: Final = re.compile(
    r"\b\w*(error|exception|traceback|fatal|panic|fail(ed|ure)|abort(ed)?|assert(ion)?|out of memory|cannot|unable to"
    r"|not found|no such|invalid|unknown|unsupported|killed)\b",
    re.IGNORECASE,
)


@define(eq=False, repr=False)
class EngineOutput:
    """The output of one engine's process on its way into a log, and into a file where one is configured.

    Attributes:
        file: gets all of it; None when it cannot be written any more, too.
    """

    log: LogRing
    file: FileIO | None = None
    _window_began: float = float("-inf")
    _kept: int = 0
    _dropped: int = 0
    _last: bytes = b""

    async def read(self, stream: trio.abc.ReceiveStream) -> None:
        """Read until nobody can write any more. Cancellation loses nothing that was read."""
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await self._next(stream):
                await self.take(data)
        self.end()

    async def take(self, data: bytes) -> None:
        """Take in a piece of output, and pause where it is one of a flood."""
        is_flood = self.keep(data)
        await self._write(data)
        if is_flood:
            await trio.sleep(_PAUSE_S)

    async def _next(self, stream: trio.abc.ReceiveStream) -> bytes:
        """Return what comes next, b"" at the end. How a flood ended is told after its second, whether or not more comes."""
        if self._dropped or self._last:
            with trio.move_on_at(self._window_began + _WINDOW_S):
                return bytes(await stream.receive_some())
            self._tell_dropped()
        return bytes(await stream.receive_some())

    def keep(self, data: bytes) -> bool:
        """Keep lines as long as there are not too many in a second. Returns whether there are."""
        now = trio.current_time()
        if now - self._window_began >= _WINDOW_S:
            self._tell_dropped()
            self._window_began, self._kept = now, 0
        lines = data.count(b"\n") + len(data) // LONG_LINE_BYTES
        if self._kept + lines <= LINES_PER_S:
            self._kept += lines
            self.log.feed(data)
            return False
        if self._kept < LINES_PER_S:
            *first, data = data.split(b"\n", LINES_PER_S - self._kept)
            self.log.feed(b"".join(line[:LONG_LINE_BYTES] + b"\n" for line in first))
            self._kept = LINES_PER_S
        self._dropped += data.count(b"\n")
        self._last = (self._last + data)[-_LAST_BYTES:]
        return True

    def end(self) -> None:
        """Note that there is no more."""
        self._tell_dropped()
        self.log.flush()

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()

    def _tell_dropped(self) -> None:
        if not self._dropped and not self._last:
            return
        self.log.flush()
        last = self._last.split(b"\n")[-_LAST_LINES - 1 :]
        dropped = max(0, self._dropped - (len(last) - 1))
        self.log.write(
            f"[engine-router] {dropped} lines were dropped: more than {LINES_PER_S} came in a second"
        )
        self._dropped, self._last = 0, b""
        self.log.feed(b"\n".join(line[:LONG_LINE_BYTES] for line in last))

    async def _write(self, data: bytes) -> None:
        if self.file is None:
            return
        try:
            await trio.to_thread.run_sync(self.file.write, data)
        except OSError as error:
            self.log.write(f"[engine-router] the log_file cannot be written any more: {error}")
            self.file.close()
            self.file = None


def last_words(lines: Sequence[str], asked: Iterable[str]) -> tuple[str, ...]:
    """Return those lines of a log that tell most of an end, oldest first: the last ones, and errors before them.

    Args:
        lines: the log.
        asked: paths that the router itself asks for all the time; what the engine notes of that is left out.
    """
    paths = "|".join(re.escape(path) for path in asked)
    own = re.compile(rf"\b(?:GET|HEAD)\b\W{{1,12}}(?:{paths})(?![\w/.-])|\bcode \d{{3}}, message ")
    engine_lines = [line for line in lines[-_SEARCHED_LINES:] if not own.search(line)]
    before, last = engine_lines[:-LINES_IN_ERRORS], engine_lines[-LINES_IN_ERRORS:]
    if any(_ERROR.search(line) for line in last):
        return tuple(last)
    errors = [line for line in before if _ERROR.search(line)][-LINES_IN_ERRORS // 2 :]
    return (*errors, *last[len(errors) :])
