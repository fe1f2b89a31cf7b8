"""OpenAI's dialect: `/v1/*` but for messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_router.dialects.frames import data_event, events_end
from engine_router.dialects.json_body import json_object
from engine_router.errors import RouterError

_STREAMING = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    # llama.cpp's own, beside OpenAI's.
    "/completion",
    "/completions",
    "/infill",
)


class OpenAI:
    """OpenAI's dialect."""

    name = "openai"
    stream_type = "text/event-stream"
    keepalive = b": keepalive\n\n"
    frames_end = staticmethod(events_end)

    def streams(self, path: str, body: Mapping[str, Any]) -> bool:
        """Tell whether the client asked for a stream of events."""
        return path in _STREAMING and body.get("stream") is True

    def error(self, error: RouterError) -> dict[str, Any]:
        """Render an error as OpenAI does."""
        return {
            "error": {"message": str(error), "type": error.kind, "param": None, "code": error.code},
        }

    def is_error(self, body: bytes) -> bool:
        """Tell whether a body is an error as OpenAI's clients read it: an object with a message."""
        error = (json_object(body) or {}).get("error")
        return isinstance(error, dict) and isinstance(error.get("message"), str)

    def stream_error(self, error: RouterError) -> bytes:
        """Render an error as an event that the SDKs raise on. No `[DONE]` follows: the stream is not complete."""
        return data_event(self.error(error))
