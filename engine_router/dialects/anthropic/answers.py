"""Anthropic's dialect in front of an engine that only has OpenAI's chat completions: answers back."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from engine_router.dialects.answer_json import arguments_of
from engine_router.dialects.anthropic.request import chat_request
from engine_router.dialects.base import Translation
from engine_router.dialects.frames import typed_event
from engine_router.dialects.json_body import to_json
from engine_router.dialects.openai.answers import ChatAnswer
from engine_router.dialects.openai.blocks import AnswerPiece
from engine_router.errors import BadRequest

_STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal"}
_DELTAS = {
    "thinking": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


def _random_id() -> str:
    return secrets.token_hex(12)


def translate(
    path: str,
    data: Mapping[str, Any],
    *,
    model: str,
    upstream: str,
    new_id: Callable[[], str] = _random_id,
) -> Translation:
    """Return the translation of one request to `/v1/messages`.

    Args:
        model: the model as the client named it; the answer carries the same name.
        upstream: the name that the engine knows.
        new_id: makes up what follows `msg_`, and `toolu_` where the engine gives a tool call no id.

    Raises:
        BadRequest: the request cannot be understood; the message says where.
    """
    if path != "/v1/messages":
        raise BadRequest(f"{path} cannot be translated for this engine")
    request = chat_request(data, upstream)
    kind = StreamedMessage if request["stream"] else WholeMessage
    return kind(request, model, new_id)


class _Message:
    """A message, streamed or whole: the request, and what is said of the message beside its content."""

    path = "/v1/chat/completions"

    def __init__(self, request: Mapping[str, Any], model: str, new_id: Callable[[], str]) -> None:
        self._model = model
        self._new_id = new_id
        self._stops = request.get("stop") or ()
        self._answer = ChatAnswer(request)
        self.body = self._answer.body

    def _message(self, content: list[dict[str, Any]], ending: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._new_id()}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            **ending,
        }

    def _ending(self) -> dict[str, Any]:
        """Return why the model stopped."""
        answer = self._answer
        stop = answer.stop if answer.stop in self._stops else None
        reason = _STOP_REASONS.get(answer.finish or "")
        if reason is None and answer.has_calls:
            reason = "tool_use"
        if reason is not None:
            stop = None
        return {"stop_reason": reason or ("stop_sequence" if stop else "end_turn"), "stop_sequence": stop}

    def _usage(self) -> dict[str, Any]:
        """Return the engine's figures, or marked estimates where it has none."""
        tokens = self._answer.tokens
        usage = _usage(max(0, tokens.prompt - tokens.cached), tokens.cached, tokens.completion)
        return {**usage, **tokens.mark}

    def _start_of(self, piece: AnswerPiece) -> dict[str, Any]:
        """Return a block that has no content yet."""
        if piece.kind == "call":
            identity = piece.id or f"toolu_{self._new_id()}"
            return {"type": "tool_use", "id": identity, "name": piece.name, "input": {}}
        if piece.kind == "thinking":
            # Clients want a signature; nothing that an engine here thinks has one.
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "text", "text": ""}


class WholeMessage(_Message):
    """The answer as one object."""

    content_type = "application/json"

    def feed(self, data: bytes) -> bytes:
        """Collect the answer; see `Translation.feed`."""
        self._answer.feed(data)
        return b""

    def end(self) -> bytes:
        """Return the answer as one message; see `Translation.end`."""
        blocks: list[dict[str, Any]] = []
        texts: list[str] = []
        for piece in self._answer.end():
            if piece.block == len(blocks):
                blocks.append(self._start_of(piece))
                texts.append("")
            texts[piece.block] += piece.text
        for block, text in zip(blocks, texts, strict=True):
            if block["type"] == "tool_use":
                block["input"] = arguments_of(text)
            else:
                block[block["type"]] = text
        return to_json(self._message(blocks, {**self._ending(), "usage": self._usage()}))


class StreamedMessage(_Message):
    """The answer as events: what an engine's chunk brings goes out at once."""

    content_type = "text/event-stream"

    def __init__(self, request: Mapping[str, Any], model: str, new_id: Callable[[], str]) -> None:
        super().__init__(request, model, new_id)
        self._has_started = False
        self._block = -1
        self._end_of_block = b""
        self._delta = b""  # how an event with a delta of the open block begins

    def feed(self, data: bytes) -> bytes:
        """Translate what came; see `Translation.feed`."""
        pieces = self._answer.feed(data)
        if self._has_started:
            return self._events(pieces)
        return self._start() + self._events(pieces) if self._answer.began else b""

    def end(self) -> bytes:
        """Translate the end; see `Translation.end`."""
        rest = self._events(self._answer.end())
        start = b"" if self._has_started else self._start()
        return (
            start
            + rest
            + self._end_of_block
            + typed_event("message_delta", delta=self._ending(), usage=self._usage())
            + typed_event("message_stop")
        )

    def _start(self) -> bytes:
        self._has_started = True
        ending = {
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(self._answer.prompt_estimate, 0, 0),
        }
        return typed_event("message_start", message=self._message([], ending))

    def _events(self, pieces: list[AnswerPiece]) -> bytes:
        events: list[bytes] = []
        for piece in pieces:
            if piece.block != self._block:
                events.append(self._begin(piece))
            if piece.text:
                events += (self._delta, piece.quoted(), b"}}\n\n")
        return b"".join(events)

    def _begin(self, piece: AnswerPiece) -> bytes:
        """End the open block and begin the next."""
        ended = self._end_of_block
        index = self._block = piece.block
        kind, field = _DELTAS[piece.kind]
        # All of the event but the text is the same for each delta of a block, and made once.
        self._delta = typed_event("content_block_delta", index=index, delta={"type": kind, field: ""})[:-6]
        self._end_of_block = typed_event("content_block_stop", index=index)
        if piece.kind == "thinking":
            signature = {"type": "signature_delta", "signature": ""}
            self._end_of_block = (
                typed_event("content_block_delta", index=index, delta=signature) + self._end_of_block
            )
        return ended + typed_event("content_block_start", index=index, content_block=self._start_of(piece))


def _usage(fresh: int, cached: int, completion: int) -> dict[str, Any]:
    return {
        "input_tokens": fresh,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
    }
