"""Taking in an engine's answer to a chat completion request: as a stream of chunks, or whole.

Whoever translates the answer gets it as pieces of blocks: a stretch of thinking, a stretch of text, or a tool
call. Blocks follow one another: once a piece of the next one comes, the one before is complete. Engines do
not promise that, the deltas of parallel tool calls may be mixed, so what comes early waits here.

The answer to a request for a completion, which has text and nothing else, is taken in just the same.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from engine_router.dialects.base import Octets, dig_error, to_json
from engine_router.dialects.chat_logprobs import Logprob, logprobs_in
from engine_router.dialects.sse import EventReader

# What tells where a JSON object ends: quotes, brackets, and escapes, which hide the character behind them.
_JSON_MARK = re.compile(r'["{}\[\]]|\\.?', re.DOTALL)

Kind = Literal["thinking", "text", "call"]


class Piece(NamedTuple):
    """A piece of a block.

    Attributes:
        block: number of the block, counted from 0 without gaps; never smaller than that of an earlier piece.
        text: more of the thinking, the text or the call's arguments (JSON); empty where a call just begins.
        id: of a tool call, in all of its pieces; empty where the engine gave none.
        name: of the tool, in all pieces of its call.
        logprobs: of the tokens that the text consists of, where they were asked for.
    """

    block: int
    kind: Kind
    text: str
    id: str = ""
    name: str = ""
    logprobs: Sequence[Logprob] = ()

    def quoted(self) -> bytes:
        """Return the text as a JSON string."""
        try:
            return msgspec.json.encode(self.text)
        except UnicodeEncodeError:  # half a surrogate pair
            return to_json(self.text)


class Tokens(NamedTuple):
    """How many tokens the engine counted; None where it did not say.

    Attributes:
        prompt: those of the request, the cached ones included.
        cached: those of the prompt that did not have to be read again.
    """

    prompt: int | None
    cached: int
    completion: int | None


class Times(NamedTuple):
    """How long the engine took, in seconds; None where it did not say (llama.cpp does).

    Attributes:
        prompt: for reading the prompt.
        completion: for writing the answer.
    """

    prompt: float | None
    completion: float | None


class ChatAnswer:
    """An answer to a chat completion request. Holds no more of a stream than what waits for its turn.

    Args:
        wants_logprobs: the request asked for probabilities; else what an engine tells of them is passed over.

    Attributes:
        began: something of the answer was understood.
        finish_reason: why the model stopped, in the engine's words; None until it said so.
        stop: the stop sequence that ended the answer, where the engine names it (vLLM, SGLang, llama.cpp).
        has_calls: a tool was called.
    """

    def __init__(self, *, stream: bool, wants_logprobs: bool = False) -> None:
        self.began = False
        self.finish_reason: str | None = None
        self.stop: str | None = None
        self.has_calls = False
        self._stream = stream
        self._wants_logprobs = wants_logprobs
        self._logprobs: tuple[Logprob, ...] = ()  # of tokens whose text is still to come
        self._events = EventReader()
        self._whole = bytearray()
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self._blocks: list[_Block] = []  # the open one, then those that wait
        self._calls: dict[int, _Block] = {}
        self._opened = 0

    def feed(self, data: bytes) -> list[Piece]:
        """Take in bytes, split anywhere; return the pieces that are complete now (of a stream; else none).

        Raises:
            ValueError: they cannot be understood, or are an error; the message says so.
        """
        return list(self.pieces(data))

    def pieces(self, data: bytes) -> Iterator[Piece]:
        """Take in bytes, as `feed` does; yield the pieces one by one, so that those before a fault are had.

        Raises:
            ValueError: as `feed` does.
        """
        if not self._stream:
            self._whole += data
            return
        for event in self._events.feed(data):
            try:
                pieces = self._event(event)
            except _UNEXPECTED as error:
                raise _unexpected(error) from error
            yield from pieces

    def end(self) -> list[Piece]:
        """Take in the end; return the pieces that are still to come.

        Raises:
            ValueError: the answer is not complete, cannot be understood, or is an error.
        """
        with understanding():
            if not self._stream:
                self._take_whole()
            if self.finish_reason is None:
                raise ValueError("its stream ended before its end")
            return self._due(final=True)

    @property
    def tokens(self) -> Tokens:
        """How many tokens the engine counted: its `usage`, else the timings of llama.cpp.

        Raises:
            ValueError: its figures cannot be understood.
        """
        with understanding():
            usage, timings = self._usage, self._timings
            if usage:
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
                return Tokens(
                    _count(usage.get("prompt_tokens")),
                    _count(cached) or 0,
                    _count(usage.get("completion_tokens")),
                )
            read, cached = _count(timings.get("prompt_n")), _count(timings.get("cache_n")) or 0
            return Tokens(None if read is None else read + cached, cached, _count(timings.get("predicted_n")))

    @property
    def thought_tokens(self) -> int:
        """How many tokens of the completion went into thinking; 0 where the engine did not say.

        Raises:
            ValueError: its figures cannot be understood.
        """
        with understanding():
            details = self._usage.get("completion_tokens_details") or {}
            return _count(details.get("reasoning_tokens")) or 0

    @property
    def times(self) -> Times:
        """How long the engine took.

        Raises:
            ValueError: its figures cannot be understood.
        """
        with understanding():
            return Times(
                _seconds(self._timings.get("prompt_ms")), _seconds(self._timings.get("predicted_ms"))
            )

    def _event(self, event: bytes) -> list[Piece]:
        if event == b"[DONE]":
            self.finish_reason = self.finish_reason or "stop"
            return []
        if not event.strip():
            return []
        chunk = parse_answer(event)
        if chunk.get("error") is not None:
            raise ValueError(dig_error(event) or "an error in its stream")
        choices = chunk.get("choices")
        if choices:
            self._take(choices[0], choices[0].get("delta") or _completion(choices[0]) or {})
        self._note(chunk)
        self.began = True
        return self._due(final=self.finish_reason is not None)

    def _take_whole(self) -> None:
        answer = parse_answer(self._whole)
        choices = answer.get("choices") or ()
        if not choices:
            raise ValueError(dig_error(bytes(self._whole)) or "an answer without choices")
        self._take(choices[0], _completion(choices[0]) or choices[0]["message"])
        self._note(answer)
        self.began = True
        self.finish_reason = self.finish_reason or "stop"

    def _note(self, chunk: Mapping[str, Any]) -> None:
        """Keep the figures, and the stop sequence of llama.cpp."""
        self._usage = chunk.get("usage") or self._usage
        self._timings = chunk.get("timings") or self._timings
        self._note_stop(chunk.get("stopping_word") or (chunk.get("__verbose") or {}).get("stopping_word"))

    def _note_stop(self, stop: object) -> None:
        # vLLM and SGLang also name tokens that ended the answer, as numbers.
        if stop and isinstance(stop, str):
            self.stop = stop

    def _take(self, choice: Mapping[str, Any], delta: Mapping[str, Any]) -> None:
        if thinking := delta.get("reasoning_content") or delta.get("reasoning"):
            self._add_text("thinking", thinking)
        if text := delta.get("content") or delta.get("refusal"):
            self._add_text("text", text)
        if self._wants_logprobs and choice.get("logprobs"):
            self._add_logprobs(choice["logprobs"], has_text=bool(thinking or text))
        for position, call in enumerate(delta.get("tool_calls") or ()):
            self._add_call(call, position)
        if choice.get("finish_reason"):
            self.finish_reason = str(choice["finish_reason"])
            self._note_stop(
                choice.get("stop_reason") or choice.get("matched_stop") or choice.get("stopping_word")
            )

    def _add_text(self, kind: Kind, text: object) -> None:
        if not isinstance(text, str):
            raise TypeError(f"{kind} that is no text")
        if not self._blocks or self._blocks[-1].kind != kind:
            self._blocks.append(_Block(kind))
        self._blocks[-1].held.append((text, ()))

    def _add_logprobs(self, given: Mapping[str, Any], *, has_text: bool) -> None:
        """Give the text that came just now its probabilities; tokens that are no whole character yet have none."""
        self._logprobs += tuple(logprobs_in(given))
        if has_text:
            text, _ = self._blocks[-1].held[-1]
            self._blocks[-1].held[-1] = (text, self._logprobs)
            self._logprobs = ()

    def _add_call(self, delta: Mapping[str, Any], position: int) -> None:
        function = delta.get("function") or {}
        identity, name = str(delta.get("id") or ""), str(function.get("name") or "")
        index = delta.get("index")
        index = position if index is None else int(index)
        call = self._calls.get(index)
        if call is None or call.is_followed_by(identity, name):
            call = self._calls[index] = _Block("call")
            self._blocks.append(call)
            self.has_calls = True
        call.id = call.id or identity
        call.name = call.name or name
        arguments = function.get("arguments") or ""
        call.add_arguments(arguments if isinstance(arguments, str) else json.dumps(arguments))

    def _due(self, *, final: bool) -> list[Piece]:
        """Return the pieces whose turn it is; all that wait if nothing more can come."""
        pieces: list[Piece] = []
        while self._blocks:
            block = self._blocks[0]
            if block.number < 0:
                if block.kind == "call" and not block.name and not final:
                    break
                block.number = self._opened
                self._opened += 1
                block.held = block.held or [("", ())]
            pieces += [
                Piece(block.number, block.kind, text, block.id, block.name, logprobs)
                for text, logprobs in block.held
            ]
            block.held = []
            if len(self._blocks) == 1 or not (final or block.is_done):
                break
            del self._blocks[0]
        return pieces


class _Block:
    """A block, and those of its pieces that wait for their turn."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.number = -1  # until its turn comes
        self.id = ""
        self.name = ""
        self.held: list[tuple[str, Sequence[Logprob]]] = []
        # Nothing more can come of a call once its arguments are a whole JSON object.
        self.is_done = kind != "call"
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def add_arguments(self, text: str) -> None:
        """Take in more of a call's arguments, and see whether they end."""
        if not text:
            return
        self.held.append((text, ()))
        start, self._is_escaped = int(self._is_escaped), False
        for mark in _JSON_MARK.findall(text, start):
            if mark == '"':
                self._in_string = not self._in_string
            elif mark[0] == "\\":
                self._is_escaped = len(mark) == 1  # what it escapes is still to come
            elif not self._in_string:
                self._depth += 1 if mark in "{[" else -1
                self.is_done = self.is_done or self._depth <= 0

    def is_followed_by(self, identity: str, name: str) -> bool:
        """Tell whether a delta with this call's index begins another one: some engines number all of them 0.

        Others make up another id for each delta of the same call.
        """
        if not (identity and name and self.id) or identity == self.id:
            return False
        return name != self.name or self.is_done


