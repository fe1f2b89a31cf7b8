"""An engine's answers to chat completion requests: chunks, streams of them, and what is no answer."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]

NO_ANSWERS = [
    (b"", "its answer is not JSON: "),
    (b"oops", "its answer is not JSON: oops"),
    (b"[]", "its answer is not a JSON object"),
    (b'{"choices":[]}', '{"choices":[]}'),
    (b'{"error":{"message":"no"}}', "no"),
]
"""Whole answers that no translation takes, each with what a client is told."""


def events(*chunks: Json | str) -> bytes:
    """Return a stream of chunks; a text goes into its event as it is."""
    texts = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    return b"".join([b"data: " + text.encode() + b"\n\n" for text in texts])


def delta(finish: str | None = None, *, choice: Json | None = None, **fields: Any) -> Json:
    """Return a chunk whose one choice has these fields in its delta, and more members where they are given."""
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": fields, "finish_reason": finish, **(choice or {})}],
    }
