"""The tickets that wait, in the orders in which they are served.

Every question that a decision asks is answered in a time that grows with the logarithm of what waits, or not
at all: a withdrawn ticket costs as little as one that is served, however long its queue.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from engine_router.config import Priority
from engine_router.engines.base import ResidentId
from engine_router.residency.messages import Ticket

# Of `max_wait_s`. What matters more may wait less long before it is overdue, and everybody is overdue in the
# end: that is the ageing by which nobody starves.
_SHARES_OF_MAX_WAIT: Final[Mapping[Priority, float]] = {"high": 0.25, "normal": 1.0, "low": 1.0}
_RANK: Final[Mapping[Priority, int]] = {"high": 0, "normal": 1, "low": 2}

Key = tuple[float, float]

Place = tuple[Key, int]
"""The place of a resident among those that are waited for: a key, and a number where keys are equal."""

FIRST_PLACE: Final[Place] = ((-math.inf, -math.inf), -1)
"""The place before all others."""


class _Heads:
    """The residents that are waited for, ordered by the key of their first ticket.

    A heap whose entries are never removed when a key changes: a stale one is recognised, and dropped when it
    comes up or when they are too many.
    """

    def __init__(self) -> None:
        self._entries: dict[ResidentId, Place] = {}
        self._heap: list[tuple[Key, int, ResidentId]] = []
        self._numbers = itertools.count()  # who came first is first, where keys are equal

    def place(self, resident: ResidentId, key: Key) -> None:
        """Put a resident where its first ticket belongs."""
        entry = self._entries.get(resident)
        if entry is not None and entry[0] == key:
            return
        number = next(self._numbers)
        self._entries[resident] = (key, number)
        heapq.heappush(self._heap, (key, number, resident))
        if len(self._heap) > 2 * len(self._entries) + 16:
            self._heap = [(key, number, resident) for resident, (key, number) in self._entries.items()]
            heapq.heapify(self._heap)

    def drop(self, resident: ResidentId) -> None:
        """Take out a resident that nobody waits for any more."""
        self._entries.pop(resident, None)

    def of(self, resident: ResidentId) -> Place:
        """Return the place of a resident that is waited for."""
        return self._entries[resident]

    def first_key(self) -> Key | None:
        """Return the first key."""
        heap = self._heap
        while heap and not self._is_valid(heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def __iter__(self) -> Iterator[tuple[Key, ResidentId]]:
        """Yield keys and residents in their order. The first few cost no more than they must."""
        if self.first_key() is None:
            return
        heap = self._heap
        frontier = [(heap[0], 0)]
        while frontier:
            entry, index = heapq.heappop(frontier)
            if self._is_valid(entry):
                yield entry[0], entry[2]
            for child in (2 * index + 1, 2 * index + 2):  # only now: most look at the first and no further
                if child < len(heap):
                    heapq.heappush(frontier, (heap[child], child))

    def _is_valid(self, entry: tuple[Key, int, ResidentId]) -> bool:
        return self._entries.get(entry[2]) == (entry[0], entry[1])


class _Shares:
    """The shares of clients in the queue, and in the line for each resident."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[ResidentId, OrderedDict[Ticket, None]]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, ticket: Ticket) -> None:
        """Count a ticket in."""
        if ticket.client and not ticket.is_control:
            lines = self._lines.setdefault(ticket.client, {})
            lines.setdefault(ticket.resident, OrderedDict())[ticket] = None
            self._counts[ticket.client] += 1

    def remove(self, ticket: Ticket) -> None:
        """Count a ticket out."""
        lines = self._lines.get(ticket.client, {})
        line = lines.get(ticket.resident, OrderedDict())
        if ticket not in line:
            return
        del line[ticket]
        self._counts[ticket.client] -= 1
        if not line:
            del lines[ticket.resident]
        if not lines:
            del self._lines[ticket.client], self._counts[ticket.client]

    def yielding(self, newcomer: Ticket) -> Ticket | None:
        """Return the ticket that makes room: the newest of the client with most, for what it has most tickets for.

        None where that would leave the client, or its other requests, with less than the newcomer's.
        """
        if not newcomer.client or not self._counts:
            return None
        client = max(self._counts, key=self._counts.__getitem__)
        lines = self._lines[client]
        line = max(lines.values(), key=len)
        if client != newcomer.client:
            is_fair = self._counts.get(newcomer.client, 0) + 1 < self._counts[client]
        else:
            is_fair = len(lines.get(newcomer.resident, ())) + 1 < len(line)
        return next(reversed(line)) if is_fair else None

    def yielding_in_line(self, newcomer: Ticket) -> Ticket | None:
        """Return the ticket that makes room among those for what the newcomer wants."""
        counts = {
            client: len(lines[newcomer.resident])
            for client, lines in self._lines.items()
            if newcomer.resident in lines
        }
        if not newcomer.client or not counts:
            return None
        client = max(counts, key=counts.__getitem__)
        if counts.get(newcomer.client, 0) + 1 >= counts[client]:
            return None
        return next(reversed(self._lines[client][newcomer.resident]))


