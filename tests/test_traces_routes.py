"""Traces of every way to an engine, and what they tell of engines and their answers."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import trio
from support.asgi import ask
from support.collector import Collector, GotSpan
from support.scripted.ollama import ScriptedOllama
from support.served import ask as ask_over_a_socket
from support.served import served
from support.traced import CHAT, LIMIT_S, PARENT, PROGRAM, SPAN, TRACE, only, told, tracing
from test_websockets import connected

from engine_router import open_router
from engine_router.config import parse_config
from engine_router.dialects.usage import model_in
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.engines.providers import provider_of
from engine_router.guards.masking import HiddenValues
from engine_router.upstream.control_client import control_client

WEBSOCKETS = Path(__file__).parent / "programs" / "websocket_engine.py"


def of_the_client(spans: list[GotSpan]) -> tuple[GotSpan, GotSpan]:
    """Return the span of the request in the client's trace, and that of the engine's work."""
    own = [span for span in spans if span.trace == TRACE]
    (server,) = [span for span in own if span.kind == "SERVER"]
    (call,) = [span for span in own if span.kind == "CLIENT"]
    assert (server.parent, call.parent) == (SPAN, server.id)
    return server, call


async def test_what_goes_straight_to_an_engine_is_traced(tmp_path: Path) -> None:
    async with tracing(tmp_path) as (_router, request, collector):
        path = "/upstream/m/some/where"
        answer = await request("PUT", path, query="a=b", body={"do": "echo"}, headers={"traceparent": PARENT})
    server, call = of_the_client(collector.spans)
    assert (server.name, server.attributes["url.path"]) == ("PUT /upstream/{model}", path)
    assert (call.name, call.attributes["engine_router.engine"]) == ("ask e", "e")
    assert "gen_ai.operation.name" not in call.attributes
    assert told(answer)["traceparent"] == f"00-{TRACE}-{call.id}-01"


async def test_the_operation_behind_upstream_is_known_too(tmp_path: Path) -> None:
    async with tracing(tmp_path) as (_router, request, collector):
        await request(
            "POST", f"/upstream/m{CHAT}", body={"model": "m", "do": "chat"}, headers={"traceparent": PARENT}
        )
    _, call = of_the_client(collector.spans)
    assert (call.name, call.attributes["gen_ai.usage.output_tokens"]) == ("chat m", 1)


async def test_what_is_handed_on_to_ollama_is_traced(tmp_path: Path) -> None:
    async with ScriptedOllama("q").running() as server:
        more = f'engines.daemon = {{ type = "ollama", base_url = "{server.base_url}" }}'
        async with tracing(tmp_path, more) as (_router, request, collector):
            parents: set[str | None] = set()
            for path in ("/api/pull", "/api/show"):
                body = {"model": "new" if path == "/api/pull" else "q"}
                await request("POST", path, body=body, headers={"traceparent": PARENT})
                parents |= {call.headers.get("traceparent") for call in server.called("POST", path)}
    own = [span for span in collector.spans if span.trace == TRACE]
    servers = [span for span in own if span.kind == "SERVER"]
    calls = [span for span in own if span.kind == "CLIENT"]
    assert [span.name for span in servers] == ["POST /api/pull", "POST /api/show"]
    assert [(span.name, span.parent) for span in calls] == [("ask daemon", server.id) for server in servers]
    assert {span.attributes["gen_ai.provider.name"] for span in calls} == {"ollama"}
    assert parents >= {f"00-{TRACE}-{span.id}-01" for span in calls}
    assert PARENT not in parents


async def test_a_websocket_is_traced(tmp_path: Path) -> None:
    argv = json.dumps([sys.executable, str(WEBSOCKETS), "{port}"])
    more = f'engines.w = {{ type = "process", argv = {argv}, models = ["w"] }}'
    async with tracing(tmp_path, more) as (router, _request, collector):
        async with connected(router, "/v1/realtime?model=w", {"traceparent": PARENT}) as (_, asked):
            pass
        while len(router.in_flight):
            await trio.sleep(0.01)
    server, call = of_the_client(collector.spans)
    assert (server.name, call.name) == ("GET /v1/realtime", "ask w")
    assert server.attributes["engine_router.model"] == "w"
    assert asked["headers"]["traceparent"] == f"00-{TRACE}-{call.id}-01"


async def test_a_route_and_the_model_that_answers_for_it_are_told(tmp_path: Path) -> None:
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}", "fail=no weights"])
    more = f"""
        engines.bad = {{ type = "process", argv = {argv}, models = ["bad"] }}
        routes.best = {{ prefer = ["bad", "m"], strategy = "first" }}
    """
    async with tracing(tmp_path, more) as (_router, request, collector):
        body = {"model": "best", "do": "echo"}
        answer = await request("POST", CHAT, body=body, headers={"traceparent": PARENT})
        assert answer.status == 200
    server, call = of_the_client(collector.spans)
    assert server.attributes["engine_router.route"] == "best"
    assert (server.attributes["engine_router.model"], server.attributes["engine_router.engine"]) == ("m", "e")
    assert (call.name, call.attributes["engine_router.engine"]) == ("chat m", "e")
    assert told(answer)["traceparent"] == f"00-{TRACE}-{call.id}-01"


async def test_a_request_that_is_refused_for_its_key_is_traced(tmp_path: Path) -> None:
    more = """
        server.api_keys = [{ name = "ann", key = "k", max_in_flight = 1 }]
        history.captures = ["m"]
    """
    headers = {"Authorization": "Bearer k", "traceparent": PARENT}
    async with tracing(tmp_path, more) as (router, request, collector):
        async with trio.open_nursery() as nursery:
            held = functools.partial(
                request, "POST", CHAT, body={"model": "m", "do": "hang"}, headers=headers
            )
            nursery.start_soon(held)
            while not router.captures.listed()["captures"]:
                await trio.sleep(0.01)
            assert (await request("POST", CHAT, body={"model": "m"}, headers=headers)).status == 429
            nursery.cancel_scope.cancel()
        (entry,) = router.captures.listed()["captures"]
        capture = router.captures.get(entry["id"])
    servers = [span.attributes for span in collector.spans if span.kind == "SERVER"]
    assert [span["http.response.status_code"] for span in servers] == [429, 499]
    assert capture is not None
    assert PARENT in str(capture.as_dict(HiddenValues()))  # as its client sent it


async def test_a_model_that_cannot_be_started_is_told_of(tmp_path: Path) -> None:
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}", "fail=no weights"])
    more = f'engines.bad = {{ type = "process", argv = {argv}, models = ["bad"] }}'
    async with tracing(tmp_path, more) as (_router, request, collector):
        answer = await request("POST", CHAT, body={"model": "bad"}, headers={"traceparent": PARENT})
        assert answer.status >= 500
    own = [span for span in collector.spans if span.trace == TRACE]
    assert [(span.name, span.is_error) for span in own] == [(f"POST {CHAT}", True), ("wait for model", True)]
    swap = only(collector.spans, "swap")
    assert swap.is_error
    assert swap.attributes["engine_router.swap.result"] == "error"
    assert own[1].links == ((swap.trace, swap.id),)
    assert b"no weights" not in b"".join(collector.bodies)


async def test_who_waits_in_vain_has_waited(tmp_path: Path) -> None:
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}", "delay=1000"])
    more = f'engines.slow = {{ type = "process", argv = {argv}, models = ["slow"] }}'
    async with tracing(tmp_path, more) as (router, request, collector), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: request("POST", CHAT, body={"model": "slow"}))
        while not router.in_flight.by_ticket():
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    wait = only(collector.spans, "wait for model")
    assert wait.attributes["error.type"] == "client_left"
    assert not [span for span in collector.spans if span.kind == "CLIENT"]


async def test_a_reload_turns_them_on_and_off(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}"])
    text = f'state_file = "/dev/null/s"\npools.default.gauge = "none"\nengines.e = {{ type = "process", argv = {argv}, models = ["m"] }}\n'
    path.write_text(text)
    with trio.fail_after(LIMIT_S):
        async with (
            Collector().listening() as collector,
            control_client() as client,
            open_router(path) as router,
        ):
            for more in ("", f'traces.endpoint = "{collector.url}"', "traces.enabled = false"):
                path.write_text(text + more)
                await router.reload()
                answer = await ask(router.app, "POST", CHAT, body={"model": "m", "do": "echo"})
                assert ("traceparent" in told(answer)) == ("endpoint" in more)
                await router.traces.flush(client)
    assert [span.name for span in collector.spans if span.kind == "SERVER"] == [f"POST {CHAT}"]


@pytest.mark.parametrize(
    ("engine", "provider"),
    [
        ('type = "process"\nargv = ["llama-server", "-m", "m.gguf", "--port", "{port}"]', "llama.cpp"),
        ('type = "process"\nargv = ["env", "A=b", "vllm", "serve", "m", "--port", "{port}"]', "vllm"),
        ('type = "process"\nargv = ["my-server", "{port}"]', "mine"),
        ('type = "container"\nimage = "vllm/vllm-openai:v1"\nports = ["{port}:8000"]', "vllm"),
        ('type = "ollama"', "ollama"),
        ('type = "http"\nbase_url = "http://127.0.0.1:1"\nunload.path = "/u"\nloaded.path = "/l"', "mine"),
        ('type = "remote"\nbase_url = "https://api.openai.com/v1"', "openai"),
        ('type = "remote"\nbase_url = "https://api.x.ai/v1"', "x_ai"),
        ('type = "remote"\nbase_url = "https://me.openai.azure.com/openai/v1"', "azure.ai.openai"),
        ('type = "remote"\nbase_url = "https://notopenai.com/v1"', "mine"),
    ],
    ids=str,
)
def test_the_maker_of_an_engine(engine: str, provider: str) -> None:
    config = parse_config(f"[engines.mine]\n{engine}\nmodels = ['m']")
    assert provider_of("mine", config.engines["mine"]) == provider


@pytest.mark.parametrize(
    ("beginning", "end", "model"),
    [
        (b'{"id":"1","model":"q:4b","choices":[]}', b"", "q:4b"),
        (b'data: {"choices":[{"delta":{"content":"\\"model\\": \\"no\\""}}],"model":"m"}\n\n', b"", "m"),
        (b'{"choices":[{"message":{"content":"long', b'"}}],"model" : "late"}', "late"),
        (b'{"choices":[]}', b'{"choices":[]}', None),
        (b'{"model":""}', b'{"model":7}', None),
        (b'{"model":"' + b"x" * 600 + b'"}', b"", None),
        (b'{"model":"\xff"}', b"", "\ufffd"),
    ],
    ids=["plain", "in a text", "late", "none", "empty", "too long", "no text"],
)
def test_the_model_that_an_answer_names(beginning: bytes, end: bytes, model: str | None) -> None:
    assert model_in(beginning, end) == model


WHEELS = ("gguf", "numpy", "xllamacpp")


@pytest.mark.real
@pytest.mark.skipif(not all(map(importlib.util.find_spec, WHEELS)), reason="needs the extra llamacpp")
async def test_a_real_engines_work(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    words = [
        sys.executable,
        "-m",
        "engine_router.llamacpp",
        "-m",
        str(path),
        "--port",
        "{port}",
        "-lv",
        "0",
        "-t",
        "1",
    ]
    async with Collector().listening() as collector:
        text = f"""
            state_file = "/dev/null/state.json"
            traces.endpoint = "{collector.url}"
            engines.e = {{ type = "process", argv = {json.dumps([*words, "-c", "2048"])}, models = ["m"] }}
            """
        with trio.fail_after(LIMIT_S):
            async with open_router(parse_config(text)) as router, served(router) as url:
                told_of = {"messages": [{"role": "user", "content": "Good morning"}], "max_tokens": 5}
                for more in ({"ignore_eos": True}, {"ignore_eos": True, "stream": True}):
                    answer = await ask_over_a_socket(
                        url, "POST", CHAT, body={"model": "m", **told_of, **more}
                    )
                    assert answer.status == 200
    whole, stream = [span.attributes for span in collector.spans if span.name == "chat m"]
    for attributes in (whole, stream):
        assert attributes["gen_ai.provider.name"] == "llama.cpp"
        assert attributes["gen_ai.usage.output_tokens"] == 5
        assert attributes["gen_ai.response.model"]
    assert int(str(stream["gen_ai.usage.cache_read.input_tokens"])) > 0
    assert float(str(stream["gen_ai.response.time_to_first_chunk"])) > 0
    assert b"Good morning" not in b"".join(collector.bodies)
