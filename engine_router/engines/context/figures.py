"""The figures of kept context: what was saved and restored of each engine's conversations, and what that was worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, Literal

from attrs import define, field, frozen

Saved = Literal["saved", "failed"]
Restored = Literal["restored", "new", "short", "unreadable", "unused"]
"""What became of a conversation that was not in a slot any more: it was restored; nothing was saved of it; too little to
be worth it; its file could not be used; the server did not use it."""
Source = Literal["slot", "disk"]
"""Where tokens were that had not to be read again: in a slot all the time, or restored into it."""

SAVES: Final = "context_saves"
RESTORES: Final = "context_restores"
REUSED: Final = "context_reused_tokens"

CountOne = Callable[[str, str, str, int], object]
"""Takes in a count: of what, for which engine, with which result, and how many more."""


@frozen(kw_only=True, repr=False)
class ContextStatus:
    """What is kept of the conversations with one engine.

    Attributes:
        keeps: False where saved conversations turned out to be of no use to it.
        conversations, size_bytes: on disk.
        saves, restores, reused_tokens: how often, or how many, by what became of it; since the router began.
    """

    keeps: bool
    conversations: int
    size_bytes: int
    saves: Mapping[str, int]
    restores: Mapping[str, int]
    reused_tokens: Mapping[str, int]


def _count_nothing(_what: str, _engine: str, _result: str, _by: int) -> None:
    """Count nothing."""


@define(eq=False, repr=False)
class ContextFigures:
    """Counts, by engine.

    Attributes:
        on_count: told of each count, too.
    """

    on_count: CountOne = _count_nothing
    _counts: Counter[tuple[str, str, str]] = field(factory=Counter)

    def saved(self, engine: str, result: Saved) -> None:
        """Count a conversation that was saved, or not."""
        self._add(SAVES, engine, result)

    def restored(self, engine: str, result: Restored) -> None:
        """Count what became of a conversation that was not in a slot any more."""
        self._add(RESTORES, engine, result)

    def reused(self, engine: str, source: Source, tokens: int) -> None:
        """Count tokens that had not to be read again."""
        if tokens > 0:
            self._add(REUSED, engine, source, tokens)

    def of(self, what: str, engine: str) -> dict[str, int]:
        """Return the counts of an engine, by result."""
        return {key[2]: count for key, count in self._counts.items() if key[:2] == (what, engine)}

    def _add(self, what: str, engine: str, result: str, by: int = 1) -> None:
        self._counts[what, engine, result] += by
        self.on_count(what, engine, result, by)