_Line = dict[Priority, "OrderedDict[Ticket, None]"]
"""The tickets that wait for one resident, by priority; no empty entries."""


class TicketQueue:
    """All tickets that wait in one pool.

    Args:
        max_wait_s: when a ticket is overdue; one of high priority is after a quarter of it.

    Attributes:
        length: how many there are.
        changed: the residents whose first tickets are others since somebody emptied this set.
        patience_s: returns for how many seconds a ticket for a resident waits at least before it is overdue; one of high
            priority does not.
    """

    def __init__(self, max_wait_s: float) -> None:
        self._max_waits_s = {priority: part * max_wait_s for priority, part in _SHARES_OF_MAX_WAIT.items()}
        self._lines: dict[ResidentId, _Line] = {}
        self._counts: dict[ResidentId, int] = {}
        self.length = 0
        self._by_deadline = _Heads()
        self._by_rank = _Heads()
        self._shares = _Shares()
        self.changed: set[ResidentId] = set()
        self.patience_s: Callable[[ResidentId, float], float] = lambda _resident, _now: 0.0

    def set_max_wait(self, max_wait_s: float) -> None:
        """Change when tickets are overdue, for those that come from now on."""
        self._max_waits_s = {priority: part * max_wait_s for priority, part in _SHARES_OF_MAX_WAIT.items()}

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Ticket]:
        for line in self._lines.values():
            for tickets in line.values():
                yield from tickets

    def counts(self) -> dict[ResidentId, int]:
        """Return how many tickets wait for each resident that is waited for."""
        return dict(self._counts)

    def count(self, resident: ResidentId) -> int:
        """Return how many tickets wait for a resident."""
        return self._counts.get(resident, 0)

    def max_wait_s(self, priority: Priority) -> float:
        """Return after how many seconds a ticket is overdue."""
        return self._max_waits_s[priority]

    def yielding(self, newcomer: Ticket, *, in_line: bool) -> Ticket | None:
        """Return the ticket that makes room for one of a client that has less of a full queue; None for no such.

        Args:
            in_line: the line for what the newcomer wants is full, and not only the queue.
        """
        return self._shares.yielding_in_line(newcomer) if in_line else self._shares.yielding(newcomer)

    def add(self, ticket: Ticket, now: float) -> bool:
        """Enter a ticket. Returns whether it changes whose turn it is, or when.

        `now` is never less than at an earlier call.
        """
        resident = ticket.resident
        if ticket.deadline == math.inf:
            self.stamp(ticket, now)
        self._counts[resident] = self._counts.get(resident, 0) + 1
        self.length += 1
        self._shares.add(ticket)
        line = self._lines.setdefault(resident, {})
        if (tickets := line.get(ticket.priority)) is not None:
            tickets[ticket] = None
            return False
        line[ticket.priority] = OrderedDict({ticket: None})
        self._place(resident, line)
        return True

    def stamp(self, ticket: Ticket, now: float) -> None:
        """Note when a ticket arrived, and so when it is overdue."""
        ticket.arrived_at = now
        wait_s = self._max_waits_s[ticket.priority]
        if ticket.priority != "high":
            wait_s = max(wait_s, self.patience_s(ticket.resident, now))
        ticket.deadline = now + wait_s

    def remove(self, ticket: Ticket) -> bool:
        """Take a ticket out, if it is there. Returns whether that changes whose turn it is, or when."""
        line = self._lines.get(ticket.resident, {})
        tickets = line.get(ticket.priority)
        if tickets is None or ticket not in tickets:
            return False
        was_first = ticket is next(iter(tickets))
        del tickets[ticket]
        self.length -= 1
        self._shares.remove(ticket)
        self._counts[ticket.resident] -= 1
        if not tickets:
            del line[ticket.priority]
        if was_first:
            self._place(ticket.resident, line)
        return was_first

    def take(self, resident: ResidentId) -> list[Ticket]:
        """Take out all tickets for a resident, in the order in which they came."""
        line = self._lines.get(resident)
        if line is None:
            return []
        taken = [ticket for tickets in line.values() for ticket in tickets]
        if len(line) > 1:
            taken.sort(key=lambda ticket: ticket.arrived_at)
        self.length -= len(taken)
        for ticket in taken:
            self._shares.remove(ticket)
        line.clear()
        self._place(resident, line)
        return taken

    def take_next(self, resident: ResidentId, now: float) -> Ticket | None:
        """Take out the next ticket for a resident: who is overdue the longest, else by priority and arrival (Rule 5)."""
        line = self._lines.get(resident)
        if line is None:
            return None
        heads = _heads_of(line)
        overdue = [head for head in heads if head.deadline <= now]
        if overdue:
            head = min(overdue, key=lambda head: head.deadline)
        else:
            head = min(heads, key=lambda head: (_RANK[head.priority], head.arrived_at))
        self.remove(head)
        return head

    def take_all(self) -> list[Ticket]:
        """Take out all tickets."""
        return [ticket for resident in tuple(self._lines) for ticket in self.take(resident)]

    def head(self, resident: ResidentId) -> Ticket | None:
        """Return the ticket for a resident that is overdue first."""
        line = self._lines.get(resident)
        if line is None:
            return None
        heads = _heads_of(line)
        return heads[0] if len(heads) == 1 else min(heads, key=lambda ticket: ticket.deadline)

    def first_deadline(self) -> float:
        """Return when the first of all tickets is or was overdue; infinity where none waits."""
        key = self._by_deadline.first_key()
        return math.inf if key is None else key[0]

    def next_deadline(self, now: float) -> float:
        """Return when the next resident's first ticket will be overdue that is not yet; infinity for none."""
        return next((key[0] for key, _ in self._by_deadline if key[0] > now), math.inf)

    def place(self, resident: ResidentId) -> Place:
        """Return the place by priority and arrival of a resident that is waited for."""
        return self._by_rank.of(resident)

    def overdue(self, now: float) -> Iterator[ResidentId]:
        """Yield who is overdue, the longest first."""
        for key, resident in self._by_deadline:
            if key[0] > now:
                break
            yield resident

    def in_turn(self, now: float) -> Iterator[ResidentId]:
        """Yield whose turn it is: who is overdue, the longest first, then by priority and arrival (Rule 5)."""
        seen = set[ResidentId]()
        for resident in self.overdue(now):
            seen.add(resident)
            yield resident
        for _, resident in self._by_rank:
            if resident not in seen:
                yield resident

    def first_in_turn(self, now: float, suits: Callable[[ResidentId], bool]) -> ResidentId | None:
        """Return the first in turn that suits."""
        return next((resident for resident in self.in_turn(now) if suits(resident)), None)

    def _place(self, resident: ResidentId, line: _Line) -> None:
        self.changed.add(resident)
        if not line:
            del self._lines[resident], self._counts[resident]
            self._by_deadline.drop(resident)
            self._by_rank.drop(resident)
            return
        heads = _heads_of(line)
        self._by_deadline.place(resident, min((head.deadline, head.arrived_at) for head in heads))
        self._by_rank.place(resident, min((_RANK[head.priority], head.arrived_at) for head in heads))


def _heads_of(line: _Line) -> list[Ticket]:
    return [next(iter(tickets)) for tickets in line.values()]
