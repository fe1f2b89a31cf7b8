"""Requests of Ollama's API that its tests share."""

from __future__ import annotations

import json
from typing import Any

import attrs

from engine_router.dialects.base import Translation
from engine_router.dialects.ollama.answers import translate

Json = dict[str, Any]

# How the engine is asked, whatever the client wants: what is written is what shows that a client has left.
STREAMED: Json = {"stream": True, "stream_options": {"include_usage": True}}


@attrs.define
class Clock:
    """A clock that is moved by hand, in seconds."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def begin(path: str, data: Json, clock: Clock | None = None, **more: Any) -> Translation:
    return translate(
        path,
        data,
        model="qwen:latest",
        upstream="qwen.gguf",
        clock=clock or Clock(),
        wall_clock=lambda: 1_790_000_000.25,
        **more,
    )


def sent(path: str, **data: Any) -> tuple[str, Json]:
    """Return path and body of the request that the engine gets."""
    translation = begin(path, data)
    body = json.loads(translation.body)
    assert body.pop("model") == "qwen.gguf"
    return translation.path, body


def call(name: str, arguments: Any, **more: Any) -> Json:
    return {"function": {"name": name, "arguments": arguments}, **more}


def whole(message: Json, finish: str = "stop", **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], **more}).encode()
