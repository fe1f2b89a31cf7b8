"""The account of what prefix caches have saved lately: tokens of prompts that did not have to be read.

It counts where a cache survives sleep and no stop: then a resident that sleeps is worth more than its faster start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.events import RequestEnded

# After so long what was saved counts half. Seconds.
HALF_LIFE_S: Final = 900.0
# What a cache is worth at most, whatever it has saved: one conversation is read again once. Seconds.
MOST_S: Final = 600.0
MOST_ACCOUNTS: Final = 1000
"""Models whose savings are remembered."""

ResidentOf = Callable[[str, str], ResidentId | None]
"""Returns the resident that serves a model, by the engine's name and the model's id."""


@define(eq=False, repr=False)
class _Account:
    """The tokens that the cache of one model has saved, as they count at a time in seconds since the epoch."""

    tokens: float = 0.0
    at: float = 0.0

    def at_time(self, now: float) -> float:
        """Return the tokens as they count at another time."""
        return self.tokens * math.pow(0.5, max(0.0, now - self.at) / HALF_LIFE_S)


@define(eq=False, repr=False)
class CacheSavings:
    """The accounts of all models, by engine and id; those whose cache saved something last are at the end."""

    _accounts: dict[tuple[str, str], _Account] = field(factory=dict)

    def learn(self, event: RequestEnded, key: tuple[str, str]) -> None:
        """Take in the end of a request that was answered well, by a model of an engine."""
        if not event.tokens_cached:
            return
        account = self._accounts.pop(key, None) or _Account()
        self._accounts[key] = _Account(account.at_time(event.at) + event.tokens_cached, event.at)
        if len(self._accounts) > MOST_ACCOUNTS:
            del self._accounts[next(iter(self._accounts))]

    def seconds_of(
        self,
        resident: ResidentId,
        resident_of: ResidentOf,
        read_per_s: Callable[[tuple[str, str]], float | None],
        now: float,
    ) -> float:
        """Return what the cache of a resident has saved lately, in seconds of reading; 0 where no speed is known.

        Args:
            read_per_s: returns the tokens of a prompt that a model of an engine reads in a second.
            now: seconds since the epoch.
        """
        saved_s = 0.0
        for key, account in self._accounts.items():
            is_its = key[0] == resident.engine and (resident.model is None or resident_of(*key) == resident)
            if is_its and (per_s := read_per_s(key)) is not None:
                saved_s += account.at_time(now) / per_s
        return min(saved_s, MOST_S)
