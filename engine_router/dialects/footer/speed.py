"""The speed of an answer, in one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field

from engine_router.dialects.base import Clock


@define
class AnswerSpeed:
    """The speed of an answer: the engine's own figures where it tells any, else pieces and the clock."""

    _sent_at: Callable[[], float]
    _load_s: Callable[[], float]
    _clock: Clock
    _pieces: int = 0
    _first_at: float = math.nan
    _last_at: float = math.nan
    _usage: dict[str, Any] = field(factory=dict)
    _timings: dict[str, Any] = field(factory=dict)

    def piece(self) -> None:
        """Note that a piece of text came, or of thought. Engines send one for each token, or nearly so."""
        self._last_at = self._clock()
        if not self._pieces:
            self._first_at = self._last_at
        self._pieces += 1

    def figures(self, said: Mapping[str, Any]) -> None:
        """Take in `usage` and `timings`, or the figures of Ollama's last line."""
        if isinstance(usage := said.get("usage"), dict):
            self._usage.update(usage)
        if isinstance(timings := said.get("timings"), dict):
            self._timings.update(timings)
        if "eval_count" in said:
            self._usage.update(
                {key: said[key] for key in ("eval_count", "eval_duration", "load_duration") if key in said}
            )

    @property
    def line(self) -> str:
        """The line; empty where nothing is known."""
        tokens = self._tokens
        about = "" if tokens else "~"
        tokens = tokens or self._pieces
        load_s = self._load_s()
        if math.isnan(load_s):
            load_s = _number(self._usage, "load_duration") / 1e9
        parts = (
            _known("{} tok/s", _rounded(self._rate(tokens), 100)),
            f"{about}{tokens} token{'' if tokens == 1 else 's'}" if tokens else "",
            _known("first token {} s", _rounded(self._first_at - self._sent_at(), 10)),
            _known("model load {} s", _rounded(load_s, 10)),
        )
        text = ", ".join(filter(None, parts))
        return f"\n\n[{text}]" if text else ""

    @property
    def _tokens(self) -> int:
        counts = (
            _number(self._timings, "predicted_n"),
            *(_number(self._usage, name) for name in ("completion_tokens", "output_tokens", "eval_count")),
        )
        return next((int(count) for count in counts if count >= 1), 0)

    def _rate(self, tokens: int) -> float:
        """Return tokens per second; NaN where that is not known."""
        rate = _number(self._timings, "predicted_per_second")
        if rate > 0:
            return rate
        span_s = _number(self._usage, "eval_duration") / 1e9
        if span_s > 0:
            return tokens / span_s
        # The first token's time was spent on the prompt.
        span_s = self._last_at - self._first_at
        return (tokens - 1) / span_s if span_s > 0 else math.nan


def _number(said: Mapping[str, Any], name: str) -> float:
    value = said.get(name)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _rounded(value: float, whole_from: float) -> str:
    """Return a figure with as many digits as anybody reads; empty where there is none."""
    if not 0.005 <= value < math.inf:
        return ""
    digits = 0 if value >= whole_from else 1 if value >= 0.1 else 2
    return f"{value:.{digits}f}"


def _known(text: str, figure: str) -> str:
    return text.format(figure) if figure else ""
