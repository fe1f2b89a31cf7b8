"""The ledger: who is resident in one pool, who waits, and what has to happen next.

Pure: no I/O, no clock, no tasks. Each event goes in with the time at which it happened; out comes the list
of effects that the supervisor performs. Everything that the router decides about residency is decided here.

The life of a resident::

    (absent) --Start--> STARTING --BecameReady--> READY <--> DRAINING --Stop--> STOPPING --Ended--> (absent)
                           |                                                      |
                           `-- abandoned, failed ----------------> settle     StopFailed --> STUCK

The rules of exclusive mode, in the order in which they are tested:

1. At most one resident is present, and none is started before the last one's memory has settled.
2. What waits when a resident becomes ready is granted at once, as one batch, before any deadline is tested.
3. While nobody else is overdue, the present resident's own requests go first (a swap costs far more than
   they do); a resident without leases yields at once to whoever waits.
4. When the oldest other ticket has waited `max_wait_s`, admission closes. The leases that exist may run for
   at least `max_wait_s` from the moment the resident was ready, and `drain_timeout_s` beyond; then they are
   revoked. So every batch gets a fair time to be served, and no ticket waits longer than its deadline plus
   one batch plus one swap.
5. The next resident is the one whose oldest ticket waits longest.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Iterator

from attrs import define, field, frozen

from engine_router.engines.base import ResidentId
from engine_router.errors import EngineDied, LeaseRevoked, QueueFull, RouterClosing, RouterError
from engine_router.residency.messages import (
    Acquire,
    Adopt,
    BecameReady,
    Close,
    Drain,
    Effect,
    Event,
    Grant,
    HasEnded,
    Refuse,
    Release,
    Resume,
    Revoke,
    Settle,
    Settled,
    Start,
    Stop,
    StopFailed,
    Tick,
    Ticket,
    Unload,
)


@frozen(kw_only=True)
class Rules:
    """The settings that the ledger obeys; seconds, but for `max_queue`."""

    drain_timeout_s: float = 30.0
    max_wait_s: float = 60.0
    abandon_grace_s: float = 2.0
    failed_start_memory_s: float = 5.0
    max_queue: int = 1000


class Phase(enum.Enum):
    """Where a present resident is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    STUCK = "stuck"


@define(eq=False)
class Residence:
    """A present resident.

    Attributes:
        resident: which.
        phase: where in its life.
        leases: the tickets that may use it now. In dicts, for their order: what is revoked first came first.
        ready_at: when it became ready.
        drain_deadline: when its leases are revoked, while draining.
        abandon_at: when its start is given up, while nobody waits for it.
        unloading: someone asked to have it gone.
        keep: it was found running, so its start goes on though nobody waits for it, as long as nobody
            waits for something else.
        failure: why its last stop failed, while stuck.
    """

    resident: ResidentId
    phase: Phase = Phase.STARTING
    leases: dict[Ticket, None] = field(factory=dict)
    ready_at: float = math.inf
    drain_deadline: float = math.inf
    abandon_at: float = math.inf
    unloading: bool = False
    keep: bool = False
    failure: RouterError | None = None


