"""Requests in flight: what each holds, a registry by which people see and end them, and the memory of their bodies.

A request that waits for its model holds its body all the while: as it came, without its content encoding, and in the
words of its engine. That memory is counted for all requests together, and bounded.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping

import attrs
import trio
from attrs import define, field

from engine_router.config import Priority
from engine_router.engines.base import Endpoint, ResidentId
from engine_router.errors import NoSuchRoute, RequestCancelled, RouterError, TooMuchHeld
from engine_router.events import EventHub, RequestEnded
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import HELD_RETRY_S, REMEMBERED_PATHS
from engine_router.residency.lease import Lease
from engine_router.residency.messages import Ticket
from engine_router.residency.supervisor import Supervisor

CLIENT_LEFT = 499


new_id: Callable[[], str] = map("r{}".format, itertools.count(1)).__next__
"""Returns an id that no request of this process has yet: `r1`, `r2` and so on."""


@functools.lru_cache(REMEMBERED_PATHS)
def _shown_path(path: str) -> str:
    return shown(path)


@define(eq=False, repr=False)
class LeaseHolder:
    """The use that a request makes of a resident, or its wait for that: by one lease at a time.

    Attributes:
        resident: what it uses.
        lease: the place in the queue, then the right to use the resident; None before `enter`. It may be another one
            after a while, where the request queues up again.
        queue_wait_s: seconds until the lease was granted; NaN before.
        first_byte_s: seconds until the answer's first byte; NaN before.
        entered_at: trio's clock when it took its first place in the queue; NaN before.
    """

    _supervisor: Supervisor
    resident: ResidentId
    lease: Lease | None = None
    queue_wait_s: float = math.nan
    first_byte_s: float = math.nan
    entered_at: float = math.nan

    def enter(
        self,
        *,
        priority: Priority = "normal",
        keep_alive_s: float | None = None,
        client: str = "",
        is_control: bool = False,
    ) -> Lease:
        """Take a place in the queue. The arguments are those of `Supervisor.request`."""
        self.lease = lease = self._supervisor.request(
            self.resident,
            priority=priority,
            keep_alive_s=keep_alive_s,
            client=client,
            is_control=is_control,
            on_revoke=self.revoked,
        )
        if math.isnan(self.entered_at):
            self.entered_at = lease.requested_at
        return lease

    def revoked(self) -> None:
        """End what is being done with a lease that was taken away; for the step in which it was."""

    async def granted(self) -> Endpoint:
        """Wait for the lease, and return where the resident answers. May be cancelled and called again.

        Raises:
            RouterError: it was refused, or taken away.
        """
        if self.lease is None:
            raise RuntimeError("a request is entered before it waits")
        endpoint = await self.lease.granted()
        self.queue_wait_s = self.lease.queue_wait_s
        return endpoint

    def close(self) -> None:
        """Give the lease back. Never waits; may be called again."""
        if self.lease is not None:
            self.lease.release()


@define(eq=False, repr=False)
class InFlightRequest:
    """A request in the registry. Made by `InFlight.enter`.

    Attributes:
        id: such as `r12`.
        path: of the HTTP request, shortened; a word where it is none.
        model: the id that was asked for, as the router lists it.
        holder: what uses a resident for it.
    """

    _requests: dict[str, InFlightRequest]
    id: str
    path: str
    model: str
    holder: LeaseHolder

    def close(self) -> None:
        """Take the request out, and give its lease back. Never waits; may be called again."""
        self._requests.pop(self.id, None)
        self.holder.close()


class InFlight:
    """All requests that hold a lease or wait for one."""

    def __init__(self) -> None:
        self._requests: dict[str, InFlightRequest] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def enter(self, request_id: str, path: str, model: str, holder: LeaseHolder) -> InFlightRequest:
        """Enter a request; its `close` takes it out again. The arguments are its attributes."""
        entered = InFlightRequest(self._requests, request_id, path, model, holder)
        self._requests[request_id] = entered
        return entered

    def by_ticket(self) -> Mapping[Ticket, InFlightRequest]:
        """Return the requests by the tickets that they have now."""
        return {
            lease.ticket: request
            for request in self._requests.values()
            if (lease := request.holder.lease) is not None
        }

    def cancel(self, request_id: str) -> InFlightRequest:
        """End a request: it gives back what it holds at once, and its client gets an error. Never waits.

        Raises:
            NoSuchRoute: there is none of this id that could be ended, any more.
        """
        request = self._requests.get(request_id)
        lease = None if request is None else request.holder.lease
        if request is None or lease is None or lease.error is not None:
            raise NoSuchRoute(f"no request '{shown(request_id)}' waits or runs")
        lease.refuse(RequestCancelled("the request was ended by the person who runs the router"))
        lease.release()
        return request


@define(eq=False, repr=False, on_setattr=attrs.setters.NO_OP)
class RequestScope:
    """A request: what it holds, and how it goes.

    Everything that a request holds is given back synchronously. So the departure of a client gives it back
    in the very step in which it is noticed, even where its handler is stuck in a send that nobody reads.

    Attributes:
        client: who asks, by a name that is told to nobody: one of the keys, or where the request comes from.
        id: by which people can tell it from others.
        path: of the HTTP request, shortened: it is told in events and in the log.
        key: the name of the key that it came with, as people are told; None where it came with none.
        address: the address, or the network, that it came from, as people are told; None where that is not known.
        model, engine: filled in once known.
        holder: what uses a resident for the request; None where nothing does yet.
        status: what the client got; 0 while nothing was sent.
        error: in words, where something failed.
    """

    path: str = field(converter=_shown_path)  # type: ignore[misc] # mypy knows plain functions only
    hub: EventHub
    client: str = ""
    key: str | None = None
    address: str | None = None
    model: str | None = None
    engine: str | None = None
    status: int = 0
    holder: LeaseHolder | None = None
    error: str | None = None
    finished: bool = False
    id: str = field(init=False, factory=new_id)
    _began_at: float = field(factory=trio.current_time)
    _gives_back: list[Callable[[], object]] = field(init=False, factory=list)

    def on_leave(self, give_back: Callable[[], object]) -> None:
        """Have something given back at the end, before what was taken earlier. It must not wait."""
        self._gives_back.append(give_back)

    def note_error(self, error: RouterError) -> None:
        """Record what the client is told of an error in an answer that has begun."""
        self.status, self.error = error.status, str(error)

    def client_left(self) -> bool:
        """Give everything back, since nobody waits for the answer any more. Returns False if it was complete."""
        if self.finished:
            return False
        self.status = 0 if self.status < 400 else self.status
        self.leave()
        return True

    def leave(self) -> None:
        """Give everything back and record how it went. Never waits; may be called again.

        A handler that is about to run when its client leaves may still take something before it is cancelled:
        the next call gives that back.
        """
        gives_back = self._gives_back
        try:
            while gives_back:
                gives_back.pop()()
        finally:
            if gives_back:  # a defect in one is no reason to keep the others
                self.leave()
        if self.finished:
            return
        self.finished = True
        if self.engine is not None or self.model is not None:
            wait_s = math.nan if self.holder is None else self.holder.queue_wait_s
            byte_s = math.nan if self.holder is None else self.holder.first_byte_s
            self.hub.publish(
                RequestEnded(
                    at=time.time(),
                    model=self.model,
                    engine=self.engine,
                    path=self.path,
                    status=self.status or CLIENT_LEFT,
                    duration_s=trio.current_time() - self._began_at,
                    queue_wait_s=None if math.isnan(wait_s) else wait_s,
                    first_byte_s=None if math.isnan(byte_s) else byte_s,
                    error=self.error,
                    id=self.id,
                    key=self.key,
                    client=self.address,
                )
            )


class HoldsNoMore(RouterError):
    """The request has ended while it was still being read; nobody hears of it."""


@define(eq=False, repr=False)
class HeldBodies:
    """The memory of the bodies that all requests hold together.

    Args:
        limit_bytes: returns how much that may be.

    Attributes:
        held_bytes: how much it is.
        lock: held while that changes.
    """

    limit_bytes: Callable[[], int]
    held_bytes: int = 0
    lock: threading.Lock = field(factory=threading.Lock)


@define(eq=False, repr=False)
class HeldShare:
    """The memory of the body that one request holds. May be used by threads, too."""

    _all: HeldBodies
    _bytes: int = 0
    _is_over: bool = False

    def grow(self, count: int) -> None:
        """Hold more, or less if negative. A request is never refused for what it holds while no other holds anything.

        Raises:
            TooMuchHeld: all requests together would hold too much.
            HoldsNoMore: the request has ended; nothing is held for it any more.
        """
        with self._all.lock:
            if self._is_over:
                raise HoldsNoMore("the request has ended")
            after = self._all.held_bytes + count
            if (
                count > 0
                and self._all.held_bytes > self._bytes
                and after > (limit := self._all.limit_bytes())
            ):
                raise TooMuchHeld(
                    f"the requests that wait hold {limit / 1_000_000:g} MB together, as many as "
                    "server.max_held_mb in engines.toml allows; this one has no room left",
                    retry_after_s=HELD_RETRY_S,
                )
            self._all.held_bytes, self._bytes = after, self._bytes + count

    def release(self) -> None:
        """Hold nothing from now on; may be called again."""
        with self._all.lock:
            self._all.held_bytes -= self._bytes
            self._bytes, self._is_over = 0, True
