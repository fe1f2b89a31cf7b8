"""An estimate of the tokens of a request for a chat completion, or for a completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_router.dialects.json_body import to_json
from engine_router.dialects.openai.usage import text_bytes, text_tokens

# A message costs about four tokens beside its text (OpenAI's cookbook, "How to count tokens with tiktoken"), an
# image up to about 1,600 (Anthropic, "Vision"): its size is not looked at here.
MESSAGE_TOKENS = 4
IMAGE_TOKENS = 1600


def tokens_of(request: Mapping[str, Any]) -> int:
    """Return about how many tokens a request in OpenAI's words has.

    Four bytes of text are one token; each message adds 4, each image or file 1,600.
    """
    if "prompt" in request:
        return text_tokens(text_bytes(request["prompt"]))
    messages: list[dict[str, Any]] = request["messages"]
    parts = [part for message in messages for part in _parts(message)]
    size: int = sum(map(_beside_content, messages)) + sum(text_bytes(part.get("text", "")) for part in parts)
    if "tools" in request:
        size += len(to_json(request["tools"]))
    images = [part for part in parts if part["type"] != "text"]
    return text_tokens(size) + MESSAGE_TOKENS * len(messages) + IMAGE_TOKENS * len(images)


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _beside_content(message: Mapping[str, Any]) -> int:
    """Return the size of what a message has beside its content."""
    functions = [call["function"] for call in message.get("tool_calls", ())]
    return text_bytes(message.get("reasoning_content", "")) + sum(
        text_bytes(function["name"]) + text_bytes(function["arguments"]) for function in functions
    )
