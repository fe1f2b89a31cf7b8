"""The model list as Anthropic's own library reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import trio
from support.asgi import ask

from engine_router import open_router
from engine_router.config import parse_config
from engine_router.router import Router

anthropic = pytest.importorskip("anthropic")
anthropic_types = pytest.importorskip("anthropic.types")

CONFIG = """
[engines.a]
type = "process"
argv = ["engine", "--port", "9"]
base_url = "http://127.0.0.1:9"
discover = false
[models.big]
engine = "a"
aliases = ["opus"]
context_length = 8192
[models.small]
engine = "a"
"""
VERSION = {"anthropic-version": "2023-06-01"}


async def get(router: Router, path: str, headers: Mapping[str, str] = VERSION) -> tuple[int, Any]:
    path, _, query = path.partition("?")
    answer = await ask(router.app, "GET", path, query=query, headers=headers)
    return answer.status, answer.json()


@contextmanager
def reading(answers: Mapping[str, tuple[int, Any]]) -> Iterator[Any]:
    """Yield the library's client, to which each path and query has its answer."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        status, body = answers[request.url.raw_path.decode()]
        return httpx2.Response(status, json=body)

    transport = httpx2.MockTransport(answer)
    with httpx2.Client(transport=transport) as http:
        yield anthropic.Anthropic(base_url="http://router", api_key="x", http_client=http, max_retries=0)


async def test_the_library_lists_models() -> None:
    paths = ("/v1/models", "/v1/models?limit=2", "/v1/models?limit=2&after_id=opus", "/v1/models/opus")
    with trio.fail_after(200):
        async with open_router(parse_config(CONFIG)) as router:
            answers = {path: await get(router, path) for path in paths}
            plain = (await get(router, "/v1/models", {}))[1]
    assert plain["object"] == "list"
    assert "display_name" not in plain["data"][0]
    with reading(answers) as client:
        models = client.models.list().data
        assert [model.id for model in models] == ["big", "opus", "small"]
        assert [model.type for model in models] == ["model"] * 3
        assert [model.display_name for model in models] == ["big", "opus", "small"]
        assert [model.max_input_tokens for model in models] == [8192, 8192, None]
        assert all(model.created_at.tzinfo for model in models)
        assert [model.id for model in client.models.list(limit=2)] == ["big", "opus", "small"]
        assert client.models.retrieve("opus").display_name == "opus"
    for model in answers["/v1/models"][1]["data"]:
        assert anthropic_types.ModelInfo.model_validate(model)


@pytest.mark.parametrize(
    ("query", "ids", "has_more"),
    [
        ("limit=1", ["big"], True),
        ("limit=1000", ["big", "opus", "small"], False),
        ("after_id=big&limit=1", ["opus"], True),
        ("after_id=small", [], False),
        ("before_id=small&limit=1", ["opus"], True),
        ("before_id=big", [], False),
    ],
)
async def test_pages(query: str, ids: list[str], has_more: bool) -> None:
    with trio.fail_after(200):
        async with open_router(parse_config(CONFIG)) as router:
            status, page = await get(router, f"/v1/models?{query}")
    assert (status, [model["id"] for model in page["data"]], page["has_more"]) == (200, ids, has_more)
    assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/v1/models/nobody", 404, "not_found_error"),
        ("/v1/models?limit=0", 400, "invalid_request_error"),
        ("/v1/models?limit=x", 400, "invalid_request_error"),
        ("/v1/models?limit=1001", 400, "invalid_request_error"),
        ("/v1/models?after_id=nobody", 400, "invalid_request_error"),
    ],
)
async def test_errors_have_the_same_shape(path: str, status: int, kind: str) -> None:
    with trio.fail_after(200):
        async with open_router(parse_config(CONFIG)) as router:
            got = await get(router, path)
            other = await get(router, "/v1/models/nobody", {})
    assert (got[0], got[1]["type"], got[1]["error"]["type"]) == (status, "error", kind)
    assert other[1]["error"]["code"] == "model_not_found"
    assert json.dumps(got[1])
