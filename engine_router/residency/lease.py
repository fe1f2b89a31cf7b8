"""A lease as its holder sees it: waited for, used, given back, and sometimes taken away."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio
from attrs import define, field

from engine_router.engines.base import Endpoint, ResidentId
from engine_router.errors import RouterError
from engine_router.residency.messages import Ticket


@define(eq=False, repr=False)
class Lease:
    """The right to use a resident, from the request for it until it is given back.

    Entering a ticket, giving it back and taking it away are synchronous, so that a cancelled request needs
    no further step to leave nothing behind. Only `granted` waits, and it may be cancelled and called again:
    the place in the queue is kept until `release`.

    Attributes:
        ticket: its entry in the ledger.
        requested_at: the supervisor's clock when it was entered, in seconds.
        granted_at: the same, when it was granted; infinity before.
        load_wait_s: seconds of that wait in which the resident was started.
        endpoint: where the resident answers; None until granted.
        error: why it was refused or revoked; None otherwise.
    """

    ticket: Ticket
    requested_at: float
    _give_back: Callable[[Lease], None]
    granted_at: float = math.inf
    load_wait_s: float = 0.0
    endpoint: Endpoint | None = None
    error: RouterError | None = None
    # Most leases are granted at once, and never lost: events are made for those who wait for them.
    _decided: trio.Event | None = None
    _lost: trio.Event | None = None
    _released: bool = False
    _on_revoke: list[Callable[[], object]] = field(factory=list)

    @property
    def resident(self) -> ResidentId:
        """The resident that the lease is for."""
        return self.ticket.resident

    @property
    def lasts(self) -> bool:
        """True if the resident is always there, so that no news of its end will come."""
        return self.endpoint is not None and self.endpoint.is_lasting

    @property
    def queue_wait_s(self) -> float:
        """Seconds between the request and the grant."""
        return self.granted_at - self.requested_at

    async def granted(self) -> Endpoint:
        """Wait until the resident may be used, and return where it answers.

        Cancellation keeps the place in the queue; `release` gives it up. What was decided already is returned
        at once, without letting other tasks run.

        Raises:
            RouterError: the request was refused, or the lease was revoked meanwhile.
        """
        if self.endpoint is None and self.error is None:
            if self._decided is None:
                self._decided = trio.Event()
            await self._decided.wait()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        if self.error is not None:
            # One error may go to many waiters, again and again: none gets the traceback of another.
            raise self.error.with_traceback(None)
        if self.endpoint is None:
            raise RuntimeError("a lease was decided without an outcome")
        return self.endpoint

    async def lost(self) -> None:
        """Wait until the lease is taken away (or was refused); `error` then says why."""
        if self.error is not None:
            await trio.lowlevel.checkpoint()
            return
        if self._lost is None:
            self._lost = trio.Event()
        await self._lost.wait()

    def release(self) -> None:
        """Give the lease back, or withdraw the request for it. Never waits; may be called again."""
        if not self._released:
            self._released = True
            self._on_revoke.clear()
            self._give_back(self)

    def on_revoke(self, callback: Callable[[], object]) -> None:
        """Call `callback` if the lease is taken away before it is given back (at once if it was already)."""
        if self.error is not None:
            callback()
        elif not self._released:
            self._on_revoke.append(callback)

    # For the supervisor.

    def grant(self, endpoint: Endpoint, now: float) -> None:
        """Hand over the right to use the resident."""
        self.endpoint = endpoint
        self.granted_at = now
        if self._decided is not None:
            self._decided.set()

    def refuse(self, error: RouterError) -> None:
        """Refuse the request, or take the lease away."""
        if self.error is None:
            self.error = error
            for next_events in (self._decided, self._lost):
                if next_events is not None:
                    next_events.set()
            callbacks, self._on_revoke = self._on_revoke, []
            for callback in callbacks:
                callback()
