"""One memory as the supervisor sees it: its ledger, its leases, and the tasks of its residents."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import trio

from engine_router.engines.base import ResidentId
from engine_router.memory import Own
from engine_router.residency.lease import Lease
from engine_router.residency.ledger import Ledger
from engine_router.residency.messages import LedgerEvent, Ticket
from engine_router.residency.other_programs import OtherPrograms
from engine_router.residency.pool_memory import PoolMemory
from engine_router.residency.resident_task import ResidentTask
from engine_router.residency.rules import Capacity
from engine_router.residency.swap_tracker import SwapTracker


class Pool:
    """One memory and the residents that share it.

    Args:
        outbox: the way to the supervisor, for what has to be decided.

    Attributes:
        tasks: the residents that have a task now.
        leases: every lease that is not given back yet, by its ticket.
        gone: the tasks that have ended and whose memory is waited for.
        stuck: the tasks whose last stop failed.
        behind: the number of events on their way to the ledger.
    """

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        memory: PoolMemory,
        others: OtherPrograms,
        swap_tracker: SwapTracker,
        outbox: trio.MemorySendChannel[tuple[Pool, LedgerEvent]],
    ) -> None:
        self.name = name
        self.ledger = ledger
        self.memory = memory
        self.others = others
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

    @property
    def has_memory(self) -> bool:
        """Whether it is a memory, and not what remotes have in its place."""
        return not self.capacity.is_boundless

    @property
    def capacity(self) -> Capacity:
        """What the memory can hold."""
        return self.ledger.budget.capacities[self.name]

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


def own_of(pools: Iterable[Pool]) -> Own:
    """Return what belongs to the router and to the residents of all pools."""
    tasks = (task for pool in pools for task in (*pool.tasks.values(), *pool.stuck.values()))
    return Own.of((task.endpoint.pid, task.endpoint.base_url) for task in tasks if task.endpoint is not None)
