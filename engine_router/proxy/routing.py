"""Routing: requests that name a route, led to one of its models by what is known now, and on to the next on a failure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final

import trio
from attrs import define, field

from engine_router.config import RouteConfig
from engine_router.config.routes import models_of
from engine_router.dialects.routed import Routed
from engine_router.engines.base import Endpoint, ResidentId
from engine_router.errors import (
    EngineBroke,
    EngineDied,
    EngineUnreachable,
    ModelNotForKey,
    NeverFits,
    NoModelForRoute,
    QueueFull,
    RouterError,
)
from engine_router.events import EventHub, RouteChosen
from engine_router.in_flight import InFlight, LeaseHolder, RequestScope, new_id
from engine_router.models.key_rights import MayUse
from engine_router.models.route_choice import (
    NOT_FOR_KEY,
    PAID,
    Candidate,
    NoChoice,
    RequestFeatures,
    RouteChoice,
    choose,
)
from engine_router.models.target import Target, spellings
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.forward_plan import ChoosePlan, ForwardPlan
from engine_router.proxy.placement import Placed, Placement
from engine_router.proxy.request_body import IncomingRequest, is_form, off_loop
from engine_router.proxy.route_exchange import FALLS_BACK, MakeExchange, RouteExchange
from engine_router.proxy.route_features import features_of
from engine_router.proxy.routes import REPEATABLE
from engine_router.proxy.snapshot import Snapshot
from engine_router.proxy.streamed_body import StreamedRequest
from engine_router.residency.lease import Lease
from engine_router.residency.supervisor import Supervisor
from engine_router.upstream.client import Upstream
from engine_router.upstream.http1 import Headers, ResponseHead


def route_named(snapshot: Snapshot, name: str) -> str | None:
    """Return the route that a request names; None where it names a model, or nothing that is known."""
    routes = snapshot.config.routes
    found = next((spelling for spelling in spellings(name) if spelling in routes), None) if routes else None
    return None if found is None or snapshot.registry.find(name) is not None else found


async def features_in(
    incoming: IncomingRequest, routed: Routed | StreamedRequest, scope: RequestScope
) -> RequestFeatures:
    """Return the features of a request; those of its body only where that is JSON.

    Raises:
        BadRequest: it is no JSON object.
    """
    if not isinstance(routed, Routed) or not routed.is_json or is_form(incoming):
        return features_of(incoming.path, incoming.headers, {}, scope.key_name)
    return await off_loop(
        len(routed.body),
        lambda: features_of(incoming.path, incoming.headers, routed.data(), scope.key_name),
    )


def marked(head: ResponseHead, choice: RouteChoice) -> ResponseHead:
    """Return the head of an answer with the model that a route chose, and why."""
    return ResponseHead(head.status, [*head.headers, *marks(choice)])


def marks(choice: RouteChoice | None) -> Headers:
    """Return the headers that say which model a route chose, and why; none where no route did."""
    if choice is None:
        return []
    said = ((b"x-engine-router-model", choice.model), (b"x-engine-router-route", choice.reason))
    return [(name, words.encode("ascii", "backslashreplace")) for name, words in said]


@define(eq=False, repr=False)
class Routing:
    """The routes of a router: they choose by the state of its residents, and remember which models failed lately."""

    _placement: Placement
    _supervisor: Supervisor
    _hub: EventHub
    _failed_at: dict[str, float] = field(init=False, factory=dict)

    async def target(
        self, snapshot: Snapshot, name: str, scope: RequestScope, features: RequestFeatures | None
    ) -> Target:
        """Choose the model of a route for a request; the choice is noted in its scope.

        Args:
            name: the route's.

        Raises:
            ModelNotForKey: its key is for none of them.
            NoModelForRoute: none of them may be asked.

        Cancellation leaves nothing behind.
        """
        await self._supervisor.until_adopted()
        choice = self.choice(snapshot, name, scope.may_use, features, has_hops=bool(scope.hops))
        if isinstance(choice, NoChoice):
            if choice.is_forbidden:
                raise ModelNotForKey(name, scope.key_name or "")
            raise NoModelForRoute(choice.reason)
        return self._note(snapshot, scope, choice)

    def choice(
        self,
        snapshot: Snapshot,
        name: str,
        may_use: MayUse,
        features: RequestFeatures | None,
        *,
        has_hops: bool = False,
    ) -> RouteChoice | NoChoice:
        """Return what a route would choose now, and why. Nothing is started for it.

        Args:
            may_use: tells whether whoever asks may use a model.
            has_hops: whoever asks is another router.
        """
        route, now = snapshot.config.routes[name], time.localtime()
        candidates = self._candidates(snapshot, route, may_use, has_hops=has_hops)
        return choose(name, route, candidates, features, now.tm_hour * 60 + now.tm_min)

    def leads_to(self, snapshot: Snapshot, name: str, may_use: MayUse) -> Target | None:
        """Return the model that a route would choose now for a request of which nothing is known; None for none."""
        choice = self.choice(snapshot, name, may_use, None)
        return snapshot.registry.find(choice.model) if isinstance(choice, RouteChoice) else None

    def offered(self, snapshot: Snapshot, may_use: MayUse) -> Iterator[tuple[str, Target]]:
        """Yield each route that clients are shown, with the model that it would choose now."""
        for name, route in snapshot.config.routes.items():
            is_shown = not route.unlisted and route_named(snapshot, name) == name
            target = self.leads_to(snapshot, name, may_use) if is_shown else None
            if target is not None:
                yield name, target

    def turning(
        self,
        in_flight: InFlight,
        upstream: Upstream,
        snapshot: Snapshot,
        scope: RequestScope,
        exchange_with: Callable[[Target, MakeExchange], Awaitable[ProxyExchange]],
        placed: Placed | None = None,
    ) -> MakeExchange:
        """Return what makes the exchange of a request, and turns it to the next place, or to the next of a route's models.

        Args:
            exchange_with: plans how the request goes to a model, and has its exchange made, or turned.
            placed: the places of its model; None where there is one.
        """
        exchange: RouteExchange | None = None

        def make(resident: ResidentId, plan: ForwardPlan | ChoosePlan) -> RouteExchange:
            nonlocal exchange
            if exchange is None:
                exchange = RouteExchange(
                    self._supervisor,
                    resident,
                    upstream=upstream,
                    plan=plan,
                    fall_back=fall_back,
                    is_repeatable=scope.path in REPEATABLE,
                )
            else:
                exchange.turn_to(resident, plan)
            return exchange

        async def fall_back(error: RouterError) -> bool:
            target = None if placed is None else placed.next()
            target = target or self.next_target(snapshot, scope, error)
            if target is None:
                return False
            turned = await exchange_with(target, make)
            scope.model, scope.engine = target.model, target.engine
            in_flight.enter(scope.id, scope.path, target.model, turned, scope)
            return True

        return make

    async def lease(
        self,
        snapshot: Snapshot,
        model: str,
        resolve: Callable[[str], Awaitable[Target]],
        in_flight: InFlight,
        held: contextlib.ExitStack,
    ) -> tuple[Target, Lease, Endpoint]:
        """Wait for a model, or for the first of a route's that can be started, on behalf of a program.

        Args:
            resolve: finds a model by its name.
            held: gives the lease back.

        Raises:
            UnknownModel: nobody serves it.
            RouterError: it cannot be made resident.

        Cancellation leaves it to `held` to leave the queue.
        """
        scope = RequestScope("lease", self._hub)
        route = route_named(snapshot, model)
        target = await (resolve(model) if route is None else self.target(snapshot, route, scope, None))
        while True:
            if scope.choice is not None:  # it was chosen for the place where it begins soonest
                target, _ = self._placement.soonest(target)
            holder = LeaseHolder(self._supervisor, target.resident)
            lease = holder.enter()
            held.callback(in_flight.enter(new_id(), "lease", target.model, holder).close)
            try:
                return target, lease, await lease.granted()
            except FALLS_BACK as error:
                held.close()
                following = self.next_target(snapshot, scope, error)
                if following is None:
                    raise
                target = following

    def next_target(self, snapshot: Snapshot, scope: RequestScope, error: RouterError) -> Target | None:
        """Return the model to ask after the chosen one has failed, which is then chosen last for a while; None for none."""
        choice = scope.choice
        while choice is not None:
            self._failed_at[choice.model] = trio.current_time()
            choice = choice.next(_failure(error))
            if choice is not None and snapshot.registry.find(choice.model) is not None:
                return self._note(snapshot, scope, choice)
        return None

    def _note(self, snapshot: Snapshot, scope: RequestScope, choice: RouteChoice) -> Target:
        scope.choice = choice
        self._hub.publish(
            RouteChosen(
                at=time.time(), id=scope.id, route=choice.route, model=choice.model, reason=choice.reason
            )
        )
        return snapshot.registry.resolve(choice.model)

    def _candidates(
        self, snapshot: Snapshot, route: RouteConfig, may_use: MayUse, *, has_hops: bool
    ) -> Mapping[str, Candidate]:
        """Return the models of a route that are known, as they are now."""
        found: dict[str, Candidate] = {}
        now = trio.current_time()
        for model in models_of(route):
            if (target := snapshot.registry.find(model)) is None:
                continue
            facts = snapshot.known_models.of(target)
            excluded = "" if may_use(target) else NOT_FOR_KEY
            if target.is_paid and not route.allow_paid:
                excluded = excluded or PAID
            ago_s = now - self._failed_at.get(model, -float("inf"))
            _, availability = self._placement.soonest(target, has_hops=has_hops)
            found[model] = Candidate(
                availability=availability,
                excluded=excluded,
                capabilities=facts.capabilities,
                context_length=facts.context_length,
                failed_ago_s=ago_s if ago_s < route.cooldown_s else None,
            )
        return found


def _failure(error: RouterError) -> str:
    """Return in words what became of a model: in none of an engine's, which may be long and have line ends."""
    return next((words for kind, words in _FAILURES if isinstance(error, kind)), "could not be started")


_FAILURES: Final[tuple[tuple[type[RouterError], str], ...]] = (
    (NeverFits, "does not fit into memory"),
    (QueueFull, "has a full queue"),
    (EngineUnreachable, "cannot be reached"),
    (EngineDied, "ended before it answered"),
    (EngineBroke, "ended before it answered"),
)
