"""OpenAI's chat completions in front of a server that speaks Anthropic's dialect only: requests there, answers back.

Every other dialect's translation makes chat completion requests: `before` puts this one behind it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from engine_router.dialects.answer_json import (
    UNEXPECTED,
    beginning,
    misshapen,
    object_in,
    parse_answer,
    text_in,
    understanding,
    whole_number_in,
)
from engine_router.dialects.anthropic.messages_request import messages_request
from engine_router.dialects.base import Clock, Translation
from engine_router.dialects.engine_errors import error_message
from engine_router.dialects.frames import EventFrames, begins_events, data_event
from engine_router.dialects.json_body import JsonObject, parse_object, to_json
from engine_router.dialects.openai.blocks import AnswerBlocks, AnswerPiece
from engine_router.dialects.openai.collected_answer import CollectedAnswer
from engine_router.dialects.openai.finish_reason import FinishReason, finish_reason_of
from engine_router.dialects.openai.request import stream_members
from engine_router.errors import BadRequest

_CHAT: Final = "/v1/chat/completions"
# Anthropic's words that no engine with OpenAI's dialect has.
_REASONS: Final = {"refusal": "content_filter", "model_context_window_exceeded": "length"}
_DELTAS: Final = {"text": "content", "thinking": "reasoning_content"}
_PROMPT_COUNTS: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def translate(
    path: str, data: Mapping[str, Any], *, model: str, upstream: str, wall_clock: Clock = time.time
) -> Translation:
    """Return the translation of one request to `/v1/chat/completions`.

    Args:
        model: the model as the client named it; the answer carries the same name.
        upstream: the name that the server knows.
        wall_clock: seconds since 1970, for `created`.

    Raises:
        BadRequest: the request cannot be understood, or not be answered; the message says where.
    """
    if path != _CHAT:
        raise BadRequest(f"{path} cannot be translated for a server that speaks Anthropic's dialect only")
    try:
        if data.get("stream") is True:
            return StreamedChat(data, model, upstream, wall_clock)
        asked = {**data, **stream_members(stream=True)}
        streamed = StreamedChat(asked, model, upstream, wall_clock)
    except RecursionError:
        raise BadRequest("the request is nested too deeply") from None
    return _Chained(CollectedAnswer(_CHAT, b""), streamed)


def before(first: Translation, *, model: str, upstream: str) -> Translation:
    """Return a translation to OpenAI's chat completions, followed by the one to Anthropic's messages.

    Raises:
        BadRequest: it is to something else than chat completions, or as for `translate`.
    """
    second = translate(first.path, parse_object(first.body), model=model, upstream=upstream)
    return _Chained(first, second)


class _Chained:
    """Two translations, one behind the other.

    Args:
        first: between the client's dialect and one that nobody on the wire speaks here.
        second: between that one and the engine's.
    """

    def __init__(self, first: Translation, second: Translation) -> None:
        self.path, self.body, self.content_type = second.path, second.body, first.content_type
        self._first, self._second = first, second

    def feed(self, data: bytes) -> bytes:
        """Translate what came twice; see `Translation.feed`."""
        made = self._second.feed(data)
        return self._first.feed(made) if made else b""

    def end(self) -> bytes:
        """Translate the end twice; see `Translation.end`."""
        made = self._first.feed(self._second.end())
        return made + self._first.end()


class StreamedChat:
    """A chat completion request, and the events of a message as chunks of its answer.

    A server that streams nothing is understood too: its message is taken in at its end.
    """

    path = "/v1/messages"
    content_type = "text/event-stream"

    def __init__(self, data: Mapping[str, Any], model: str, upstream: str, wall_clock: Clock) -> None:
        self.body = to_json(messages_request(data, upstream))
        options = data.get("stream_options")
        self._tells_usage = isinstance(options, dict) and options.get("include_usage") is True
        self._head: JsonObject = {
            "id": "",
            "object": "chat.completion.chunk",
            "created": int(wall_clock()),
            "model": model,
        }
        self._is_stream: bool | None = None  # until something of the answer shows it
        self._whole = bytearray()
        self._frames = EventFrames()
        self._message = _Message()
        self._has_begun = False
        self._block = -1
        self._calls = 0

    def feed(self, data: bytes) -> bytes:
        """Translate what came; see `Translation.feed`."""
        if self._is_stream is None:
            self._is_stream = begins_events(data)
        if not self._is_stream:
            self._whole += data
            return b""
        for event in self._frames.events(data):
            try:
                self._message.take(event)
            except UNEXPECTED as error:
                raise misshapen(beginning(event)) from error
        return b"".join(self._chunks(final=False)) if self._message.has_begun else b""

    def end(self) -> bytes:
        """Translate the end; see `Translation.end`."""
        message = self._message
        with understanding(self._whole):
            if not self._is_stream:
                message.take_whole(parse_answer(self._whole))
            if message.finish is None:
                raise ValueError("its stream ended before its end")
            chunks = list(self._chunks(final=True))
            usage = message.usage()
        chunks.append(self._chunk({}, message.finish))
        if self._tells_usage and usage:
            chunks.append(data_event({**self._head, "choices": [], "usage": usage}))
        return b"".join((*chunks, b"data: [DONE]\n\n"))

    def _chunks(self, *, final: bool) -> Iterator[bytes]:
        """Yield the chunks for what came."""
        if not self._has_begun:
            self._has_begun = True
            self._head["id"] = self._message.id or "chatcmpl"
            yield self._chunk({"role": "assistant", "content": ""})
        for piece in self._message.blocks.due(final=final):
            if piece.kind == "call":
                yield self._chunk({"tool_calls": [self._call(piece)]})
            elif piece.text:
                yield self._chunk({_DELTAS[piece.kind]: piece.text})

    def _call(self, piece: AnswerPiece) -> JsonObject:
        """Return a delta of a tool call: the first one names it."""
        function: JsonObject = {"arguments": piece.text}
        if piece.block == self._block:
            return {"index": self._calls - 1, "function": function}
        self._block = piece.block
        self._calls += 1
        named = {"id": piece.id, "type": "function", "function": {"name": piece.name, **function}}
        return {"index": self._calls - 1, **named}

    def _chunk(self, delta: JsonObject, finish: FinishReason | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return data_event({**self._head, "choices": [choice]})


class _Message:
    """A message, as far as its events have come.

    Attributes:
        id: the server's name for it.
        blocks: what the model thought, said and called.
        finish: why the model stopped; None until the server said so.
        has_begun: its first event has come.
    """

    def __init__(self) -> None:
        self.id = ""
        self.blocks = AnswerBlocks()
        self.finish: FinishReason | None = None
        self.has_begun = False
        self._usage: dict[str, Any] = {}
        self._kinds: dict[int, object] = {}  # of the blocks so far
        self._inputs: dict[int, Any] = {}  # of the calls that are open: what they have if no delta comes

    def take(self, event: bytes) -> None:
        """Take in an event.

        Raises:
            ValueError: it is an error, or no event of a message.
        """
        if not event.strip():
            return
        data = parse_answer(event)
        kind = data.get("type")
        if kind == "error" or data.get("error") is not None or not isinstance(kind, str):
            raise ValueError(error_message(event) or "an error in its stream")
        if kind not in ("ping", "message_start") and not self.has_begun:
            raise ValueError(error_message(event) or "an event that is not known")
        match kind:
            case "message_start":
                message = object_in(data.get("message"), "a message")
                self.has_begun = True
                self.id = text_in(message.get("id") or "", "the id of a message")
                self._note(message)
            case "content_block_start":
                self._begin(_index_in(data), object_in(data.get("content_block"), "a block"))
            case "content_block_delta":
                self._add(_index_in(data), object_in(data.get("delta"), "a delta"))
            case "content_block_stop":
                self._end(_index_in(data))
            case "message_delta":
                self._note({**object_in(data.get("delta"), "a delta"), "usage": data.get("usage")})
            case _:
                pass  # pings, the end, and what is to come: clients of this dialect pass over new kinds of events

    def take_whole(self, message: Mapping[str, Any]) -> None:
        """Take in a message that came in one piece.

        Raises:
            ValueError: it is none.
        """
        if message.get("type") != "message" or not isinstance(message.get("content"), list):
            raise ValueError(error_message(to_json(message)) or "an answer that is no message")
        self.has_begun = True
        self.id = text_in(message.get("id") or "", "the id of a message")
        for index, block in enumerate(message["content"]):
            self._begin(index, object_in(block, "a block"))
            self._end(index)
        self._note(message)

    def usage(self) -> JsonObject:
        """Return the server's figures as OpenAI's; nothing where it has none.

        Raises:
            ValueError: they cannot be understood.
        """
        counts = {
            key: max(0, whole_number_in(count, "a number of tokens"))
            for key in (*_PROMPT_COUNTS, "output_tokens")
            if (count := self._usage.get(key)) is not None
        }
        if not {"input_tokens", "output_tokens"} <= counts.keys():
            return {}
        read, written = sum(counts.get(key, 0) for key in _PROMPT_COUNTS), counts["output_tokens"]
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": counts.get("cache_read_input_tokens", 0)},
        }

    def _note(self, data: Mapping[str, Any]) -> None:
        """Keep the figures, of which the last ones count, and why the model stopped."""
        usage = object_in(data.get("usage") or {}, "a usage")
        self._usage.update((key, count) for key, count in usage.items() if count is not None)
        reason = data.get("stop_reason")
        reason = _REASONS.get(reason, reason) if isinstance(reason, str) else reason
        self.finish = finish_reason_of(reason) or self.finish

    def _begin(self, index: int, block: Mapping[str, Any]) -> None:
        """Begin a block. Those of tools that the server runs itself are not for the client."""
        self._kinds[index] = block.get("type")
        match block.get("type"):
            case "text" if text := block.get("text"):
                self.blocks.add_text("text", text)
            case "thinking" if thinking := block.get("thinking"):
                self.blocks.add_text("thinking", thinking)
            case "tool_use":
                function = {"name": block.get("name")}
                self.blocks.add_call({"index": index, "id": block.get("id"), "function": function}, 0)
                self._inputs[index] = block.get("input") or {}
            case _:
                pass

    def _add(self, index: int, delta: Mapping[str, Any]) -> None:
        """Add to a block."""
        if index not in self._kinds:
            raise misshapen("a delta of a block that has not begun")
        match delta.get("type"):
            case "text_delta" if delta.get("text") != "":
                self.blocks.add_text("text", delta.get("text"))
            case "thinking_delta" if delta.get("thinking") != "":
                self.blocks.add_text("thinking", delta.get("thinking"))
            case "input_json_delta" if self._kinds[index] == "tool_use" and delta.get("partial_json") != "":
                self._inputs.pop(index, None)
                arguments = text_in(delta.get("partial_json"), "the arguments of a tool call")
                self.blocks.add_call({"index": index, "function": {"arguments": arguments}}, 0)
            case _:
                pass  # signatures, citations, and what is to come

    def _end(self, index: int) -> None:
        """End a block: a call that had no delta has the arguments of its start."""
        if (given := self._inputs.pop(index, None)) is not None:
            arguments = object_in(given, "the arguments of a tool call")
            self.blocks.add_call({"index": index, "function": {"arguments": arguments}}, 0)


def _index_in(data: Mapping[str, Any]) -> int:
    return whole_number_in(data.get("index"), "the index of a block")
