"""Placement: requests for a model that several places have, led to the one that answers soonest, and on to the next."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import trio
from attrs import define, field

from engine_router.dialects.routed import Routed
from engine_router.errors import BadRequest
from engine_router.in_flight import RequestScope
from engine_router.models.availability import Availability
from engine_router.models.peer_watch import PeerWatch
from engine_router.models.places import Conversations, Place, at_peer, in_order, prefixes_of
from engine_router.models.target import Target
from engine_router.proxy.request_body import off_loop
from engine_router.proxy.streamed_body import StreamedRequest
from engine_router.residency.read_model import ReadModel


@define(eq=False, repr=False)
class Placed:
    """The places of one request's model that are left, in the order in which they are asked.

    Attributes:
        first: the one that it goes to.
    """

    first: Target
    _left: Iterator[Target]
    _prefixes: list[bytes]
    _conversations: Conversations

    def next(self) -> Target | None:
        """Return the place to ask where the last one cannot be reached; None where there is none."""
        target = next(self._left, None)
        if target is not None:
            self._conversations.note(self._prefixes, target.engine)
        return target


@define(eq=False, repr=False)
class Placement:
    """Chooses places by the state of residents here, by what peers tell, and by who has read a conversation.

    Attributes:
        peers: what peers tell.
    """

    _read_model: ReadModel
    peers: PeerWatch
    _conversations: Conversations = field(init=False, factory=Conversations)

    async def placed(self, target: Target, routed: Routed | StreamedRequest, scope: RequestScope) -> Placed:
        """Return the places of a model in the order in which a request asks them.

        One that comes from another router goes to a peer only if nobody here has the model: peers that pass it on to each
        other would only make it wait longer.
        """
        targets = _places_of(target, has_hops=bool(scope.hops))
        prefixes: list[bytes] = []
        if isinstance(routed, Routed) and routed.is_json:
            prefixes = await off_loop(len(routed.body), lambda: _prefixes(target.model, routed))
        places = [self._place(place) for place in targets.values()]
        order = in_order(places, self._conversations.place_of(prefixes))
        self._conversations.note(prefixes, order[0])
        first, *others = (targets[engine] for engine in order)
        return Placed(first, iter(others), prefixes, self._conversations)

    def soonest(self, target: Target, *, has_hops: bool = False) -> tuple[Target, Availability]:
        """Return the place where a model could begin soonest, and when that is; no conversation counts.

        Args:
            has_hops: whoever asks is another router.
        """
        targets = _places_of(target, has_hops=has_hops)
        places = {engine: self._place(place) for engine, place in targets.items()}
        first = in_order([*places.values()])[0]
        return targets[first], places[first].availability

    def _place(self, target: Target) -> Place:
        own = self._read_model.availability(target.resident)
        if target.is_peers:
            status = self.peers.status(target.engine)
            model = status.model(target.upstream, trio.current_time())
            own = at_peer(own, model, is_silent=status.is_silent)
        return Place(engine=target.engine, availability=own)


def _places_of(target: Target, *, has_hops: bool) -> dict[str, Target]:
    """Return the places of a model that may be asked for a request, by their engines, in the order of the configuration."""
    targets = {place.engine: place for place in (attrs.evolve(target, places=()), *target.places)}
    if has_hops and not all(place.is_peers for place in targets.values()):
        return {name: place for name, place in targets.items() if not place.is_peers}
    return targets


def _prefixes(model: str, routed: Routed) -> list[bytes]:
    try:
        return prefixes_of(model, routed.data())
    except (BadRequest, RecursionError):  # whoever gets it says so
        return []
