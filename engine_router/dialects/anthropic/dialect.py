"""Anthropic's dialect: `/v1/messages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_router.dialects.frames import events_end, named_event
from engine_router.dialects.json_body import json_object
from engine_router.errors import RouterError

_KINDS = (
    "invalid_request_error",
    "authentication_error",
    "billing_error",
    "permission_error",
    "not_found_error",
    "conflict_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "timeout_error",
    "overloaded_error",
)


class Anthropic:
    """Anthropic's dialect."""

    name = "anthropic"
    stream_type = "text/event-stream"
    keepalive = b": keepalive\n\n"
    frames_end = staticmethod(events_end)

    def streams(self, path: str, body: Mapping[str, Any]) -> bool:
        """Tell whether the client asked for a stream of events."""
        return path == "/v1/messages" and body.get("stream") is True

    def error(self, error: RouterError) -> dict[str, Any]:
        """Render an error as Anthropic does."""
        return {"type": "error", "error": {"type": error.anthropic_kind, "message": error.anthropic_message}}

    def is_error(self, body: bytes) -> bool:
        """Tell whether a body is an error as Anthropic's clients read it: with a type that they know."""
        data = json_object(body)
        error = data.get("error") if data is not None and data.get("type") == "error" else None
        return (
            isinstance(error, dict) and error.get("type") in _KINDS and isinstance(error.get("message"), str)
        )

    def stream_error(self, error: RouterError) -> bytes:
        """Render an error as the named event that the SDKs raise on."""
        return named_event("error", self.error(error))
