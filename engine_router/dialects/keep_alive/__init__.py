"""Keep-alive frames, for a client that asked for a stream and waits, for minutes perhaps, for its engine.

A frame that means nothing keeps the socket open, but not the watchdogs of clients that count events: Codex and
Claude Code give up after 300 s without one, LangChain's asynchronous client after 120 s. For them there are
lively frames. Some of these begin the answer (`response.created`, `message_start`), so the engine's answer,
which begins once more, has to be spliced onto them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from engine_router.dialects import dialect_of
from engine_router.dialects.base import Clock
from engine_router.dialects.keep_alive.base import AwaitedRequest, KeepAliveFrames
from engine_router.dialects.keep_alive.messages import MessagesKeepAlive, forget_progress
from engine_router.dialects.keep_alive.plain import PlainKeepAlive, chat_frame, completion_frame, ollama_frame
from engine_router.dialects.keep_alive.responses import ResponsesKeepAlive


def keep_alive_for(
    path: str,
    model: str,
    *,
    request: Callable[[], Mapping[str, Any]] = dict,
    wall_clock: Clock = time.time,
    new_id: Callable[[], str] = lambda: secrets.token_hex(12),
) -> KeepAliveFrames:
    """Return what a client of this path gets while it waits. Cheap, but needed only once a client does wait.

    Args:
        model: the model as the client named it; the frames carry the same name.
        request: returns the client's whole request, or nothing where that is not known. Called once at most,
            at a lively frame. Whether progress may be shown is seen there.
        wall_clock: seconds, for what says when the answer was made.
        new_id: returns what makes an id unique.
    """
    awaited = AwaitedRequest(model, request, wall_clock, new_id)
    if path == "/v1/messages":
        return MessagesKeepAlive(awaited)
    if path == "/v1/responses":
        return ResponsesKeepAlive(awaited)
    frame = _FRAMES.get(path)
    return PlainKeepAlive(dialect_of(path), frame(awaited) if frame else None)


_FRAMES = {
    "/v1/chat/completions": chat_frame,
    "/v1/completions": completion_frame,
    "/api/chat": ollama_frame,
    "/api/generate": ollama_frame,
}

__all__ = ["KeepAliveFrames", "forget_progress", "keep_alive_for"]
