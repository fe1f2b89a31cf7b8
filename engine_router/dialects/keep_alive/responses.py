"""`/v1/responses`: the router creates the response, and the engine's events go on under its id."""

from __future__ import annotations

import re
from typing import Any

from engine_router.dialects import OPENAI
from engine_router.dialects.frames import EventFrames, event_data, events_end, named_event
from engine_router.dialects.json_body import json_object
from engine_router.dialects.keep_alive.base import AwaitedRequest, KeepAliveFrames
from engine_router.errors import RouterError
from engine_router.guards.limits import MAX_BEGINNING_BYTES

_BEGINNINGS = frozenset(("response.created", "response.queued", "response.in_progress"))
_EVENT_END_BYTES = 4  # the longest empty line, and the line break before it
_SEQUENCE = re.compile(rb'"sequence_number"\s*:\s*(\d+)')


class ResponsesKeepAlive(KeepAliveFrames):
    """`response.created` once, then `response.in_progress` as often as needed.

    The answer is known to the client under the router's id then; an engine that stores answers does not know
    that id, so `previous_response_id` cannot name an answer that was waited for this way.

    Progress is not shown. Only a reasoning item could carry it, and clients send such items back: llama.cpp
    refuses one that it did not write itself.
    """

    def __init__(self, awaited: AwaitedRequest) -> None:
        super().__init__(OPENAI)
        self._awaited = awaited
        self._own: dict[str, Any] | None = None  # the response that the router created
        self._sequence = 0  # number of the next event, where the router numbers them
        self._frames = EventFrames(may_give_up=True)
        self._head = bytearray()  # of an answer that passes untouched: its bytes up to its first whole event
        self._is_head_whole = False
        self._tail = b""  # and its latest bytes

    def lively(self, progress: str | None = None) -> bytes:  # noqa: ARG002 - there is no place for it
        """See `KeepAliveFrames.lively`."""
        created = b""
        if self._own is None:
            self._own = self._created()
            created = self._event("response.created", response=self._own)
        return created + self._event("response.in_progress", response=self._own)

    def splice(self, data: bytes) -> bytes:
        """See `KeepAliveFrames.splice`."""
        if self._own is None:
            self._note(data)
            return data
        return b"".join(map(self._spliced, self._frames.feed(data)))

    def end(self) -> bytes:
        """See `KeepAliveFrames.end`."""
        rest = self._frames.end()
        return self._spliced(rest) if rest else b""

    def failure(self, error: RouterError) -> bytes:
        """See `KeepAliveFrames.failure`. Codex reads the message in `response.failed`, openai that in the `error` behind."""
        begin = self.lively() if self._own is None and not self._head else b""
        response = self._own or self._adopted()
        if response is not None:
            reason = {"code": error.response_code, "message": str(error)}
            begin += self._event(
                "response.failed", response={**response, "status": "failed", "error": reason}
            )
        details = self._dialect.error(error)["error"]
        return begin + self._event("error", **details, error=details)

    def _created(self) -> dict[str, Any]:
        """Return a response that has just begun; what the request says of it comes with the engine's last event."""
        return {
            "id": f"resp_{self._awaited.new_id()}",
            "object": "response",
            "created_at": self._awaited.seconds,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": self._awaited.model,
            "output": [],
            "parallel_tool_calls": True,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "usage": None,
        }

    def _event(self, kind: str, /, **content: Any) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return named_event(kind, {**content, "type": kind, "sequence_number": number})

    def _spliced(self, frame: bytes) -> bytes:
        event = json_object(event_data(frame))
        if event is None or self._own is None or not isinstance(event.get("type"), str):
            return frame
        if event["type"] in _BEGINNINGS:
            return b""
        if isinstance(response := event.get("response"), dict):
            event["response"] = {**response, "id": self._own["id"]}
        return self._event(event.pop("type"), **event)

    def _note(self, data: bytes) -> None:
        """Keep what an error would have to go on from, should the answer break off."""
        self._tail = data
        if not self._is_head_whole:
            self._head += data
            latest = bytes(self._head[-len(data) - _EVENT_END_BYTES :])  # not all of it for each piece
            self._is_head_whole = events_end(latest) > 0 or len(self._head) >= MAX_BEGINNING_BYTES

    def _adopted(self) -> dict[str, Any] | None:
        """Return the response that the engine created, as the client knows it, and number events as it did."""
        numbers = _SEQUENCE.findall(self._tail) or _SEQUENCE.findall(self._head)
        self._sequence = int(numbers[-1]) + 1 if numbers else 0
        for data in EventFrames().events(bytes(self._head)):
            event = json_object(data) or {}
            if isinstance(response := event.get("response"), dict):
                return response
        return None
