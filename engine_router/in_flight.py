"""Requests in flight: who sent each, what it holds, and a registry by which people see and end them."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping

import attrs
import trio
from attrs import define, field

from engine_router.config import KeyConfig, Priority
from engine_router.dialects.usage import NO_FIGURES, AnswerFigures
from engine_router.engines.base import Endpoint, ResidentId
from engine_router.errors import (
    AdminOnly,
    ModelNotForKey,
    NoSuchRoute,
    RequestCancelled,
    RouterError,
    TooManyInFlight,
    UnknownModel,
)
from engine_router.events import EventHub, RequestEnded
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import KEY_GRACE_S, KEY_RETRY_S, REMEMBERED_PATHS
from engine_router.models.key_rights import may_use
from engine_router.models.route_choice import RouteChoice
from engine_router.models.target import Target
from engine_router.residency.lease import Lease
from engine_router.residency.messages import Ticket
from engine_router.residency.supervisor import Supervisor

CLIENT_LEFT = 499


new_id: Callable[[], str] = map("r{}".format, itertools.count(1)).__next__
"""Returns an id that no request of this process has yet: `r1`, `r2` and so on."""


_shown_path = functools.lru_cache(REMEMBERED_PATHS)(shown)


@define(eq=False, repr=False)
class LeaseHolder:
    """The use that a request makes of a resident, or its wait for that: by one lease at a time.

    Attributes:
        resident: what it uses.
        lease: the place in the queue, then the right to use the resident; None before `enter`. It may be another one
            after a while, where the request queues up again.
        queue_wait_s: seconds until the lease was granted; NaN before.
        load_wait_s: those of them in which the resident was started; NaN before.
        first_byte_s: seconds until the answer's first byte; NaN before.
        entered_at: trio's clock when it took its first place in the queue; NaN before.
        sent_at: the same, when the request was about to be sent to the resident; NaN before.
    """

    _supervisor: Supervisor
    resident: ResidentId
    lease: Lease | None = None
    queue_wait_s: float = math.nan
    load_wait_s: float = math.nan
    first_byte_s: float = math.nan
    entered_at: float = math.nan
    sent_at: float = math.nan

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
        self.queue_wait_s, self.load_wait_s = self.lease.queue_wait_s, self.lease.load_wait_s
        return endpoint

    def figures(self) -> AnswerFigures:
        """Return what is known of the tokens of the answer so far."""
        return NO_FIGURES

    def frames_per_s(self) -> float | None:
        """Return how many events of the answer come a second, where it is a stream; for who looks again and again."""
        return None

    def answered_model(self) -> str | None:
        """Return the model that the engine says it answered with; None where it does not say."""
        return None

    def has_told_all(self) -> bool:
        """Tell whether the last event of a stream has come, behind which many clients read no more."""
        return False

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
        scope: the HTTP request; None where it is none.
    """

    _requests: dict[str, InFlightRequest]
    id: str
    path: str
    model: str
    holder: LeaseHolder
    scope: RequestScope | None = None

    def close(self) -> None:
        """Take the request out, and give its lease back. Never waits; may be called again."""
        self._requests.pop(self.id, None)
        self.holder.close()


