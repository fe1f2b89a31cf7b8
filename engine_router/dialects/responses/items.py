"""The items of an answer of OpenAI's `/v1/responses`, and the events that tell of them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from engine_router.dialects.frames import typed_event
from engine_router.dialects.json_body import JsonObject, to_json
from engine_router.dialects.responses.tools import CUSTOM_INPUT, Tool

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class EventWriter:
    """The writer of the numbered events of one answer."""

    def __init__(self) -> None:
        self._number = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        """Return the next event."""
        return typed_event(kind, sequence_number=self._next(), **fields)

    def spliced(self, kind: str, fields: bytes, **more: Any) -> bytes:
        """Return the next event; `fields` are JSON that stays the same from event to event."""
        begin = f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":{self._next()},'
        return b"%b%b,%b\n\n" % (begin.encode(), fields, to_json(more)[1:])

    def _next(self) -> int:
        self._number += 1
        return self._number - 1


class OutputItem(ABC):
    """An item of the answer: open until it is closed; only an open one can grow."""

    def __init__(self, events: EventWriter, identity: str, index: int) -> None:
        self._events = events
        self._id = identity
        self._index = index
        self._pieces: list[str] = []
        self._status: ItemStatus = "in_progress"

    @property
    def is_open(self) -> bool:
        """Whether the item has not been closed yet."""
        return self._status == "in_progress"

    @abstractmethod
    def open(self) -> bytes:
        """Return the events that announce the item."""

    @abstractmethod
    def add(self, text: str, logprobs: list[JsonObject]) -> bytes:
        """Add text, and what is known of its tokens; return the event of it."""

    @abstractmethod
    def shown(self) -> JsonObject:
        """Return the item as the answer shows it."""

    def close(self, status: ItemStatus) -> bytes:
        """End the item; return the events that say so."""
        self._status = status
        return self._last_words() + self._item_event("done", self.shown())

    @abstractmethod
    def _last_words(self) -> bytes:
        """Return the events with all of the text, now that it has ended."""

    def _item_event(self, what: str, item: JsonObject) -> bytes:
        return self._events.event(f"response.output_item.{what}", output_index=self._index, item=item)


class TextItem(OutputItem):
    """A stretch of what the model says (`message`) or thinks (`reasoning`)."""

    def __init__(self, events: EventWriter, identity: str, index: int, *, is_thought: bool) -> None:
        super().__init__(events, f"{'rs' if is_thought else 'msg'}_{identity}_{index}", index)
        self._is_thought = is_thought
        self._logprobs: list[JsonObject] = []
        self._place: JsonObject = {"item_id": self._id, "output_index": index, "content_index": 0}
        self._fields = to_json(self._place)[1:-1]
        self._event = "response.reasoning_text" if is_thought else "response.output_text"

    def open(self) -> bytes:
        """Return the events that announce the item."""
        added = self._item_event("added", {**self.shown(), "content": []})
        return added + self._events.event("response.content_part.added", **self._place, part=self._part())

    def add(self, text: str, logprobs: list[JsonObject]) -> bytes:
        """Add text; return its event."""
        self._pieces.append(text)
        if self._is_thought:
            return self._events.spliced(f"{self._event}.delta", self._fields, delta=text)
        self._logprobs += logprobs
        return self._events.spliced(f"{self._event}.delta", self._fields, delta=text, logprobs=logprobs)

    def _last_words(self) -> bytes:
        more: JsonObject = {} if self._is_thought else {"logprobs": self._logprobs}
        said = self._events.event(f"{self._event}.done", **self._place, text="".join(self._pieces), **more)
        return said + self._events.event("response.content_part.done", **self._place, part=self._part())

    def shown(self) -> JsonObject:
        """Return the item as the answer shows it."""
        if self._is_thought:
            item: JsonObject = {"id": self._id, "type": "reasoning", "summary": []}
        else:
            item = {"id": self._id, "type": "message", "role": "assistant"}
        return {**item, "status": self._status, "content": [self._part()]}

    def _part(self) -> JsonObject:
        text = "".join(self._pieces)
        if self._is_thought:
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs}


class CallItem(OutputItem):
    """A call of one of the client's tools."""

    def __init__(self, events: EventWriter, identity: str, index: int, tool: Tool, call_id: str) -> None:
        super().__init__(events, f"{'ctc' if tool.is_custom else 'fc'}_{identity}_{index}", index)
        self._tool = tool
        self._call_id = call_id
        self._fields = to_json({"item_id": self._id, "output_index": index})[1:-1]

    def open(self) -> bytes:
        """Return the event that announces the item."""
        return self._item_event("added", self.shown())

    def add(self, text: str, logprobs: list[JsonObject]) -> bytes:  # noqa: ARG002 - probabilities belong to what is said
        """Add a piece of the arguments; return its event.

        Free text stands inside the arguments of the function that the engine knows: it comes at the end.
        """
        self._pieces.append(text)
        if self._tool.is_custom:
            return b""
        return self._events.spliced("response.function_call_arguments.delta", self._fields, delta=text)

    def shown(self) -> JsonObject:
        """Return the item as the answer shows it."""
        call: JsonObject = {"call_id": self._call_id, "name": self._tool.name}
        if self._tool.namespace is not None:
            call["namespace"] = self._tool.namespace
        given = self._given() if self._pieces or not self.is_open else ""
        kind, key = ("custom_tool_call", "input") if self._tool.is_custom else ("function_call", "arguments")
        return {"id": self._id, "type": kind, **call, "status": self._status, key: given}

    def _last_words(self) -> bytes:
        given = self._given()
        if not self._tool.is_custom:
            more = b"" if self._pieces else self.add(given, [])  # clients add up what they got
            return more + self._events.spliced(
                "response.function_call_arguments.done",
                self._fields,
                name=self._tool.name,
                arguments=given,
            )
        kind = "response.custom_tool_call_input"
        return self._events.spliced(f"{kind}.delta", self._fields, delta=given) + self._events.spliced(
            f"{kind}.done", self._fields, input=given
        )

    def _given(self) -> str:
        text = "".join(self._pieces)
        return free_text(text) if self._tool.is_custom else text or "{}"


def free_text(arguments: str) -> str:
    """Return the text that a model gave to a tool that takes free text; all of it where it is dressed otherwise."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if isinstance(given, Mapping):
        given = given.get(CUSTOM_INPUT)
    return given if isinstance(given, str) else arguments
