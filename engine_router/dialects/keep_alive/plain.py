"""Endpoints whose answer may follow any frame as it is: chat, completions, and Ollama's two."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from engine_router.dialects.base import Dialect
from engine_router.dialects.frames import data_event
from engine_router.dialects.json_body import to_json
from engine_router.dialects.keep_alive.base import AwaitedRequest, KeepAliveFrames
from engine_router.dialects.ollama.dialect import timestamp

Frame = Callable[[str | None], bytes]
"""Renders a lively frame, with or without progress; empty where a quiet one serves as well."""


class PlainKeepAlive(KeepAliveFrames):
    """Frames that leave nothing to be put right behind them.

    The ids of the router's own chunks differ from the engine's. No client minds: openai, litellm, LangChain and
    the AI SDK keep the first id that they see. To rewrite the engine's would cost a parse of every chunk.
    """

    def __init__(self, dialect: Dialect, frame: Frame | None) -> None:
        super().__init__(dialect)
        self._frame = frame

    def lively(self, progress: str | None = None) -> bytes:
        """See `KeepAliveFrames.lively`."""
        return (self._frame(progress) if self._frame else b"") or self.quiet()


def chat_frame(awaited: AwaitedRequest) -> Frame:
    """Return what renders an empty delta, or one of reasoning.

    No delta names a role: openai's accumulator joins the roles of two chunks into one word.
    """
    ident = f"chatcmpl-{awaited.new_id()}"

    def frame(progress: str | None) -> bytes:
        delta = {"reasoning_content": f"{progress}\n"} if progress else {}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        return _chunk(awaited, ident, "chat.completion.chunk", choice)

    return frame


def completion_frame(awaited: AwaitedRequest) -> Frame:
    """Return what renders an empty text. Completions have no place for progress."""
    ident = f"cmpl-{awaited.new_id()}"

    def frame(_: str | None) -> bytes:
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
        return _chunk(awaited, ident, "text_completion", choice)

    return frame


def _chunk(awaited: AwaitedRequest, ident: str, kind: str, choice: dict[str, Any]) -> bytes:
    return data_event(
        {
            "id": ident,
            "object": kind,
            "created": awaited.seconds,
            "model": awaited.model,
            "choices": [choice],
        }
    )


def ollama_frame(awaited: AwaitedRequest) -> Frame:
    """Return what renders a line with progress. Without progress the quiet space will do: nobody counts lines.

    A request that only loads a model is answered by one object, so it gets no lines before it.
    """

    @functools.cache
    def shape() -> tuple[bool, bool]:
        request = awaited.request()
        return "messages" in request, not (request.get("messages") or request.get("prompt"))

    def frame(progress: str | None) -> bytes:
        if not progress:
            return b""
        is_chat, is_load = shape()
        if is_load:
            return b""
        line: dict[str, Any] = {"model": awaited.model, "created_at": timestamp(awaited.wall_clock())}
        thinking = f"{progress}\n"
        if is_chat:
            line["message"] = {"role": "assistant", "content": "", "thinking": thinking}
        else:
            line.update(response="", thinking=thinking)
        return to_json({**line, "done": False}) + b"\n"

    return frame
