"""Requests that wait for a look at their engine: nobody is stopped for a start that is known to be in vain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from engine_router.engines.base import ResidentId
from engine_router.residency import messages
from engine_router.residency.messages import Effect, Ticket


class Prechecks:
    """The looks under way, and the tickets that are not in the queue yet because of them."""

    def __init__(self) -> None:
        self._under_way: set[ResidentId] = set()
        self._parked: dict[ResidentId, dict[Ticket, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._parked.values()))

    def __iter__(self) -> Iterator[Ticket]:
        for tickets in self._parked.values():
            yield from tickets

    def counts(self) -> Mapping[ResidentId, int]:
        """Return how many tickets wait for each look."""
        return {resident: len(tickets) for resident, tickets in self._parked.items()}

    def count(self, resident: ResidentId) -> int:
        """Return how many tickets wait for a look at this resident's engine."""
        return len(self._parked.get(resident, ()))

    def park(self, ticket: Ticket) -> list[Effect]:
        """Let a ticket wait for a look."""
        self._parked.setdefault(ticket.resident, {})[ticket] = None
        return self.begin(ticket.resident)

    def begin(self, resident: ResidentId) -> list[Effect]:
        """Have a look, unless one is under way."""
        if resident in self._under_way:
            return []
        self._under_way.add(resident)
        return [messages.CheckStart(resident)]

    def end(self, resident: ResidentId) -> list[Ticket]:
        """Note the end of a look. Returns the tickets that waited for it, the oldest first."""
        self._under_way.discard(resident)
        return self.take(resident)

    def take(self, resident: ResidentId) -> list[Ticket]:
        """Take out the tickets that wait for a look, the oldest first. The look goes on."""
        return list(self._parked.pop(resident, ()))

    def remove(self, ticket: Ticket) -> bool:
        """Take a ticket out. Returns whether it was there."""
        tickets = self._parked.get(ticket.resident, {})
        if ticket not in tickets:
            return False
        del tickets[ticket]
        if not tickets:
            del self._parked[ticket.resident]
        return True

    def take_all(self) -> list[Ticket]:
        """Take out all tickets."""
        taken = list(self)
        self._parked.clear()
        return taken
