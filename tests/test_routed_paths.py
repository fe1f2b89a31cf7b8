"""Requests are routed by the model that they name, in a body or in a query, whatever their path below `/v1`."""

import json
from typing import Any

import pytest
from support.asgi import ask
from test_web import posting, process, routing

from engine_router import Router
from engine_router.proxy.routes import answers_json, is_proxied, model_in_query, query_for

ROOT = (
    "tokenize",
    "detokenize",
    "infill",
    "completion",
    "completions",
    "apply-template",
    "rerank",
    "embeddings",
)
PATHS = [f"/{path}" for path in ROOT] + [
    "/v1/audio/voices",
    "/v1/brand/new/endpoint",
    "/v1/rerank",
    "/v1/score",
    "/sdapi/v1/txt2img",
]


@pytest.mark.parametrize("path", PATHS)
async def test_a_post_that_names_a_model_is_routed(path: str, fast: bool) -> None:
    async with routing(process("a"), fast=fast) as router, posting(router) as post:
        seen = (await post(path, query="x=1", body={"model": "a", "content": "hi"})).json()
        assert (seen["method"], seen["target"]) == ("POST", f"{path}?x=1")
        assert json.loads(seen["body"]) == {"model": "a", "content": "hi"}
        assert (await post(path, body={"model": "b"})).status == 404
        assert (await post(path, body={"content": "hi"})).status == 400


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "POST"])
async def test_a_query_names_the_model(method: str) -> None:
    """As speech clients ask for voices, and image servers are told what to use."""
    async with routing(process("a", models=("m",)), more=NAMED) as router:
        seen = await asked(router, method, "/v1/audio/voices", "model=alias&language=de", None)
        assert (seen["method"], seen["target"]) == (method, "/v1/audio/voices?model=m&language=de")
        assert (await ask(router.app, method, "/v1/audio/voices", query="model=nobody")).status == 404


NAMED = '[models.alias]\nengine = "a"\nupstream = "m"\n'


async def asked(router: Router, method: str, path: str, query: str, body: object) -> Any:
    answer = await ask(router.app, method, path, query=query, body=body)
    assert answer.status == 200, answer.body
    return answer.json()


async def test_a_body_of_any_type_goes_on_as_it_came_where_the_query_names_the_model(fast: bool) -> None:
    async with routing(process("a"), fast=fast) as router, posting(router) as post:
        for body in (b"RIFF\x00\x01binary", b"", b'["x"]', b'{"prompt": "no model"}'):
            seen = (await post("/v1/audio/anything", query="model=a", body=body)).json()
            assert seen["body"].encode("latin-1") == body


async def test_a_model_in_the_body_wins_over_the_query(fast: bool) -> None:
    async with routing(process("a"), fast=fast) as router, posting(router) as post:
        answer = await post("/v1/rerank", query="model=a", body={"model": "nobody"})
        assert answer.status == 404


async def test_the_default_model_gets_what_names_none(fast: bool) -> None:
    server = {"default_model": "alias"}
    named = process("a", models=("m",))
    async with routing(named, fast=fast, server=server, more=NAMED) as router, posting(router) as post:
        for body in ({"messages": []}, {"model": None, "messages": []}, {"model": "", "messages": []}):
            seen = (await post("/v1/chat/completions", body=body)).json()
            assert json.loads(seen["body"]) == {"messages": [], "model": "m"}
        assert (await post("/v1/chat/completions", body={"model": "typo"})).status == 404
        assert (await post("/v1/chat/completions", body=b"{nope")).status == 400


async def test_a_page_of_another_site_cannot_swap_models_by_a_get() -> None:
    async with routing(process("a")) as router:
        for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            answer = await ask(router.app, "GET", "/v1/audio/voices", query="model=a", headers=headers)
            assert answer.status == 403
        assert not router.supervisor.domains["default"].ledger.states


@pytest.mark.parametrize(
    "path",
    [
        "/v1/model/load",
        "/v1/models/x",
        "/v1/internal/model/load",
        "/v1/unload_lora_adapter",
        "/v1/audio/../x",
        "/v1/",
        "/v1/v1/messages",
        "/v1/api/chat",
    ],
)
def test_what_manages_an_engine_is_not_routed(path: str) -> None:
    assert not is_proxied(path)


@pytest.mark.parametrize(
    ("query", "model"),
    [
        (b"", None),
        (b"model=", None),
        (b"model=%20", None),
        (b"submodel=x", None),
        (b"a=1&model=team%2Fx:7b&b=2", "team/x:7b"),
        (b"model=%FF", "\ufffd"),
    ],
)
def test_model_in_query(query: bytes, model: str | None) -> None:
    assert model_in_query(query) == model


def test_a_query_for_another_model() -> None:
    assert query_for(b"a=%2F&model=x", "x") == b"a=%2F&model=x"
    assert query_for(b"a=%2F&model=x&b=", "y&z") == b"a=%2F&model=y%26z&b="
    assert query_for(b"a=1", "y") == b"a=1"


def test_only_json_gets_whitespace_ahead_of_it() -> None:
    assert answers_json("/v1/chat/completions")
    assert answers_json("/api/chat")
    assert not answers_json("/v1/audio/speech")
    assert not answers_json("/v1/brand/new/endpoint")
