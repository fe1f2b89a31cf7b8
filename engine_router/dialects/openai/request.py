"""Chat completion requests that ask for a stream what their client wants in one piece.

Some engines look for a client that has left only when they write. In a stream they write after each token, so closing
the connection stops them; an answer in one piece they compute to its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

STREAMABLE: Final = frozenset(("/v1/chat/completions", "/v1/completions"))
"""The endpoints whose streams are collected."""

# What engines refuse to stream, or what is not in their streams: vLLM's beam search and what it tells of tokens,
# OpenAI's sound and the best of several.
_ONLY_WHOLE = ("use_beam_search", "prompt_logprobs", "return_token_ids", "return_hidden_states", "audio")


def stream_members(*, stream: bool) -> dict[str, Any]:
    """Return the members that ask for a stream, with figures at its end, or for one piece."""
    return {"stream": True, "stream_options": {"include_usage": True}} if stream else {"stream": False}


def as_stream(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request that asks for a stream, with figures at its end.

    It stays as it is where it asks for a stream already, or for what cannot be streamed.
    """
    if request.get("stream") not in (None, False) or not _can_be_streamed(request):
        return dict(request)
    options = request.get("stream_options")
    kept = options if isinstance(options, Mapping) else {}
    return {**request, "stream": True, "stream_options": {**kept, "include_usage": True}}


def _can_be_streamed(request: Mapping[str, Any]) -> bool:
    # Compared by identity: 0 asks for something too, for probabilities without alternatives.
    if any(request.get(key) is not None and request[key] is not False for key in _ONLY_WHOLE):
        return False
    if request.get("best_of") not in (None, request.get("n") or 1):
        return False
    # llama.cpp streams no probabilities beside tools.
    return not (request.get("tools") and request.get("logprobs"))
