"""The history: kept in a real file, whatever becomes of the file, the disk and the router."""

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from support.asgi import ask

from engine_router import Router, open_router
from engine_router.config import HistoryConfig, parse_config
from engine_router.events import EventHub, RequestEnded, ResidentReady, RouterNotice, SwapEnded
from engine_router.guards.limits import HISTORY_BACKLOG
from engine_router.telemetry import history_sql
from engine_router.telemetry.history import WRITE_INTERVAL_S, History, history_file_of
from engine_router.telemetry.history_sql import HistoryFile
from engine_router.telemetry.records import HistoryTooSlow, Sample, Series

LIMIT_S = 100.0
PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"


def ended(number: int = 0, **more: Any) -> RequestEnded:
    settings: dict[str, Any] = {
        "at": 1_700_000_000.0 + number,
        "id": f"r{number}",
        "model": "m",
        "engine": "e",
        "path": "/v1/chat/completions",
        "status": 200,
        "duration_s": 1.5,
        **more,
    }
    return RequestEnded(**settings)


def swapped(**more: Any) -> SwapEnded:
    settings: dict[str, Any] = {
        "at": 1_700_000_000.0,
        "pool": "default",
        "source": "a",
        "target": "b",
        "cause": "request",
        "result": "ok",
        "duration_s": 20.0,
        "phases": {"stop": 5.0, "start": 15.0},
        **more,
    }
    return SwapEnded(**settings)


class Kept:
    """A history on its own, and what it tells."""

    def __init__(self, path: Path | None, **options: Any) -> None:
        self.hub, self.notes = EventHub(), list[str]()
        self.settings = HistoryConfig(**{"max_days": 0, **options})
        self.of = History(path, lambda: self.settings, lambda message, **_: self.notes.append(message))
        self.of.listen(self.hub)

    async def ids(self) -> list[str] | None:
        """Return the ids of all requests, the oldest first."""
        return await self.of.read(
            lambda connection: [row[0] for row in connection.execute("SELECT id FROM requests ORDER BY row")]
        )


def rows_of(path: Path, table: str = "requests") -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


