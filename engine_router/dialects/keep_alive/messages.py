"""`/v1/messages`: the router begins the message and its first block, and the engine's blocks follow."""

from __future__ import annotations

from typing import Any

from engine_router.dialects import ANTHROPIC
from engine_router.dialects.frames import EventFrames, event_data, named_event, typed_event
from engine_router.dialects.json_body import Octets, json_object, parse_object, to_json
from engine_router.dialects.keep_alive.base import AwaitedRequest, KeepAliveFrames

SIGNATURE = "engine-router-waiting"
"""Signs the router's own thinking blocks. Clients send a signature back as it is, so the block is known again."""

_EMPTY = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}


class MessagesKeepAlive(KeepAliveFrames):
    """`message_start` once, then empty deltas of a block. Claude Code counts neither comments nor pings.

    The block is one of text, or of thinking where the client asked for thinking; only then is progress shown. If
    the engine's first block is of the same kind, and no progress was written, then it is that very block that
    the engine goes on with. Else the block is closed and the engine's blocks move on by one.
    """

    def __init__(self, awaited: AwaitedRequest) -> None:
        super().__init__(ANTHROPIC)
        self._awaited = awaited
        self._kind = ""  # of the router's own block, once it has been begun
        self._has_progress = False
        self._is_settled = False  # the own block is closed, or has become the engine's
        self._shift = 0
        self._usage: dict[str, Any] = {}
        self._frames = EventFrames(may_give_up=True)

    def lively(self, progress: str | None = None) -> bytes:
        """See `KeepAliveFrames.lively`."""
        begun = b"" if self._kind else self._begin()
        if self._kind == "text":
            return begun + self._delta("text_delta", text="")
        self._has_progress = self._has_progress or bool(progress)
        return begun + self._delta("thinking_delta", thinking=f"{progress}\n" if progress else "")

    def splice(self, data: bytes) -> bytes:
        """See `KeepAliveFrames.splice`."""
        if not self._kind:
            return data
        return b"".join(map(self._passed_on, self._frames.feed(data)))

    def end(self) -> bytes:
        """See `KeepAliveFrames.end`."""
        rest = self._frames.end()
        return self._passed_on(rest) if rest else b""

    def _begin(self) -> bytes:
        thinking = self._awaited.request().get("thinking")
        thinks = isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive")
        self._kind = "thinking" if thinks else "text"
        message: dict[str, Any] = {
            "id": f"msg_{self._awaited.new_id()}",
            "type": "message",
            "role": "assistant",
            "model": self._awaited.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        block = {"type": self._kind, **_EMPTY[self._kind]}
        return typed_event("message_start", message=message) + typed_event(
            "content_block_start", index=0, content_block=block
        )

    def _passed_on(self, frame: bytes) -> bytes:
        try:
            return self._spliced(frame)
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
        ):  # of a shape that is none of this endpoint's
            return frame

    def _spliced(self, frame: bytes) -> bytes:
        event = json_object(event_data(frame)) or {}
        kind = event.get("type")
        if kind == "message_start":
            self._usage = (event.get("message") or {}).get("usage") or {}
            return b""
        if kind == "content_block_start" and not self._is_settled:
            return self._first_block(event)
        if kind in ("content_block_start", "content_block_delta", "content_block_stop"):
            return self._moved(event) if self._shift else frame
        if kind == "message_delta":
            # The client has not seen what the engine's beginning said of the prompt.
            said = {key: value for key, value in (event.get("usage") or {}).items() if value is not None}
            return self._closed() + named_event(kind, {**event, "usage": {**self._usage, **said}})
        return (self._closed() if kind == "message_stop" else b"") + frame

    def _first_block(self, event: dict[str, Any]) -> bytes:
        block = event.get("content_block") or {}
        if block.get("type") == self._kind and event.get("index") == 0 and not self._has_progress:
            self._is_settled = True
            text = block.get(self._kind)
            return self._delta(f"{self._kind}_delta", **{self._kind: text}) if text else b""
        closed, self._shift = self._closed(), 1
        return closed + self._moved(event)

    def _moved(self, event: dict[str, Any]) -> bytes:
        return named_event(event["type"], {**event, "index": int(event.get("index", 0)) + self._shift})

    def _closed(self) -> bytes:
        """Close the own block, if it is still open."""
        if self._is_settled:
            return b""
        self._is_settled = True
        signed = self._delta("signature_delta", signature=SIGNATURE) if self._kind == "thinking" else b""
        return signed + typed_event("content_block_stop", index=0)

    def _delta(self, kind: str, **content: Any) -> bytes:
        return typed_event("content_block_delta", index=0, delta={"type": kind, **content})


def forget_progress(body: Octets) -> Octets:
    """Return a request without the progress that the router itself wrote into earlier answers.

    It is no thought of the model's. The very same bytes where there is none.

    Raises:
        BadRequest: the body is no JSON object.
    """
    if SIGNATURE.encode() not in body:
        return body
    data = parse_object(body)
    for message in data.get("messages") or ():
        if isinstance(message, dict) and isinstance(content := message.get("content"), list):
            message["content"] = [block for block in content if not _is_progress(block)] or ""
    return to_json(data)


def _is_progress(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "thinking" and block.get("signature") == SIGNATURE
