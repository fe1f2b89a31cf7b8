"""Requests in the slots of a llama.cpp server: which slot each goes to, what it waits for, and what it leaves there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from engine_router.engines.context.figures import Source
from engine_router.engines.context.slots import Prefixes, Slot, SlotTable, by_digest

if TYPE_CHECKING:
    from engine_router.engines.context.running import RunningContext

# The part of what should have been there again that has to be; the ends of conversations are never quite alike.
_LEAST_REUSED: Final = 0.5


@define(kw_only=True, eq=False, repr=False)
class SlotWish:
    """What a request wants of a server's slots.

    Attributes:
        prefixes: the beginnings of its conversation; empty where it is none that is known again.
        session: what its client calls the session; empty where it says nothing.
        owner: whose it is.
        is_wide: it takes several slots, or one of the server's choice.
        is_apart: it must not be in a slot together with other owners' requests: the server may read theirs first, and
            reuse of it what it has been told to reuse of the slot as it was before.
        is_waiting: somebody waits for its slot just now.
    """

    prefixes: Prefixes = ()
    session: str = ""
    owner: str = ""
    is_wide: bool = False
    is_apart: bool = False
    is_waiting: bool = False


@define(eq=False, repr=False)
class SlotQueue:
    """The requests that wait for a slot, in the order in which they came. The server would have them wait, too."""

    table: SlotTable
    _in_line: list[SlotWish] = field(factory=list)
    _changed: trio.Event = field(factory=trio.Event)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._in_line)

    async def slots_for(self, wish: SlotWish) -> tuple[Slot, ...]:
        """Wait for a slot, or for all of them, and take it; `give_back` has to be called.

        Cancellation leaves the request its place, for which it may come back, or `withdraw` has to be called; others
        need not wait for it meanwhile.
        """
        if wish not in self._in_line:
            self._in_line.append(wish)
        wish.is_waiting = True
        try:
            while not (slots := self._slots_for(wish)):
                await self._changed.wait()
        finally:
            wish.is_waiting = False
            self._wake()
        self._in_line.remove(wish)
        for slot in slots:
            slot.users += 1
            slot.user, slot.used_at = wish.owner, trio.current_time()
            if not wish.is_wide:
                slot.session = session_of(wish)
        return slots

    def withdraw(self, wish: SlotWish) -> None:
        """Give up a request's place. Never waits; may be called again."""
        if wish in self._in_line:
            self._in_line.remove(wish)
            self._wake()

    def give_back(self, slots: tuple[Slot, ...]) -> None:
        """Note that a request is in its slots no more."""
        for slot in slots:
            slot.users -= 1
            slot.used_at = trio.current_time()
        self._wake()

    def _slots_for(self, wish: SlotWish) -> tuple[Slot, ...]:
        """Return the slots that a request may have now; none where it has to wait."""
        if wish.is_apart and next(one for one in self._in_line if one.is_waiting) is not wish:
            return ()
        slots = self.table.slots
        if wish.is_apart:
            slots = [slot for slot in slots if not slot.users or slot.user == wish.owner]
        if wish.is_wide:
            return tuple(slots) if len(slots) == len(self.table.slots) else ()
        chosen = self.table.choose(by_digest(wish.prefixes), session_of(wish), slots)
        return () if chosen is None else (chosen,)

    def _wake(self) -> None:
        if self._in_line:
            self._changed.set()
            self._changed = trio.Event()


def session_of(wish: SlotWish) -> str:
    """Return a name of a session that no other owner's has; empty where it has none."""
    return wish.session and f"{wish.owner}\n{wish.session}"


@define(eq=False, repr=False)
class Placement:
    """A request in its slot, from the choice of it to the end of the answer.

    Args:
        turn: of the slots, when it was placed; see `SlotTable`.
    """

    _context: RunningContext
    _wish: SlotWish
    _slots: tuple[Slot, ...]
    _turn: int
    _wanted: Mapping[str, int] = field(init=False)
    _restored_tokens: float = 0.0
    _has_tried: bool = False
    _has_ended: bool = False

    @_wanted.default
    def _make_wanted(self) -> Mapping[str, int]:
        return by_digest(self._wish.prefixes)

    @property
    def number(self) -> int:
        """The number of its slot, as the server is told; -1 where the server chooses."""
        return -1 if self._wish.is_wide else self._slots[0].number

    async def restore(self) -> None:
        """Put the saved conversation back into the slot, where there is one that is worth it; once.

        Cancellation leaves the slot as it may be, and the request is right all the same.
        """
        if self._has_tried:
            return
        self._has_tried = True
        slot, owner = self._slots[0], self._wish.owner
        if self._wanted and slot.users == 1:
            self._restored_tokens = await self._context.restore(slot, self._wanted)
            if self._restored_tokens and slot.users == 1:
                slot.belongs_to(owner, trio.current_time())  # it holds nothing but what was saved

    def enter(self) -> bool:
        """Note that the request is about to be sent. Returns whether all that its slots may hold is of its owner."""
        owner = self._wish.owner
        is_own = all(slot.owners <= {owner} for slot in self._slots)
        for slot in self._slots:
            slot.owners |= {owner}
        if self._wish.is_wide:
            self._context.table.disturb(owner)
        return is_own

    def end(
        self,
        *,
        tokens_in: int | None,
        tokens_cached: int | None,
        read_s: float | None,
        is_unheard: bool = False,
    ) -> None:
        """Note how the request ended, by what its engine told. Never waits; may be called again.

        Args:
            read_s: seconds in which the prompt was read.
            is_unheard: it was sent, and broken off before anything came: the server may not even have begun with it.
        """
        if self._has_ended:
            return
        self._has_ended = True
        slot, context = self._slots[0], self._context
        context.queue.give_back(self._slots)
        if is_unheard:
            for one in self._slots:
                one.broken_off[self._wish.owner] = trio.current_time()
        if self._wish.is_wide or self._turn != context.table.turn:
            return
        if tokens_in is None:
            slot.keep_common(self._wanted)
            return
        if tokens_cached is not None:
            self._judge(tokens_in, tokens_cached, read_s)
        slot.hold(self._wish.prefixes, tokens_in)
        if not slot.users:
            slot.belongs_to(self._wish.owner, trio.current_time())

    def _judge(self, tokens_in: int, tokens_cached: int, read_s: float | None) -> None:
        """Take in how much was reused; where that is too little of what was restored, no more is kept."""
        context = self._context
        context.engine.note_reading(tokens_in - tokens_cached, read_s)
        source: Source = "disk" if self._restored_tokens else "slot"
        context.keeper.figures.reused(context.resident.engine, source, tokens_cached)
        if tokens_cached < self._restored_tokens * _LEAST_REUSED:
            context.count_restore("unused")
            context.give_up(
                f"it was given back {self._restored_tokens:.0f} tokens of a conversation, and used {tokens_cached} of them"
            )
