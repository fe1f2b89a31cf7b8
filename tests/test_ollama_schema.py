"""Ollama's `/api/*` under schemathesis: whatever a client sends that fits the description, the answers fit too.

The description below is ours, after Ollama's published one (docs/openapi.yaml of its repository, version
0.1.0), which says what each field is but not which ones must be there. This one does: what clients read is
required.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import jsonschema
import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from support.scripted import ScriptedLlamaRouter, ScriptedOllama, until
from support.served import served

from engine_router import open_router
from engine_router.config import parse_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    schemathesis = pytest.importorskip("schemathesis")

pytestmark = pytest.mark.filterwarnings("default")

LIMIT_S = 200.0
EXAMPLES = 12
Json = dict[str, Any]

# `one` is spoken to in OpenAI's dialect, `own` is Ollama's, `none` is not there.
MODELS = ["one", "one:latest", "alias", "own", "own:latest", "none"]


def thing(*required: str, **properties: Json) -> Json:
    """Describe an object with at least these keys."""
    return {"type": "object", "required": [*required], "properties": properties}


def many(item: Json, **more: object) -> Json:
    return {"type": "array", "items": item, **more}


TEXT: Json = {"type": "string"}
FLAG: Json = {"type": "boolean"}
SIZE: Json = {"type": "integer", "minimum": 0}
NUMBER: Json = {"type": "number"}
MOMENT: Json = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"}
DIGEST: Json = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
CAPABILITY: Json = {"enum": ["completion", "tools", "thinking", "vision", "embedding", "insert"]}
ERROR = thing("error", error=TEXT)
DETAILS = thing(
    "format",
    "family",
    "parameter_size",
    "quantization_level",
    parent_model=TEXT,
    format=TEXT,
    family=TEXT,
    families=many(TEXT),
    parameter_size=TEXT,
    quantization_level=TEXT,
)
TAG = thing(
    *("name", "model", "size", "digest", "details"),
    name=TEXT,
    model=TEXT,
    modified_at=MOMENT,
    size=SIZE,
    digest=DIGEST,
    details=DETAILS,
)
LOADED = thing(
    *TAG["required"],
    "expires_at",
    "size_vram",
    **TAG["properties"],
    expires_at=MOMENT,
    size_vram=SIZE,
    context_length={"type": "integer", "minimum": 1},
)
SHOWN = thing(
    "details",
    "model_info",
    "capabilities",
    modelfile=TEXT,
    parameters=TEXT,
    template=TEXT,
    details=DETAILS,
    model_info={"type": "object"},
    capabilities=many(CAPABILITY, minItems=1),
)
PIECE = thing("model", "created_at", "done", model=TEXT, created_at=MOMENT, done=FLAG, done_reason=TEXT)
MESSAGE = thing("role", "content", role={"enum": ["assistant"]}, content=TEXT)
CHAT_PIECE = {**PIECE, "required": [*PIECE["required"], "message"]}
CHAT_PIECE["properties"] = {**PIECE["properties"], "message": MESSAGE}
GENERATE_PIECE = {**PIECE, "required": [*PIECE["required"], "response"]}
GENERATE_PIECE["properties"] = {**PIECE["properties"], "response": TEXT}

MODEL: Json = {"enum": MODELS}
OPTIONS = thing(
    temperature=NUMBER,
    top_k={"type": "integer"},
    num_predict={"type": "integer"},
    num_ctx={"type": "integer"},
    stop={"oneOf": [TEXT, many(TEXT)]},
)
COMMON: Json = {
    "model": MODEL,
    "stream": FLAG,
    "options": OPTIONS,
    "format": {"enum": ["json", {"type": "object"}]},
    "think": {"enum": [True, False, "low", "high"]},
    "keep_alive": {"enum": ["5m", -1, 60, "1h30m"]},
}
REQUEST_MESSAGE = thing(
    "role", "content", role={"enum": ["system", "user", "assistant", "tool"]}, content=TEXT, tool_name=TEXT
)
TOOL = thing(
    "type",
    "function",
    type={"enum": ["function"]},
    function=thing("name", "parameters", name=TEXT, parameters={"type": "object"}),
)
CHAT = thing("model", "messages", **COMMON, messages=many(REQUEST_MESSAGE), tools=many(TOOL))
GENERATE = thing("model", **COMMON, prompt=TEXT, system=TEXT, suffix=TEXT, raw=FLAG)


def answers(kind: Json | None = None, *, stream: Json | None = None, errors: tuple[int, ...] = ()) -> Json:
    """Describe the answers of a route: what a success holds, and the errors that it may give instead."""
    content = {} if kind is None else {"application/json": {"schema": kind}}
    if stream is not None:
        content["application/x-ndjson"] = {"schema": TEXT, "x-line": stream}
    good = {"200": {"description": "", "content": content}} if content else {}
    bad = {"description": "", "content": {"application/json": {"schema": ERROR}}}
    return {"responses": {**good, **{str(status): bad for status in errors}}}


def asks(body: Json, **more: Any) -> Json:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}, **more}


STATUS = thing("status", status=TEXT)
ANY_MODEL = thing("model", model=MODEL)
DESCRIPTION: Json = {
    "openapi": "3.1.0",
    "info": {"title": "Ollama's API", "version": "1"},
    "paths": {
        "/api/version": {"get": answers(thing("version", version=TEXT))},
        "/api/tags": {"get": answers(thing("models", models=many(TAG, minItems=3)))},
        "/api/ps": {"get": answers(thing("models", models=many(LOADED)))},
        "/api/show": {
            "post": asks(thing("model", model=MODEL, verbose=FLAG), **answers(SHOWN, errors=(404,)))
        },
        "/api/chat": {"post": asks(CHAT, **answers(CHAT_PIECE, stream=CHAT_PIECE, errors=(400, 404)))},
        "/api/generate": {
            "post": asks(GENERATE, **answers(GENERATE_PIECE, stream=GENERATE_PIECE, errors=(400, 404)))
        },
        "/api/embed": {
            "post": asks(
                thing("model", "input", model=MODEL, input={"oneOf": [TEXT, many(TEXT)]}),
                **answers(thing("embeddings", embeddings=many(many(NUMBER))), errors=(400, 404)),
            )
        },
        "/api/pull": {
            "post": asks(
                thing("model", model={"enum": ["one", "alias", "one:latest"]}, stream=FLAG),
                **answers(STATUS, stream=STATUS),
            )
        },
        "/api/push": {"post": asks(ANY_MODEL, **answers(errors=(403,)))},
        "/api/create": {"post": asks(ANY_MODEL, **answers(errors=(403,)))},
        "/api/delete": {"delete": asks(ANY_MODEL, **answers(errors=(403,)))},
        "/api/copy": {
            "post": asks(
                thing("source", "destination", source=MODEL, destination=TEXT), **answers(errors=(403,))
            )
        },
    },
}
ROUTES = [(path, method) for path, methods in DESCRIPTION["paths"].items() for method in methods]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


@asynccontextmanager
async def router_url() -> AsyncIterator[str]:
    """Serve a router in front of an engine that speaks OpenAI's dialect and of an Ollama daemon."""
    async with ScriptedLlamaRouter("one").running() as one, ScriptedOllama("own").running() as own:
        text = f"""
            state_file = "/dev/null/state.json"
            [pools.default]
            gauge = "none"
            [aliases]
            alias = "one"
            [engines.ollama]
            type = "ollama"
            base_url = "{own.base_url}"
            [engines.llama]
            type = "http"
            base_url = "{one.base_url}"
            models = ["one"]
            load = {{ path = "/models/load", body = {{ model = "{{model}}" }} }}
            unload = {{ path = "/models/unload", body = {{ model = "{{model}}" }} }}
            loaded = {{ path = "/models", key = "data", filter = {{ "status.value" = "loaded" }} }}
        """
        async with open_router(parse_config(text)) as router, served(router) as url:
            await until(lambda: router.registry.listed("ollama"))
            yield url


