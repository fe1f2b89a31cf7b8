"""Ollama's dialect: `/api/*`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from engine_router.dialects.json_body import json_object, to_json
from engine_router.errors import RouterError

_STREAMING = ("/api/chat", "/api/generate")


def timestamp(moment: float) -> str:
    """Return a moment, in seconds since 1970, as Ollama writes it."""
    time = dt.datetime.fromtimestamp(moment, tz=dt.timezone.utc)
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


class Ollama:
    """Ollama's dialect."""

    name = "ollama"
    stream_type = "application/x-ndjson"
    # A bare newline breaks ollama-python, langchain-ollama and Ollama's own Go client; a space breaks nobody.
    keepalive = b" "

    def streams(self, path: str, body: Mapping[str, Any]) -> bool:
        """Tell whether the client asked for a stream of lines: yes, unless it said no."""
        return path in _STREAMING and body.get("stream") is not False

    def error(self, error: RouterError) -> dict[str, Any]:
        """Render an error as Ollama does: its clients want a string."""
        return {"error": error.ollama_message}

    def is_error(self, body: bytes) -> bool:
        """Tell whether a body is an error as Ollama's clients read it: a string."""
        return isinstance((json_object(body) or {}).get("error"), str)

    def stream_error(self, error: RouterError) -> bytes:
        """Render an error as the line that the clients raise on."""
        return to_json(self.error(error)) + b"\n"

    def frames_end(self, data: bytes) -> int:
        """Return where the last complete line ends."""
        return data.rfind(b"\n") + 1
