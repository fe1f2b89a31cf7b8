"""Ollama's dialect in front of an engine that speaks OpenAI's: requests there, answers back."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from engine_router.dialects.base import Translation, dig_error, to_json
from engine_router.dialects.ollama_request import chat_request, embed_request, generate_request
from engine_router.dialects.sse import EventReader

Clock = Callable[[], float]


def translate(
    path: str,
    data: Mapping[str, Any],
    *,
    asked: str,
    upstream: str,
    clock: Clock = time.monotonic,
    wall_clock: Clock = time.time,
) -> Translation:
    """Return the translation of one request.

    Args:
        asked: the model as the client named it; the answer carries the same name.
        upstream: the name that the engine knows.
        clock: seconds, for durations; `wall_clock` for `created_at`.

    Raises:
        BadRequest: the request cannot be understood.
    """
    if path in ("/api/embed", "/api/embeddings"):
        return EmbedTranslation(data, asked, upstream, single=path == "/api/embeddings", clock=clock)
    stream = data.get("stream") is not False
    if path == "/api/chat":
        target, request = "/v1/chat/completions", chat_request(data, upstream, stream=stream)
    else:
        target, request = generate_request(data, upstream, stream=stream)
    return TextTranslation(
        target, request, asked, is_chat=path == "/api/chat", clock=clock, wall_clock=wall_clock
    )


class TextTranslation:
    """`/api/chat` and `/api/generate`: one line for each piece of text, or one object."""

    def __init__(
        self,
        path: str,
        request: Mapping[str, Any],
        asked: str,
        *,
        is_chat: bool,
        clock: Clock,
        wall_clock: Clock,
    ) -> None:
        self.path = path
        self.body = to_json(request)
        self._stream = bool(request["stream"])
        self.content_type = "application/x-ndjson" if self._stream else "application/json; charset=utf-8"
        self._asked = asked
        self._is_chat = is_chat
        self._clock = clock
        self._wall_clock = wall_clock
        self._began_at = clock()
        self._first_at: float | None = None
        self._events = EventReader()
        self._whole = bytearray()
        self._calls: dict[int, dict[str, str]] = {}
        self._reason: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}

    def feed(self, data: bytes) -> bytes:
        """Translate what came; see `Translation.feed`."""
        if not self._stream:
            self._whole += data
            return b""
        with _understanding():
            return b"".join(self._event(event) for event in self._events.feed(data))

    def end(self) -> bytes:
        """Translate the end; see `Translation.end`."""
        with _understanding():
            if not self._stream:
                return self._object()
            if self._reason is None:
                raise ValueError("its stream ended before its end")
            return self._line({}, done=True)

    def _event(self, event: bytes) -> bytes:
        if event == b"[DONE]":
            self._reason = self._reason or "stop"
            return b""
        if not event.strip():
            return b""
        chunk = _parse(event)
        if chunk.get("error") is not None:
            raise ValueError(dig_error(event) or "an error in its stream")
        if self._first_at is None:
            self._first_at = self._clock()
        self._take_figures(chunk)
        lines = b""
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {"content": choice.get("text")}
            self._take_calls(delta.get("tool_calls") or ())
            thinking = delta.get("reasoning_content") or delta.get("reasoning")
            if thinking or delta.get("content"):
                lines += self._line({"thinking": thinking, "content": delta.get("content") or ""})
            if choice.get("finish_reason"):
                self._reason = str(choice["finish_reason"])
        return lines

    def _object(self) -> bytes:
        answer = _parse(bytes(self._whole))
        choices = answer.get("choices") or ()
        if not choices:
            raise ValueError(dig_error(bytes(self._whole)) or "an answer without choices")
        choice = choices[0]
        message = choice.get("message") or {"content": choice.get("text")}
        self._take_figures(answer)
        self._take_calls(message.get("tool_calls") or ())
        self._reason = str(choice.get("finish_reason") or "stop")
        thinking = message.get("reasoning_content") or message.get("reasoning")
        return self._line({"thinking": thinking, "content": message.get("content") or ""}, done=True).rstrip(
            b"\n"
        )

    def _line(self, text: Mapping[str, Any], *, done: bool = False) -> bytes:
        calls = self._finished_calls() if done and self._is_chat else []
        line: dict[str, Any] = {"model": self._asked, "created_at": self._now()}
        content, thinking = text.get("content") or "", text.get("thinking")
        if self._is_chat:
            message: dict[str, Any] = {"role": "assistant", "content": content}
            if thinking:
                message["thinking"] = thinking
            if calls and not self._stream:
                message["tool_calls"] = calls
            line["message"] = message
        else:
            line["response"] = content
            if thinking:
                line["thinking"] = thinking
        if not done:
            return to_json({**line, "done": False}) + b"\n"
        last = (
            to_json({**line, "done": True, "done_reason": self._done_reason(), **self._durations()}) + b"\n"
        )
        if calls and self._stream:
            message = {"role": "assistant", "content": "", "tool_calls": calls}
            last = to_json({**line, "message": message, "done": False}) + b"\n" + last
        return last

    def _take_figures(self, chunk: Mapping[str, Any]) -> None:
        self._usage = chunk.get("usage") or self._usage
        self._timings = chunk.get("timings") or self._timings

    def _take_calls(self, deltas: Any) -> None:
        for position, delta in enumerate(deltas):
            call = self._calls.setdefault(int(delta.get("index", position)), {"name": "", "arguments": ""})
            function = delta.get("function") or {}
            call["name"] += function.get("name") or ""
            arguments = function.get("arguments") or ""
            call["arguments"] += arguments if isinstance(arguments, str) else json.dumps(arguments)

    def _finished_calls(self) -> list[dict[str, Any]]:
        return [
            {"function": {"name": call["name"], "arguments": _arguments(call["arguments"])}}
            for _, call in sorted(self._calls.items())
        ]

    def _done_reason(self) -> str:
        return "length" if self._reason == "length" else "stop"

    def _durations(self) -> dict[str, int]:
        """Return the figures that Ollama reports: counts, and durations in nanoseconds, none of them 0."""
        now = self._clock()
        # An answer in one piece does not show how its time was divided: then all of it counts as evaluation.
        first = self._first_at if self._first_at is not None else self._began_at
        prompt_s = self._timings.get("prompt_ms", (first - self._began_at) * 1e3) / 1e3
        eval_s = self._timings.get("predicted_ms", (now - first) * 1e3) / 1e3
        figures = {
            "total_duration": int((now - self._began_at) * 1e9),
            "prompt_eval_count": int(self._usage.get("prompt_tokens") or self._timings.get("prompt_n") or 0),
            "prompt_eval_duration": int(prompt_s * 1e9),
            "eval_count": int(self._usage.get("completion_tokens") or self._timings.get("predicted_n") or 0),
            "eval_duration": int(eval_s * 1e9),
        }
        return {key: value for key, value in figures.items() if value > 0}

    def _now(self) -> str:
        moment = dt.datetime.fromtimestamp(self._wall_clock(), tz=dt.timezone.utc)
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class EmbedTranslation:
    """`/api/embed` and the older `/api/embeddings`."""

    content_type = "application/json; charset=utf-8"
    path = "/v1/embeddings"

    def __init__(
        self, data: Mapping[str, Any], asked: str, upstream: str, *, single: bool, clock: Clock
    ) -> None:
        self.body = to_json(embed_request(data, upstream))
        self._asked = asked
        self._single = single
        self._clock = clock
        self._began_at = clock()
        self._whole = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Collect the answer: embeddings come as one object."""
        self._whole += data
        return b""

    def end(self) -> bytes:
        """Return the answer in Ollama's words."""
        with _understanding():
            return self._object()

    def _object(self) -> bytes:
        answer = _parse(bytes(self._whole))
        entries = sorted(answer.get("data") or (), key=lambda entry: int(entry.get("index") or 0))
        vectors = [entry["embedding"] for entry in entries]
        if not vectors:
            raise ValueError(dig_error(bytes(self._whole)) or "an answer without embeddings")
        if self._single:
            return to_json({"embedding": vectors[0]})
        figures = {
            "total_duration": int((self._clock() - self._began_at) * 1e9),
            "prompt_eval_count": int((answer.get("usage") or {}).get("prompt_tokens") or 0),
        }
        kept = {key: value for key, value in figures.items() if value > 0}
        return to_json({"model": self._asked, "embeddings": vectors, **kept})


@contextlib.contextmanager
def _understanding() -> Iterator[None]:
    """Turn what an answer of an unexpected shape leads to into the one kind of error that the relay knows."""
    try:
        yield
    except (AttributeError, TypeError, LookupError, RecursionError, OverflowError) as error:
        raise ValueError(f"its answer has an unexpected shape: {error}") from error


def _parse(data: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError(f"its answer is not JSON: {data[:200].decode('utf-8', 'replace')}") from None
    if not isinstance(parsed, dict):
        raise ValueError("its answer is not a JSON object")  # noqa: TRY004 - one kind of error for the relay
    return parsed


def _arguments(text: str) -> Any:
    """Return a tool call's arguments as an object; what a model garbled is handed on as text."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {"arguments": text}
    return arguments if isinstance(arguments, dict) else {"arguments": text}
