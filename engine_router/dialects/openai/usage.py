"""The tokens of an answer to a chat completion request, and the time that the engine took for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from engine_router.dialects.answer_json import number_in, understanding, whole_number_in

# English has about four characters a token (OpenAI, "What are tokens and how to count them?"); counting bytes
# of UTF-8 serves other scripts better.
TOKEN_BYTES = 4
# Tokens, or seconds: more cannot be meant, and clients could not read it (nanoseconds have 63 bits for Ollama's).
_MAX_FIGURE = 2**32


class Tokens(NamedTuple):
    """The numbers of tokens of a request and its answer.

    Attributes:
        prompt: those of the request, the cached ones included.
        cached: those of the prompt that did not have to be read again.
        is_estimated: the engine did not count them all.
    """

    prompt: int
    cached: int
    completion: int
    is_estimated: bool = False

    @property
    def mark(self) -> dict[str, Any]:
        """The member that marks figures as estimates; none where the engine counted."""
        return {"estimated": True} if self.is_estimated else {}


class Times(NamedTuple):
    """The times that the engine took, in seconds; None where it did not say (llama.cpp does).

    Attributes:
        prompt: for reading the prompt.
        completion: for writing the answer.
    """

    prompt: float | None
    completion: float | None


class Usage:
    """An engine's figures for an answer: its `usage`, and the `timings` of llama.cpp."""

    def __init__(self, answer: Mapping[str, Any] | None = None) -> None:
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self.note(answer or {})

    def note(self, chunk: Mapping[str, Any]) -> None:
        """Keep the figures in a chunk; later ones count."""
        self._usage = chunk.get("usage") or self._usage
        self._timings = chunk.get("timings") or self._timings

    def tokens(self, prompt_estimate: int, completion_estimate: int) -> Tokens:
        """Return how many tokens the engine counted, and the estimates where it did not say.

        Raises:
            ValueError: its figures cannot be understood.
        """
        with understanding():
            prompt, cached, completion = self._from_usage() if self._usage else self._from_timings()
        return Tokens(
            prompt_estimate if prompt is None else prompt,
            cached or 0,
            completion_estimate if completion is None else completion,
            is_estimated=prompt is None or completion is None,
        )

    def thought_tokens(self) -> int:
        """Return how many tokens of the completion went into thinking; 0 where the engine did not say.

        Raises:
            ValueError: its figures cannot be understood.
        """
        with understanding():
            details = self._usage.get("completion_tokens_details") or {}
            return _count(details.get("reasoning_tokens")) or 0

    def times(self) -> Times:
        """Return how long the engine took.

        Raises:
            ValueError: its figures cannot be understood.
        """
        with understanding():
            return Times(
                _seconds(self._timings.get("prompt_ms")), _seconds(self._timings.get("predicted_ms"))
            )

    def _from_usage(self) -> tuple[int | None, int | None, int | None]:
        usage = self._usage
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        return _count(usage.get("prompt_tokens")), _count(cached), _count(usage.get("completion_tokens"))

    def _from_timings(self) -> tuple[int | None, int | None, int | None]:
        timings = self._timings
        read, cached = _count(timings.get("prompt_n")), _count(timings.get("cache_n"))
        return None if read is None else read + (cached or 0), cached, _count(timings.get("predicted_n"))


def tells_usage(chunk: Mapping[str, Any]) -> bool:
    """Tell whether a chunk without choices is one of figures, and not an error or something that is not known."""
    if chunk.get("object") == "error" or chunk.get("type") == "error":
        return False
    choices = chunk.get("choices")
    if choices is None:
        return isinstance(chunk.get("usage") or chunk.get("timings"), dict)
    return isinstance(choices, list)


def text_tokens(size_bytes: int) -> int:
    """Return about how many tokens a text has."""
    return math.ceil(size_bytes / TOKEN_BYTES)


def text_bytes(text: str) -> int:
    """Return the size of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _count(figure: Any) -> int | None:
    if figure is None:
        return None
    count = max(0, whole_number_in(figure, "a number of tokens"))
    if count > _MAX_FIGURE:
        raise ValueError("its answer has a number of tokens that cannot be")
    return count


def _seconds(milliseconds: Any) -> float | None:
    if milliseconds is None:
        return None
    seconds = number_in(milliseconds, "a duration") / 1e3
    if not seconds < _MAX_FIGURE:
        raise ValueError("its answer has a duration that cannot be")
    return max(0.0, seconds)
