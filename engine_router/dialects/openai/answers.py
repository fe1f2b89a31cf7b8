"""An engine's answer to a chat completion request, taken in as a stream of chunks, or whole.

Whoever translates the answer gets it as pieces of blocks. The answer to a request for a completion, which has
text and nothing else, is taken in just the same. What is not understood is an error: an engine that fails says so
in many ways, and none of them may pass for the end of a good answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engine_router.dialects.answer_json import (
    UNEXPECTED,
    beginning,
    misshapen,
    object_in,
    parse_answer,
    understanding,
)
from engine_router.dialects.engine_errors import error_message
from engine_router.dialects.frames import EventFrames, begins_events
from engine_router.dialects.json_body import to_json
from engine_router.dialects.openai.blocks import AnswerBlocks, AnswerPiece, joined
from engine_router.dialects.openai.finish_reason import FinishReason, finish_reason_of
from engine_router.dialects.openai.logprobs import Logprob, logprobs_in, top_logprobs_asked
from engine_router.dialects.openai.request import as_stream
from engine_router.dialects.openai.tokens import tokens_of
from engine_router.dialects.openai.usage import Times, Tokens, Usage, tells_usage


class ChatAnswer:
    """An answer to a chat completion request. Holds no more of a stream than what waits for its turn.

    Where the client wants the answer in one piece, the engine is asked for a stream nevertheless if it can be: the
    pieces are held until its end, and an engine that streams nothing is understood too.

    Args:
        request: the request, in OpenAI's words, as the client wants its answer: `stream` is true or false.

    Attributes:
        body: the request as the engine gets it.
        began: something of the answer was understood.
        finish: why the model stopped; None until the engine said so.
        stop: the stop sequence that ended the answer, where the engine names it (vLLM, SGLang, llama.cpp).
        prompt_estimate: about how many tokens the request has.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        collects = not request["stream"]
        request = as_stream(request)
        self.body = to_json(request)
        self.began = False
        self.finish: FinishReason | None = None
        self.stop: str | None = None
        self.prompt_estimate = tokens_of(request)
        self._stream = request["stream"] is True
        self._is_doubted = self._stream and collects  # until something shows whether a stream comes
        self._top_logprobs = top_logprobs_asked(request)
        self._logprobs: tuple[Logprob, ...] = ()  # of tokens whose text is still to come
        self._frames = EventFrames()
        self._whole = bytearray()
        self._usage = Usage()
        self._blocks = AnswerBlocks()
        self._collected: list[AnswerPiece] | None = [] if collects else None

    def feed(self, data: bytes) -> list[AnswerPiece]:
        """Take in bytes, split anywhere; return the pieces that are complete now; none of what is had in one piece.

        Raises:
            ValueError: they cannot be understood, or are an error; the message says so.
        """
        return list(self.pieces(data))

    def pieces(self, data: bytes) -> Iterator[AnswerPiece]:
        """Take in bytes, as `feed` does; yield the pieces one by one, so that those before a fault are had.

        Raises:
            ValueError: as `feed` does.
        """
        if self._is_doubted and (is_stream := begins_events(data)) is not None:
            self._is_doubted, self._stream = False, is_stream
        if not self._stream:
            self._whole += data
            return
        for event in self._frames.events(data):
            try:
                pieces = self._event(event)
            except UNEXPECTED as error:
                raise misshapen(beginning(event)) from error
            if self._collected is None:
                yield from pieces
            else:
                self._collected += pieces

    def end(self) -> list[AnswerPiece]:
        """Take in the end; return the pieces that are still to come.

        Raises:
            ValueError: the answer is not complete, cannot be understood, or is an error.
        """
        with understanding(self._whole):
            if not self._stream or self._is_doubted:  # nothing came that was a stream
                self._take_whole()
            if self.finish is None:
                raise ValueError("its stream ended before its end")
            last = self._blocks.due(final=True)
        return last if self._collected is None else joined([*self._collected, *last])

    @property
    def has_calls(self) -> bool:
        """Whether a tool was called."""
        return self._blocks.have_calls

    @property
    def tokens(self) -> Tokens:
        """How many tokens the engine counted: its `usage`, else the timings of llama.cpp, else an estimate.

        Raises:
            ValueError: its figures cannot be understood.
        """
        return self._usage.tokens(self.prompt_estimate, self._blocks.token_estimate)

    @property
    def thought_tokens(self) -> int:
        """How many tokens of the completion went into thinking; 0 where the engine did not say.

        Raises:
            ValueError: its figures cannot be understood.
        """
        return self._usage.thought_tokens()

    @property
    def times(self) -> Times:
        """How long the engine took.

        Raises:
            ValueError: its figures cannot be understood.
        """
        return self._usage.times()

    def _event(self, event: bytes) -> list[AnswerPiece]:
        if event == b"[DONE]":
            # Some engines say nothing else of the end. One that has said nothing at all has failed.
            if self.finish is None and not self._blocks.are_none:
                self.finish = "stop"
            return []
        if not event.strip():
            return []
        chunk = parse_answer(event)
        if chunk.get("error") is not None:
            raise ValueError(error_message(event) or "an error in its stream")
        if choices := chunk.get("choices"):
            choice = _first(choices)
            delta = choice.get("delta")
            self._take(choice, object_in(delta, "a delta") if delta else _beside_delta(choice))
        elif not tells_usage(chunk):
            raise ValueError(error_message(event) or "an event that is not known")
        self._note(chunk)
        self.began = True
        return self._blocks.due(final=self.finish is not None)

    def _take_whole(self) -> None:
        answer = parse_answer(self._whole)
        choices = answer.get("choices") or ()
        if not choices or answer.get("error") is not None:
            raise ValueError(error_message(bytes(self._whole)) or "an answer without choices")
        choice = _first(choices)
        self._take(choice, _completion(choice) or object_in(choice.get("message"), "a message"))
        self.finish = self.finish or "stop"
        self._note(answer)
        self.began = True

    def _note(self, chunk: Mapping[str, Any]) -> None:
        """Keep the figures, and the stop sequence of llama.cpp, which comes with the end."""
        self._usage.note(chunk)
        if self.finish is not None:
            self._note_stop(chunk.get("stopping_word") or (chunk.get("__verbose") or {}).get("stopping_word"))

    def _note_stop(self, stop: object) -> None:
        # vLLM and SGLang also name tokens that ended the answer, as numbers.
        if stop and isinstance(stop, str):
            self.stop = stop

    def _take(self, choice: Mapping[str, Any], delta: Mapping[str, Any]) -> None:
        if thinking := delta.get("reasoning_content") or delta.get("reasoning"):
            self._blocks.add_text("thinking", thinking)
        if text := delta.get("content") or delta.get("refusal"):
            self._blocks.add_text("text", text)
        if self._top_logprobs is not None and choice.get("logprobs"):
            self._add_logprobs(choice["logprobs"], self._top_logprobs, has_text=bool(thinking or text))
        if calls := delta.get("tool_calls"):
            if not isinstance(calls, list):
                raise misshapen("tool calls that are no list")
            for position, call in enumerate(calls):
                self._blocks.add_call(call, position)
        if (reason := choice.get("finish_reason")) is not None:
            self.finish = finish_reason_of(reason) or self.finish
            self._note_stop(
                choice.get("stop_reason") or choice.get("matched_stop") or choice.get("stopping_word")
            )

    def _add_logprobs(self, given: Mapping[str, Any], top: int, *, has_text: bool) -> None:
        """Give the text that came just now its probabilities; tokens that are no whole character yet have none."""
        self._logprobs += tuple(logprobs_in(given, top))
        if has_text:
            self._blocks.set_logprobs(self._logprobs)
            self._logprobs = ()


def _first(choices: object) -> Mapping[str, Any]:
    """Return the first of the choices: no client here asks for more."""
    if not isinstance(choices, list):
        raise misshapen("choices that are no list")
    return object_in(choices[0], "a choice")


def _beside_delta(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a chunk without a delta says: the text of a completion, or nothing but why the answer ends."""
    if "delta" in choice or choice.get("finish_reason") is not None:
        return _completion(choice) or {}
    return {"content": choice["text"]}


def _completion(choice: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the text of a completion, which is no message, as one."""
    return {"content": choice["text"]} if "text" in choice else None
