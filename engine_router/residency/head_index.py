"""The index of the residents that are waited for, by what decides whether there can be room for them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from typing import NamedTuple

from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.residency.queue import FIRST_PLACE, Place


class Kind(NamedTuple):
    """The kind of a resident that is waited for. Among those of one kind, only what they need makes a difference.

    That holds for one that could not be stopped, too: whoever is in its own way may go.

    Attributes:
        pools: the pools that it takes from.
        shares: what it needs of each, where there are several: of needs like those, only the same compare.
        is_high: its first ticket is of high priority, and holds do not count.
    """

    pools: tuple[str, ...]
    shares: tuple[float, ...]
    groups: tuple[str, ...]
    is_high: bool


class Head(NamedTuple):
    """A resident that is waited for: its place among them, and what it needs, of all its pools together."""

    place: Place
    need_bytes: float
    resident: ResidentId


@define(eq=False, repr=False)
class _Lane:
    """The residents of one kind, in two orders."""

    by_place: list[Head] = field(factory=list)
    by_need: list[tuple[float, Head]] = field(factory=list)


class HeadIndex:
    """The residents that are waited for, of each kind in the order of their places and of their needs."""

    def __init__(self) -> None:
        self._entries: dict[ResidentId, tuple[Kind, Head]] = {}
        self._lanes: dict[Kind, _Lane] = {}

    def put(self, kind: Kind, head: Head) -> None:
        """Enter a resident, or change what is known of it."""
        if self._entries.get(head.resident) == (kind, head):
            return
        self.drop(head.resident)
        self._entries[head.resident] = (kind, head)
        lane = self._lanes.setdefault(kind, _Lane())
        insort(lane.by_place, head)
        insort(lane.by_need, (head.need_bytes, head))

    def drop(self, resident: ResidentId) -> None:
        """Take out a resident, if it is there."""
        entry = self._entries.pop(resident, None)
        if entry is None:
            return
        kind, head = entry
        lane = self._lanes[kind]
        del lane.by_place[bisect_left(lane.by_place, head)]
        del lane.by_need[bisect_left(lane.by_need, (head.need_bytes, head))]
        if not lane.by_place:
            del self._lanes[kind]

    def first_of_each(self, after: Place, may_come: Callable[[ResidentId], bool]) -> list[tuple[Head, Kind]]:
        """Return the first of each kind after a place that may come, in the order of their places."""
        heads = [(next(self._after(kind, after, may_come), None), kind) for kind in self._lanes]
        return sorted((head, kind) for head, kind in heads if head is not None)

    def first_with_room(
        self,
        kind: Kind,
        after: Place,
        may_come: Callable[[ResidentId], bool],
        has_room: Callable[[float], bool],
    ) -> Head | None:
        """Return the first of a kind after a place that may come and can have room.

        Args:
            has_room: tells whether there can be room for so many bytes; the less the sooner.
        """
        by_need = self._lanes[kind].by_need
        if not has_room(by_need[0][0]):
            return None
        count = bisect_left(by_need, True, key=lambda entry: not has_room(entry[0]))
        if count * count > len(by_need):  # one of them comes soon
            return next((h for h in self._after(kind, after, may_come) if has_room(h.need_bytes)), None)
        small = (head for _, head in by_need[:count] if head.place > after and may_come(head.resident))
        return min(small, default=None)

    def _after(self, kind: Kind, place: Place, may_come: Callable[[ResidentId], bool]) -> Iterator[Head]:
        heads = self._lanes[kind].by_place
        start = 0 if place == FIRST_PLACE else bisect_right(heads, place, key=lambda head: head.place)
        for index in range(start, len(heads)):
            if may_come(heads[index].resident):
                yield heads[index]
