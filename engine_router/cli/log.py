"""The router's log: readable lines or JSON, to the terminal or to a file, never in the way of the router."""

from __future__ import annotations

import copy
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TextIO

from engine_router.cli.exit_codes import CommandFailed
from engine_router.cli.log_file import LogFile
from engine_router.cli.terminal import has_colours
from engine_router.config import LogConfig
from engine_router.config.values import expanded
from engine_router.events import Event
from engine_router.guards.foreign_text import printable_json
from engine_router.telemetry.router_log import HumanFormatter

# Lines that may wait for somebody to read them (a terminal that was paused, a pipe into a pager).
BACKLOG_LINES = 10_000
CLOSE_TIMEOUT_S = 1.0
# Seconds in which lines gather, so that many are written by one call, and so many at most.
GATHER_S = 0.05
BATCH_LINES = 1000
# Libraries that would tell about every request and connection.
_CHATTY = ("httpx", "httpcore", "hypercorn", "engine_router.server", "asyncio")


class LogThread(logging.Handler):
    """Formats and writes records in a thread of its own, all at once that have come in a moment.

    A write to a paused terminal or a full pipe blocks for as long as nobody reads; in the router's own thread
    it would stop every request. What cannot be written any more is dropped, and counted. A warning waits for nothing.
    """

    def __init__(self, stream: TextIO | LogFile) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.SimpleQueue[logging.LogRecord | str | None] = queue.SimpleQueue()
        self._lost = 0
        self._in_hand = 0
        self._urgent = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record; returns at once."""
        if record.args:
            # What they speak of may have changed when the line is made.
            record = copy.copy(record)
            record.msg, record.args = record.getMessage(), None
        self._take(record, is_urgent=record.levelno >= logging.WARNING)

    def write(self, line: str) -> None:
        """Take one line as it is; returns at once."""
        self._take(line, is_urgent=True)

    def _take(self, line: logging.LogRecord | str, *, is_urgent: bool) -> None:
        if self._lines.qsize() + self._in_hand >= BACKLOG_LINES:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            logging.getLogger(__name__).warning("%d lines of the log were lost: nobody read them", lost)
        self._lines.put(line)
        if is_urgent:
            self._urgent.set()

    def close(self) -> None:
        """Write what waits, as far as that is possible within a second."""
        self._lines.put(None)
        self._urgent.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT_S)
        super().close()

    def _write_all(self) -> None:
        is_over = False
        while not is_over:
            batch = self._next_batch()
            is_over = None in batch
            if not (text := "".join(f"{self._text(line)}\n" for line in batch if line is not None)):
                continue
            try:
                self._stream.write(text)
                if not isinstance(self._stream, LogFile):
                    self._stream.flush()
            except (OSError, ValueError):
                # The terminal is gone, the pipe is broken, the disk is full: the router works without a log.
                continue
        if isinstance(self._stream, LogFile):
            self._stream.close()

    def _next_batch(self) -> list[logging.LogRecord | str | None]:
        """Wait for a line, and a moment for others; return them, with None at the end of all."""
        self._in_hand = 0
        batch = [self._lines.get()]
        if self._lines.qsize() < BATCH_LINES:
            self._urgent.wait(GATHER_S)
        self._urgent.clear()
        count = min(self._lines.qsize(), BATCH_LINES)
        self._in_hand = 1 + count
        return batch + [self._lines.get() for _ in range(count)]

    def _text(self, line: logging.LogRecord | str) -> str:
        if isinstance(line, str):
            return line
        try:
            return self.format(line)
        except Exception:  # noqa: BLE001 - as every handler of Python's does
            self.handleError(line)
            return "a line of the log could not be written"


class JsonFormatter(logging.Formatter):
    """One JSON object for each record: time, level, message, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": at, "level": record.levelname.lower()}
        said: Event | dict[str, object] | None = getattr(record, "fields", None)  # set by `extra`
        fields = said.as_dict() if isinstance(said, Event) else said
        if fields is None:
            line["logger"] = record.name
        message = {"message": record.getMessage()}
        line.update(
            {**message, **(fields or {})} if fields is None or "message" in fields else {**fields, **message}
        )
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return printable_json(json.dumps(line, ensure_ascii=False, default=str))


def start_logging(config: LogConfig, *, level: str | None = None) -> LogThread:
    """Send Python's logging where the configuration says, until `end_logging`.

    Args:
        level: instead of the configured one.

    Raises:
        CommandFailed: the file cannot be written.
    """
    if config.file is None:
        handler = LogThread(sys.stderr)
        to_journal = goes_to_journal(sys.stderr)
        human = HumanFormatter(
            colours=has_colours(sys.stderr),
            with_date=not to_journal and not sys.stderr.isatty(),
            with_priority=to_journal,
        )
    else:
        handler = LogThread(_log_file(config, config.file))
        human = HumanFormatter(colours=False, with_date=True)
    handler.setFormatter(JsonFormatter() if config.format == "json" else human)
    least: int = getattr(logging, (level or config.level).upper())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(least)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(least, logging.WARNING))
    logging.captureWarnings(capture=True)
    return handler


def end_logging(handler: LogThread) -> None:
    """Write what waits and let go."""
    logging.getLogger().removeHandler(handler)
    handler.close()


def goes_to_journal(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a stream is systemd's journal, which knows the time, and takes a priority before a line (sd-daemon(3))."""
    try:
        here = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{here.st_dev}:{here.st_ino}"


def _log_file(config: LogConfig, name: str) -> LogFile:
    try:
        return LogFile(expanded(name).absolute(), config.max_mb * 1_000_000, config.keep)
    except OSError as error:
        raise CommandFailed(f"log.file {name} cannot be written: {error.strerror or error}") from None
