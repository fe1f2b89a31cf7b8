"""The line under an answer, in each dialect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from engine_router.dialects.footer.speed import AnswerSpeed
from engine_router.dialects.frames import (
    FRAME_COST_BYTES,
    EventFrames,
    FrameReader,
    LineFrames,
    data_event,
    event_data,
    typed_event,
)
from engine_router.dialects.json_body import json_object, to_json
from engine_router.guards.limits import MAX_HELD_FRAME_BYTES


class StreamFooter(ABC):
    """A footer under a stream. From the frame behind the text on frames are held, until the figures are known."""

    def __init__(self, speed: AnswerSpeed, frames: FrameReader) -> None:
        self._speed = speed
        self._frames = frames
        self._held: list[bytes] = []
        self._held_bytes = 0  # in all
        self._is_over = False  # the line is written, or there will be none: everything passes

    @staticmethod
    @abstractmethod
    def whole(answer: dict[str, Any], speed: AnswerSpeed) -> bool:
        """Add the line to an answer in one piece. Returns False where it must not be."""

    @abstractmethod
    def _take(self, frame: bytes) -> bytes:
        """Take in a frame; return what goes out."""

    @abstractmethod
    def _closing(self, line: str) -> bytes:
        """Return what is held back, with the line before it."""

    def feed(self, data: bytes) -> bytes:
        """See `Footer.feed`."""
        return b"".join(map(self._passed_on, self._frames.feed(data)))

    def end(self) -> bytes:
        """See `Footer.end`."""
        rest = self._frames.end()
        return (self._passed_on(rest) if rest else b"") + self._close()

    def _passed_on(self, frame: bytes) -> bytes:
        if self._is_over:
            return frame
        try:
            return self._take(frame)
        except (LookupError, TypeError, AttributeError):  # of a shape that is none of this endpoint's
            return self._give_up(frame)

    def _close(self) -> bytes:
        """Write the line, if the text has ended."""
        line = self._speed.line if self._held else ""
        closing = self._closing(line) if line else b"".join(self._held)
        self._held, self._is_over = [], True
        return closing

    def _hold(self, frame: bytes) -> bytes:
        """Hold a frame back; return what goes out: nothing, or all where it is more than the end of any answer."""
        self._held.append(frame)
        self._held_bytes += len(frame) + FRAME_COST_BYTES
        return b"" if self._held_bytes <= MAX_HELD_FRAME_BYTES else self._give_up(b"")

    def _give_up(self, frame: bytes) -> bytes:
        """Let pass what was held back, and this frame, and everything behind."""
        held, self._held, self._is_over = b"".join(self._held), [], True
        return held + frame


class ChatFooter(StreamFooter):
    """`/v1/chat/completions`: a chunk before the one with the finish_reason. The figures come in a later one."""

    def __init__(self, speed: AnswerSpeed) -> None:
        super().__init__(speed, EventFrames(may_give_up=True))
        self._last: dict[str, Any] = {}  # the chunk with the finish_reason
        self._has_text = False

    def _take(self, frame: bytes) -> bytes:
        data = event_data(frame)
        if data == b"[DONE]":
            return self._close() + frame
        chunk = json_object(data)
        if chunk is None:
            return self._passed(frame)
        self._speed.figures(chunk)
        choice: dict[str, Any] = (chunk.get("choices") or ({},))[0]
        delta = choice.get("delta") or {}
        reason = choice.get("finish_reason")
        if chunk.get("error") or _calls_tools(delta) or reason in ("tool_calls", "function_call"):
            return self._give_up(frame)
        if delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"):
            self._speed.piece()
        self._has_text = self._has_text or bool(delta.get("content"))
        if reason and not self._has_text:
            return self._give_up(frame)
        if reason:
            self._last = chunk
            return self._hold(frame)
        return self._passed(frame)

    def _passed(self, frame: bytes) -> bytes:
        return self._hold(frame) if self._held else frame

    def _closing(self, line: str) -> bytes:
        choice = self._last["choices"][0]
        last_text = (choice.get("delta") or {}).get("content") or ""
        common = {key: value for key, value in self._last.items() if key not in ("usage", "timings")}
        text = {
            **common,
            "choices": [{"index": 0, "delta": {"content": last_text + line}, "finish_reason": None}],
        }
        if last_text:  # it has gone out with the line
            rest = {**choice, "delta": {**choice["delta"], "content": ""}}
            self._held[0] = data_event({**self._last, "choices": [rest]})
        return data_event(text) + b"".join(self._held)

    @staticmethod
    def whole(answer: dict[str, Any], speed: AnswerSpeed) -> bool:
        """See `StreamFooter.whole`."""
        message = answer["choices"][0]["message"]
        speed.figures(answer)
        return not _calls_tools(message) and _add_line(message, "content", speed)


class MessagesFooter(StreamFooter):
    """`/v1/messages`: a delta at the end of the last block, where that is one of text."""

    def __init__(self, speed: AnswerSpeed) -> None:
        super().__init__(speed, EventFrames(may_give_up=True))
        self._texts: set[int] = set()  # indexes of the blocks of text
        self._index = 0  # of the block whose end is held back

    def _take(self, frame: bytes) -> bytes:
        event = json_object(event_data(frame)) or {}
        kind = event.get("type")
        if kind == "message_start":
            self._speed.figures(event.get("message") or {})
        elif kind == "content_block_start":
            return self._begun(event, frame)
        elif kind == "content_block_delta":
            self._speed.piece()
        elif kind == "content_block_stop" and event.get("index") in self._texts:
            self._index = event["index"]
            self._held = [frame]
            return b""
        elif kind == "message_delta":
            self._speed.figures(event)
            return self._close() + frame
        elif kind == "error":
            return self._give_up(frame)
        return self._hold(frame) if self._held else frame

    def _begun(self, event: dict[str, Any], frame: bytes) -> bytes:
        """Let a block begin: the text before it was not the last one."""
        kind = (event.get("content_block") or {}).get("type")
        if kind == "text":
            self._texts.add(event["index"])
        elif kind != "thinking":
            return self._give_up(frame)
        held, self._held = b"".join(self._held), []
        return held + frame

    def _closing(self, line: str) -> bytes:
        delta = {"type": "text_delta", "text": line}
        return typed_event("content_block_delta", index=self._index, delta=delta) + b"".join(self._held)

    @staticmethod
    def whole(answer: dict[str, Any], speed: AnswerSpeed) -> bool:
        """See `StreamFooter.whole`."""
        blocks = answer["content"]
        speed.figures(answer)
        if any(block["type"] not in ("text", "thinking") for block in blocks) or blocks[-1]["type"] != "text":
            return False
        return _add_line(blocks[-1], "text", speed)


class OllamaFooter(StreamFooter):
    """`/api/chat` and `/api/generate`: a line before the last one."""

    def __init__(self, speed: AnswerSpeed) -> None:
        super().__init__(speed, LineFrames(may_give_up=True))
        self._has_text = False

    def _take(self, frame: bytes) -> bytes:
        line = json_object(frame)
        if line is None:
            return frame
        message = _ollama_message(line)
        if line.get("error") or _calls_tools(message):
            return self._give_up(frame)
        text = message.get("content") or message.get("response")
        self._has_text = self._has_text or bool(text)
        if text or message.get("thinking"):
            self._speed.piece()
        if not line.get("done"):
            return frame
        if not self._has_text:
            return self._give_up(frame)
        self._speed.figures(line)
        self._held = [frame]
        return self._close()

    def _closing(self, line: str) -> bytes:
        last = json_object(self._held[0]) or {}
        message, name = _ollama_message(last), "content" if "message" in last else "response"
        if message.get(name):
            message[name] += line
            return to_json(last) + b"\n"
        before: dict[str, Any] = {key: last[key] for key in ("model", "created_at") if key in last}
        if "message" in last:
            before["message"] = {"role": "assistant", "content": line}
        else:
            before["response"] = line
        return to_json({**before, "done": False}) + b"\n" + self._held[0]

    @staticmethod
    def whole(answer: dict[str, Any], speed: AnswerSpeed) -> bool:
        """See `StreamFooter.whole`."""
        message, name = _ollama_message(answer), "content" if "message" in answer else "response"
        speed.figures(answer)
        return not _calls_tools(message) and _add_line(message, name, speed)


class WholeFooter:
    """A footer under an answer in one piece; one that is longer than any text passes without."""

    def __init__(self, speed: AnswerSpeed, add: Callable[[dict[str, Any], AnswerSpeed], bool]) -> None:
        self._speed = speed
        self._add = add
        self._body = bytearray()
        self._is_over = False

    def feed(self, data: bytes) -> bytes:
        """See `Footer.feed`."""
        if self._is_over:
            return data
        self._body += data
        if len(self._body) <= MAX_HELD_FRAME_BYTES:
            return b""
        held, self._body, self._is_over = bytes(self._body), bytearray(), True
        return held

    def end(self) -> bytes:
        """See `Footer.end`. What is no such answer, an error perhaps, stays as it is."""
        body = bytes(self._body)
        answer = json_object(body)
        try:
            return to_json(answer) if answer is not None and self._add(answer, self._speed) else body
        except (LookupError, TypeError, AttributeError):
            return body


def _ollama_message(line: dict[str, Any]) -> dict[str, Any]:
    """Return what carries the text: the message of a chat, else the line itself."""
    message = line.get("message")
    return message if isinstance(message, dict) else line


def _calls_tools(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls") or message.get("function_call"))


def _add_line(message: dict[str, Any], name: str, speed: AnswerSpeed) -> bool:
    if not (isinstance(text := message.get(name), str) and text and (line := speed.line)):
        return False
    message[name] = text + line
    return True
