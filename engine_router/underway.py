"""The requests under way, by an id, so that people can see and end each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from attrs import field, frozen

from engine_router.errors import NoSuchRoute, RequestCancelled
from engine_router.foreign_text import shown
from engine_router.residency.lease import Lease
from engine_router.residency.messages import Ticket


class Holder(Protocol):
    """What has a lease, or waits for one. It may be another one after a while, where it queues up again."""

    @property
    def lease(self) -> Lease | None:
        """The lease; None where none is wanted yet."""
        ...


@frozen
class Directly:
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


class Underway:
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