class InFlight:
    """All requests that hold a lease or wait for one."""

    def __init__(self) -> None:
        self._requests: dict[str, InFlightRequest] = {}
        self._of_keys = Counter[str]()
        self._ended = trio.Event()

    def __len__(self) -> int:
        return len(self._requests)

    def enter(
        self,
        request_id: str,
        path: str,
        model: str,
        holder: LeaseHolder,
        scope: RequestScope | None = None,
    ) -> InFlightRequest:
        """Enter a request; its `close` takes it out again. The arguments are its attributes."""
        entered = InFlightRequest(self._requests, request_id, path, model, holder, scope)
        self._requests[request_id] = entered
        return entered

    async def count(self, scope: RequestScope) -> None:
        """Count a request that uses an engine for its key, once, until it ends.

        A client may send its next request when it has read the last one's answer, whose end the router has not seen
        yet: for that, and no longer, it waits.

        Raises:
            TooManyInFlight: as many as the key allows are under way.
        """
        key = scope.key
        if key is None or not key.max_in_flight or scope.is_counted:
            return
        name = key.name
        with trio.move_on_after(KEY_GRACE_S):
            while self._of_keys[name] >= key.max_in_flight:
                await self._ended.wait()
        if self._of_keys[name] >= key.max_in_flight:
            raise TooManyInFlight(
                f"{key.max_in_flight} requests with the key '{shown(name)}' are under way, as many as its "
                "max_in_flight allows (server.api_keys in engines.toml); try again when one has ended",
                retry_after_s=KEY_RETRY_S,
            )
        self._of_keys[name] += 1
        scope.is_counted = True

        def leave() -> None:
            self._of_keys[name] -= 1
            if not self._of_keys[name]:
                del self._of_keys[name]
            self._ended.set()
            self._ended = trio.Event()

        scope.on_leave(leave)

    def by_ticket(self) -> Mapping[Ticket, InFlightRequest]:
        """Return the requests by the tickets that they have now."""
        return {
            lease.ticket: request
            for request in self._requests.values()
            if (lease := request.holder.lease) is not None
        }

    def serving_since(self) -> list[float]:
        """Return when each request got its lease that has one now, by trio's clock."""
        leases = (request.holder.lease for request in self._requests.values())
        return [lease.granted_at for lease in leases if lease is not None and lease.granted_at < math.inf]

    def cancel(self, request_id: str, by: RequestScope | None = None) -> InFlightRequest:
        """End a request: it gives back what it holds at once, and its client gets an error. Never waits.

        Args:
            by: who wants it, if not the router; without an admin's key only one with the same key can be ended.

        Raises:
            NoSuchRoute: there is none of this id that could be ended, any more.
        """
        request = self._requests.get(request_id)
        if request is not None and by is not None and not by.is_admin:
            owner = None if request.scope is None else request.scope.key_name
            request = request if owner == by.key_name is not None else None
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
        key: the key with which it came, and its rights; None for one who may do everything without.
        client: where it comes from: an address, or the network that a machine has to itself; empty if not known.
        id: by which people can tell it from others.
        path: of the HTTP request, shortened: it is told in events and in the log.
        model, engine: filled in once known.
        holder: what uses a resident for the request; None where nothing does yet.
        status: what the client got; 0 while nothing was sent.
        error: in words, where something failed.
        began_at: trio's clock when it came.
        hops: the routers that it has passed through; see `upstream.hops`.
        is_counted: it counts for its key; see `InFlight.count`.
        choice: what its route chose for it; None where it names a model.
    """

    path: str = field(converter=_shown_path)  # type: ignore[misc] # mypy knows plain functions only
    hub: EventHub
    client: str = ""
    key: KeyConfig | None = None
    model: str | None = None
    engine: str | None = None
    status: int = 0
    holder: LeaseHolder | None = None
    error: str | None = None
    finished: bool = False
    hops: tuple[str, ...] = ()
    is_counted: bool = False
    choice: RouteChoice | None = None
    id: str = field(init=False, factory=new_id)
    began_at: float = field(factory=trio.current_time)
    _gives_back: list[Callable[[], object]] = field(init=False, factory=list)

    @property
    def key_name(self) -> str | None:
        """The name of its key; None without one."""
        return None if self.key is None else self.key.name or None

    @property
    def is_admin(self) -> bool:
        """True if whoever sent it may do everything, and see what others do."""
        return self.key is None or self.key.admin

    @property
    def share(self) -> str:
        """The name of whose part of a queue it uses: its key's, else that of where it comes from."""
        return self.client if self.key is None else f"key {self.key.name}"

    def may_use(self, target: Target) -> bool:
        """Tell whether whoever sent it may use and see a model. A router is not shown what its peers' peers have."""
        return may_use(self.key, target) and not (self.hops and target.is_peers)

    def check_model(self, model: str, target: Target) -> None:
        """See that whoever sent it may use a model.

        Args:
            model: the name by which they asked for it.

        Raises:
            ModelNotForKey: they may not.
        """
        if self.key is not None and not may_use(self.key, target):
            raise ModelNotForKey(model, self.key.name)

    def as_answered(self, error: RouterError) -> RouterError:
        """Return an error as whoever sent it may be told it: of models that it may not use it names none."""
        if not isinstance(error, UnknownModel) or self.key is None:
            return error
        plain = error if self.is_admin else error.without_engines()
        return plain if self.key.models is None else ModelNotForKey(error.model, self.key.name)

    def need_admin(self, action: str) -> None:
        """See that whoever sent it may do everything.

        Args:
            action: what is to be done, such as `unload models`.

        Raises:
            AdminOnly: they may not.
        """
        if self.key is not None and not self.key.admin:
            raise AdminOnly(self.key.name, action)

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
        if self.status < 400 and not (self.holder is not None and self.holder.has_told_all()):
            self.status = 0
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
            self.hub.publish(self._ended())

    def _ended(self) -> RequestEnded:
        """Return how it went."""
        holder, figures, wait_s, load_s, byte_s = self.holder, NO_FIGURES, math.nan, math.nan, math.nan
        name = None
        if holder is not None:
            figures, used = holder.figures(), holder.resident
            name = used.engine if used.model is None else f"{used.engine}/{used.model}"
            wait_s, load_s, byte_s = holder.queue_wait_s, holder.load_wait_s, holder.first_byte_s
        return RequestEnded(
            at=time.time(),
            model=self.model,
            engine=self.engine,
            path=self.path,
            status=self.status or CLIENT_LEFT,
            duration_s=trio.current_time() - self.began_at,
            queue_wait_s=None if math.isnan(wait_s) else wait_s,
            load_wait_s=None if math.isnan(load_s) else load_s,
            first_byte_s=None if math.isnan(byte_s) else byte_s,
            first_token_s=figures.first_token_s,
            error=self.error,
            id=self.id,
            resident=name,
            key=self.key_name,
            client=self.client or None,
            tokens_in=figures.tokens_in,
            tokens_cached=figures.tokens_cached,
            tokens_out=figures.tokens_out,
            tokens_per_s=figures.tokens_per_s,
        )
