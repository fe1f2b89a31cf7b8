"""Requests and messages of the Responses API that its tests share."""

from __future__ import annotations

import json
from typing import Any

from engine_router.dialects.responses.answers import ResponsesTranslation, translate

Json = dict[str, Any]


def begin(data: Json) -> ResponsesTranslation:
    return translate(
        "/v1/responses",
        {"input": "hi", **data},
        model="qwen",
        upstream="qwen.gguf",
        wall_clock=lambda: 1_790_000_000.25,
        new_id=lambda: "1",
    )


def sent(**data: Any) -> Json:
    """Return the request that the engine gets."""
    translation = begin(data)
    assert translation.path == "/v1/chat/completions"
    body: Json = json.loads(translation.body)
    assert body.pop("model") == "qwen.gguf"
    return body


def messages(*items: Json | str, **data: Any) -> list[Json]:
    result: list[Json] = sent(input=list(items), **data)["messages"]
    return result


def user(content: Any) -> Json:
    return {"role": "user", "content": content}


def function_call(name: str, call_id: str, arguments: str = "{}", **more: Any) -> Json:
    return {"type": "function_call", "name": name, "call_id": call_id, "arguments": arguments, **more}


def result(call_id: str, output: Any = "done", kind: str = "function_call") -> Json:
    return {"type": f"{kind}_output", "call_id": call_id, "output": output}


def made(name: str, identity: str, arguments: str = "{}") -> Json:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}}

FUNCTION = {"type": "function", "name": "f", "description": "does", "parameters": PARAMETERS, "strict": True}

CUSTOM = {
    "type": "custom",
    "name": "apply_patch",
    "description": "patches",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/s"},
}

NAMESPACE = {
    "type": "namespace",
    "name": "box",
    "description": "a box",
    "tools": [{"type": "function", "name": "run", "parameters": None, "strict": None}],
}
