"""Ollama's dialect in front of an engine that speaks OpenAI's: requests there, answers back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from engine_router.dialects.answer_json import arguments_of
from engine_router.dialects.base import Clock, Translation
from engine_router.dialects.checks import flag_at
from engine_router.dialects.engine_options import EngineTraits
from engine_router.dialects.json_body import JsonObject, to_json
from engine_router.dialects.ollama.embeddings import EmbedTranslation
from engine_router.dialects.ollama.request import chat_request, embed_request, generate_request
from engine_router.dialects.ollama.timing import Stopwatch, Timestamps
from engine_router.dialects.openai.answers import ChatAnswer
from engine_router.dialects.openai.blocks import AnswerPiece
from engine_router.dialects.openai.request import stream_members
from engine_router.errors import BadRequest


def translate(
    path: str,
    data: Mapping[str, Any],
    *,
    model: str,
    upstream: str,
    traits: Callable[[], EngineTraits] = EngineTraits,
    load_s: Callable[[], float] = lambda: 0.0,
    began_s: float | None = None,
    clock: Clock = time.monotonic,
    wall_clock: Clock = time.time,
) -> Translation:
    """Return the translation of one request.

    Args:
        path: `/api/chat`, `/api/generate`, `/api/embed` or `/api/embeddings`.
        model: the model as the client named it; the answer carries the same name.
        upstream: the name that the engine knows.
        traits: returns what is known of the engine; called where that matters.
        load_s: tells, at the end, for how many seconds the request waited for its model; NaN if it did not.
        began_s: what the clock said when the request came; None for now.
        clock: seconds, for durations.
        wall_clock: seconds since 1970, for `created_at`.

    Raises:
        BadRequest: the request cannot be understood; the message says where.
    """
    stopwatch = Stopwatch(clock, began_s, load_s)
    try:
        if path in ("/api/embed", "/api/embeddings"):
            single = path == "/api/embeddings"
            wanted = embed_request(data, "prompt" if single else "input", traits)
            body = to_json({"model": upstream, **wanted.body})
            return EmbedTranslation(body, wanted.dimensions, model, stopwatch, single=single)
        if path == "/api/chat":
            form, target, request = _CHAT, "/v1/chat/completions", chat_request(data, traits)
        else:
            form = _RAW if data.get("raw") is True else _GENERATE
            target, request = generate_request(data, traits)
        stream = data.get("stream") is None or flag_at(data["stream"], "stream")
        answer = ChatAnswer({"model": upstream, **stream_members(stream=stream), **request})
    except RecursionError:
        raise BadRequest("the request is nested too deeply") from None
    kind = StreamedText if stream else WholeText
    return kind(target, form, answer, model, stopwatch, Timestamps(wall_clock))


class _Form(NamedTuple):
    """The form of an answer's lines.

    Attributes:
        text, thinking: what is before and behind a piece of it.
        takes_calls: there is a place for calls of tools.
        ending: further members of the last line.
    """

    text: tuple[bytes, bytes]
    thinking: tuple[bytes, bytes]
    takes_calls: bool
    ending: Mapping[str, Any] = {}

    def said(self, text: str, thinking: str, calls: list[JsonObject]) -> JsonObject:
        """Return the fields for what the model said, thought and called."""
        thought = {"thinking": thinking} if thinking else {}
        if not self.takes_calls:
            return {"response": text, **thought}
        called = {"tool_calls": calls} if calls else {}
        return {"message": {"role": "assistant", "content": text, **thought, **called}}


_CHAT = _Form(
    (b'"message":{"role":"assistant","content":', b"}"),
    (b'"message":{"role":"assistant","content":"","thinking":', b"}"),
    takes_calls=True,
)
_RAW = _Form((b'"response":', b""), (b'"response":"","thinking":', b""), takes_calls=False)
# Clients send the tokens of a conversation back. No engine here tells of any, but a client may insist on the member.
_GENERATE = _RAW._replace(ending={"context": []})


class _Text:
    """An answer, streamed or whole: what both share."""

    def __init__(
        self,
        path: str,
        form: _Form,
        answer: ChatAnswer,
        model: str,
        stopwatch: Stopwatch,
        timestamps: Timestamps,
    ) -> None:
        self.path = path
        self.body = answer.body
        self._form = form
        self._answer = answer
        self._calls = _Calls()
        self._stopwatch = stopwatch
        self._timestamps = timestamps
        self._begin = b'{"model":%b,"created_at":"' % to_json(model)

    def _line(self, fields: Mapping[str, Any]) -> bytes:
        return b'%b%b",%b' % (self._begin, self._timestamps.now(), to_json(fields)[1:])

    def _ending(self) -> JsonObject:
        """Return why the model stopped, and the figures."""
        reason = "length" if self._answer.finish == "length" else "stop"
        tokens = self._answer.tokens
        figures = self._stopwatch.figures(tokens, self._answer.times)
        return {"done": True, "done_reason": reason, **self._form.ending, **figures, **tokens.mark}


class WholeText(_Text):
    """`/api/chat` and `/api/generate`, answered by one object."""

    content_type = "application/json; charset=utf-8"

    def feed(self, data: bytes) -> bytes:
        """Collect the answer; see `Translation.feed`."""
        self._answer.feed(data)
        if self._answer.began:
            self._stopwatch.note_first()
        return b""

    def end(self) -> bytes:
        """Return the answer as one object; see `Translation.end`."""
        pieces = self._answer.end()
        texts = {"text": "", "thinking": "", "call": ""}
        for piece in pieces:
            texts[piece.kind] += piece.text
            self._calls.take(piece)
        logprobs = [token.shown(full=False) for piece in pieces for token in piece.logprobs]
        said = self._form.said(texts["text"], texts["thinking"], self._calls.made())
        return self._line({**said, **self._ending(), **({"logprobs": logprobs} if logprobs else {})})


class StreamedText(_Text):
    """`/api/chat` and `/api/generate`, answered by a line for each piece; the calls of tools are one before the last."""

    content_type = "application/x-ndjson"

    def feed(self, data: bytes) -> bytes:
        """Translate what came; see `Translation.feed`."""
        pieces = self._answer.feed(data)
        if self._answer.began:
            self._stopwatch.note_first()
        return self._lines(pieces)

    def end(self) -> bytes:
        """Translate the end; see `Translation.end`."""
        lines = self._lines(self._answer.end())
        calls = self._calls.made()
        if calls and self._form.takes_calls:
            lines += self._line({**self._form.said("", "", calls), "done": False}) + b"\n"
        return lines + self._line({**self._form.said("", "", []), **self._ending()}) + b"\n"

    def _lines(self, pieces: Sequence[AnswerPiece]) -> bytes:
        lines: list[bytes] = []
        now = self._timestamps.now() if pieces else b""
        for piece in pieces:
            if piece.kind == "call":
                self._calls.take(piece)
                continue
            before, behind = self._form.text if piece.kind == "text" else self._form.thinking
            logprobs = b""
            if piece.logprobs:
                logprobs = b',"logprobs":' + to_json([token.shown(full=False) for token in piece.logprobs])
            lines.append(
                b'%b%b",%b%b%b,"done":false%b}\n'
                % (self._begin, now, before, piece.quoted(), behind, logprobs)
            )
        return b"".join(lines)


class _Calls:
    """A collector of the calls of tools: Ollama's clients get each as a whole."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[AnswerPiece]] = {}

    def take(self, piece: AnswerPiece) -> None:
        """Take in a piece, if it is one of a call."""
        if piece.kind == "call":
            self._pieces.setdefault(piece.block, []).append(piece)

    def made(self) -> list[JsonObject]:
        """Return all calls, in Ollama's words; an `id` is there if the engine gave one."""
        calls: list[JsonObject] = []
        for index, pieces in enumerate(self._pieces.values()):
            identity = {"id": pieces[-1].id} if pieces[-1].id else {}
            arguments = arguments_of("".join(piece.text for piece in pieces))
            function = {"index": index, "name": pieces[-1].name, "arguments": arguments}
            calls.append({**identity, "function": function})
        return calls
