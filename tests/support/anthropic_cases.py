"""Requests and messages of the Messages API that its tests share."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from engine_router.dialects.anthropic.answers import translate
from engine_router.dialects.base import Translation

Json = dict[str, Any]

ASK: Json = {"max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}

STREAMED: Json = {**ASK, "stream": True}


def numbered() -> Callable[[], str]:
    return map(str, itertools.count(1)).__next__


def begin(data: Json) -> Translation:
    return translate("/v1/messages", data, model="claude-local", upstream="qwen.gguf", new_id=numbered())


def sent(**data: Any) -> Json:
    """Return the body of the request that the engine gets."""
    body: Json = json.loads(begin({**ASK, **data}).body)
    assert body.pop("model") == "qwen.gguf"
    return body


def conversation(*messages: tuple[str, Any], **data: Any) -> list[Json]:
    """Return the messages that the engine gets."""
    given_messages = [{"role": role, "content": content} for role, content in messages]
    got: list[Json] = sent(messages=given_messages, **data)["messages"]
    return got


def text(text: str, **more: Any) -> Json:
    return {"type": "text", "text": text, **more}


def image(data: str) -> Json:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def image_part(data: str) -> Json:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def result(identity: str, content: Any, **more: Any) -> Json:
    return {"type": "tool_result", "tool_use_id": identity, "content": content, **more}


def use(identity: str, name: str, /, **arguments: Any) -> Json:
    return {"type": "tool_use", "id": identity, "name": name, "input": arguments}


def answer(data: Json, *pieces: bytes) -> bytes:
    """Return what the client gets when the engine's answer comes in these pieces."""
    translation = begin(data)
    return b"".join(map(translation.feed, pieces)) + translation.end()
