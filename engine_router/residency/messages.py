"""Tickets, the events that go into the ledger, and the effects that come out.

Structs of msgspec: they are made by its C code, at import and at every request, where attrs compiles code of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import Struct

from engine_router.config import Priority
from engine_router.engines.base import ResidentId
from engine_router.errors import RouterError
from engine_router.residency.rules import Capacity, Rules


class Ticket(Struct, eq=False, weakref=True):
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


class Acquire(Struct, frozen=True):
    """A request wants a resident."""

    ticket: Ticket


class Release(Struct, frozen=True):
    """A request is done with its ticket, granted or not."""

    ticket: Ticket


class GivenBack(Struct, frozen=True):
    """A lease has been given back: the last one of its resident, or one whose place another waits for."""

    resident: ResidentId


class BecameReady(Struct, frozen=True):
    """A start succeeded."""

    resident: ResidentId


class Weighed(Struct, frozen=True):
    """The need of a resident is known now, or known better: in one pool, or in the only one in which it lies."""

    resident: ResidentId
    need_bytes: int
    pool: str | None = None


class Short(Struct, frozen=True):
    """Before a start, so much less memory turned out to be free than the resident needs; `pool` as in `Weighed`."""

    resident: ResidentId
    missing_bytes: int
    pool: str | None = None


class Pressed(Struct, frozen=True):
    """Other programs take the memory of a pool: idle residents shall go until so many bytes more are free.

    Until `Relieved`, nothing is loaded there ahead of requests.
    """

    pool: str
    missing_bytes: int


class Relieved(Struct, frozen=True):
    """Other programs have given back what they took of a pool."""

    pool: str


class HasEnded(Struct, frozen=True):
    """A resident is gone. `error` says why, unless its stop had been asked for."""

    resident: ResidentId
    error: RouterError | None


class StopFailed(Struct, frozen=True):
    """A resident is still there though its stop was asked for."""

    resident: ResidentId
    error: RouterError


class Settled(Struct, frozen=True):
    """The memory of a resident that had gone is back, or was waited for as long as allowed.

    `pool` says in which, where it lay across several; None: in all of them.
    """

    resident: ResidentId
    pool: str | None = None


class Down(Struct, frozen=True):
    """A resident is there, but does not do its work any more."""

    resident: ResidentId
    error: RouterError


class Shut(Struct, frozen=True):
    """A resident cannot be reached: it takes no more requests. Those under way go on; others are refused until a time."""

    resident: ResidentId
    error: RouterError
    until: float


class Opened(Struct, frozen=True):
    """A resident that was shut can be reached again."""

    resident: ResidentId


class Checked(Struct, frozen=True):
    """An engine was looked at. `objection` says why a start would be in vain; None where nothing is known."""

    resident: ResidentId
    objection: RouterError | None


class Adopt(Struct, frozen=True):
    """A resident was found running when the router started."""

    resident: ResidentId


class Preload(Struct, frozen=True):
    """Residents to be started before anybody asks, in this order, as far as they fit together."""

    residents: tuple[ResidentId, ...]


class Unload(Struct, frozen=True):
    """Someone asked for a resident to be stopped."""

    resident: ResidentId


class KeepAlive(Struct, frozen=True):
    """Someone said how long a resident shall stay once it is idle; `seconds` as a ticket's `keep_alive_s`.

    None leaves that as it is: it is counted from now, since others use it than the router's clients.
    """

    resident: ResidentId
    seconds: float | None


class Pin(Struct, frozen=True):
    """Someone pinned a resident, or took its pin away."""

    resident: ResidentId
    pinned: bool


class Reset(Struct, frozen=True):
    """Someone wants a resident's failures forgotten."""

    resident: ResidentId


class Reconfigured(Struct, frozen=True):
    """The configuration has changed; profiles may say something else now, too."""

    rules: Rules
    capacities: Mapping[str, Capacity]


class Close(Struct, frozen=True):
    """The router goes down: leases may run until `deadline`, then everything stops."""

    deadline: float


class Tick(Struct, frozen=True):
    """Time has passed."""


LedgerEvent = (
    Acquire
    | Release
    | GivenBack
    | BecameReady
    | Weighed
    | Short
    | Pressed
    | Relieved
    | HasEnded
    | StopFailed
    | Settled
    | Down
    | Shut
    | Opened
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


class Grant(Struct, frozen=True):
    """Hand the ticket its lease."""

    ticket: Ticket


class Refuse(Struct, frozen=True):
    """Tell the ticket's request why it will not be served."""

    ticket: Ticket
    error: RouterError


class Revoke(Struct, frozen=True):
    """Take the lease away: end the request with this error."""

    ticket: Ticket
    error: RouterError


class Start(Struct, frozen=True):
    """Start a resident; `adopt` where it runs already."""

    resident: ResidentId
    cause: str
    adopt: bool = False


class Drain(Struct, frozen=True):
    """A resident was closed to new leases. For the record: nothing is to be done.

    `wanted` is what waits for it to go, in this effect and in `Stop`.
    """

    resident: ResidentId
    cause: str
    wanted: ResidentId | None


class Resume(Struct, frozen=True):
    """A draining resident was opened again, since nobody needs its room any more. For the record."""

    resident: ResidentId


class Stop(Struct, frozen=True):
    """Stop a resident."""

    resident: ResidentId
    cause: str
    wanted: ResidentId | None


class Settle(Struct, frozen=True):
    """Wait until the memory of a resident that has gone is back, then report `Settled`."""

    resident: ResidentId


class CheckStart(Struct, frozen=True):
    """Look whether a start would be in vain, then report `Checked`."""

    resident: ResidentId


class Forget(Struct, frozen=True):
    """Forget a resident that could not be stopped: it is taken to be gone."""

    resident: ResidentId


Effect = CheckStart | Grant | Refuse | Revoke | Start | Drain | Resume | Stop | Settle | Forget
