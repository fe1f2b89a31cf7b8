"""OpenAI's `/v1/responses` in front of an engine that has chat completions only: requests there, answers back."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from engine_router.dialects.base import Clock
from engine_router.dialects.checks import object_at, string_at
from engine_router.dialects.json_body import JsonObject, to_json
from engine_router.dialects.openai.answers import ChatAnswer
from engine_router.dialects.openai.blocks import AnswerPiece
from engine_router.dialects.responses.items import CallItem, EventWriter, ItemStatus, OutputItem, TextItem
from engine_router.dialects.responses.request import ChatRequest, chat_request

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def translate(
    path: str,  # noqa: ARG001 - the shape that all translations share; `/v1/responses` is the only path here
    data: Mapping[str, Any],
    *,
    model: str,
    upstream: str,
    clock: Clock = time.monotonic,  # noqa: ARG001 - likewise
    wall_clock: Clock = time.time,
    new_id: Callable[[], str] = lambda: secrets.token_hex(12),
) -> ResponsesTranslation:
    """Return the translation of one request.

    Args:
        model: the model as the client named it; the answer carries the same name.
        upstream: the name that the engine knows.
        wall_clock: seconds since 1970, for `created_at`.
        new_id: makes up what the ids of the answer have in common.

    Raises:
        BadRequest: the request cannot be understood, or needs what the router does not keep.
    """
    request = chat_request(data, upstream)
    return ResponsesTranslation(
        request, _echo(data, request, model), wall_clock=wall_clock, identity=new_id()
    )


class ResponsesTranslation:
    """`/v1/responses`: one event for each piece of text, or one object.

    Every answer ends with all of its text in one event, so that text is held here until then.
    """

    path = "/v1/chat/completions"

    def __init__(
        self, request: ChatRequest, echo: Mapping[str, Any], *, wall_clock: Clock, identity: str
    ) -> None:
        self._stream = bool(request.body["stream"])
        self.content_type = "text/event-stream" if self._stream else "application/json; charset=utf-8"
        self._tools = request.tools
        self._echo = echo
        self._wall_clock = wall_clock
        self._identity = identity
        self._created_at = int(wall_clock())
        self._answer = ChatAnswer(request.body)
        self.body = self._answer.body
        self._events = EventWriter()
        self._is_announced = False
        self._items: list[OutputItem] = []
        self._fault: ValueError | None = None

    def feed(self, data: bytes) -> bytes:
        """Translate what came; see `Translation.feed`."""
        if not self._stream:
            self._answer.feed(data)
            return b""
        if self._fault is not None:
            raise self._fault
        out: list[bytes] = []
        try:
            for piece in self._answer.pieces(data):
                out += (self._announced(), self._shown_piece(piece))
        except ValueError as fault:
            self._fault = fault  # the client first gets what came before it
        if self._answer.began:
            out.append(self._announced())
        shown = b"".join(out)
        if self._fault is not None and not shown:
            raise self._fault
        return shown

    def end(self) -> bytes:
        """Translate the end; see `Translation.end`."""
        if self._fault is not None:
            raise self._fault
        pieces = self._answer.end()
        if not self._stream:
            self._shown_pieces(pieces)
            self._closed(self._last_status())
            return to_json(self._response())
        last = self._announced() + self._shown_pieces(pieces) + self._closed(self._last_status())
        return last + self._events.event(f"response.{self._last_status()}", response=self._response())

    def _announced(self) -> bytes:
        """Return the events that begin every stream; nothing when they have been sent."""
        if self._is_announced:
            return b""
        self._is_announced = True
        begun = self._shown("in_progress")
        return self._events.event("response.created", response=begun) + self._events.event(
            "response.in_progress", response=begun
        )

    def _shown_pieces(self, pieces: list[AnswerPiece]) -> bytes:
        return b"".join([self._shown_piece(piece) for piece in pieces])

    def _shown_piece(self, piece: AnswerPiece) -> bytes:
        before = b"" if piece.block < len(self._items) else self._begun(piece)
        if not piece.text:
            return before
        return before + self._items[piece.block].add(
            piece.text, [token.shown(full=True) for token in piece.logprobs]
        )

    def _begun(self, piece: AnswerPiece) -> bytes:
        """Begin the next item. They follow one another, as Codex expects it."""
        before = self._closed("completed")
        index = len(self._items)
        item: OutputItem
        if piece.kind == "call":
            tool, call_id = self._tools.named(piece.name), piece.id or f"call_{self._identity}_{index}"
            item = CallItem(self._events, self._identity, index, tool, call_id)
        else:
            item = TextItem(self._events, self._identity, index, is_thought=piece.kind == "thinking")
        self._items.append(item)
        return before + item.open()

    def _closed(self, status: ItemStatus) -> bytes:
        """End the item that is open, if any."""
        if not self._items or not self._items[-1].is_open:
            return b""
        return self._items[-1].close(status)

    def _last_status(self) -> ItemStatus:
        """Return how the answer ended; what it had no space left for is its last item."""
        return "incomplete" if self._answer.finish in _INCOMPLETE else "completed"

    def _response(self) -> JsonObject:
        status = self._last_status()
        why = _INCOMPLETE.get(self._answer.finish or "")
        return {
            **self._shown(status),
            "completed_at": int(self._wall_clock()) if status == "completed" else None,
            "incomplete_details": {"reason": why} if why else None,
            "usage": _usage(self._answer),
        }

    def _shown(self, status: str) -> JsonObject:
        return {
            "id": f"resp_{self._identity}",
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "error": None,
            "incomplete_details": None,
            **self._echo,
            "output": [item.shown() for item in self._items],
            "usage": None,
        }


def _echo(data: Mapping[str, Any], request: ChatRequest, model: str) -> JsonObject:
    """Return what every answer repeats of its request.

    Raises:
        BadRequest: a value is of a kind that no answer could carry.
    """
    reasoning = object_at(data.get("reasoning") or {}, "reasoning")
    wanted = object_at(data.get("text") or {}, "text").get("format")
    metadata = object_at(data.get("metadata") or {}, "metadata")
    echo: JsonObject = {
        "background": False,
        "instructions": data.get("instructions"),
        "max_output_tokens": request.body.get("max_tokens"),
        "metadata": {key: string_at(value, f"metadata.{key}") for key, value in metadata.items()},
        "model": model,
        "parallel_tool_calls": data.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": {
            "effort": reasoning.get("effort") if reasoning.get("effort") in _EFFORTS else None,
            "summary": None,
        },
        "store": False,
        "temperature": request.body.get("temperature"),
        "text": {"format": wanted or {"type": "text"}},
        "tool_choice": request.tool_choice,
        "tools": request.tools.given,
        "top_logprobs": request.body.get("top_logprobs"),
        "top_p": request.body.get("top_p"),
        "truncation": "disabled",
    }
    for key in ("user", "prompt_cache_key", "safety_identifier"):
        if data.get(key) is not None:
            echo[key] = string_at(data[key], key)
    return echo


def _usage(answer: ChatAnswer) -> JsonObject:
    """Return how many tokens were used; marked estimates where the engine did not say."""
    tokens = answer.tokens
    return {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": 0},
        "output_tokens": tokens.completion,
        "output_tokens_details": {"reasoning_tokens": answer.thought_tokens},
        "total_tokens": tokens.prompt + tokens.completion,
        **tokens.mark,
    }
