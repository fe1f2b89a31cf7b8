"""Engines of type `ollama`, against a scripted daemon on a real socket."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
from support.scripted import Answer, ScriptedOllama, SupervisedResident, as_json, supervised, until
from trio.testing import MockClock

from engine_router.config import OllamaConfig, parse_config
from engine_router.engines.base import Endpoint, ResidentId
from engine_router.engines.remote.ollama_engine import OllamaEngine
from engine_router.engines.remote.ollama_models import normal_name
from engine_router.errors import (
    EngineStartFailed,
    EngineStartTimeout,
    EngineStopFailed,
    EngineUnreachable,
)
from engine_router.guards.commands import run_command
from engine_router.upstream.control_client import ControlClient, control_client

MODEL = "qwen3:4b"
OTHER = "llama3.2"
PATIENCE_S = 300


async def looked_at(server: ScriptedOllama) -> None:
    """Wait until the daemon was asked what is loaded, and its answer was read."""
    before = len(server.called("GET", "/api/ps"))
    await until(lambda: len(server.called("GET", "/api/ps")) >= before + 2)


async def stopped_in_vain(
    resident: SupervisedResident, server: ScriptedOllama, engine: OllamaEngine, clock: MockClock
) -> None:
    """Stop a resident and let the time for its unload pass, and that for the stop command."""
    resident.supervision.stop()
    await looked_at(server)
    clock.jump(PATIENCE_S / 2)
    await until(lambda: any("no-such-ollama was not found" in line for line in engine.log.tail(5)))
    await looked_at(server)
    clock.jump(PATIENCE_S)
    await resident.over.wait()


@asynccontextmanager
async def engine_at(server: ScriptedOllama, **options: object) -> AsyncIterator[OllamaEngine]:
    lines = {
        # None of these ends within a test, unless its clock jumps.
        "start_timeout_s": PATIENCE_S,
        "stop_timeout_s": PATIENCE_S,
        "stop_command": ["no-such-ollama", "{model}"],
        **options,
    }
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in lines.items())
    with trio.fail_after(1000):  # more than a clock jumps in any test
        async with server.running(), control_client() as client:
            header = f'[engines.ollama]\ntype = "ollama"\nbase_url = "{server.base_url}"\n'
            config = next(iter(parse_config(header + text).engines.values()))
            assert isinstance(config, OllamaConfig)
            yield OllamaEngine("ollama", config, client)


@pytest.mark.parametrize("model", [MODEL, OTHER, f"{OTHER}:latest", "nomic-embed-text"])
async def test_a_model_is_loaded_for_ever_found_and_unloaded(model: str) -> None:
    server = ScriptedOllama(MODEL, OTHER, embedders=("nomic-embed-text",))
    async with engine_at(server) as engine, supervised(engine, model) as resident:
        await resident.ready.wait()
        assert resident.endpoint == Endpoint(server.base_url)
        assert list(server.keep_alive.values()) == [-1]
        assert await engine.find() == [ResidentId("ollama", normal_name(model))]
        await resident.stop()
        assert resident.stopped
        assert server.loaded == {}
        assert await engine.find() == []


def test_latest_goes_without_saying() -> None:
    engine = OllamaEngine("ollama", OllamaConfig(), ControlClient())
    assert (
        engine.resident_of("llama3.2:latest")
        == engine.resident_of("llama3.2")
        == ResidentId("ollama", "llama3.2")
    )
    assert engine.resident_of(MODEL) == ResidentId("ollama", MODEL)


async def test_a_model_that_was_not_pulled_says_what_to_do() -> None:
    async with engine_at(ScriptedOllama(MODEL)) as engine, supervised(engine, "missing:1b") as resident:
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert "ollama pull missing:1b" in str(resident.error)


async def test_a_failed_load_says_why() -> None:
    server = ScriptedOllama(MODEL)
    server.script.load_error = "model requires more system memory (9.8 GiB) than is available (8.2 GiB)"
    async with engine_at(server) as engine, supervised(engine, MODEL) as resident:
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert "more system memory" in str(resident.error)


async def test_a_daemon_that_is_not_running() -> None:
    server = ScriptedOllama(MODEL)
    async with engine_at(server) as engine:
        server.crash()
        await trio.sleep(0.01)
        assert await engine.find() == []
        assert await engine.list_models() is None
        async with supervised(engine, MODEL) as resident:
            await resident.over.wait()
            assert isinstance(resident.error, EngineStartFailed)
            assert "is it running?" in str(resident.error)


async def test_a_load_that_takes_too_long_is_undone(jumping_clock: MockClock) -> None:
    server = ScriptedOllama(MODEL)
    server.script.load_s = 900
    async with engine_at(server) as engine, supervised(engine, MODEL) as resident:
        await until(lambda: server.loads)
        jumping_clock.jump(PATIENCE_S)
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartTimeout)
        assert server.aborted == 1
        assert not server.loaded


async def test_models_loaded_past_the_router_make_room() -> None:
    server = ScriptedOllama(MODEL, OTHER)
    async with engine_at(server) as engine:
        server.loaded = {f"{OTHER}:latest": f"{OTHER}:latest"}
        async with supervised(engine, MODEL) as resident:
            await resident.ready.wait()
            assert list(server.loaded) == [MODEL]
            assert server.most_loaded == 1
            server.loaded[f"{OTHER}:latest"] = f"{OTHER}:latest"
            await resident.stop()
        assert server.loaded == {}


async def test_a_model_loaded_past_the_router_that_stays_fails_the_start(jumping_clock: MockClock) -> None:
    server = ScriptedOllama(MODEL, OTHER)
    server.script.ignore_unload = True
    async with engine_at(server) as engine:
        server.loaded = {f"{OTHER}:latest": f"{OTHER}:latest"}
        async with supervised(engine, MODEL) as resident:
            await looked_at(server)
            jumping_clock.jump(PATIENCE_S)
            await resident.over.wait()
            assert isinstance(resident.error, EngineStartFailed)
            assert OTHER in str(resident.error)
            assert server.loads == 0


async def test_residents_of_the_same_daemon_leave_each_other_alone() -> None:
    server = ScriptedOllama(MODEL, OTHER)
    async with (
        engine_at(server) as engine,
        supervised(engine, MODEL) as one,
        supervised(engine, OTHER) as two,
    ):
        await one.ready.wait()
        await two.ready.wait()
        assert sorted(await engine.find()) == [ResidentId("ollama", OTHER), ResidentId("ollama", MODEL)]
        await two.stop()
        assert list(server.loaded) == [MODEL]


async def test_a_stop_aborts_a_load_at_once() -> None:
    server = ScriptedOllama(MODEL)
    server.script.load_s = 10_000
    async with engine_at(server) as engine, supervised(engine, MODEL) as resident:
        await until(lambda: server.loads)
        await resident.stop()
        assert resident.stopped
        assert server.aborted == 1
        assert not server.loaded


async def test_an_ignored_unload_is_an_error_and_can_be_taken_up(jumping_clock: MockClock) -> None:
    server = ScriptedOllama(MODEL)
    server.script.ignore_unload = True
    async with engine_at(server) as engine:
        async with supervised(engine, MODEL) as resident:
            await resident.ready.wait()
            await stopped_in_vain(resident, server, engine, jumping_clock)
            assert isinstance(resident.error, EngineStopFailed)
            assert "/api/ps" in str(resident.error)
        server.script.ignore_unload = False
        async with supervised(engine, MODEL, adopt=True) as again:
            await again.ready.wait()
            await again.stop()
            assert again.stopped
        assert not server.loaded


async def test_the_stop_command_is_the_last_resort(tmp_path: Path, jumping_clock: MockClock) -> None:
    server = ScriptedOllama(MODEL)
    server.script.ignore_unload = True
    said = tmp_path / "said"
    code = f"import os; open({str(said)!r}, 'w').write('{{model}} ' + os.environ['OLLAMA_HOST'])"
    command = [sys.executable, "-S", "-c", code]
    async with engine_at(server, stop_command=command) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        resident.supervision.stop()
        await looked_at(server)
        jumping_clock.jump(PATIENCE_S / 2)
        await until(lambda: said.exists() and said.read_text())
        server.loaded.clear()
        await resident.over.wait()
        assert resident.stopped
        assert said.read_text() == f"{MODEL} {server.base_url}"


@pytest.mark.parametrize(
    "wrong", [as_json({"error": "x"}, 500), Answer(body=b"<html>"), as_json({"models": 3})]
)
async def test_an_error_while_asking_is_never_taken_for_empty(
    wrong: Answer, jumping_clock: MockClock
) -> None:
    server = ScriptedOllama(MODEL)
    async with engine_at(server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        server.script.answers = {"/api/ps": wrong}
        with pytest.raises(EngineUnreachable):
            await engine.find()
        resident.supervision.doubt()
        await trio.sleep(0.03)
        assert not resident.over.is_set()
        await stopped_in_vain(resident, server, engine, jumping_clock)
        assert isinstance(resident.error, EngineStopFailed)


async def test_a_doubt_is_looked_into() -> None:
    server = ScriptedOllama(MODEL)
    async with engine_at(server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        resident.supervision.doubt()
        await trio.sleep(0.03)
        assert not resident.over.is_set()
        server.loaded.clear()
        resident.supervision.doubt()
        await resident.over.wait()
        assert resident.died


async def test_a_daemon_that_went_away_holds_nothing() -> None:
    server = ScriptedOllama(MODEL)
    async with engine_at(server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        server.crash()
        await trio.sleep(0.01)
        await resident.stop()
        assert resident.stopped


async def test_an_adopted_model_that_is_gone_has_ended() -> None:
    async with engine_at(ScriptedOllama(MODEL)) as engine, supervised(engine, MODEL, adopt=True) as resident:
        await resident.over.wait()
        assert resident.died


async def test_models_are_listed() -> None:
    async with engine_at(ScriptedOllama(MODEL, OTHER)) as engine:
        assert await engine.list_models() == (MODEL, f"{OTHER}:latest")


async def test_the_scripted_daemon_talks_like_ollama() -> None:
    server = ScriptedOllama(MODEL)
    async with server.running(), httpx.AsyncClient(timeout=200, trust_env=False) as client:
        url = f"{server.base_url}/api"
        assert (await client.get(f"{url}/version")).json()["version"]
        assert (await client.post(f"{url}/show", json={"model": MODEL})).json()["capabilities"] == [
            "completion"
        ]
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
        lines = (await client.post(f"{url}/chat", json=body)).text.splitlines()
        assert [json.loads(line)["done"] for line in lines] == [False, False, False, True]
        whole = (
            await client.post(f"{url}/generate", json={"model": MODEL, "prompt": "x", "stream": False})
        ).json()
        assert whole["response"].startswith(MODEL)
        stream = await client.post(f"{server.base_url}/v1/chat/completions", json={**body, "stream": True})
        assert stream.text.endswith("data: [DONE]\n\n")


async def test_commands_are_bounded_and_never_raise() -> None:
    with trio.fail_after(200):
        slow = await run_command([sys.executable, "-c", "import time; time.sleep(600)"], timeout_s=0.2)
        assert slow.code is None
        assert "within 0.2 s" in slow.complaint
        loud = await run_command(
            [sys.executable, "-S", "-c", "import sys; sys.exit('no way')"], timeout_s=300
        )
        assert (loud.code, loud.complaint) == (1, "no way")
