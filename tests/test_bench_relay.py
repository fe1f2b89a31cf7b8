"""`scripts/bench relay`: its C parts work, and what it makes of samples is right. No timing is asserted."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from benchmarks.environments import Missing
from benchmarks.lab import Failed, Lab
from benchmarks.relay import build, chart, command, figures, machine, proxies, report, rounds, scenarios

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or build.compiler() is None, reason="needs Linux and a C compiler"
)


@pytest.fixture(scope="module")
def bench() -> Iterator[rounds.Bench]:
    """An upstream, which is its own proxy: direct."""
    with contextlib.closing(Lab()) as lab:
        yield rounds.Bench(lab, build.build(), machine.cores())


def load(bench: rounds.Bench, *words: str) -> rounds.Report:
    return bench.load([words[0], f"port={bench.upstream_port}", "limit=10", *words[1:]], 20)


def assert_whole(found: rounds.Report, *, answers: int) -> None:
    assert (found["errors"], found["first_error"], found["unfinished"]) == (0, "", 0)
    assert found["answers"] == answers


def test_requests_are_answered_and_counted(bench: rounds.Bench) -> None:
    found = load(bench, "request", "conns=4", "seconds=0.3")
    assert_whole(found, answers=found["latency_us"]["count"])
    assert found["answers"] >= 4
    assert 0 < found["latency_us"]["p50"] <= found["latency_us"]["p99"] <= found["latency_us"]["max"]
    assert found["elapsed_s"] >= 0.3


@pytest.mark.parametrize("kind", ["stream", "ndjson"])
def test_unpaced_streams_come_whole(bench: rounds.Bench, kind: str) -> None:
    found = load(bench, kind, "n=500", "conns=3", "count=2", "seconds=5")
    assert_whole(found, answers=6)
    assert found["chunks"] == 3000
    assert found["bytes"] > 3000 * scenarios.SIZE


def test_a_paced_stream_keeps_its_pace(bench: rounds.Bench) -> None:
    found = load(bench, "stream", "n=10", "rate=50", "conns=5", "count=1", "stagger=0.05")
    assert_whole(found, answers=5)
    assert found["chunks"] == found["chunks_on_time"] == 50
    assert found["elapsed_s"] >= 0.18  # nine pauses


@pytest.mark.parametrize("kind", ["upload", "download"])
def test_large_bodies_come_whole(bench: rounds.Bench, kind: str) -> None:
    assert_whole(load(bench, kind, "bytes=3000001", "count=2"), answers=2)


def test_leaving_is_seen_by_the_upstream(bench: rounds.Bench) -> None:
    found = load(bench, "hangup", f"upstream={bench.upstream_port}", "count=2")
    assert_whole(found, answers=2)
    assert found["latency_us"]["count"] == 2


def test_wrong_bytes_are_noticed(bench: rounds.Bench) -> None:
    # Chunks of Ollama's lines are not what a stream of events consists of.
    found = load(bench, "ndjson", "n=5", "count=1", "translated=1", "path=/api/chat", "size=300")
    assert found["errors"] == 1
    assert "wrong line" in found["first_error"]


def test_nobody_there_is_an_error(bench: rounds.Bench) -> None:
    found = bench.load(["request", "port=9", "conns=2", "seconds=0.1", "limit=2"], 10)
    assert found["errors"] == 2
    assert found["answers"] == 0


def test_a_round_without_a_proxy(bench: rounds.Bench) -> None:
    chosen = [s for s in scenarios.scenarios(quick=True) if s.name in ("requests-1", "streams-1")]
    done = rounds.one_round(bench, [proxies.direct()], chosen, 0, lambda _: None)
    assert not done.faults
    found = figures.medians([done], ["direct"], figures.figures())
    assert found["streams-1-pace"]["direct"] == 1
    assert "requests-1-cpu" not in found  # nobody there who uses any


def sample(scale: float, *, unfinished: int = 0) -> rounds.Sample:
    quantiles = {"count": 10, "p50": 100.0 * scale, "p90": 100.0, "p99": 100.0, "max": 100.0}
    told = {"latency_us": quantiles, "first_byte_us": quantiles, "answers": 10, "chunks": 10}
    told |= {"chunks_on_time": 10, "errors": 0, "unfinished": unfinished, "elapsed_s": 1.0, "cpu_s": 0.2}
    return rounds.Sample(10, told, 0.9 * scale, 0.1, 0.9 * scale, 50.0 * scale, 60.0 * scale)


@pytest.fixture
def results() -> report.Results:
    """LER takes 100, we 5, nginx 1; LER never notices that a client has left."""
    scales = {"direct": 0.5, "nginx": 1.0, "ler": 100.0, "ours": 5.0}
    done = rounds.Round(
        {
            scenario.name: {
                name: sample(scale, unfinished=int(name == "ler" and scenario.name == "hangup"))
                for name, scale in scales.items()
            }
            for scenario in scenarios.scenarios(quick=True)
        },
        {"nginx": 10.0, "ler": 100.0, "ours": 95.0},
    )
    measured = [proxies.Proxy(name, name, "1") for name in scales]
    cores = machine.Cores(frozenset([0]), frozenset([1]))
    return report.Results(measured, [done, done], cores, machine.described(), [])


def test_verdicts(results: report.Results) -> None:
    words = {
        (v.figure.name, v.limit.rival): v.word for v in figures.verdicts(results.medians(), results.rows())
    }
    assert words["requests-16-cpu", "ler"] == "aim"
    assert words["unpaced-cpu", "ler"] == "must"
    assert words["requests-1-p50", "nginx"] == "MISSED"
    assert (
        words["translated-cpu", "ler"] == "aim"
    )  # a twentieth of what LER takes for a chunk that it only passes on
    assert words["requests-16-cpu", "llama-swap"] == "-"
    assert words["streams-500-pace", None] == "MISSED"  # ten chunks came, of 500 streams
    assert words["idle", "ler"] == "must"
    assert results.medians()["hangup"]["ler"] == math.inf


def test_a_translation_is_judged_by_what_passing_on_costs_a_rival() -> None:
    found = {"translated-cpu": {"ours": 8.0}, "unpaced-cpu": {"ler": 100.0, "ours": 1.0}}
    [verdict] = figures.verdicts(found, [f for f in figures.figures() if f.name == "translated-cpu"])
    assert (verdict.value, verdict.word) == (0.08, "must")


def test_what_other_programs_disturb_is_measured_again(
    bench: rounds.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.5, 0.11, 0.09, 0.4, 0.3, 0.2])

    def measured(_bench: rounds.Bench, scenario: scenarios.Scenario, _there: rounds.Running) -> rounds.Sample:
        found = sample(1.0)
        return dataclasses.replace(found, programs_s=found.proxy_cpu_s + next(shares))

    monkeypatch.setattr(rounds.Bench, "measure", measured)
    chosen = [s for s in scenarios.scenarios(quick=True) if s.name in ("requests-1", "streams-1")]
    done = rounds.one_round(bench, [proxies.direct()], chosen, 0, lambda _: None)
    assert next(shares, None) is None
    assert (done.repeated, done.disturbed) == (4, 1)
    assert done.samples["requests-1"]["direct"].strangers_share == pytest.approx(0.09)
    notes: list[str] = []
    command.note_disturbances([done], notes)
    assert notes == [
        "4 measurements made again: other programs had disturbed them",
        "1 measurement disturbed every time: trust none of this run's figures",
    ]


def test_llama_swap_is_left_out_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLAMA_SWAP", str(tmp_path / "nothing"))
    assert proxies.llama_swap() is None
    program = tmp_path / "swap"
    program.write_text("#!/bin/sh\necho 'version: 250 (abc), built at now'\n")
    program.chmod(0o755)
    monkeypatch.setenv("LLAMA_SWAP", str(program))
    found = proxies.llama_swap()
    assert found is not None
    assert found.version == "250 (abc)"
    ollama = [s.name for s in scenarios.scenarios(quick=True) if not s.is_for(found)]
    assert ollama == ["ollama", "translated"]


def test_another_checkout_is_measured_beside_this_one(bench: rounds.Bench, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="has no engine_router"):
        proxies.beside(Path(sys.executable), tmp_path)
    package = tmp_path / "engine_router"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("print('the other one')")
    other = proxies.beside(Path(sys.executable), tmp_path)
    assert (other.name, other.version) == ("beside", tmp_path.name)
    with pytest.raises(Failed, match="its last words: the other one"):
        bench.start(other)


def test_the_table_tells_everything(results: report.Results) -> None:
    text = report.table(results)
    assert "never" in text
    assert "MISSED" in text
    lines = report.bottlenecks(results)
    assert any("the proxy was the limit" in line for line in lines)


def test_the_json_is_json(results: report.Results) -> None:
    told = json.loads(json.dumps(report.as_json(results), allow_nan=False))
    assert {figure["name"] for figure in told["figures"]} >= {"idle", "hangup", "unpaced-cpu"}


def test_the_chart_is_well_formed(results: report.Results) -> None:
    root = ET.fromstring(chart.chart(results))
    bars = [part for part in root.iter() if part.tag.endswith("rect")]
    assert len(bars) == 3 * len(chart.SHOWN)
    assert all(float(bar.get("width", "0")) > 0 for bar in bars)


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (math.inf, "never"), (0.0, "0"), (1234.5, "1,234"), (0.0312, "0.0312")]
)
def test_numbers_are_shown_short(value: float | None, text: str) -> None:
    assert report.shown(value) == text
