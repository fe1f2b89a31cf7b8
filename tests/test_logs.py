"""The router's log: what events say, how lines look, and that nobody waits for whoever reads them."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_router.cli.event_text import EventLog
from engine_router.cli.formatting import gigabytes, phases, seconds, transition
from engine_router.cli.log import (
    BACKLOG_LINES,
    JsonFormatter,
    LogThread,
    end_logging,
    goes_to_journal,
    start_logging,
)
from engine_router.cli.log_file import LogFile
from engine_router.config import LogConfig
from engine_router.events import (
    Event,
    MemorySettled,
    RequestEnded,
    ResidentDied,
    ResidentReady,
    RouterNotice,
    SwapBegan,
    SwapEnded,
    SwapPhase,
)
from engine_router.telemetry.router_log import HumanFormatter

SWAP = {"at": 0.0, "pool": "default", "source": "a", "target": "b"}
REQUEST = {"at": 0.0, "model": "m", "engine": "a", "path": "/v1/chat/completions", "duration_s": 1.5}
SPENT = {"drain": 0.001, "stop": 0.4, "settle": 1.2, "start": 8.1}


@pytest.mark.parametrize(
    ("event", "level", "words"),
    [
        (
            SwapEnded(**SWAP, cause="b is wanted", result="ok", duration_s=9.7, phases=SPENT),
            "info",
            "swap a -> b (b is wanted): drain 0 s, stop 0.4 s, settle 1.2 s, start 8.1 s, in all 9.7 s",
        ),
        (
            SwapEnded(**SWAP, cause="c", result="error", duration_s=2.0, phases={"start": 2.0}, error="no weights"),
            "error",
            "swap a -> b (c): failed after 2.0 s: no weights",
        ),
        (
            SwapEnded(**{**SWAP, "source": None}, cause="c", result="abandoned", duration_s=2.0, phases={}),
            "info",
            "start b (c): given up after 2.0 s",
        ),
        (SwapPhase(**SWAP, phase="drain"), "info", "letting a finish its requests"),
        (SwapPhase(**SWAP, phase="stop", expected_s=0.01), "info", "stopping a"),
        (SwapPhase(**SWAP, phase="settle"), "info", "waiting for the memory of a to come back"),
        (SwapPhase(**SWAP, phase="start", expected_s=8.1), "info", "starting b (8.1 s the last time)"),
        (SwapBegan(**SWAP, cause="b is wanted"), "debug", "swap a -> b: b is wanted"),
        (ResidentReady(at=0.0, pool="p", resident="a", start_s=2.0, adopted=False), "debug", "a is ready after 2.0 s"),
        (
            ResidentReady(at=0.0, pool="p", resident="a", start_s=2.0, adopted=True),
            "info",
            "a was running already and is taken over",
        ),
        (
            ResidentDied(at=0.0, pool="p", resident="a", message="exited with code 1"),
            "error",
            "a died: it exited with code 1",
        ),
        (
            MemorySettled(
                at=0.0, pool="p", resident="a", outcome="short", released_bytes=1, expected_bytes=2, waited_s=3.0,
                warning="1 GiB is missing",
            ),
            "warning",
            "the memory of a: 1 GiB is missing",
        ),
        (
            MemorySettled(
                at=0.0, pool="p", resident="a", outcome="returned", released_bytes=2 * 10**9, expected_bytes=2,
                waited_s=3.0,
            ),
            "debug",
            "the memory of a is back: 2.0 GB in 3.0 s",
        ),
        (
            RequestEnded(**REQUEST, status=200, queue_wait_s=0.5, first_byte_s=0.9),
            "debug",
            "/v1/chat/completions m: 200 in 1.5 s, waited 0.5 s for its engine, first byte after 0.9 s",
        ),
        (
            RequestEnded(**REQUEST, status=200, tokens_in=30, tokens_out=512, tokens_per_s=38.24),
            "debug",
            "/v1/chat/completions m: 200 in 1.5 s, 512 tokens at 38.2/s",
        ),
        (
            RequestEnded(**REQUEST, status=200, tokens_in=30, tokens_out=1),
            "debug",
            "/v1/chat/completions m: 200 in 1.5 s, 1 token",
        ),
        (RequestEnded(**REQUEST, status=499), "debug", "/v1/chat/completions m: the client left after 1.5 s"),
        (
            RequestEnded(**REQUEST, status=502, error="it broke"),
            "warning",
            "/v1/chat/completions m: 502 after 1.5 s: it broke",
        ),
        (RouterNotice(at=0.0, severity="warning", message="look out"), "warning", "look out"),
        (RouterNotice(at=0.0, severity="info", message="look"), "info", "look"),
    ],
)  # fmt: skip
def test_what_an_event_says(event: Event, level: str, words: str) -> None:
    number, text = EventLog().described(event)
    assert (logging.getLevelName(number).lower(), text) == (level, words)


def test_access_lines_are_at_info_where_they_are_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    well = RequestEnded(
        **REQUEST, status=200, queue_wait_s=0.5, tokens_in=30, tokens_out=512, tokens_per_s=38.24
    )
    EventLog().observe(well)
    assert caplog.records == []
    EventLog(has_access_lines=True).observe(well)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    line = json.loads(JsonFormatter().format(record))
    assert {"time", "level", "message", "event", "at"} <= line.keys()
    assert (line["event"], line["queue_wait_s"], line["tokens_out"]) == ("request_ended", 0.5, 512)
    EventLog(has_access_lines=True).observe(RequestEnded(**REQUEST, status=502, error="it broke"))
    assert caplog.records[-1].levelno == logging.WARNING


def test_the_first_phase_tells_the_cause() -> None:
    log = EventLog()
    log.described(SwapBegan(**SWAP, cause="b is wanted"))
    assert (
        log.described(SwapPhase(**SWAP, phase="stop", expected_s=0.4))[1]
        == "stopping a (b is wanted; 0.4 s the last time)"
    )
    assert log.described(SwapPhase(**SWAP, phase="start"))[1] == "starting b"


def test_words() -> None:
    times = (0.0, 0.04, 0.094, 0.096, 9.94, 9.96, 99.4, 99.6, 5399, 5401, 172900)
    shown = [
        "0 s",
        "0.04 s",
        "0.09 s",
        "0.1 s",
        "9.9 s",
        "10 s",
        "99 s",
        "2 min",
        "90 min",
        "1.5 h",
        "2 days",
    ]
    assert [seconds(value) for value in times] == shown
    assert [gigabytes(size) for size in (4e6, 999e6, 20.5e9)] == ["4 MB", "999 MB", "20.5 GB"]
    assert transition("a", None) == "stop a"
    assert phases({"start": 1.0}, 1.0) == "1.0 s"


@pytest.fixture
def record() -> logging.LogRecord:
    return logging.LogRecord(
        "engine_router.x", logging.WARNING, "", 0, "%s \x1b[2J bad\nsecond", ("it",), None
    )


def test_a_human_line(record: logging.LogRecord) -> None:
    plain = HumanFormatter(colours=False, with_date=True).format(record)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d warning: it \\x1b\[2J bad\n  second", plain)
    coloured = HumanFormatter(colours=True, with_date=False).format(record)
    assert re.fullmatch(
        r"\x1b\[2m\d\d:\d\d:\d\d\x1b\[0m \x1b\[33mwarning: \x1b\[0mit .*", coloured, re.DOTALL
    )


def test_a_json_line_with_a_traceback(record: logging.LogRecord) -> None:
    try:
        int("deep")
    except ValueError:
        record.exc_info = sys.exc_info()
    told = json.loads(JsonFormatter().format(record))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", told["time"])
    assert (told["level"], told["logger"]) == ("warning", "engine_router.x")
    assert told["message"] == "it \x1b[2J bad\nsecond"
    assert "ValueError: invalid literal" in told["exception"]


def test_an_event_as_json_keeps_its_own_fields() -> None:
    record = logging.LogRecord("engine_router.events", logging.INFO, "", 0, "%s", ("look",), None)
    record.fields = RouterNotice(at=1.0, severity="info", message="look")
    told = json.loads(JsonFormatter().format(record))
    assert told.pop("time")
    assert told == {
        "level": "info",
        "event": "router_notice",
        "at": 1.0,
        "severity": "info",
        "message": "look",
    }


@pytest.fixture
def _own_logging() -> Iterator[None]:
    """Put back what `start_logging` changes for the whole process."""
    root = logging.getLogger()
    names = ["httpx", "httpcore", "hypercorn", "engine_router.server", "asyncio"]
    before = root.level, {name: logging.getLogger(name).level for name in names}
    yield
    logging.captureWarnings(capture=False)
    root.setLevel(before[0])
    for name, level in before[1].items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("_own_logging")
def test_a_file_with_a_relative_name_that_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    handler = start_logging(LogConfig(file="router.log", level="debug"))
    logging.getLogger("engine_router.x").debug("first")
    logging.getLogger("httpx").info("chatter")
    log = tmp_path / "router.log"
    wait_for_text(log, "first")
    if os.name == "posix":
        log.rename(tmp_path / "old.log")
        logging.getLogger("engine_router.x").info("second")
        wait_for_text(log, "second")
    end_logging(handler)
    assert "chatter" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_file_stays_small(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "router.log", max_bytes=100, keep=2)
    for number in range(10):
        file.write(f"{number:->60}\n")
    file.close()
    read = {path.name: [line[-1] for line in path.read_text().split()] for path in tmp_path.iterdir()}
    assert read == {"router.log": [], "router.log.1": ["8", "9"], "router.log.2": ["6", "7"]}


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
def test_a_device_and_a_link_are_never_renamed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path in (tmp_path / "link", Path(os.devnull)):
        file = LogFile(path, max_bytes=10, keep=2)
        file.write("much more than ten bytes\n")
        file.write("and more\n")
        file.close()
    assert {path.name for path in tmp_path.iterdir()} == {"link", "target"}
    assert "and more" in (tmp_path / "target").read_text()


def test_a_folder_where_nothing_can_be_renamed_keeps_one_file(tmp_path: Path) -> None:
    (tmp_path / "router.log.1").mkdir()
    (tmp_path / "router.log.1" / "x").touch()
    file = LogFile(tmp_path / "router.log", max_bytes=10, keep=1)
    file.write("the first long line\n")
    file.write("the second long line\n")
    file.close()
    assert (tmp_path / "router.log").read_text() == "the first long line\nthe second long line\n"


def test_the_journal_gets_a_priority_and_no_time(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w") as stream:
        there = os.fstat(stream.fileno())
        assert goes_to_journal(stream, {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"})
        assert not goes_to_journal(stream, {"JOURNAL_STREAM": f"{there.st_dev}:1"})
        assert not goes_to_journal(io.StringIO(), {"JOURNAL_STREAM": "1:1"})
    formatter = HumanFormatter(colours=False, with_date=False, with_priority=True)
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "two\nlines", None, None)
    assert formatter.format(record) == "<4>two\n  lines"


def wait_for_text(path: Path, text: str) -> None:
    deadline = time.monotonic() + 200
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Stuck(io.StringIO):
    """A terminal that somebody paused."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.go_on.wait(120)
        return super().write(text)


