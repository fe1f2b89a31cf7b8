"""Engines' own errors reach each client in its dialect, with the engine's status, and without the client's input."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
import trio
from support.asgi import Received
from support.scripted import Answer, ScriptedOllama, ScriptedServer
from support.served import ask, served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.dialects import ANTHROPIC, OLLAMA, OPENAI
from engine_router.dialects.engine_errors import error_message
from engine_router.errors import EngineRefused
from engine_router.guards.limits import ERROR_BODY_BYTES

CHAT, MESSAGES, RESPONSES, TOKENIZE, OLLAMA_CHAT = (
    "/v1/chat/completions",
    "/v1/messages",
    "/v1/responses",
    "/tokenize",
    "/api/chat",
)
SECRET = "what the client said"
TALK = {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": SECRET}]}
INPUT = {"model": "m", "messages": [{"role": "user", "content": f"{SECRET} 'and' \"more\" " * 40}]}
MISSING = {"type": "missing", "loc": ["body", "messages", 0, "content"], "msg": "Field required"}
FASTAPI = json.dumps({"detail": [{**MISSING, "input": INPUT}]}).encode()
PAGE = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title><style>p {}</style></head><body><h1>502 Bad Gateway</h1><p>nginx &amp; co</p><script>x()</script></body></html>"
# As vLLM's handler writes it: what Python makes of the list.
PYTHON = json.dumps(
    {
        "error": {
            "message": str([{**MISSING, "loc": ("body", "messages", 0, "content"), "input": INPUT}]),
            "code": 400,
        }
    }
).encode()
PYDANTIC = (
    "1 validation error for ChatCompletionRequest\nmessages\n  Field required "
    f"[type=missing, input_value={INPUT!r}, input_type=dict]\n    For further information visit https://errors.pydantic.dev/2.11/v/missing"
)

MESSAGES_IN = {
    "a fault": (FASTAPI, "messages.0.content: Field required"),
    "a fault of the query": (
        b'{"detail":[{"loc":["query","n"],"msg":"Input should be a valid integer","input":"x"}]}',
        "query.n: Input should be a valid integer",
    ),
    "a fault of the whole body": (
        b'{"detail":[{"loc":["body"],"msg":"Field required","input":null}]}',
        "Field required",
    ),
    "many faults": (
        json.dumps(
            {"detail": [{"loc": ["body", n], "msg": "no", "input": INPUT} for n in range(7)]}
        ).encode(),
        "0: no; 1: no; 2: no; 3: no; 4: no; and 2 more",
    ),
    "faults in an error": (
        json.dumps({"error": {"message": [MISSING]}}).encode(),
        "messages.0.content: Field required",
    ),
    "a fault in Python's words": (PYTHON, "messages.0.content: Field required"),
    "a fault with a quote": (
        b"{\"error\": {\"message\": \"[{'loc': ('body', 'n'), 'msg': \\\"it isn't one\\\", 'input': 7}]\"}}",
        "n: it isn't one",
    ),
    "a fault that is cut off": (FASTAPI[:-200], "messages.0.content: Field required"),
    "a fault in pydantic's words": (
        json.dumps({"error": {"message": PYDANTIC}}).encode(),
        "1 validation error for ChatCompletionRequest\nmessages\n  Field required",
    ),
    "faults of no known shape": (
        json.dumps({"detail": [{"input": INPUT}, SECRET]}).encode(),
        None,
    ),
    "an object in detail": (b'{"detail":{"message":"no such model"}}', "no such model"),
    "a page": (PAGE, "502 Bad Gateway nginx & co"),
    "a page of a title": (b"<html><head><title>Not here</title></head><body></body></html>", "Not here"),
    "a page in an error": (json.dumps({"error": PAGE.decode()}).encode(), "502 Bad Gateway nginx & co"),
    "vLLM, earlier": (b'{"object":"error","message":"no","type":"BadRequestError","code":400}', "no"),
    "text in quotes": (b'"no"', "no"),
    "text": (b"Internal Server Error", "Internal Server Error"),
}


@pytest.mark.parametrize(("body", "message"), MESSAGES_IN.values(), ids=MESSAGES_IN)
def test_the_message_is_found_and_the_clients_input_left_out(body: bytes, message: str | None) -> None:
    found = error_message(body)
    assert found == message
    assert SECRET not in (found or "")


LONG_BYTES = 16 * ERROR_BODY_BYTES  # so that what grows with the square of it shows


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "body",
    [
        b"<html>" + b"<" * LONG_BYTES,
        b"<html>" + b"<style>" * (LONG_BYTES // 7),
        b"'loc': ('a'), 'msg': 'b" * (LONG_BYTES // 22),
        b'{"error": "' + b" [type=x, input_value=" * (LONG_BYTES // 22) + b'"}',
        b'{"detail":' * (LONG_BYTES // 10),
    ],
)
def test_no_body_takes_long_to_understand(body: bytes) -> None:
    assert len(error_message(body) or "") < 3000


# Which shapes go on as they are.

OPENAI_S = {"error": {"message": "m", "type": "t", "code": None}}
ANTHROPIC_S = {"type": "error", "error": {"type": "not_found_error", "message": "m"}, "request_id": "r"}
OLLAMA_S = {"error": "m"}
VLLM_S = {"type": "error", "error": {"type": "BadRequestError", "message": "m"}}
BROKEN: list[Any] = [{}, [], None, "error", 1, {"error": None}, {"error": {"message": 1}}, {"type": "error"}]


@pytest.mark.parametrize(
    ("dialect", "own"), [(OPENAI, OPENAI_S), (ANTHROPIC, ANTHROPIC_S), (OLLAMA, OLLAMA_S)]
)
def test_each_dialect_knows_its_own_errors(dialect: Any, own: Any) -> None:
    assert dialect.is_error(json.dumps(own).encode())
    assert dialect.is_error(json.dumps(dialect.error(EngineRefused("e", 404, "m"))).encode())
    for other in (OPENAI_S, ANTHROPIC_S, OLLAMA_S, VLLM_S, *BROKEN):
        if other is own or (dialect is OPENAI and other in (ANTHROPIC_S, VLLM_S)):
            continue  # of an error of Anthropic's, OpenAI's clients understand all that there is
        assert not dialect.is_error(json.dumps(other).encode()), other
    for text in (b"", b"m", b"[" * 100_000, b"\xff", PAGE):
        assert not dialect.is_error(text)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "api_error"),
        (504, "timeout_error"),
    ],
)
def test_the_type_that_anthropics_clients_get_is_that_of_the_status(status: int, kind: str) -> None:
    assert ANTHROPIC.error(EngineRefused("e", status, "m"))["error"]["type"] == kind


# Through a router, by both tiers.


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@asynccontextmanager
async def routing(
    server: ScriptedServer, *, fast: bool = True, kind: str = "http", more: str = ""
) -> AsyncIterator[tuple[Router, str]]:
    table = {
        "http": 'unload = { path = "/u" }\nloaded = { path = "/v1/models", key = "data" }\nmodels = ["m"]\n'
        'endpoints = ["/v1/messages", "/v1/messages/count_tokens", "/v1/responses"]',
        "ollama": 'models = ["m"]',
    }[kind]
    with trio.fail_after(200):
        async with server.running():
            text = f"""
                state_file = "/dev/null/state.json"
                [server]
                shutdown_timeout_s = 0.1
                fast_path = {json.dumps(fast)}
                {more}
                [pools.default]
                gauge = "none"
                [engines.e]
                type = "{kind}"
                base_url = "{server.base_url}"
                {table}
                """
            async with open_router(parse_config(text)) as router, served(router) as url:
                yield router, url


async def told(path: str, answer: Answer, *, fast: bool, body: Mapping[str, Any] = TALK) -> Received:
    kind = "ollama" if path.startswith("/api/") else "http"
    server = ScriptedOllama("m") if kind == "ollama" else ScriptedServer("m")
    server.script.answers[path] = answer
    async with routing(server, fast=fast, kind=kind) as (router, url):
        talk = await ask(url, "POST", path, body={**body, "model": "m"})
        while router.supervisor.domains[
            "default"
        ].leases:  # the client may have it all before the router knows
            await trio.sleep(0.001)
        return talk


def message_in(talk: Received) -> str:
    error = talk.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


SHAPES = {
    CHAT: OPENAI_S.keys(),
    RESPONSES: OPENAI_S.keys(),
    TOKENIZE: OPENAI_S.keys(),
    MESSAGES: {"type", "error"},
    OLLAMA_CHAT: {"error"},
}
FOREIGN = {
    "FastAPI": (422, FASTAPI, "application/json", "messages.0.content: Field required"),
    "a page": (502, PAGE, "text/html", "502 Bad Gateway nginx & co"),
    "text": (500, b"Internal Server Error", "text/plain; charset=utf-8", "Internal Server Error"),
    "nothing": (503, b"", "text/plain", "the engine answered 503"),
    "a cut answer": (500, b'{"error": {"mess', "application/json", '{"error": {"mess'),
    "a word": (404, b'{"detail":"Not Found"}', "application/json", "Not Found"),
    "very much": (
        400,
        b'{"detail":[{"loc":["body","n"],"msg":"no","input":"' + b"x" * 3 * ERROR_BODY_BYTES + b'"}]}',
        "application/json",
        "n: no",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("path", SHAPES)
async def test_an_error_of_another_shape_is_told_in_the_clients_dialect(
    path: str, name: str, fast: bool
) -> None:
    status, body, content_type, message = FOREIGN[name]
    talk = await told(path, Answer(status, body, content_type), fast=fast)
    assert (talk.status, talk.headers["content-type"]) == (status, "application/json")
    assert talk.json().keys() == SHAPES[path]
    assert message_in(talk) == message
    assert SECRET.encode() not in talk.body
    assert int(talk.headers["content-length"]) == len(talk.body)


@pytest.mark.parametrize("path", SHAPES)
async def test_an_error_of_the_clients_dialect_goes_on_as_it_is(path: str, fast: bool) -> None:
    own = {MESSAGES: ANTHROPIC_S, OLLAMA_CHAT: OLLAMA_S}.get(path, OPENAI_S)
    body = b" " + json.dumps({**own, "more": {"of": ["it"]}}, indent=3).encode() + b"\n"
    answer = Answer(418, body, "application/json; charset=utf-8", headers=(("x-request-id", "7"),))
    talk = await told(path, answer, fast=fast)
    assert (talk.status, talk.body) == (418, body)
    assert talk.headers["content-type"] == "application/json; charset=utf-8"
    assert talk.headers["x-request-id"] == "7"
    assert "x-should-retry" not in talk.headers


@pytest.mark.parametrize("body", [OPENAI_S, VLLM_S, {"object": "error", "message": "m", "code": 400}])
async def test_vllms_errors_of_messages_have_anthropics_shape(body: Any, fast: bool) -> None:
    talk = await told(MESSAGES, Answer(400, json.dumps(body).encode()), fast=fast)
    assert talk.status == 400
    assert talk.json() == {"type": "error", "error": {"type": "invalid_request_error", "message": "m"}}


@pytest.mark.parametrize(
    ("status", "should_retry"), [(400, "false"), (404, "false"), (429, None), (500, None), (503, None)]
)
async def test_whether_a_retry_helps_is_left_to_the_status(status: int, should_retry: str | None) -> None:
    answer = Answer(status, b"busy", "text/plain", headers=(("retry-after", "7"),))
    talk = await told(CHAT, answer, fast=True)
    assert talk.headers.get("x-should-retry") == should_retry
    assert talk.headers["retry-after"] == "7"


async def test_an_encoded_error_goes_on_as_it_is(fast: bool) -> None:
    answer = Answer(500, b"\x00\x01", "text/plain", headers=(("content-encoding", "br"),))
    talk = await told(CHAT, answer, fast=fast)
    assert (talk.status, talk.body, talk.headers["content-encoding"]) == (500, b"\x00\x01", "br")


async def test_what_goes_straight_to_an_engine_comes_straight_back(fast: bool) -> None:
    server = ScriptedServer("m")
    server.script.answers["/page"] = Answer(502, PAGE, "text/html")
    async with routing(server, fast=fast) as (_, url):
        talk = await ask(url, "GET", "/upstream/m/page")
        assert (talk.status, talk.body, talk.headers["content-type"]) == (502, PAGE, "text/html")


async def test_an_error_that_comes_too_late_for_its_status_is_told_in_the_stream(fast: bool) -> None:
    server = ScriptedServer("m")
    async with routing(server, fast=fast, more="keepalive_interval_s = 0.05") as (_, url):
        for body, message in (
            (FASTAPI, "messages.0.content: Field required"),
            (b'{"error":{"message":"own"}}', "own"),
        ):
            server.script.answers[CHAT] = Answer(422, body)
            server.script.hang = set()

            async def late(call: Any, respond: Any = server._respond) -> Any:
                await trio.sleep(0.3 if call.path == CHAT else 0)
                return await respond(call)

            server._respond = late  # type: ignore[method-assign]
            talk = await ask(url, "POST", CHAT, body={**TALK, "stream": True})
            assert talk.status == 200
            last = talk.body.strip().split(b"\n\n")[-1]
            assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == message


@pytest.fixture
def page_for() -> Callable[[str], Received]:
    return lambda path: trio.run(lambda: told(path, Answer(404, PAGE, "text/html"), fast=True))


def test_openais_library_raises_what_the_status_means(page_for: Callable[[str], Received]) -> None:
    talk = page_for(CHAT)
    answer = httpx.Response(talk.status, content=talk.body, headers=talk.headers)
    with httpx.Client(transport=httpx.MockTransport(lambda _: answer)) as http:
        client = openai.OpenAI(api_key="k", base_url="http://r/v1", http_client=http)
        with pytest.raises(openai.NotFoundError, match="502 Bad Gateway"):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])


def test_anthropics_library_raises_what_the_status_means(page_for: Callable[[str], Received]) -> None:
    talk = page_for(MESSAGES)
    answer = httpx2.Response(talk.status, content=talk.body, headers=talk.headers)
    with httpx2.Client(transport=httpx2.MockTransport(lambda _: answer)) as http:
        client = anthropic.Anthropic(api_key="k", base_url="http://r", http_client=http)
        with pytest.raises(anthropic.NotFoundError, match="502 Bad Gateway") as raised:
            client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "hi"}])
    assert raised.value.type == "not_found_error"
