"""Requests in flight: a registry by id, so that people can see and end each of them, and the memory of their bodies.

A request that waits for its model holds its body all the while: as it came, without its content encoding, and in the
words of its engine. That memory is counted for all requests together, and bounded.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from attrs import define, field, frozen

from engine_router.errors import NoSuchRoute, RequestCancelled, RouterError, TooMuchHeld
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import HELD_RETRY_S
from engine_router.residency.lease import Lease
from engine_router.residency.messages import Ticket

_numbers = itertools.count(1)


def new_id() -> str:
    """Return an id that no request of this process has yet: `r1`, `r2` and so on."""
    return f"r{next(_numbers)}"


class Holder(Protocol):
    """What has a lease, or waits for one. It may be another one after a while, where it queues up again."""

    @property
    def lease(self) -> Lease | None:
        """The lease; None where none is wanted yet."""
        ...


@frozen
class DirectHolder:
    """A lease that nothing stands in front of."""

    lease: Lease


@frozen(eq=False)
class Request:
    """One of them.

    Attributes:
        id: such as `r12`.
        path: of the HTTP request; a word where it is none.
        model: the id that was asked for, as the router lists it.
    """

    id: str
    path: str = field(converter=shown)
    model: str
    holder: Holder


class InFlight:
    """All requests that hold a lease or wait for one."""

    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def enter(self, request: Request) -> Callable[[], None]:
        """Enter a request. Returns what takes it out again, which may be called more than once."""
        self._requests[request.id] = request

        def leave() -> None:
            self._requests.pop(request.id, None)

        return leave

    def by_ticket(self) -> Mapping[Ticket, Request]:
        """Return the requests by the tickets that they have now."""
        return {
            lease.ticket: request
            for request in self._requests.values()
            if (lease := request.holder.lease) is not None
        }

    def cancel(self, request_id: str) -> Request:
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


class HoldsNoMore(RouterError):
    """The request has ended while it was still being read; nobody hears of it."""


@define(eq=False)
class HeldBodies:
    """What all requests hold together.

    Args:
        limit_bytes: returns how much that may be.

    Attributes:
        held_bytes: how much it is.
    """

    limit_bytes: Callable[[], int]
    held_bytes: int = 0
    _lock: threading.Lock = field(factory=threading.Lock)

    def share(self) -> HeldShare:
        """Return the share of one request, which holds nothing yet."""
        return HeldShare(self, self._lock)


@define(eq=False)
class HeldShare:
    """What one request holds. May be used by threads, too."""

    _all: HeldBodies
    _lock: threading.Lock
    _bytes: int = 0
    _is_over: bool = False

    def grow(self, count: int) -> None:
        """Hold more, or less if negative. A request is never refused for what it holds while no other holds anything.

        Raises:
            TooMuchHeld: all requests together would hold too much.
            HoldsNoMore: the request has ended; nothing is held for it any more.
        """
        with self._lock:
            if self._is_over:
                raise HoldsNoMore("the request has ended")
            after, limit = self._all.held_bytes + count, self._all.limit_bytes()
            if count > 0 and after > limit and self._all.held_bytes > self._bytes:
                raise TooMuchHeld(
                    f"the requests that wait hold {limit / 1_000_000:g} MB together, as many as "
                    "server.max_held_mb in engines.toml allows; this one has no room left",
                    retry_after_s=HELD_RETRY_S,
                )
            self._all.held_bytes, self._bytes = after, self._bytes + count

    def release(self) -> None:
        """Hold nothing from now on; may be called again."""
        with self._lock:
            self._all.held_bytes -= self._bytes
            self._bytes, self._is_over = 0, True
