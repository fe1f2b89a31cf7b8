"""The router's own log: how its lines read, and the last of them, for those who look at it over HTTP."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Final

import trio

from engine_router.engines.base import LogRing
from engine_router.guards.foreign_text import indented

_OWN: Final = "engine_router"
# The priorities of syslog(3).
_PRIORITIES: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class HumanFormatter(logging.Formatter):
    """`12:30:01 warning: what happened`; with the date where it is kept, with a priority alone in systemd's journal."""

    def __init__(self, *, colours: bool, with_date: bool, with_priority: bool = False) -> None:
        super().__init__()
        self._colours = colours
        self._with_priority = with_priority
        self._time_format = "%Y-%m-%d %H:%M:%S" if with_date else "%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback follows on lines of its own."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if self._with_priority:
            return f"<{_PRIORITIES.get(record.levelno, 6)}>{indented(text)}"
        clock = time.strftime(self._time_format, time.localtime(record.created))
        tag = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = indented(text)  # with what strangers and engines sent, be it a line like ours
        if not self._colours:
            return f"{clock} {tag}{text}"
        colour = (
            "31" if record.levelno >= logging.ERROR else "33" if record.levelno >= logging.WARNING else "2"
        )
        return (
            f"\x1b[2m{clock}\x1b[0m \x1b[{colour}m{tag}\x1b[0m{text}"
            if tag
            else f"\x1b[2m{clock}\x1b[0m {text}"
        )


class _RingHandler(logging.Handler):
    """Puts lines into a ring, which belongs to trio's thread, whatever thread they come from."""

    def __init__(self, ring: LogRing) -> None:
        super().__init__()
        self.setFormatter(HumanFormatter(colours=False, with_date=True))
        self._ring = ring
        self._trio = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record; returns at once."""
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler of Python's does
            self.handleError(record)
            return
        if threading.get_ident() == self._thread:
            self._keep(text)
            return
        with contextlib.suppress(trio.RunFinishedError):
            self._trio.run_sync_soon(self._keep, text)

    def _keep(self, text: str) -> None:
        for line in text.split("\n"):
            self._ring.write(line)


@contextlib.contextmanager
def logged_into(ring: LogRing) -> Iterator[None]:
    """Have what the router logs kept in a ring, too, inside the block. What is kept is what its level lets through."""
    handler, own = _RingHandler(ring), logging.getLogger(_OWN)
    own.addHandler(handler)
    try:
        yield
    finally:
        own.removeHandler(handler)
