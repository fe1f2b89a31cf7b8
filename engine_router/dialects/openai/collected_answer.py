"""A stream of chunks collected into the one piece that its engine would have given: a chat completion, or a completion.

What is not known is kept: of the members of chunks and choices the last ones count, as with llama.cpp's `timings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_router.dialects.answer_json import (
    UNEXPECTED,
    beginning,
    mended,
    misshapen,
    object_in,
    parse_answer,
    understanding,
    whole_number_in,
)
from engine_router.dialects.engine_errors import error_message
from engine_router.dialects.frames import EventFrames, begins_events
from engine_router.dialects.json_body import JsonObject, to_json
from engine_router.dialects.openai.blocks import AnswerBlocks, joined
from engine_router.dialects.openai.members import tool_call
from engine_router.dialects.openai.usage import tells_usage

# What every chunk has, and the answer once: engines tell another time in each chunk.
_FIRST = ("id", "created", "model")
_OBJECTS = {"/v1/chat/completions": "chat.completion", "/v1/completions": "text_completion"}


class CollectedAnswer:
    """A request that is sent as one for a stream, and its answer in one piece.

    An engine that streams nothing is understood too: its answer goes on as it came.

    Args:
        path: `/v1/chat/completions` or `/v1/completions`.
        body: the request, which asks for a stream.
    """

    content_type = "application/json"

    def __init__(self, path: str, body: bytes) -> None:
        self.path = path
        self.body = body
        self._is_stream: bool | None = None  # until something of the answer shows it
        self._frames = EventFrames()
        self._answer: JsonObject = {}
        self._choices: dict[int, _Choice] = {}
        self._is_done = False

    def feed(self, data: bytes) -> bytes:
        """Collect the answer; see `Translation.feed`."""
        if self._is_stream is None:
            self._is_stream = begins_events(data)
        if not self._is_stream:
            return data
        for event in self._frames.events(data):
            try:
                self._take(event)
            except UNEXPECTED as error:
                raise misshapen(beginning(event)) from error
        return b""

    def end(self) -> bytes:
        """Return the answer in one piece; see `Translation.end`."""
        if not self._is_stream:
            return b""
        with understanding():
            if not self._choices or not all(
                choice.has_ended or self._is_done for choice in self._choices.values()
            ):
                raise ValueError("its stream ended before its end")
            choices = [choice.whole() for _, choice in sorted(self._choices.items())]
        return to_json({**self._answer, "object": _OBJECTS[self.path], "choices": choices})

    def _take(self, event: bytes) -> None:
        if event == b"[DONE]":
            self._is_done = True
            return
        if not event.strip():
            return
        chunk = parse_answer(event)
        choices = chunk.pop("choices", None)
        if chunk.get("error") is not None or not (choices or tells_usage({**chunk, "choices": choices})):
            raise ValueError(error_message(event) or "an error in its stream")
        for key, value in chunk.items():
            if value is not None and not (key in _FIRST and key in self._answer):
                self._answer[key] = value
        for position, choice in enumerate(choices or ()):
            index = object_in(choice, "a choice").get("index")
            index = position if index is None else whole_number_in(index, "the index of a choice")
            self._choices.setdefault(index, _Choice(index)).add(choice)


class _Choice:
    """One choice of an answer."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._members: JsonObject = {}
        self._text: list[str] | None = None
        self._message: _Message | None = None
        self._logprobs: dict[str, list[Any]] = {}
        self._tells_logprobs = False

    @property
    def has_ended(self) -> bool:
        """Whether the engine said why the model stopped."""
        return self._members.get("finish_reason") not in (None, "", "null")

    def add(self, choice: Mapping[str, Any]) -> None:
        """Take in what a chunk has of this choice."""
        for key, value in choice.items():
            if key == "delta":
                self._message = self._message or _Message()
                self._message.add(value or {})
            elif key == "text":
                self._text = self._text or []
                self._text.append(value or "")
            elif key == "logprobs":
                self._tells_logprobs = True
                self._add_logprobs(value or {})
            elif value is not None:
                self._members[key] = value

    def _add_logprobs(self, given: Mapping[str, Any]) -> None:
        """Join lists of tokens: one for the content, another for a refusal, or the four of a completion."""
        for key, tokens in given.items():
            if tokens:
                self._logprobs.setdefault(key, []).extend(tokens)

    def whole(self) -> JsonObject:
        """Return all of it."""
        said: JsonObject = {} if self._text is None else {"text": mended("".join(self._text))}
        if self._message is not None:
            said["message"] = self._message.whole()
        # A stream that ended in good order, of an engine that says nothing of why.
        ending = {"finish_reason": "stop"} if not self.has_ended else {}
        logprobs: JsonObject = {"logprobs": self._logprobs or None} if self._tells_logprobs else {}
        return {**self._members, "index": self._index, **said, **logprobs, **ending}


class _Message:
    """The message of a choice."""

    def __init__(self) -> None:
        self._members: JsonObject = {"role": "assistant"}
        self._texts: dict[str, list[str]] = {}
        self._calls = AnswerBlocks()
        self._function = AnswerBlocks()

    def add(self, delta: Mapping[str, Any]) -> None:
        """Take in a delta."""
        for key, value in delta.items():
            if not value and value != "":
                continue
            if key == "tool_calls":
                for position, call in enumerate(value):
                    self._calls.add_call(call, position)
            elif key == "function_call":
                self._function.add_call({"function": value}, 0)
            elif isinstance(value, str) and key != "role":
                self._texts.setdefault(key, []).append(value)
            elif isinstance(value, list) and isinstance(held := self._members.get(key), list):
                held += value
            else:
                self._members[key] = value

    def whole(self) -> JsonObject:
        """Return all of it. A message has a content: null where it has calls and no text."""
        calls = [tool_call(call.id, call.name, call.text) for call in joined(self._calls.due(final=True))]
        called: JsonObject = {"tool_calls": calls} if calls else {}
        for call in joined(self._function.due(final=True)):
            called["function_call"] = {"name": call.name, "arguments": call.text}
        texts = {key: mended("".join(parts)) for key, parts in self._texts.items()}
        return {"content": None if called else "", **self._members, **texts, **called}
