"""The state of a present resident, in whatever phase."""

from __future__ import annotations

import enum
import math
from typing import Final

from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.errors import RouterError
from engine_router.residency.messages import Ticket

# The share of the newest lease in what leases take.
_NEWEST: Final = 0.2


class Phase(enum.Enum):
    """The phase of a present resident."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    STUCK = "stuck"


@define(eq=False, repr=False)
class ResidentState:
    """A present resident.

    Attributes:
        resident: which.
        needs: what it takes of the budget of each pool in which it lies; 0 where there is none.
        short: what was found missing in each before its start, and is not being made room for yet.
        groups: whom it shares the memory with; see `Profile`.
        pinned, idle_timeout_s, is_always_there: see `Profile`.
        phase: see `Phase`.
        leases: the tickets that may use it now, each with when that began. What is revoked first came first.
        most_leases: that many may use it: all that its profile allows, and none while it is shut.
        is_shut: it cannot be reached, so that nobody else may use it.
        lease_s: seconds that its leases take, about; None where that is not known. Only where they are limited.
        ready_at: when it became ready.
        idle_since: when its last lease ended, or it became ready for nobody; infinity while it is used.
        busy_since: when it was idle last.
        uses: the leases since then.
        held_until: when it may be stopped for somebody else, once that was worked out for this idleness.
        expires_at: when it is stopped for being idle.
        keep_alive_s: what the last ticket that had a wish said of its idle timeout; None: as configured.
        drain_deadline: when its leases are revoked, while draining.
        drain_cause: why it drains.
        makes_way_for: who waits for it to go, while draining.
        abandon_at: when its start is given up, while nobody waits for it.
        unloading: someone asked to have it gone.
        unload_by: when its leases are revoked for that.
        down: why it has to go at once, leases or not.
        keep: its start goes on though nobody waits for it, as long as it is in nobody's way: it was found
            running, or is loaded ahead of any request.
        found: it was found running: no start has to be remembered as failed.
        failure: why its last stop failed, while stuck.
    """

    resident: ResidentId
    needs: dict[str, float] = field(factory=dict)
    short: dict[str, float] = field(factory=dict)
    groups: tuple[str, ...] = ()
    pinned: bool = False
    idle_timeout_s: float = math.inf
    phase: Phase = Phase.STARTING
    is_always_there: bool = False
    leases: dict[Ticket, float] = field(factory=dict)
    most_leases: float = math.inf
    is_shut: bool = False
    lease_s: float | None = None
    ready_at: float = math.inf
    idle_since: float = math.inf
    busy_since: float = math.inf
    uses: int = 0
    held_until: float | None = None
    expires_at: float = math.inf
    keep_alive_s: float | None = None
    drain_deadline: float = math.inf
    drain_cause: str = ""
    makes_way_for: ResidentId | None = None
    abandon_at: float = math.inf
    unloading: bool = False
    unload_by: float = math.inf
    down: RouterError | None = None
    keep: bool = False
    found: bool = False
    failure: RouterError | None = None

    @property
    def need_bytes(self) -> float:
        """What it takes of all its pools together."""
        return sum(self.needs.values())

    @property
    def is_idle(self) -> bool:
        """Whether it could serve, and nobody uses it."""
        return self.phase is Phase.READY and not self.leases

    @property
    def is_open(self) -> bool:
        """Whether it serves, and can be reached."""
        return self.phase is Phase.READY and not self.is_shut

    @property
    def is_leaving(self) -> bool:
        """Whether its end is decided for good, whoever waits."""
        is_forced = self.unloading or self.down is not None
        return self.phase is Phase.STOPPING or (self.phase is Phase.DRAINING and is_forced)

    def lend(self, ticket: Ticket, now: float) -> None:
        """Let a ticket use it."""
        if not self.leases:
            self.busy_since, self.uses = now, 0
        self.uses += 1
        self.leases[ticket] = now
        self.idle_since = self.expires_at = math.inf
        self.held_until = None

    def take_back(self, ticket: Ticket, now: float) -> float:
        """End a lease. Returns how many seconds it took."""
        took_s = now - self.leases.pop(ticket)
        if self.most_leases < math.inf:
            self.lease_s = (
                took_s if self.lease_s is None else self.lease_s + (took_s - self.lease_s) * _NEWEST
            )
        if ticket.keep_alive_s is not None:
            self.keep_alive_s = ticket.keep_alive_s
        if not self.leases:
            self.idle_since = now
        return took_s

    def take_all_back(self) -> list[Ticket]:
        """End all leases. Returns them, the oldest first."""
        taken = list(self.leases)
        self.leases.clear()
        return taken
