"""The slots of a running llama.cpp server: which conversation is in each, and which one a request goes to. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from attrs import define, field

UNKNOWN: Final = "?"
"""The owner of what nobody knows."""
# Seconds within which a server notices that a client has left; until then it reads a prompt of up to a few MB.
_LATE_S: Final = 10.0
# A slot whose conversation is another from some message on is taken if so much of it stays; the rest is lost.
_LEAST_SHARE: Final = 0.5


class Prefix(Protocol):
    """A beginning of a conversation: its digest, and how many characters it has."""

    @property
    def digest(self) -> str:
        """The digest of all that is in it."""
        ...

    @property
    def chars(self) -> int:
        """Its length in characters."""
        ...


Prefixes = Sequence[Prefix]
"""The beginnings of one conversation, each longer than the one before."""


def common_chars(held: Prefixes, wanted: Mapping[str, int]) -> int:
    """Return how many characters a held conversation begins like the wanted one.

    Args:
        wanted: the lengths of its beginnings, by their digests.
    """
    return next((prefix.chars for prefix in reversed(held) if prefix.digest in wanted), 0)


def by_digest(prefixes: Prefixes) -> dict[str, int]:
    """Return the lengths of beginnings, by their digests."""
    return {prefix.digest: prefix.chars for prefix in prefixes}


@define(eq=False, repr=False)
class Slot:
    """A slot, and the conversation in it.

    Attributes:
        number: as the server counts it.
        held: the beginnings of the prompt that it has read; empty where that is not known.
        prompt_tokens: the tokens of that prompt.
        session: what the client called the session; empty where it said nothing.
        used_at: when it was used last; any clock that goes up.
        users: the requests that are in it, or wait in the server for it.
        user: whose these are, where owners are kept apart.
        is_saved: what it holds is on disk already.
        owners: whose prompts it may hold, or may be about to read; see `dialects.conversation`.
        broken_off: when requests of owners were broken off, which the server may still begin with for a moment.
    """

    number: int
    held: Prefixes = ()
    prompt_tokens: int = 0
    session: str = ""
    used_at: float = 0.0
    users: int = 0
    user: str = ""
    is_saved: bool = False
    owners: frozenset[str] = frozenset((UNKNOWN,))
    broken_off: dict[str, float] = field(factory=dict)

    @property
    def chars(self) -> int:
        """The characters of what it holds."""
        return self.held[-1].chars if self.held else 0

    def hold(self, prefixes: Prefixes, tokens: int, *, is_saved: bool = False) -> None:
        """Note what it holds now."""
        self.held, self.prompt_tokens, self.is_saved = tuple(prefixes), tokens, is_saved

    def belongs_to(self, owner: str, now: float) -> None:
        """Note that all that it holds is of an owner; but for what a request that was broken off may still put there."""
        self.broken_off = {one: at for one, at in self.broken_off.items() if now - at < _LATE_S}
        self.owners = frozenset((owner, *self.broken_off))

    def keep_common(self, wanted: Mapping[str, int]) -> None:
        """Note that a request was begun in it, and nobody knows how far it came: what it has in common stays."""
        chars, before = common_chars(self.held, wanted), self.chars
        kept = [prefix for prefix in self.held if prefix.chars <= chars]
        self.hold(kept, int(self.prompt_tokens * chars / before) if before else 0)


@define(eq=False, repr=False)
class SlotTable:
    """The slots of one server.

    Attributes:
        turn: changes whenever something unknown has happened in the slots.
    """

    slots: list[Slot] = field(factory=list)
    turn: int = 0

    def disturb(self, owner: str = UNKNOWN) -> None:
        """Note that a request went to a slot that nobody knows: what any of them holds is not known any more.

        Args:
            owner: whose it was.
        """
        self.turn += 1
        for slot in self.slots:
            slot.hold((), 0)
            slot.owners |= {owner}

    def choose(
        self, wanted: Mapping[str, int], session: str, slots: Sequence[Slot] | None = None
    ) -> Slot | None:
        """Return the slot for a request; a free one, unless there is none.

        It is the one whose conversation goes on with it. Else the one of its session, one of which at least half
        stays, an empty one, or the one unused for longest, in this order: what others said stays as long as it can.

        Args:
            wanted: the lengths of its beginnings, by their digests.
            slots: those that it may have; all of them when absent. None is returned where there are none.
        """
        slots = self.slots if slots is None else slots
        if not slots:
            return None
        least = min(slot.users for slot in slots)
        free = [slot for slot in slots if slot.users == least]
        return max(free, key=lambda slot: _fitness(slot, common_chars(slot.held, wanted), session))


def _fitness(slot: Slot, common: int, session: str) -> tuple[int, float, float]:
    """Return how well a slot fits a request: the larger, the better."""
    if slot.held and common == slot.chars:
        return 4, common, slot.used_at
    if slot.held and session and session == slot.session:
        return 3, common, slot.used_at
    if slot.held and common >= _LEAST_SHARE * slot.chars:
        return 2, common, -slot.used_at
    return (0 if slot.held else 1), -slot.used_at, 0