def test_nobody_waits_for_a_paused_terminal() -> None:
    stream = Stuck()
    handler = LogThread(stream)
    logger = logging.getLogger("engine_router.cli.log")
    logger.addHandler(handler)
    try:
        began = time.monotonic()
        for number in range(BACKLOG_LINES + 100):
            handler.write(str(number))
        assert time.monotonic() - began < 60
        stream.go_on.set()
        while handler._lines.qsize() > 10:
            time.sleep(0.01)
        handler.write("after")
        handler.close()
    finally:
        logger.removeHandler(handler)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "0"
    assert lines[-1] == "after"
    assert re.fullmatch(r"\d+ lines of the log were lost: nobody read them", lines[-2])


class Counting(Stuck):
    """A paused terminal that counts what it is told to write."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        self.begun.set()
        return super().write(text)


def log_record(level: int, text: object, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("engine_router.x", level, "", 0, text, arguments, None)


def test_lines_that_gather_are_written_at_once_and_say_what_was_so_when_they_arose() -> None:
    stream, changing = Counting(), ["before"]
    handler = LogThread(stream)
    handler.handle(log_record(logging.WARNING, "first"))
    assert stream.begun.wait(120)
    for number in range(300):
        handler.handle(log_record(logging.DEBUG, "%s", number))
    handler.handle(log_record(logging.DEBUG, "%s", changing))
    changing[0] = "after"
    handler.handle(log_record(logging.WARNING, "last"))
    stream.go_on.set()
    handler.close()
    handler._thread.join(120)
    lines = stream.getvalue().splitlines()
    assert lines == ["first", *map(str, range(300)), "['before']", "last"]
    assert stream.writes == 2


class Words:
    """Says in which thread it was asked for its words."""

    def __str__(self) -> str:
        return threading.current_thread().name


def test_a_line_is_made_in_the_thread_that_writes_it() -> None:
    stream = io.StringIO()
    handler = LogThread(stream)
    handler.handle(log_record(logging.WARNING, Words()))
    handler.close()
    handler._thread.join(120)
    assert stream.getvalue() == "log\n"


class Gone(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(text)


def test_a_broken_pipe_is_no_error() -> None:
    handler = LogThread(Gone())
    handler.write("x")
    handler.close()
    assert not handler._thread.is_alive()
