"""The times in an answer of Ollama's: when it was made, and how long each part of it took."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from engine_router.dialects.base import Clock
from engine_router.dialects.ollama.dialect import timestamp
from engine_router.dialects.openai.usage import Times, Tokens

_NO_TIMES = Times(None, None)


class Timestamps:
    """A clock that tells the time as Ollama writes it, for lines that come together: all but the fraction is made once a second."""

    def __init__(self, wall_clock: Clock) -> None:
        self._wall_clock = wall_clock
        self._second = -1
        self._until_second = b""

    def now(self) -> bytes:
        """Return the time, in microseconds."""
        moment = self._wall_clock()
        second = int(moment)
        if second != self._second:
            self._second = second
            self._until_second = timestamp(second).partition(".")[0].encode()
        return b"%b.%06dZ" % (self._until_second, (moment - second) * 1e6)


class Stopwatch:
    """A stopwatch for one request.

    Args:
        clock: seconds.
        began_s: what the clock said when the request came; None for now.
        load_s: tells, at the end, for how many seconds the request waited for its model; NaN if it did not.
    """

    def __init__(self, clock: Clock, began_s: float | None, load_s: Callable[[], float]) -> None:
        self._clock = clock
        self._began_s = clock() if began_s is None else began_s
        self._load_s = load_s
        self._first_s: float | None = None

    def note_first(self) -> None:
        """Tell that the answer's beginning is there: the prompt has been read."""
        if self._first_s is None:
            self._first_s = self._clock()

    def figures(self, tokens: Tokens, times: Times = _NO_TIMES, *, is_written: bool = True) -> dict[str, int]:
        """Return what Ollama reports: counts, and durations in nanoseconds. None of them is 0: that one is left out.

        How long the loading took is always told, as by Ollama, also where the model was there already.

        Args:
            times: what the engine says; else the clock does. An answer in one piece does not show how its time
                was divided: then all of it counts as evaluation.
            is_written: the model wrote an answer, token by token.
        """
        now = self._clock()
        load_s = self._load_s()
        load_s = load_s if math.isfinite(load_s) and load_s > 0 else 0.0
        ready = min(self._began_s + load_s, now)
        first = max(ready, self._first_s if self._first_s is not None else ready)
        prompt_s = first - ready if times.prompt is None else times.prompt
        eval_s = now - first if times.completion is None else times.completion
        parts = {
            "load_duration": max(1, _nanoseconds(load_s)),
            "prompt_eval_duration": _nanoseconds(prompt_s if is_written else 0.0),
            "eval_duration": _nanoseconds(eval_s if is_written else 0.0),
        }
        # Engines have clocks of their own: the whole is never less than its parts.
        total = max(_nanoseconds(now - self._began_s), sum(parts.values()))
        counts = {"prompt_eval_count": tokens.prompt, "eval_count": tokens.completion}
        return _known({"total_duration": total, **parts, **counts})


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _known(figures: Mapping[str, int]) -> dict[str, int]:
    return {key: value for key, value in figures.items() if value > 0}
