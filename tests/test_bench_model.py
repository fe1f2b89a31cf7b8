"""The speeds of models: learned from requests, remembered, and measured by `engine-router bench`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.client_harness import serving, table, talker
from test_cli import SOON_S, command

from engine_router.events import RequestEnded
from engine_router.residency.measurements import Measurements
from engine_router.residency.speeds import MOST_MODELS, Speed, Speeds, speed_entry


def ended(model: str = "m", **more: Any) -> RequestEnded:
    settings = {"engine": "e", "path": "/v1/chat/completions", "status": 200, "duration_s": 9.0, "at": 0.0}
    return RequestEnded(model=model, **{**settings, **more})


# An answer to 1,000 tokens, of which 200 were known; it waited one second for its turn.
ORDINARY = {
    "tokens_in": 1000,
    "tokens_cached": 200,
    "first_token_s": 3.0,
    "queue_wait_s": 1.0,
    "tokens_per_s": 50.0,
}


@pytest.mark.parametrize(
    ("changed", "speed"),
    [
        ({}, Speed(400.0, 50.0)),
        ({"tokens_cached": None}, Speed(500.0, 50.0)),
        ({"queue_wait_s": None, "tokens_per_s": None}, Speed(800 / 3, None)),
        ({"tokens_cached": 950}, Speed(None, 50.0)),
        ({"first_token_s": 1.001}, Speed(None, 50.0)),
        ({"first_token_s": None}, Speed(None, 50.0)),
        ({"tokens_in": None, "tokens_per_s": float("nan")}, Speed()),
        ({"status": 499}, Speed()),
        ({"engine": None}, Speed()),
    ],
    ids=["all", "no-cache", "no-wait", "short", "at-once", "no-stream", "nothing", "left", "refused"],
)
def test_what_a_request_tells(changed: dict[str, Any], speed: Speed) -> None:
    speeds = Speeds()
    speeds.note(ended(**{**ORDINARY, **changed}))
    assert speeds.of("e", "m") == speed
    assert not speeds.has_news


def test_later_requests_count_without_wiping_out_the_earlier() -> None:
    speeds = Speeds()
    for per_s in (100.0, 200.0):
        speeds.note(ended(**{**ORDINARY, "tokens_per_s": per_s}))
    assert speeds.of("e", "m") == Speed(400.0, 130.0)
    assert speed_entry(speeds.of("e", "m")) == {"reads_tokens_per_s": 400, "writes_tokens_per_s": 130}


def test_the_state_file_keeps_what_is_sound_and_not_more_than_it_may() -> None:
    state = Measurements()
    for number in range(MOST_MODELS + 5):
        state.speeds.note(ended(f"m{number}", **ORDINARY))
        assert state.speeds.of("e", f"m{number}") != Speed()
    again = Measurements.from_json(state.to_json())
    assert again.speeds.of("e", "m4") == Speed()
    assert again.speeds.of("e", f"m{MOST_MODELS + 4}") == Speed(400.0, 50.0)
    damaged = json.loads(state.to_json())
    damaged["speeds"] = [["e", "a", -1, True], ["e", "b", "x", 7], ["e"], 3, ["e", 4, 1, 1]]
    again = Measurements.from_json(json.dumps(damaged))
    assert again.speeds.to_json() == [["e", "a", None, None], ["e", "b", None, 7.0]]


def bench(url: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    argv = command("bench", "--url", url, *words)
    return subprocess.run(argv, capture_output=True, timeout=SOON_S, check=False)


def test_an_engine_that_counts_nothing_is_measured_by_the_clock() -> None:
    with serving(talker("talker")) as running:
        done = bench(running.url, "talker", "--contexts", "20", "--rounds", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["load_s"] > 0
    (prompt,) = found["prompts"]
    assert prompt["first_s"] > 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--contexts", "0"), "expected a number of tokens"),
        (("--contexts", "10,x"), "expected a number of tokens"),
        (("--tokens", "-1"), "expected a number of tokens"),
        (("--rounds", "99"), "invalid choice: 99"),
    ],
    ids=["none", "word", "negative", "many"],
)
def test_wrong_words(words: tuple[str, ...], told: str) -> None:
    done = bench("http://127.0.0.1:1", "m", *words)
    assert done.returncode == 2
    assert told in done.stderr.decode()


@pytest.mark.real
def test_a_real_model_is_measured_and_its_speeds_are_remembered(tmp_path: Path) -> None:
    tiny = pytest.importorskip("engine_router.engines.llamacpp.tiny")
    pytest.importorskip("xllamacpp")
    tiny.write_tiny_gguf(tmp_path / "m.gguf", name="tiny", context_length=1024)
    argv = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(tmp_path / "m.gguf")]
    argv += ["--threads", "1", "--port", "{port}", "-c", "1024"]
    with serving(table("engines.tiny", type="process", argv=argv, models=["tiny"])) as running:
        done = bench(running.url, "tiny", "--contexts", "200,600,5000", "--tokens", "16")
        assert done.returncode == 0, done.stderr
        model = httpx.get(f"{running.url}/admin/models/tiny", trust_env=False).json()
        refused = bench(running.url, "tiny", "--contexts", "5000")
    shown = done.stdout.decode().splitlines()
    heads = ["PROMPT", "FIRST", "TOKEN", "READS", "ANSWER", "WRITES"]
    assert shown[0].split() == ([*heads, "MEMORY"] if sys.platform == "linux" else heads)
    if sys.platform == "linux":  # where the kernel tells what a process holds
        assert all(re.search(r" [1-9][0-9.]* [MG]B$", line) for line in shown[1:3])
    read = [int(line.split()[0].replace(",", "")) for line in shown[1:3]]
    assert 150 < read[0] < 250
    assert 500 < read[1] < 700
    assert any(line.startswith("started in ") for line in shown)
    assert shown[-1] == "left out: 5,000 tokens (with the answer, more than the model's context of 1,024)"
    assert model["reads_tokens_per_s"] > 0
    assert model["writes_tokens_per_s"] > 0
    assert refused.returncode == 1
    assert "tiny has 1,024 tokens of context" in refused.stderr.decode()
