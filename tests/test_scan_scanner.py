"""The scanner: each place in its own thread, whatever happens in the others."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from support.gguf_files import gguf_file
from support.scanned import GGUF, names, reasons

from engine_router.models.header_memory import HeaderMemory
from engine_router.models.scan import ScanRequest, ScanResult
from engine_router.models.scan.places import Surroundings
from engine_router.models.scan.scanner import Scanner


class Hang:
    """A folder on a disk that hangs, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._let_go = threading.Event()
        self.is_hanging = False
        self.threads = 0
        scandir = os.scandir

        def hanging(path: Path | str) -> object:
            if self.is_hanging and Path(path) == folder:
                self.threads += 1
                self._let_go.wait(60)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", hanging)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        self._let_go.clear()
        self.is_hanging = True
        try:
            yield
        finally:
            self.is_hanging = False
            self._let_go.set()


@pytest.fixture
def two_places(tmp_path: Path) -> tuple[Path, Path]:
    gguf_file(tmp_path / "net" / "Far-8B-Q4_0.gguf")
    gguf_file(tmp_path / "disk" / "Near-8B-Q4_0.gguf")
    return tmp_path / "net", tmp_path / "disk"


def scanner(silence_limit_s: float = 30.0) -> Scanner:
    return Scanner(
        HeaderMemory(),
        surroundings=Surroundings({}, "linux", Path("/nowhere")),
        silence_limit_s=silence_limit_s,
    )


async def scan(scanner: Scanner, *places: Path) -> ScanResult:
    with trio.fail_after(60):
        return await scanner.scan([ScanRequest("llama", tuple(map(str, places)), GGUF)])


async def test_a_place_that_hangs_costs_itself_only(
    monkeypatch: pytest.MonkeyPatch, two_places: tuple[Path, Path]
) -> None:
    net, disk = two_places
    hang, found = Hang(monkeypatch, net), scanner(silence_limit_s=0.2)
    with hang.hanging():
        first = await scan(found, net, disk)
        assert names(first) == ["near-8b:q4_0"]
        assert first.places[str(net)].fault == "did not answer within 0.2 s"
        assert first.places[str(disk)].fault is None


async def test_what_a_place_had_last_stays_and_no_second_thread_is_started(
    monkeypatch: pytest.MonkeyPatch, two_places: tuple[Path, Path]
) -> None:
    net, disk = two_places
    hang, found = Hang(monkeypatch, net), scanner(silence_limit_s=0.2)
    assert names(await scan(found, net, disk)) == ["far-8b:q4_0", "near-8b:q4_0"]
    gguf_file(net / "New-8B-Q4_0.gguf")
    with hang.hanging():
        second = await scan(found, net, disk)
        assert names(second) == ["far-8b:q4_0", "near-8b:q4_0"]
        assert second.places[str(net)].fault == "did not answer within 0.2 s: what it had last stays"
        third = await scan(found, net, disk)
        assert names(third) == ["far-8b:q4_0", "near-8b:q4_0"]
        assert third.places[str(net)].fault == (
            "did not answer within 0.2 s: what it had last stays, and its last scan still hangs"
        )
        assert hang.threads == 1
    with trio.fail_after(60):
        while len((await scan(found, net, disk)).models) < 3:
            await trio.sleep(0.01)
    assert (await scan(found, net, disk)).places[str(net)].fault is None


async def test_cancellation_returns_at_once(
    monkeypatch: pytest.MonkeyPatch, two_places: tuple[Path, Path]
) -> None:
    net, disk = two_places
    hang, found = Hang(monkeypatch, net), scanner()
    with hang.hanging(), trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scan, found, net, disk)
            while not hang.threads:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    with trio.fail_after(60):
        while len((await scan(found, net, disk)).models) < 2:
            await trio.sleep(0.01)


async def test_two_scans_at_once_do_not_take_each_other_for_a_hanging_one(
    two_places: tuple[Path, Path],
) -> None:
    found = scanner()
    results: list[ScanResult] = []

    async def note() -> None:
        results.append(await scan(found, *two_places))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(note)
    assert [names(result) for result in results] == [["far-8b:q4_0", "near-8b:q4_0"]] * 5
    assert {state.fault for result in results for state in result.places.values()} == {None}