class Ledger:
    """The state of one pool and its rules. Not thread-safe; driven by one supervisor."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._queues: dict[ResidentId, deque[Ticket]] = {}
        self._present: Residence | None = None
        self._settling: ResidentId | None = None
        self._failures: dict[ResidentId, tuple[RouterError, float]] = {}
        self._closing_at = math.inf
        self._closing = False

    def __repr__(self) -> str:
        present = f"{self._present.resident} {self._present.phase.value}" if self._present else "empty"
        waiting = {str(resident): len(queue) for resident, queue in self._queues.items()}
        return f"<Ledger {present}, waiting {waiting}, settling {self._settling}>"

    @property
    def present(self) -> Residence | None:
        """The resident that is there, in whatever phase."""
        return self._present

    @property
    def settling(self) -> ResidentId | None:
        """The resident that has gone and whose memory is waited for."""
        return self._settling

    @property
    def is_closing(self) -> bool:
        """Whether the router goes down."""
        return self._closing

    @property
    def is_empty(self) -> bool:
        """Whether nothing is resident and no memory is waited for."""
        return self._present is None and self._settling is None

    def waiting(self) -> Iterator[Ticket]:
        """Yield the tickets that wait."""
        for queue in self._queues.values():
            yield from queue

    def place(self, ticket: Ticket) -> int:
        """Return how many tickets arrived before this one and still wait."""
        return sum(other.arrived_at < ticket.arrived_at for other in self.waiting())

    def wake_at(self) -> float:
        """Return when the ledger wants a `Tick`, if nothing happens before; infinity for never."""
        present = self._present
        if present is None:
            return math.inf
        if present.phase is Phase.STARTING:
            return present.abandon_at
        if present.phase is Phase.DRAINING:
            return present.drain_deadline
        if present.phase is Phase.READY and (other := self._oldest_other(present.resident)) is not None:
            return other.arrived_at + self._rules.max_wait_s
        return math.inf

    def apply(self, event: Event, now: float) -> list[Effect]:  # noqa: C901 - one branch for each event
        """Take in one event and return what has to be done, in order.

        Args:
            event: what happened.
            now: the time of the supervisor's clock, in seconds; never less than at an earlier call.
        """
        effects: list[Effect] = []
        batch = False
        match event:
            case Acquire(ticket):
                effects += self._enter(ticket, now)
            case Release(ticket):
                self._withdraw(ticket)
            case BecameReady(resident):
                batch = self._became_ready(resident, now)
            case HasEnded(resident, error):
                effects += self._ended(resident, error, now)
            case StopFailed(resident, error):
                effects += self._stop_failed(resident, error)
            case Settled():
                self._settling = None
            case Adopt(resident):
                effects += self._adopt(resident)
            case Unload(resident):
                if self._present is not None and self._present.resident == resident:
                    self._present.unloading = True
            case Close(deadline):
                effects += self._close(deadline)
            case Tick():
                pass
        effects += self._plan(now, batch=batch)
        return effects

    # What each event changes.

    def _enter(self, ticket: Ticket, now: float) -> list[Effect]:
        if self._closing:
            return [Refuse(ticket, RouterClosing("the router is shutting down"))]
        error, until = self._failures.get(ticket.resident, (None, 0.0))
        if error is not None and now < until:
            return [Refuse(ticket, error)]
        self._failures.pop(ticket.resident, None)
        if not self._admits(ticket, now) and sum(1 for _ in self.waiting()) >= self._rules.max_queue:
            return [Refuse(ticket, QueueFull(f"{self._rules.max_queue} requests are waiting already"))]
        ticket.arrived_at = now
        self._queues.setdefault(ticket.resident, deque()).append(ticket)
        return []

    def _admits(self, ticket: Ticket, now: float) -> bool:
        """Tell whether a ticket would be granted at once: what does not wait needs no room in the queue."""
        present = self._present
        return (
            present is not None
            and present.resident == ticket.resident
            and present.phase is Phase.READY
            and self._reason_to_yield(present, now) is None
        )

    def _withdraw(self, ticket: Ticket) -> None:
        """Forget a ticket, wherever it is. A ticket that is nowhere (refused, revoked) is forgotten already."""
        if self._present is not None:
            self._present.leases.pop(ticket, None)
        queue = self._queues.get(ticket.resident)
        if queue is not None and ticket in queue:
            queue.remove(ticket)
            if not queue:
                del self._queues[ticket.resident]

    def _became_ready(self, resident: ResidentId, now: float) -> bool:
        present = self._present
        if present is None or present.resident != resident or present.phase is not Phase.STARTING:
            return False  # its stop was decided before the news arrived
        present.phase = Phase.READY
        present.ready_at = now
        present.abandon_at = math.inf
        return True

    def _ended(self, resident: ResidentId, error: RouterError | None, now: float) -> list[Effect]:
        present = self._present
        if present is None or present.resident != resident:
            return []
        self._present = None
        self._settling = resident
        effects: list[Effect] = []
        lost = error or EngineDied(resident.engine, "ended")
        effects += [Revoke(ticket, lost) for ticket in present.leases]
        # A takeover that came too late is no failed start: what waits for it is started properly.
        if present.phase is Phase.STARTING and error is not None and not present.keep:
            self._failures[resident] = (error, now + self._rules.failed_start_memory_s)
            effects += [Refuse(ticket, error) for ticket in self._queues.pop(resident, ())]
        return [*effects, Settle(resident)]

    def _stop_failed(self, resident: ResidentId, error: RouterError) -> list[Effect]:
        """Nothing may be started beside what could not be stopped: everybody who waits is told.

        When the router goes down nothing will be started any more, and the resident is left behind.
        """
        present = self._present
        if present is None or present.resident != resident:
            return []
        effects: list[Effect] = [Revoke(ticket, error) for ticket in present.leases]
        effects += [Refuse(ticket, error) for ticket in self.waiting()]
        self._queues.clear()
        present.leases.clear()
        present.phase = Phase.STUCK
        present.failure = error
        present.unloading = False
        if self._closing:
            self._present = None
        return effects

    def _adopt(self, resident: ResidentId) -> list[Effect]:
        if self._present is not None or self._settling is not None or self._closing:
            return []
        self._present = Residence(resident, keep=True)
        return [Start(resident, "found running", adopt=True)]

    def _close(self, deadline: float) -> list[Effect]:
        self._closing = True
        self._closing_at = min(deadline, self._closing_at)
        error = RouterClosing("the router is shutting down")
        effects: list[Effect] = [Refuse(ticket, error) for ticket in self.waiting()]
        self._queues.clear()
        return effects

    # What follows from the state.

    def _plan(self, now: float, *, batch: bool) -> list[Effect]:
        present = self._present
        if present is None:
            return self._plan_start()
        if present.phase is Phase.STARTING:
            return self._plan_starting(present, now)
        if present.phase is Phase.READY:
            return self._plan_ready(present, now, batch=batch)
        if present.phase is Phase.DRAINING:
            return self._plan_draining(present, now)
        if present.phase is Phase.STUCK and (self._queues or self._closing or present.unloading):
            return self._stop(present, "stopping it again, since it could not be stopped before")
        return []

    def _plan_start(self) -> list[Effect]:
        if self._settling is not None or self._closing:
            return []
        ticket = self._oldest_other(None)
        if ticket is None:
            return []
        self._present = Residence(ticket.resident)
        return [Start(ticket.resident, "requested")]

    def _plan_starting(self, present: Residence, now: float) -> list[Effect]:
        if self._closing:
            return self._stop(present, "shutting down")
        if present.unloading:
            return self._stop(present, "unload asked for")
        if present.resident in self._queues or (present.keep and not self._queues):
            present.abandon_at = math.inf
            return []
        if present.abandon_at == math.inf:
            present.abandon_at = now + self._rules.abandon_grace_s
        if now >= present.abandon_at:
            return self._stop(present, "nobody waits for it any more")
        return []

    def _plan_ready(self, present: Residence, now: float, *, batch: bool) -> list[Effect]:
        effects = self._grant(present) if batch else []
        cause = self._reason_to_yield(present, now)
        if cause is None:
            effects += self._grant(present)
            other = self._oldest_other(present.resident)
            if other is None or present.leases:
                return effects
            return effects + self._stop(present, f"{other.resident} is wanted")
        if not present.leases:
            return effects + self._stop(present, cause)
        present.phase = Phase.DRAINING
        if self._closing:
            present.drain_deadline = self._closing_at
        elif present.unloading:
            present.drain_deadline = now + self._rules.drain_timeout_s
        else:
            fair = max(now, present.ready_at + self._rules.max_wait_s)
            present.drain_deadline = fair + self._rules.drain_timeout_s
        return [*effects, Drain(present.resident, cause, self._wanted(present.resident))]

    def _plan_draining(self, present: Residence, now: float) -> list[Effect]:
        cause = self._reason_to_yield(present, now)
        if cause is None:
            present.phase = Phase.READY
            present.drain_deadline = math.inf
            return [Resume(present.resident), *self._plan_ready(present, now, batch=False)]
        if self._closing:
            present.drain_deadline = min(present.drain_deadline, self._closing_at)
        elif present.unloading:  # asked for while it drained already
            present.drain_deadline = min(present.drain_deadline, now + self._rules.drain_timeout_s)
        if not present.leases:
            return self._stop(present, cause)
        if now < present.drain_deadline:
            return []
        error = LeaseRevoked(f"the engine was needed ({cause}) and the drain deadline has passed")
        effects: list[Effect] = [Revoke(ticket, error) for ticket in present.leases]
        present.leases.clear()
        return effects + self._stop(present, cause)

    def _grant(self, present: Residence) -> list[Effect]:
        queue = self._queues.pop(present.resident, ())
        present.leases.update(dict.fromkeys(queue))
        return [Grant(ticket) for ticket in queue]

    def _stop(self, present: Residence, cause: str) -> list[Effect]:
        present.phase = Phase.STOPPING
        present.failure = None
        return [Stop(present.resident, cause, self._wanted(present.resident))]

    def _reason_to_yield(self, present: Residence, now: float) -> str | None:
        """Tell why admission to the present resident is closed, or None where it is open."""
        if self._closing:
            return "shutting down"
        if present.unloading:
            return "unload asked for"
        other = self._oldest_other(present.resident)
        if other is not None and now >= other.arrived_at + self._rules.max_wait_s:
            return f"{other.resident} has waited {self._rules.max_wait_s:g} s"
        return None

    def _wanted(self, resident: ResidentId) -> ResidentId | None:
        other = self._oldest_other(resident)
        return other.resident if other is not None else None

    def _oldest_other(self, resident: ResidentId | None) -> Ticket | None:
        """Return the ticket that waits longest for something else than `resident`."""
        if not self._queues:
            return None
        heads = (queue[0] for key, queue in self._queues.items() if key != resident)
        return min(heads, key=lambda ticket: ticket.arrived_at, default=None)
