"""About how many tokens an Anthropic request has, where the engine cannot count them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine_router.dialects.anthropic_request import chat_request
from engine_router.dialects.base import to_json

# English has about four characters a token (OpenAI, "What are tokens and how to count them?"); counting bytes
# of UTF-8 serves other scripts better. A message costs about four tokens more (OpenAI's cookbook, "How to count
# tokens with tiktoken"), an image up to about 1,600 (Anthropic, "Vision"): its size is not looked at here.
_TOKEN_BYTES = 4
_MESSAGE_TOKENS = 4
_IMAGE_TOKENS = 1600


def estimate_tokens(data: Mapping[str, Any]) -> int:
    """Return about how many tokens a request to `/v1/messages` has.

    Four bytes of text are one token; each message adds 4, each image or file 1,600.

    Raises:
        BadRequest: it cannot be understood; the message says where.
    """
    return tokens_of(chat_request(data, ""))


def count_tokens_body(data: Mapping[str, Any]) -> bytes:
    """Return the answer to `/v1/messages/count_tokens`, with the estimate.

    Raises:
        BadRequest: the request cannot be understood; the message says where.
    """
    return to_json({"input_tokens": estimate_tokens(data)})


def tokens_of(request: Mapping[str, Any]) -> int:
    """Return the same estimate for a request that is in OpenAI's words already."""
    messages: list[dict[str, Any]] = request["messages"]
    parts = [part for message in messages for part in _parts(message)]
    size: int = sum(map(_text_bytes, messages)) + sum(_bytes(part.get("text", "")) for part in parts)
    if "tools" in request:
        size += len(to_json(request["tools"]))
    images = [part for part in parts if part["type"] != "text"]
    return math.ceil(size / _TOKEN_BYTES) + _MESSAGE_TOKENS * len(messages) + _IMAGE_TOKENS * len(images)


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _text_bytes(message: Mapping[str, Any]) -> int:
    """Return the size of what a message has beside its content."""
    functions = [call["function"] for call in message.get("tool_calls", ())]
    return _bytes(message.get("reasoning_content", "")) + sum(
        _bytes(function["name"]) + _bytes(function["arguments"]) for function in functions
    )


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
