"""What goes into the ledger and what comes out: tickets, events and effects."""

from __future__ import annotations

from attrs import define, frozen

from engine_router.engines.base import ResidentId
from engine_router.errors import RouterError


@define(eq=False)
class Ticket:
    """A request waiting for a resident and, once granted, its lease.

    Attributes:
        resident: what it waits for.
        arrived_at: when it was entered.
    """

    resident: ResidentId
    arrived_at: float = 0.0


# Events: what happened.


@frozen
class Acquire:
    """A request wants a resident."""

    ticket: Ticket


@frozen
class Release:
    """A request is done with its ticket, granted or not."""

    ticket: Ticket


@frozen
class BecameReady:
    """A start succeeded."""

    resident: ResidentId


@frozen
class HasEnded:
    """A resident is gone. `error` says why, unless its stop had been asked for."""

    resident: ResidentId
    error: RouterError | None


@frozen
class StopFailed:
    """A resident is still there though its stop was asked for."""

    resident: ResidentId
    error: RouterError


@frozen
class Settled:
    """The memory of the last resident is back, or was waited for as long as allowed."""


@frozen
class Adopt:
    """A resident was found running when the router started."""

    resident: ResidentId


@frozen
class Unload:
    """Someone asked for a resident to be stopped."""

    resident: ResidentId


@frozen
class Close:
    """The router goes down: leases may run until `deadline`, then everything stops."""

    deadline: float


@frozen
class Tick:
    """Time has passed."""


Event = Acquire | Release | BecameReady | HasEnded | StopFailed | Settled | Adopt | Unload | Close | Tick

# Effects: what has to be done about it.


@frozen
class Grant:
    """Hand the ticket its lease."""

    ticket: Ticket


@frozen
class Refuse:
    """Tell the ticket's request why it will not be served."""

    ticket: Ticket
    error: RouterError


@frozen
class Revoke:
    """Take the lease away: end the request with this error."""

    ticket: Ticket
    error: RouterError


@frozen
class Start:
    """Start a resident; `adopt` where it runs already."""

    resident: ResidentId
    cause: str
    adopt: bool = False


@frozen
class Drain:
    """A resident was closed to new leases. For the record: nothing is to be done.

    `wanted` is what waits for it to go, in this effect and in `Stop`.
    """

    resident: ResidentId
    cause: str
    wanted: ResidentId | None


@frozen
class Resume:
    """A draining resident was opened again, since nobody else waits any more. For the record."""

    resident: ResidentId


@frozen
class Stop:
    """Stop a resident."""

    resident: ResidentId
    cause: str
    wanted: ResidentId | None


@frozen
class Settle:
    """Wait until the memory of a resident that has gone is back, then report `Settled`."""

    resident: ResidentId


Effect = Grant | Refuse | Revoke | Start | Drain | Resume | Stop | Settle
