"""The pace of threads that work for long."""

from __future__ import annotations

import time

import pytest
from support.gguf_files import gguf_file

from engine_router.models.header_memory import HeaderMemory
from engine_router.models.pace import Pace


def test_a_thread_rests_after_work_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rests = [100.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", rests.append)
    pace = Pace()
    pace.rest()
    for _ in range(3):
        pace.rest()
    assert len(rests) == 1
    clock[0] += 0.01
    pace.rest()
    assert len(rests) == 2
    assert pace.signs == 5


def test_the_more_work_the_longer_each_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(time, "sleep", rests.append)
    crowd: set[Pace] = set()
    first, second = Pace(crowd), Pace(crowd)
    with first:
        first.rest()
        with second:
            second.rest()
    first._rested_at = second._rested_at = 0.0
    first.rest()
    assert rests[0] == rests[2] < rests[1]
    assert crowd == set()


def test_whoever_reads_many_headers_rests(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    rests: list[float] = []
    monkeypatch.setattr(time, "sleep", rests.append)
    memory = HeaderMemory()
    for number in range(20):
        memory.read(gguf_file(tmp_path / f"{number}.gguf", vocabulary=2000))
    read, file = len(rests), tmp_path / "headers"
    assert read >= 20
    memory.save(file)
    saved = len(rests)
    HeaderMemory().load(file)
    assert read < saved < len(rests)