async def test_what_happened_survives_the_router(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "history.db"
    with trio.fail_after(LIMIT_S):
        first = Kept(path)
        first.hub.publish(ended(1, tokens_in=3, error="=1+1\ud800"))
        first.hub.publish(swapped())
        first.hub.publish(ResidentReady(at=1.0, pool="p", resident="e/m", start_s=9.0, adopted=False))
        first.hub.publish(RouterNotice(at=1.0, severity="info", message="nothing to keep"))
        await first.of.close()
        again = Kept(path)
        assert await again.ids() == ["r1"]
        again.hub.publish(ended(2))
        assert await again.ids() == ["r1", "r2"]  # what was not written yet is there, too
        await again.of.close()
        assert (rows_of(path), rows_of(path, "swaps"), rows_of(path, "starts")) == (2, 1, 1)
        assert not first.notes + again.notes
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_events_are_written_every_few_seconds(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    path = tmp_path / "history.db"
    kept = Kept(path)
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kept.of.run)
            await trio.sleep(10 * WRITE_INTERVAL_S)
            assert not path.exists()  # nothing happened: no file
            kept.hub.publish(ended(1))
            while not path.exists() or kept.of._one_thread.borrowed_tokens or not rows_of(path):
                await trio.sleep(WRITE_INTERVAL_S)
            nursery.cancel_scope.cancel()
        await kept.of.close()


async def test_a_history_that_is_off_has_no_file(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    assert history_file_of(HistoryConfig(enabled=False, file=str(tmp_path / "x.db")), state) is None
    assert history_file_of(HistoryConfig(), Path(os.devnull) / "state.json") is None
    assert history_file_of(HistoryConfig(), None) is None
    assert history_file_of(HistoryConfig(), state) == tmp_path / "history.db"
    kept = Kept(None)
    kept.hub.publish(ended(1))
    assert await kept.ids() is None
    await kept.of.run()
    await kept.of.close()
    assert not [*tmp_path.iterdir()]


async def test_after_the_end_nothing_is_opened_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "history.db")
    kept.hub.publish(ended(1))
    await kept.of.close()
    kept.hub.publish(ended(2))
    await kept.of.flush()
    assert await kept.ids() is None
    assert kept.of._file is not None
    assert kept.of._file._connection is None
    assert rows_of(tmp_path / "history.db") == 1


async def test_to_ask_before_anything_happened_makes_no_file(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "history.db")
    assert await kept.ids() == []
    await kept.of.close()
    assert not [*tmp_path.iterdir()]


# Files and disks that are not as they should be


@pytest.mark.parametrize("damage", ["text", "middle", "cut"])
async def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "history.db"
    before = Kept(path)
    for number in range(500):
        before.hub.publish(ended(number, error="x" * 200))
    await before.of.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        if damage == "text":
            file.write(b"no database at all " * 50)
        elif damage == "middle":
            file.seek(8192)
            file.write(b"\xff" * (size - 16384))
        else:
            file.truncate(size // 3)
    kept = Kept(path)
    with trio.fail_after(LIMIT_S):
        await kept.ids()
        kept.hub.publish(ended(7))
        assert (await kept.ids() or [])[-1] == "r7"
        if damage != "text" and len(kept.notes) == 0:
            await kept.of.read(lambda c: c.execute("SELECT sum(length(error)) FROM requests").fetchall())
        assert await kept.of.read(lambda c: c.execute("PRAGMA integrity_check").fetchall()) == [("ok",)]
        await kept.of.close()
    (aside,) = [file for file in tmp_path.iterdir() if ".damaged-" in file.name and file.suffix[-1].isdigit()]
    assert aside.name == f"history.db.damaged-{time.strftime('%Y-%m-%d')}"
    (note,) = kept.notes
    assert "damaged" in note
    assert str(aside) in note


def test_a_file_that_another_router_has_set_aside_is_not_set_aside_again(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    one, other = HistoryFile(path), HistoryFile(path)
    for file in (one, other):
        file.write([ended(1)], [])
    assert one.set_aside() is not None
    one.write([ended(2)], [])
    assert other.set_aside() is None
    one.close()
    assert rows_of(path) == 1


@pytest.mark.parametrize("kind", ["newer", "foreign"])
async def test_a_file_for_others_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "history.db"
    if kind == "newer":
        before = Kept(path)
        before.hub.publish(ended(1))
        await before.of.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99" if kind == "newer" else "CREATE TABLE songs (name)")
        connection.commit()
    content = path.read_bytes()
    kept = Kept(path)
    kept.hub.publish(ended(2))
    assert await kept.ids() is None
    for number in range(10):
        kept.hub.publish(ended(number))
        await kept.of.flush()
    assert not kept.of._events  # nor is memory filled
    await kept.of.close()
    assert path.read_bytes() == content
    (note,) = kept.notes
    assert {"newer": "newer engine-router (format 99; this one knows 1)", "foreign": "another program"}[
        kind
    ] in note
    assert kept.of.why_off


def limited_pages(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let a file have so many pages from now on; the next connection keeps to it."""
    prepare, pages = history_sql._prepare, [0]

    def limited(connection: sqlite3.Connection, path: Path) -> None:
        prepare(connection, path)
        if pages[0]:
            connection.execute(f"PRAGMA max_page_count = {pages[0]}")

    monkeypatch.setattr(history_sql, "_prepare", limited)
    return lambda count: pages.__setitem__(0, count)


async def test_a_full_disk_is_told_once_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = limited_pages(monkeypatch)
    kept = Kept(tmp_path / "history.db")
    kept.hub.publish(ended(0))
    with trio.fail_after(LIMIT_S):
        await kept.of.flush()
        assert kept.of._file is not None
        kept.of._file.close()
        limit(1)
        for number in range(1, HISTORY_BACKLOG + 101):
            kept.hub.publish(ended(number))
            if number % 5000 == 0:
                kept.of._next_try_at = 0.0
                await kept.of.flush()
                await kept.of._trim()
        assert len(kept.notes) == 1
        assert "cannot be written" in kept.notes[0]
        assert await kept.ids() == ["r0"]  # what is there can be read
        limit(0)
        kept.of._file.close()
        kept.of._next_try_at = 0.0
        # The oldest that waited are lost.
        assert await kept.ids() == ["r0", *(f"r{number}" for number in range(101, HISTORY_BACKLOG + 101))]
        await kept.of.close()
    assert kept.notes[1:] == ["the history is written again"]


async def test_what_comes_while_a_write_fails_stands_behind_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = Kept(tmp_path / "file" / "history.db")
    kept.hub.publish(ended(1))
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery, kept.of._one_thread:
            nursery.start_soon(kept.of.flush)
            await trio.testing.wait_all_tasks_blocked()
            kept.hub.publish(ended(2))
            kept.of.drain()
        (tmp_path / "file").unlink()
        kept.of._next_try_at = 0.0
        assert await kept.ids() == ["r1", "r2"]
        await kept.of.close()


async def test_what_cannot_be_written_is_tried_again_at_growing_intervals(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    (tmp_path / "file").touch()
    kept, tries = Kept(tmp_path / "file" / "history.db"), list[float]()
    kept.hub.publish(ended(1))
    with trio.fail_after(LIMIT_S):
        while trio.current_time() < 90:
            before = kept.of._tries
            await kept.of.flush()
            tries += [trio.current_time()] * (kept.of._tries - before)
            await trio.sleep(1)
    assert 5 <= len(tries) <= 7
    assert len(kept.notes) == 1


FULL_DISK = """
import resource, sys
import trio
sys.path[:0] = {path!r}
from test_history import Kept, ended
from pathlib import Path

async def main():
    notes, kept = [], Kept(Path({file!r}))
    kept.hub.publish(ended(0))
    await kept.of.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    for number in range(1, 2000):
        kept.hub.publish(ended(number, error="x" * 400))
    await kept.of.flush()
    assert len(kept.notes) == 1 and "cannot be written" in kept.notes[0], kept.notes
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await trio.sleep(2.1)
    assert len(await kept.ids()) == 2000
    await kept.of.close()
    assert kept.notes[1:] == ["the history is written again"], kept.notes

trio.run(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_the_system_refuses_to_write_more(tmp_path: Path) -> None:
    program = FULL_DISK.format(path=sys.path, file=str(tmp_path / "history.db"))
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert rows_of(tmp_path / "history.db") == 2000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system with room for some hundred requests, where that is permitted."""
    folder, size = tmp_path / "disk", "size=400k"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_disk_that_fills_up_and_has_room_again(small_disk: Path) -> None:
    kept = Kept(small_disk / "history.db")
    with trio.fail_after(LIMIT_S):
        kept.hub.publish(ended(0))
        await kept.of.flush()
        (small_disk / "other").write_bytes(b"x" * 200_000)
        for turn in range(1, 4):
            for number in range(1000):
                kept.hub.publish(ended(turn * 1000 + number))
            kept.of._next_try_at = 0.0
            await kept.of.flush()
        (note,) = kept.notes
        assert "cannot be written" in note
        (small_disk / "other").unlink()
        kept.of._unwritten = deque([*kept.of._unwritten][-500:], maxlen=HISTORY_BACKLOG)  # so many fit
        kept.of._next_try_at = 0.0
        ids = await kept.ids()
        assert ids is not None
        assert (ids[0], ids[-1], len(set(ids))) == ("r0", "r3999", len(ids))
        assert len(ids) >= 501
        await kept.of.close()
    assert kept.notes[1:] == ["the history is written again"]


async def test_a_folder_that_cannot_be_made_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = Kept(tmp_path / "file" / "history.db")
    for number in range(3):
        kept.hub.publish(ended(number))
        kept.of._next_try_at = 0.0
        await kept.of.flush()
    (note,) = kept.notes
    assert "cannot be written" in note
    (tmp_path / "file").unlink()
    await kept.of.close()
    assert rows_of(tmp_path / "file" / "history.db") == 3


async def test_a_file_that_was_removed_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    kept = Kept(path)
    kept.hub.publish(ended(1))
    await kept.of.flush()
    for file in tmp_path.iterdir():
        file.unlink()
    kept.hub.publish(ended(2))
    assert await kept.ids() == ["r2"]
    await kept.of.close()
    assert not kept.notes


async def test_two_routers_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    both = [Kept(path), Kept(path)]

    async def writes(kept: Kept) -> None:
        for number in range(200):
            kept.hub.publish(ended(number))
            kept.of.add_samples([Sample(number * 60, Series("queue", "default"), 1.0)])
            await kept.of.flush()

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for kept in both:
                nursery.start_soon(writes, kept)
        for kept in both:
            kept.of._next_try_at = 0.0
            assert len(await kept.ids() or []) == 400
            await kept.of.close()
    assert rows_of(path, "samples") == 200
    assert not [note for kept in both for note in kept.notes]


KILLED = """
import sys
import trio
sys.path[:0] = {path!r}
from test_history import Kept, ended
from pathlib import Path

async def main():
    kept = Kept(Path({file!r}))
    number = 0
    while True:
        for _ in range(50):
            kept.hub.publish(ended(number, error="x" * 300))
            number += 1
        await kept.of.flush()
        print(number, flush=True)

trio.run(main)
"""


def killed_after(program: str, count: int) -> int:
    """Run a program that prints how much it has written, and kill it. Returns what it printed last."""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        last = next(number for number in map(int, running.stdout) if number >= count)
        running.send_signal(signal.SIGKILL)
        return max([last, *(int(line) for line in running.stdout if line.endswith("\n"))])


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
async def test_kill_in_the_middle_of_a_write_loses_no_more_than_was_not_written(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    program = KILLED.format(path=sys.path, file=str(path))
    before = 0
    for _ in range(3):
        written = await trio.to_thread.run_sync(killed_after, program, 1000)
        kept = Kept(path)
        ids = await kept.ids()
        assert ids is not None
        assert before + written <= len(ids) <= before + written + 50
        assert len(ids) % 50 == 0  # whole batches
        assert await kept.of.read(lambda c: c.execute("PRAGMA integrity_check").fetchall()) == [("ok",)]
        await kept.of.close()
        assert not kept.notes
        before = len(ids)


# Bounds


async def test_old_entries_go(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "history.db", max_days=2)
    now = time.time()
    for days in range(5):
        kept.hub.publish(ended(days, at=now - days * 86400))
        kept.hub.publish(swapped(at=now - days * 86400))
        kept.of.add_samples([Sample(int(now) - days * 86400, Series("queue", "default"), 1.0)])
    await kept.of.flush()
    await kept.of._trim()
    assert await kept.ids() == ["r0", "r1"]
    await kept.of.close()
    assert (rows_of(kept.of.path or Path(), "swaps"), rows_of(kept.of.path or Path(), "samples")) == (2, 2)


async def test_the_file_stays_below_its_size(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    kept = Kept(path, max_mb=1.0)
    for turn in range(4):
        for number in range(5000):
            kept.hub.publish(ended(turn * 5000 + number, error="x" * 200))
        await kept.of.flush()
        await kept.of._trim()
    ids = await kept.ids()
    await kept.of.close()
    assert ids is not None
    assert 500 < len(ids) < 5000
    assert ids[-1] == "r19999"
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1_500_000
    assert not kept.notes


async def test_a_question_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_sql, "HISTORY_QUERY_S", 0.05)
    kept = Kept(tmp_path / "history.db")
    kept.hub.publish(ended(1))
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with trio.fail_after(LIMIT_S), pytest.raises(HistoryTooSlow):
        await kept.of.read(lambda connection: connection.execute(endless).fetchall())
    assert await kept.ids() == ["r1"]
    await kept.of.close()


async def test_a_defect_in_a_question_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept(tmp_path / "history.db")
    kept.hub.publish(ended(1, tokens_in=2**70, tokens_out=-1))
    with pytest.raises(HistoryTooSlow):
        await kept.of.read(lambda c: c.execute("SELECT nothing FROM nowhere").fetchall())
    assert await kept.of.read(lambda c: 1 // 0) is None
    assert "ZeroDivisionError" in caplog.text
    assert await kept.ids() == ["r1"]
    await kept.of.close()


# The whole router


@asynccontextmanager
async def routing(tmp_path: Path, more: str = "") -> AsyncIterator[Router]:
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}"])
    text = f"""
        state_file = {json.dumps(str(tmp_path / "state.json"))}
        server.shutdown_timeout_s = 0.1
        pools.default.gauge = "none"
        engines.e = {{ type = "process", argv = {argv}, models = ["m"] }}
        {more}
        """
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router:
            yield router


async def get(router: Router, path: str, query: str = "", status: int = 200) -> Any:
    talk = await ask(router.app, "GET", path, query=query)
    assert talk.status == status, talk.body
    return talk.json()


async def test_a_router_remembers_its_requests(tmp_path: Path) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "PRIVATE"}]}
    async with routing(tmp_path) as router:
        assert (await ask(router.app, "POST", "/v1/chat/completions", body=chat)).status == 200
        assert (
            await ask(router.app, "POST", "/v1/chat/completions", body={**chat, "model": "x"})
        ).status == 404
        before = await get(router, "/admin/activity")
    assert [entry["status"] for entry in before["requests"]] == [404, 200]
    async with routing(tmp_path) as router:
        after = await get(router, "/admin/activity")
        assert (await get(router, "/admin/activity", "status=ok"))["total"] == 1
    assert after == before
    unknown, known = after["requests"]
    assert unknown["engine"] is None
    assert (known["model"], known["engine"], known["endpoint"]) == ("m", "e", "/v1/chat/completions")
    assert known["duration_s"] > 0
    assert known["has_capture"] is False
    assert (after["total"], after["limit"], after["offset"], after["enabled"]) == (2, 50, 0, True)
    for file in tmp_path.iterdir():
        assert b"PRIVATE" not in file.read_bytes()


async def test_a_router_without_a_history_says_so(tmp_path: Path) -> None:
    async with routing(tmp_path, "history.enabled = false") as router:
        await ask(router.app, "POST", "/v1/chat/completions", body={"model": "m", "messages": []})
        answer = await get(router, "/admin/activity")
    assert (answer["enabled"], answer["requests"], answer["total"]) == (False, [], 0)
    assert "enabled" in answer["why_off"]
    assert not [*tmp_path.glob("history*")]
