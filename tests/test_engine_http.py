"""Engines of type `http`, against scripted servers on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from support.scripted import (
    Answer,
    ScriptedLlamaRouter,
    ScriptedLMStudio,
    ScriptedServer,
    ScriptedTabby,
    SupervisedResident,
    as_json,
    supervised,
    until,
)
from trio.testing import MockClock

from engine_router.config import HttpConfig, parse_config
from engine_router.engines.base import Endpoint, ResidentId, Supervision
from engine_router.engines.remote.answers import read_listing
from engine_router.engines.remote.client import EngineClient
from engine_router.engines.remote.http_engine import HttpEngine, fill
from engine_router.errors import (
    EngineStartFailed,
    EngineStartTimeout,
    EngineStopFailed,
    EngineUnreachable,
)
from engine_router.upstream.control_client import ControlClient, control_client

TABBY = """
[engines.tabby]
type = "http"
base_url = "http://127.0.0.1:5000"
headers = { Authorization = "Bearer tabby-admin-key" }
models = ["Qwen3-8B-exl3", "Llama-3.1-8B-exl3"]
load = { path = "/v1/model/load", body = { model_name = "{model}" } }
unload = { path = "/v1/model/unload" }
loaded = { path = "/v1/model" }
"""

TABBY_TWO_KEYS = """
[engines.tabby]
type = "http"
base_url = "http://127.0.0.1:5000"
headers = { x-api-key = "tabby-api-key" }
load = { path = "/v1/model/load", headers = { x-admin-key = "tabby-admin-key" }, body = { model_name = "{model}" } }
unload = { path = "/v1/model/unload", headers = { x-admin-key = "tabby-admin-key" } }
loaded = { path = "/v1/models", key = "data" }
"""

LM_STUDIO = """
[engines.lmstudio]
type = "http"
base_url = "http://127.0.0.1:1234"
load = { path = "/api/v1/models/load", body = { model = "{model}" } }
unload = { path = "/api/v1/models/unload", body = { instance_id = "{instance}" } }
loaded = { path = "/api/v1/models", key = "models", id = "key", instances = "loaded_instances" }
"""

LLAMA_ROUTER = """
[engines.llama]
type = "http"
base_url = "http://127.0.0.1:8080"
load = { path = "/models/load", body = { model = "{model}" } }
unload = { path = "/models/unload", body = { model = "{model}" } }
loaded = { path = "/models", key = "data", filter = { "status.value" = "loaded" } }
"""

MODELS = ("Qwen3-8B-exl3", "Llama-3.1-8B-exl3")
MODEL, OTHER = MODELS
LISTS = {
    TABBY: "/v1/model",
    TABBY_TWO_KEYS: "/v1/models",
    LM_STUDIO: "/api/v1/models",
    LLAMA_ROUTER: "/models",
}
KINDS = [
    pytest.param(TABBY, ScriptedTabby, id="tabby"),
    pytest.param(TABBY_TWO_KEYS, ScriptedTabby, id="tabby-two-keys"),
    pytest.param(LM_STUDIO, ScriptedLMStudio, id="lmstudio"),
    pytest.param(LLAMA_ROUTER, ScriptedLlamaRouter, id="llama"),
]
every_kind = pytest.mark.parametrize(("text", "kind"), KINDS)


def configured(text: str, base_url: str, more: str = "") -> HttpConfig:
    lines = [
        f'base_url = "{base_url}"' if line.startswith("base_url") else line for line in text.splitlines()
    ]
    config = next(iter(parse_config("\n".join(lines) + "\n" + more).engines.values()))
    assert isinstance(config, HttpConfig)
    return config


# None of these ends within a test, unless its clock jumps.
PATIENCE_S = 300
PATIENT = f"start_timeout_s = {PATIENCE_S}\nstop_timeout_s = {PATIENCE_S}\n"


async def stopped_in_vain(
    resident: SupervisedResident, server: ScriptedServer, path: str, clock: MockClock, *, looks: int = 2
) -> None:
    """Stop a resident and let its time pass once the server was asked what is loaded, and its answer was read."""
    before = len(server.called("GET", path))
    resident.supervision.stop()
    await until(lambda: len(server.called("GET", path)) >= before + looks)
    clock.jump(PATIENCE_S)
    await resident.over.wait()


@asynccontextmanager
async def engine_at(text: str, server: ScriptedServer, more: str = PATIENT) -> AsyncIterator[HttpEngine]:
    with trio.fail_after(1000):  # more than a clock jumps in any test
        async with server.running(), control_client() as client:
            yield HttpEngine("local", configured(text, server.base_url, more), client)


# Round trips


@every_kind
async def test_a_model_is_loaded_found_and_unloaded(text: str, kind: type[ScriptedServer]) -> None:
    server = kind(*MODELS)
    async with engine_at(text, server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        assert resident.endpoint == Endpoint(server.base_url)
        assert list(server.loaded) == [MODEL]
        assert await engine.find() == [ResidentId("local", MODEL)]
        await resident.stop()
        assert resident.stopped, resident.error
        assert server.loaded == {}
        assert await engine.find() == []


@every_kind
async def test_a_model_that_is_not_listed_while_it_is_used_may_be_on_its_way(
    text: str, kind: type[ScriptedServer]
) -> None:
    """Servers load models again by themselves, for requests that need it so."""
    server = kind(*MODELS)
    async with engine_at(text, server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        assert await engine.check(resident.resident) is None
        server.loaded.clear()
        assert await engine.check(resident.resident, used=True) is None
        assert "does not hold" in str(await engine.check(resident.resident))


@every_kind
async def test_a_slow_load_and_a_slow_unload_are_waited_for(text: str, kind: type[ScriptedServer]) -> None:
    server = kind(*MODELS)
    server.script.load_s = server.script.unload_s = 0.1
    async with engine_at(text, server) as engine, supervised(engine, MODEL) as resident:
        started = trio.current_time()
        await resident.ready.wait()
        assert server.loaded
        assert trio.current_time() - started >= 0.1
        await resident.stop()
        assert resident.stopped
        assert not server.loaded


@every_kind
async def test_a_loaded_model_is_not_loaded_twice(text: str, kind: type[ScriptedServer]) -> None:
    server = kind(*MODELS)
    async with engine_at(text, server) as engine:
        server.loaded[MODEL] = MODEL
        for adopt in (False, True):
            async with supervised(engine, MODEL, adopt=adopt) as resident:
                await resident.ready.wait()
                assert server.loads == 0
        await resident.ready.wait()


async def test_every_instance_is_unloaded() -> None:
    server = ScriptedLMStudio(*MODELS)
    async with engine_at(LM_STUDIO, server) as engine:
        server.loaded = {MODEL: MODEL, f"{MODEL}:2": MODEL, OTHER: OTHER}
        async with supervised(engine, MODEL, adopt=True) as resident:
            await resident.ready.wait()
            await resident.stop()
        assert server.loaded == {OTHER: OTHER}


async def test_without_a_load_call_the_first_request_loads() -> None:
    server = ScriptedLMStudio(*MODELS)
    text = "\n".join(line for line in LM_STUDIO.splitlines() if not line.startswith("load ="))
    async with engine_at(text, server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        assert not server.loaded
        resident.supervision.doubt()
        await trio.sleep(0.02)
        assert not resident.over.is_set()
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
        answer = await engine.server.call("POST", "/v1/chat/completions", body=chat)
        assert answer.data["choices"][0]["message"]["content"].startswith(MODEL)
        assert server.loaded
        await resident.stop()
        assert resident.stopped
        assert not server.loaded


# Failed starts


@every_kind
async def test_a_load_that_fails_says_why_and_leaves_nothing(text: str, kind: type[ScriptedServer]) -> None:
    server = kind(*MODELS)
    server.script.load_error = "not enough memory for this model"
    async with engine_at(text, server) as engine, supervised(engine, MODEL) as resident:
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        reason = "exit code 1" if kind is ScriptedLlamaRouter else "not enough memory"
        assert reason in str(resident.error)
        assert "engine 'local'" in str(resident.error)
        assert not server.loaded


@every_kind
async def test_an_unknown_model_fails_at_once(text: str, kind: type[ScriptedServer]) -> None:
    server = kind(*MODELS)
    async with engine_at(text, server) as engine, supervised(engine, "no-such-model") as resident:
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert "no-such-model" in str(resident.error)


@every_kind
async def test_a_server_that_is_not_running_fails_a_start_at_once(
    text: str, kind: type[ScriptedServer]
) -> None:
    server = kind(*MODELS)
    async with engine_at(text, server) as engine:
        server.crash()
        await trio.sleep(0.01)
        assert await engine.find() == []
        assert await engine.list_models() is None
        async with supervised(engine, MODEL) as resident:
            await resident.over.wait()
            assert isinstance(resident.error, EngineStartFailed)
            assert f"does not accept connections at {server.base_url}; is it running?" in str(resident.error)


async def test_a_server_that_crashes_during_the_load_fails_the_start() -> None:
    server = ScriptedTabby(*MODELS)
    server.script.load_s = 10
    async with engine_at(TABBY, server) as engine, supervised(engine, MODEL) as resident:
        await until(lambda: server.loads)
        server.crash()
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert "broke off" in str(resident.error)


async def test_a_load_that_takes_too_long_is_undone(jumping_clock: MockClock) -> None:
    server = ScriptedLlamaRouter(*MODELS)
    server.script.load_s = 900
    async with engine_at(LLAMA_ROUTER, server) as engine, supervised(engine, MODEL) as resident:
        await until(lambda: len(server.called("GET", LISTS[LLAMA_ROUTER])) >= 3)
        jumping_clock.jump(PATIENCE_S)
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartTimeout)
        assert "being loaded" in str(resident.error)
        assert server.called("POST", "/models/unload")
        assert await engine.find() == []


async def test_a_wrong_key_is_named() -> None:
    server = ScriptedTabby(*MODELS)
    async with (
        engine_at(TABBY.replace("admin-key", "wrong"), server) as engine,
        supervised(engine, MODEL) as resident,
    ):
        await resident.over.wait()
        assert "401" in str(resident.error)
        assert "headers in engines.toml" in str(resident.error)


# Stops


@pytest.mark.parametrize(("text", "kind"), [KINDS[0], KINDS[2]])
async def test_a_stop_aborts_a_load_at_once(text: str, kind: type[ScriptedServer]) -> None:
    server = kind(*MODELS)
    server.script.load_s = 10_000
    async with engine_at(text, server) as engine, supervised(engine, MODEL) as resident:
        await until(lambda: server.loads)
        await resident.stop()
        assert resident.stopped
        assert resident.endpoint is None
        assert server.aborted == 1
        assert not server.loaded


async def test_a_stop_unloads_a_load_that_goes_on_without_its_caller() -> None:
    server = ScriptedLMStudio(*MODELS)
    server.script.load_s, server.script.finish_aborted = 0.15, True
    async with engine_at(LM_STUDIO, server) as engine, supervised(engine, MODEL) as resident:
        await until(lambda: server.loads)
        await resident.stop()
        assert resident.stopped
        assert server.most_loaded == 1
        assert not server.loaded


async def test_a_stop_kills_what_loads_by_itself() -> None:
    server = ScriptedLlamaRouter(*MODELS)
    server.script.load_s = 10
    async with engine_at(LLAMA_ROUTER, server) as engine, supervised(engine, MODEL) as resident:
        await until(lambda: server.loads)
        assert await engine.find() == [ResidentId("local", MODEL)]
        await resident.stop()
        assert resident.stopped
        assert await engine.find() == []


@every_kind
async def test_an_ignored_unload_is_an_error_and_can_be_taken_up(
    text: str, kind: type[ScriptedServer], jumping_clock: MockClock
) -> None:
    server = kind(*MODELS)
    server.script.ignore_unload = True
    async with engine_at(text, server) as engine:
        async with supervised(engine, MODEL) as resident:
            await resident.ready.wait()
            await stopped_in_vain(resident, server, LISTS[text], jumping_clock)
            assert isinstance(resident.error, EngineStopFailed)
            assert "listed as loaded" in str(resident.error)
        server.script.ignore_unload = False
        async with supervised(engine, MODEL, adopt=True) as again:
            await again.stop()
            assert again.stopped
        assert not server.loaded


@every_kind
async def test_a_refused_unload_is_quoted(
    text: str, kind: type[ScriptedServer], jumping_clock: MockClock
) -> None:
    server = kind(*MODELS)
    server.script.unload_error = "generation in progress"
    async with engine_at(text, server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        await stopped_in_vain(resident, server, LISTS[text], jumping_clock)
        assert isinstance(resident.error, EngineStopFailed)
        assert "generation in progress" in str(resident.error)


@every_kind
async def test_an_unload_refused_because_it_is_gone_is_fine(text: str, kind: type[ScriptedServer]) -> None:
    server = kind(*MODELS)
    async with engine_at(text, server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        server.loaded.clear()
        await resident.stop()
        assert resident.stopped


@every_kind
async def test_a_stopped_server_holds_nothing(text: str, kind: type[ScriptedServer]) -> None:
    server = kind(*MODELS)
    async with engine_at(text, server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        server.crash()
        await trio.sleep(0.01)
        await resident.stop()
        assert resident.stopped
        assert "nothing is loaded" in str(resident.ended)


@every_kind
@pytest.mark.parametrize("how", ["500", "hang", "not JSON", "other shape"])
async def test_an_error_while_asking_is_never_taken_for_empty(
    text: str, kind: type[ScriptedServer], how: str, jumping_clock: MockClock
) -> None:
    server = kind(*MODELS)
    path = LISTS[text]
    async with engine_at(text, server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        if how == "hang":
            server.script.hang = {path}
        else:
            bodies = {"500": as_json({"error": "broken"}, 500), "not JSON": Answer(body=b"<html>")}
            server.script.answers = {path: bodies.get(how) or as_json({"something": "else"})}
        resident.supervision.doubt()
        await trio.sleep(0.05)
        assert not resident.over.is_set()
        if how != "hang":
            with pytest.raises(EngineUnreachable):
                await engine.find()
        server.script.ignore_unload = True
        looks = 1 if how == "hang" else 2
        await stopped_in_vain(resident, server, path, jumping_clock, looks=looks)
        assert isinstance(resident.error, EngineStopFailed)


# Doubts


@every_kind
async def test_a_doubt_is_looked_into(text: str, kind: type[ScriptedServer]) -> None:
    server = kind(*MODELS)
    async with engine_at(text, server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        resident.supervision.doubt()
        await trio.sleep(0.03)
        assert not resident.over.is_set()
        server.loaded.clear()
        resident.supervision.doubt()
        await resident.over.wait()
        assert resident.died
        assert MODEL in str(resident.ended)


async def test_a_doubted_server_that_is_gone_has_ended() -> None:
    server = ScriptedTabby(*MODELS)
    async with engine_at(TABBY, server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        server.crash()
        await trio.sleep(0.01)
        resident.supervision.doubt()
        await resident.over.wait()
        assert resident.died
        assert "does not accept connections" in str(resident.ended)


async def test_a_stop_interrupts_a_doubt_that_gets_no_answer() -> None:
    server = ScriptedTabby(*MODELS)
    async with engine_at(TABBY, server) as engine, supervised(engine, MODEL) as resident:
        await resident.ready.wait()
        server.script.hang = {"/v1/model"}
        resident.supervision.doubt()
        await trio.sleep(0.02)
        server.script.hang = set()
        await resident.stop()
        assert resident.stopped


async def test_an_adopted_model_that_is_gone_has_ended() -> None:
    async with (
        engine_at(LM_STUDIO, ScriptedLMStudio(*MODELS)) as engine,
        supervised(engine, MODEL, adopt=True) as resident,
    ):
        await resident.over.wait()
        assert resident.died


# Lists and templates


async def test_only_configured_models_are_found_without_discovery() -> None:
    server = ScriptedLMStudio("mine", "other")
    async with engine_at(LM_STUDIO, server, 'models = ["mine"]\ndiscover = false\n') as engine:
        server.loaded = {"mine": "mine", "other": "other"}
        assert await engine.find() == [ResidentId("local", "mine")]


async def test_models_are_listed() -> None:
    server = ScriptedLMStudio(*MODELS)
    async with engine_at(LM_STUDIO, server) as engine:
        assert await engine.list_models() == MODELS
        for wrong in (Answer(body=b"hello"), as_json({"models": "none"}), as_json([], 500)):
            server.script.answers["/v1/models"] = wrong
            with pytest.raises(EngineUnreachable):
                await engine.list_models()


async def test_a_call_that_is_cancelled_ends_at_once() -> None:
    server = ScriptedTabby(*MODELS)
    server.script.hang = {"/v1/model"}
    async with engine_at(TABBY, server) as engine:
        with trio.move_on_after(0.05) as scope:
            await engine.run_resident(engine.resident_of(MODEL), Supervision(lambda _endpoint: None))
        assert scope.cancelled_caught


async def test_an_answer_in_time_is_insisted_on() -> None:
    server = ScriptedTabby(*MODELS)
    server.script.hang = {"/health"}
    async with engine_at(TABBY, server) as engine:
        with pytest.raises(EngineUnreachable, match=r"GET /health within 0\.05 s"):
            await engine.server.call("GET", "/health", timeout_s=0.05)


def test_templates_are_filled_everywhere() -> None:
    body = {"model": "{model}", "list": ["{instance}", 3, {"deep": "x{model}x"}], "flag": True}
    filled = {"model": "m", "list": ["i", 3, {"deep": "xmx"}], "flag": True}
    assert fill(body, {"model": "m", "instance": "i"}) == filled


async def test_models_in_paths_are_quoted() -> None:
    text = LLAMA_ROUTER.replace('"/models/load"', '"/load/{model}"')
    server = ScriptedLlamaRouter("org/a model")
    async with engine_at(text, server) as engine, supervised(engine, "org/a model") as resident:
        await resident.over.wait()
        assert "/load/org%2Fa%20model" in [call.path for call in server.calls]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{}", "no list at 'data'"),
        (b'{"data": [{}]}', "no 'id'"),
        (b'{"data": [{"id": "m"}]}', "no 'status.value'"),
        (b'{"data": [{"id": 3, "status": {"value": "loaded"}}]}', "no 'id'"),
    ],
)
def test_lists_of_another_shape_are_refused(body: bytes, words: str) -> None:
    loaded = configured(LLAMA_ROUTER, "http://127.0.0.1:1").loaded
    with pytest.raises(ValueError, match=words):
        list(read_listing(loaded, body))


async def test_a_host_that_cannot_be_resolved_is_not_a_refusal() -> None:
    with trio.fail_after(200):
        async with control_client() as client:
            config = configured(LM_STUDIO, "http://no-such-host.invalid:1")
            with pytest.raises(EngineUnreachable, match="cannot be reached"):
                await HttpEngine("local", config, client).find()


def test_the_server_is_known_by_its_engine() -> None:
    assert "tabby" in repr(HttpEngine("tabby", configured(TABBY, "http://127.0.0.1:1"), ControlClient()))
    assert EngineClient.__doc__