# What comes of an answer of an unexpected shape.
_UNEXPECTED = (AttributeError, TypeError, LookupError, RecursionError, OverflowError)


def _unexpected(error: Exception) -> ValueError:
    return ValueError(f"its answer has an unexpected shape: {error}")


@contextlib.contextmanager
def understanding() -> Iterator[None]:
    """Turn what an answer of an unexpected shape leads to into the one kind of error that the relay knows."""
    try:
        yield
    except _UNEXPECTED as error:
        raise _unexpected(error) from error


def parse_answer(data: Octets) -> dict[str, Any]:
    """Parse an answer that must be a JSON object.

    Raises:
        ValueError: it is not.
    """
    try:
        parsed = _loads(data)
    except (ValueError, RecursionError):
        raise ValueError(f"its answer is not JSON: {data[:200].decode('utf-8', 'replace')}") from None
    if not isinstance(parsed, dict):
        raise ValueError("its answer is not a JSON object")  # noqa: TRY004 - one kind of error for the relay
    return parsed


def arguments_of(text: str) -> dict[str, Any]:
    """Return a tool call's arguments as an object; what a model garbled is handed on as text."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {"arguments": text}
    return arguments if isinstance(arguments, dict) else {"arguments": text}


def _loads(data: Octets) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Python's own parser takes half a surrogate pair, which engines send where a character was cut.
        return json.loads(data)


def _count(figure: Any) -> int | None:
    return None if figure is None else max(0, int(figure))


def _seconds(milliseconds: Any) -> float | None:
    return None if milliseconds is None else max(0.0, float(milliseconds) / 1e3)


def _completion(choice: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the text of a completion, which is no message, as one."""
    return {"content": choice["text"]} if "text" in choice else None
