"""Tickets, the events that go into the ledger, and the effects that come out."""

from __future__ import annotations

import math

from attrs import define, frozen

from engine_router.config import Priority
from engine_router.engines.base import ResidentId
from engine_router.errors import RouterError
from engine_router.residency.rules import Capacity, Rules


@define(eq=False)
class Ticket:
    """A request waiting for a resident and, once granted, its lease.

    Attributes:
        resident: what it waits for.
        priority: how much it matters.
        keep_alive_s: seconds that the resident shall stay once it is idle: infinity or less than zero for
            ever, 0 not at all; None leaves that as it is.
        client: who waits, by any name; where the queue is full, clients share it. Empty where nobody is named.
        is_control: it was asked for by the person who runs the router, and needs no room in a queue.
        arrived_at: when it was entered.
        deadline: when it is overdue.
    """

    resident: ResidentId
    priority: Priority = "normal"
    keep_alive_s: float | None = None
    client: str = ""
    is_control: bool = False
    arrived_at: float = 0.0
    deadline: float = math.inf


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
class Idle:
    """The last lease of a resident has been given back."""

    resident: ResidentId


@frozen
class BecameReady:
    """A start succeeded."""

    resident: ResidentId


@frozen
class Weighed:
    """The need of a resident is known now, or known better."""

    resident: ResidentId
    need_bytes: int


@frozen
class Short:
    """Before a start, so much less memory turned out to be free than the resident needs."""

    resident: ResidentId
    missing_bytes: int


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
    """The memory of a resident that had gone is back, or was waited for as long as allowed."""

    resident: ResidentId


@frozen
class Down:
    """A resident is there, but does not do its work any more."""

    resident: ResidentId
    error: RouterError


@frozen
class Checked:
    """An engine was looked at. `objection` says why a start would be in vain; None where nothing is known."""

    resident: ResidentId
    objection: RouterError | None


@frozen
class Adopt:
    """A resident was found running when the router started."""

    resident: ResidentId


@frozen
class Preload:
    """Residents to be started before anybody asks, in this order, as far as they fit together."""

    residents: tuple[ResidentId, ...]


@frozen
class Unload:
    """Someone asked for a resident to be stopped."""

    resident: ResidentId


@frozen
class KeepAlive:
    """Someone said how long a resident shall stay once it is idle; `seconds` as a ticket's `keep_alive_s`."""

    resident: ResidentId
    seconds: float


@frozen
class Pin:
    """Someone pinned a resident, or took its pin away."""

    resident: ResidentId
    pinned: bool


@frozen
class Reset:
    """Someone wants a resident's failures forgotten."""

    resident: ResidentId


@frozen
class Reconfigured:
    """The configuration has changed; profiles may say something else now, too."""

    rules: Rules
    capacity: Capacity


@frozen
class Close:
    """The router goes down: leases may run until `deadline`, then everything stops."""

    deadline: float


@frozen
class Tick:
    """Time has passed."""


LedgerEvent = (
    Acquire
    | Release
    | Idle
    | BecameReady
    | Weighed
    | Short
    | HasEnded
    | StopFailed
    | Settled
    | Down
    | Checked
    | Adopt
    | Preload
    | Unload
    | Reconfigured
    | KeepAlive
    | Pin
    | Reset
    | Close
    | Tick
)

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
    """A draining resident was opened again, since nobody needs its room any more. For the record."""

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


@frozen
class CheckStart:
    """Look whether a start would be in vain, then report `Checked`."""

    resident: ResidentId


@frozen
class Forget:
    """Forget a resident that could not be stopped: it is taken to be gone."""

    resident: ResidentId


Effect = CheckStart | Grant | Refuse | Revoke | Start | Drain | Resume | Stop | Settle | Forget