def try_route(url: str, path: str, method: str) -> None:
    """Ask in many ways; blocks."""
    described, seen = DESCRIPTION["paths"][path][method]["responses"], set[int]()
    operation = schemathesis.openapi.from_dict(DESCRIPTION)[path][method]
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)
    assert len(checks) == len(CHECKS)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def asking(case: Any) -> None:
        response = case.call(base_url=url, timeout=LIMIT_S)
        case.validate_response(response, checks=checks)
        seen.add(response.status_code)
        if response.status_code == 200:
            check_success(described["200"]["content"], response.headers["content-type"][0], response.content)

    asking()
    assert seen >= ({200} if "200" in described else {403})


def check_success(content: Json, content_type: str, body: bytes) -> None:
    """Check a success by its own description; of a stream each line, of which exactly the last is the end."""
    if content_type.partition(";")[0] == "application/json":
        jsonschema.validate(json.loads(body), content["application/json"]["schema"])
        return
    lines = [json.loads(line) for line in body.splitlines()]
    for line in lines:
        jsonschema.validate(line, content["application/x-ndjson"]["x-line"])
    assert lines
    if "done" in lines[0]:
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


@pytest.mark.parametrize(("path", "method"), ROUTES)
async def test_answers_fit_the_description(path: str, method: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with router_url() as url:
            await trio.to_thread.run_sync(partial(try_route, url, path, method))
