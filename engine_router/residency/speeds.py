"""How fast each model reads a prompt and writes an answer, learned from the requests that it has served.

As with all measurements, this is advice: what a swap will cost beyond its start, and what `engine-router bench` shows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define, field, frozen

from engine_router.engines.base import ResidentId
from engine_router.events import Event, RequestEnded
from engine_router.guards.numbers import amount
from engine_router.residency.cache_savings import CacheSavings, ResidentOf

# A shorter prompt tells more of the way there and back than of the model.
LEAST_PROMPT: Final = 128
# And a shorter time: some engines answer out of a cache without saying so.
_LEAST_S: Final = 0.005
# The weight of a request that ended just now.
_NEWEST: Final = 0.3
_MOST_PER_S: Final = 1e7
_MOST_WAITING: Final = 200
MOST_MODELS: Final = 1000
"""Models whose speed is remembered."""


@frozen
class Speed:
    """The speed of one model. None: not measured yet.

    Attributes:
        read_per_s: tokens of a prompt, without those that were found in a cache, a second.
        write_per_s: tokens of an answer a second.
    """

    read_per_s: float | None = None
    write_per_s: float | None = None


UNMEASURED: Final = Speed()


@frozen
class Reading:
    """The reading that the stop of a resident costs, in seconds: what its server holds of conversations is lost by it.

    Attributes:
        all_s: until all of its conversations are read again, one after the other.
        one_s: until one of them is.
    """

    all_s: float = 0.0
    one_s: float = 0.0


NOTHING_TO_READ: Final = Reading()


@define(eq=False, repr=False)
class Speeds:
    """The speeds of all models, by engine and model, the ones that were asked last at the end.

    Requests are many, and their speed is asked for now and then: so what ended lately waits until then.

    Attributes:
        note: takes in an event, and costs next to nothing.
    """

    _known: dict[tuple[str, str], Speed] = field(factory=dict)
    _savings: CacheSavings = field(factory=CacheSavings)
    _ended: deque[Event] = field(factory=lambda: deque(maxlen=_MOST_WAITING))
    note: Callable[[Event], None] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.note = self._ended.append

    @property
    def has_news(self) -> bool:
        """Whether requests have ended since anybody asked."""
        return bool(self._ended)

    def of(self, engine: str, model: str) -> Speed:
        """Return the speed of a model."""
        self._learn()
        return self._known.get((engine, model), UNMEASURED)

    def saved_s(self, resident: ResidentId, resident_of: ResidentOf, now: float) -> float:
        """Return what the prefix cache of a resident has saved lately, in seconds; see `CacheSavings.seconds_of`."""
        self._learn()
        return self._savings.seconds_of(
            resident, resident_of, lambda key: self._known.get(key, UNMEASURED).read_per_s, now
        )

    def _learn(self) -> None:
        while self._ended:
            event = self._ended.popleft()
            if isinstance(event, RequestEnded) and event.status == 200 and event.engine and event.model:
                self._learn_from(event, (event.engine, event.model))
                self._savings.learn(event, (event.engine, event.model))

    def _learn_from(self, event: RequestEnded, key: tuple[str, str]) -> None:
        read, write = _read_per_s(event), _sound(event.tokens_per_s)
        if read is None and write is None:
            return
        before = self._known.pop(key, UNMEASURED)
        self._known[key] = Speed(_learned(before.read_per_s, read), _learned(before.write_per_s, write))
        if len(self._known) > MOST_MODELS:
            del self._known[next(iter(self._known))]

    def to_json(self) -> list[list[str | float | None]]:
        """Return all of them for the state file."""
        self._learn()
        return [[*key, speed.read_per_s, speed.write_per_s] for key, speed in self._known.items()]

    @classmethod
    def from_json(cls, data: Any) -> Speeds:
        """Read what `to_json` returned. What is not understood is left out."""
        known: dict[tuple[str, str], Speed] = {}
        for entry in data[-MOST_MODELS:] if isinstance(data, list) else ():
            match entry:
                case [str(engine), str(model), read, write]:
                    known[engine, model] = Speed(_sound(read), _sound(write))
        return cls(known)


def _read_per_s(event: RequestEnded) -> float | None:
    if event.tokens_in is None or event.first_token_s is None:
        return None
    tokens = event.tokens_in - (event.tokens_cached or 0)
    took_s = event.first_token_s - (event.queue_wait_s or 0.0)
    return tokens / took_s if tokens >= LEAST_PROMPT and took_s >= _LEAST_S else None


def _learned(before: float | None, newest: float | None) -> float | None:
    if newest is None:
        return before
    return newest if before is None else before + _NEWEST * (newest - before)


def _sound(value: object) -> float | None:
    return amount(value, _MOST_PER_S) or None  # a speed of nothing is none


def speed_entry(speed: Speed) -> Mapping[str, float | None]:
    """Return a speed as the router's answers show it, in whole tokens where there are many."""
    return {
        "reads_tokens_per_s": _rounded(speed.read_per_s),
        "writes_tokens_per_s": _rounded(speed.write_per_s),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
