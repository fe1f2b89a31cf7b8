"""The memories that are planned together: their ledger, their leases, and the tasks of their residents."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import trio

from engine_router.engines.base import ResidentId
from engine_router.memory import Own
from engine_router.residency.lease import Lease
from engine_router.residency.ledger import Ledger
from engine_router.residency.messages import LedgerEvent, Ticket
from engine_router.residency.pool import Pool
from engine_router.residency.resident_task import MemoryShare, ResidentTask
from engine_router.residency.rules import Capacity
from engine_router.residency.swap_tracker import SwapTracker


class Domain:
    """The memories that are planned together, since residents lie across them; most are alone.

    Args:
        outbox: the way to the supervisor, for what has to be decided.

    Attributes:
        pools: by their names.
        tasks: the residents that have a task now.
        leases: every lease that is not given back yet, by its ticket.
        gone: the tasks that have ended and whose memory is waited for.
        stuck: the tasks whose last stop failed.
        behind: the number of events on their way to the ledger.
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        ledger: Ledger,
        swap_tracker: SwapTracker,
        outbox: trio.MemorySendChannel[tuple[Domain, LedgerEvent]],
    ) -> None:
        self.pools = pools
        self.ledger = ledger
        self.swap_tracker = swap_tracker
        self.tasks: dict[ResidentId, ResidentTask] = {}
        self.leases: dict[Ticket, Lease] = {}
        self.gone: dict[ResidentId, ResidentTask] = {}
        self.stuck: dict[ResidentId, ResidentTask] = {}
        self._outbox = outbox
        self.behind = self._sent = 0
        self._changed: trio.Event | None = None

    @property
    def is_closed(self) -> bool:
        """Whether nothing is resident, no memory is waited for, no task runs, and none ever will again."""
        return self.ledger.is_closing and self.ledger.is_empty and not self.tasks

    def capacity(self, pool: str) -> Capacity:
        """Return what one of its memories can hold."""
        return self.ledger.budget.capacities[pool]

    def pools_of(self, resident: ResidentId) -> list[Pool]:
        """Return the pools that a resident takes from."""
        return [self.pools[name] for name in self.places(resident)]

    def places(self, resident: ResidentId) -> tuple[str, ...]:
        """Return their names, the first one first: that is the pool of events that concern a resident as a whole."""
        return self.ledger.budget.places(resident)

    def shares(self, task: ResidentTask) -> list[tuple[Pool, MemoryShare]]:
        """Return the pools in which a resident lies, with what each one's gauge showed of it."""
        return [(self.pools[name], share) for name, share in task.shares.items()]

    def note_change(self) -> None:
        """Wake whoever waits for a change; costs next to nothing while nobody does."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def tell(self, event: LedgerEvent) -> None:
        """Send an event to the supervisor. Never waits; the event is lost where nobody decides any more."""
        with contextlib.suppress(trio.BrokenResourceError):
            self._outbox.send_nowait((self, event))
            self._sent += 1
            self.behind += 1

    def note_taken(self) -> None:
        """Note that the ledger has taken in the oldest of the events on their way."""
        self.behind -= 1

    def note_end(self) -> None:
        """Note that no event will be taken in any more."""
        self.behind = 0
        self.note_change()

    async def caught_up(self) -> None:
        """Wait until the ledger has taken in everything that was told until now."""
        sent = self._sent
        await trio.lowlevel.checkpoint()
        while self._sent - self.behind < sent:
            await self.change()

    async def change(self) -> None:
        """Wait until the ledger has taken in another event."""
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def engines(self) -> Iterator[str]:
        """Yield the engines that have something in this memory, or are waited for; one may come more than once."""
        present = (state.resident for state in self.ledger.states)
        wanted = (lease.resident for lease in self.leases.values() if lease.error is None)
        for resident in (*present, *self.ledger.settling, *wanted):
            yield resident.engine


def own_of(domains: Iterable[Domain]) -> Own:
    """Return what belongs to the router and to the residents of all memories."""
    tasks = (task for domain in domains for task in (*domain.tasks.values(), *domain.stuck.values()))
    return Own.of((task.endpoint.pid, task.endpoint.base_url) for task in tasks if task.endpoint is not None)