async def test_a_place_that_refuses_keeps_what_it_had(
    monkeypatch: pytest.MonkeyPatch, two_places: tuple[Path, Path]
) -> None:
    net, _disk = two_places
    found = scanner()
    await scan(found, net)
    scandir = os.scandir

    def stale(path: Path | str) -> object:
        if Path(path) == net:
            raise OSError(116, "Stale file handle", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stale)
    result = await scan(found, net)
    assert names(result) == ["far-8b:q4_0"]
    assert result.places[str(net)].fault == "cannot be entered: stale file handle: what it had last stays"


async def test_models_come_and_go_with_their_files(two_places: tuple[Path, Path]) -> None:
    net, disk = two_places
    found = scanner()
    assert names(await scan(found, net, disk)) == ["far-8b:q4_0", "near-8b:q4_0"]
    gguf_file(disk / "Sub" / "Third-8B-Q4_0.gguf")
    (net / "Far-8B-Q4_0.gguf").unlink()
    assert names(await scan(found, net, disk)) == ["near-8b:q4_0", "third-8b:q4_0"]
    assert names(await scan(found, disk)) == ["near-8b:q4_0", "third-8b:q4_0"]


async def test_files_that_go_or_change_during_the_scan(
    monkeypatch: pytest.MonkeyPatch, two_places: tuple[Path, Path]
) -> None:
    net, _disk = two_places
    for number in range(5):
        gguf_file(net / f"M{number}-8B-Q4_0.gguf")
    read_part, read = HeaderMemory.read_part, []

    def meddling(self: HeaderMemory, path: Path, *rest: object) -> object:
        read.append(path.name)
        if len(read) == 1:
            (net / "M1-8B-Q4_0.gguf").unlink()
            (net / "M2-8B-Q4_0.gguf").write_bytes(b"no longer a model")
            gguf_file(net / "M3-8B-Q4_0.gguf", "llama", tensors=7)
        return read_part(self, path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(HeaderMemory, "read_part", meddling)
    result = await scan(scanner(), net)
    assert names(result) == ["far-8b:q4_0", "m0-8b:q4_0", "m3-8b:q4_0", "m4-8b:q4_0"]
    assert reasons(result) == {"M2-8B-Q4_0.gguf": "is still being written (not a GGUF file)"}


async def test_a_fault_of_the_scan_itself_costs_one_place(
    monkeypatch: pytest.MonkeyPatch, two_places: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    net, disk = two_places
    scandir = os.scandir

    def faulty(path: Path | str) -> object:
        if Path(path) == net:
            raise RuntimeError("a fault")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", faulty)
    result = await scan(scanner(), net, disk)
    assert names(result) == ["near-8b:q4_0"]
    assert result.places[str(net)].fault == "the scan failed: see the log"
    assert "a fault" in caplog.text


async def test_what_is_skipped_is_bounded_faults_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("engine_router.models.scan.scanner.MAX_TOLD_SKIPPED", 3)
    for number in range(5):
        gguf_file(tmp_path / f"M{number}-draft.gguf")
    (tmp_path / "zero.gguf").touch()
    result = await scan(scanner(), tmp_path)
    assert [skipped.path.name for skipped in result.skipped] == [
        "zero.gguf",
        "M0-draft.gguf",
        "M4-draft.gguf",
    ]
    assert result.skipped[-1].reason == "and 4 more are passed over"


async def test_models_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("engine_router.models.scan.scanner.MAX_FOUND_MODELS", 3)
    for number in range(5):
        gguf_file(tmp_path / f"M{number}-Q4_0.gguf")
    result = await scan(scanner(), tmp_path)
    assert names(result) == ["m0:q4_0", "m1:q4_0", "m2:q4_0"]
    assert reasons(result) == {"M3-Q4_0.gguf": "and 2 more models are not listed: no more than 3 are"}
