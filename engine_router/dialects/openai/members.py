"""Members of chat completion requests that every translation needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_router.dialects.checks import Check
from engine_router.dialects.json_body import JsonObject


def checked_members(data: Mapping[str, Any], checks: Mapping[str, Check], place: str = "") -> JsonObject:
    """Return the members of an object that have a value, each checked.

    Args:
        place: how the places of the members begin, for error messages.

    Raises:
        BadRequest: one is not what its check wants; the message names the place.
    """
    return {key: check(data[key], place + key) for key, check in checks.items() if data.get(key) is not None}


def text_part(text: str) -> JsonObject:
    """Return a part of a message that is text."""
    return {"type": "text", "text": text}


def image_part(url: str) -> JsonObject:
    """Return a part of a message that is an image."""
    return {"type": "image_url", "image_url": {"url": url}}


def tool_call(identity: str, name: str, arguments: str) -> JsonObject:
    """Return a call of a tool; its arguments are JSON text."""
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def thinking_members(effort: str, *, enabled: bool) -> JsonObject:
    """Return the members that say whether to think and how hard: engines read the one or the other."""
    return {"chat_template_kwargs": {"enable_thinking": enabled}, "reasoning_effort": effort}


def schema_members(schema: Mapping[str, Any]) -> JsonObject:
    """Return the member that demands an answer which follows a JSON schema."""
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}
