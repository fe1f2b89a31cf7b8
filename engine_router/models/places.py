"""Places of a model: the engine here and the peers that have it, and which of them a request goes to. Pure."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import define, evolve, field, frozen

from engine_router.engines.remote.peer_state import PeerModel
from engine_router.guards.limits import REMEMBERED_CONVERSATIONS
from engine_router.models.availability import UNKNOWN_START_S, Availability, Presence, soonest

STAY_S: Final = 15.0
"""Seconds that a conversation waits longer at the place that has read it already: to read it anew takes time, too."""

# Seconds of a request that waits at a peer ahead of ours, where nothing is known of it.
_UNKNOWN_TURN_S: Final = 10.0
# Seconds for which a peer that does not tell its state counts as one that cannot be reached.
_SILENT_S: Final = 15.0
# Prefixes of a conversation that are looked for, the longest ones.
_MOST_PREFIXES: Final = 200


@frozen(kw_only=True)
class Place:
    """A place of a model, as it is now.

    Attributes:
        engine: its name.
        availability: when a request could begin there.
    """

    engine: str
    availability: Availability


def in_order(places: Sequence[Place], last: str | None = None) -> list[str]:
    """Return the engines in the order in which they are to be asked for a model.

    The one comes first that could begin soonest; of those that could begin at the same time, the one with the fewest
    requests; of those, the first one. A conversation stays where it was, as long as the model is still in memory there,
    and the wait there is not much longer than elsewhere.

    Args:
        places: in the order of the configuration, one at least.
        last: the engine that has read the beginning of the conversation; None where nobody has.

    >>> ready, busy = Availability(presence="ready"), Availability(presence="ready", wait_s=9)
    >>> here, there = Place(engine="here", availability=busy), Place(engine="there", availability=ready)
    >>> in_order([here, there]), in_order([here, there], last="here")
    (['there', 'here'], ['here', 'there'])
    """
    quiet_first = sorted(places, key=lambda place: place.availability.requests)
    found = soonest((place, place.availability) for place in quiet_first)
    order = [place.engine for place in found]
    for place in found:
        stays = place.availability.presence == "ready" and place.availability.may_begin
        if (
            place.engine == last
            and stays
            and place.availability.wait_s <= found[0].availability.wait_s + STAY_S
        ):
            return [last, *(engine for engine in order if engine != last)]
    return order


def at_peer(own: Availability, model: PeerModel | None, *, is_silent: bool) -> Availability:
    """Return when a request could begin at a peer.

    Args:
        own: when it could begin to be sent there: at once, or when the peer has been woken.
        model: what the peer tells of the model; None where it tells nothing.
        is_silent: it was asked for its state, and does not answer.
    """
    if own.presence != "ready":  # it sleeps: the model is not in its memory
        start_s = UNKNOWN_START_S if model is None or model.start_s is None else model.start_s
        return evolve(own, wait_s=own.wait_s + start_s, is_guessed=True)
    if is_silent:
        return evolve(own, failed_for_s=max(own.failed_for_s, _SILENT_S))
    if model is None:
        return own
    requests = max(own.requests, model.in_flight + model.waiting)
    if model.state in ("ready", "draining"):
        return evolve(own, requests=requests, wait_s=own.wait_s + _UNKNOWN_TURN_S * model.waiting)
    presence: Presence = "starting" if model.state == "starting" else "absent"
    start_s = UNKNOWN_START_S if model.start_s is None else model.start_s
    failed_for_s = max(own.failed_for_s, _SILENT_S if model.state in ("failed", "stuck") else 0.0)
    return evolve(
        own,
        presence=presence,
        requests=requests,
        wait_s=own.wait_s + start_s,
        is_guessed=model.start_s is None,
        failed_for_s=failed_for_s,
    )


def prefixes_of(model: str, data: Mapping[str, Any]) -> list[bytes]:
    """Return a digest for each beginning of a conversation, the shortest first; none where the body has no messages.

    Takes as long as the body is large. Marks that clients move from message to message, as for Anthropic's cache, make no
    difference.
    """
    messages = data.get("messages")
    if not isinstance(messages, list):
        messages = data.get("input")
    if not isinstance(messages, list):
        return []
    digest = hashlib.blake2b(model.encode(), digest_size=16)
    digest.update(_bytes_of(data.get("system") or data.get("instructions")))
    found: list[bytes] = []
    for message in messages:
        digest.update(_bytes_of(message))
        found.append(digest.digest())
    return found[-_MOST_PREFIXES:]


def _bytes_of(message: Any) -> bytes:
    if isinstance(message, dict):
        message = {name: _unmarked(value) for name, value in message.items() if name != "cache_control"}
    return json.dumps(_unmarked(message), sort_keys=True).encode() + b"\0"


def _unmarked(content: Any) -> Any:
    """Return the parts of a content without the marks of a cache."""
    if not isinstance(content, list):
        return content
    return [
        {name: value for name, value in part.items() if name != "cache_control"}
        if isinstance(part, dict)
        else part
        for part in content
    ]


@define(eq=False, repr=False)
class Conversations:
    """The places that have read the beginnings of conversations; bounded, the oldest are forgotten."""

    _places: OrderedDict[bytes, str] = field(factory=OrderedDict)

    def place_of(self, prefixes: Sequence[bytes]) -> str | None:
        """Return the engine that has read the longest beginning of a conversation; None where nobody has."""
        return next(self._known(prefixes), None)

    def _known(self, prefixes: Sequence[bytes]) -> Iterator[str]:
        for prefix in reversed(prefixes):
            if (engine := self._places.get(prefix)) is not None:
                self._places.move_to_end(prefix)
                yield engine

    def note(self, prefixes: Sequence[bytes], engine: str) -> None:
        """Note which engine reads a conversation, all of it."""
        if not prefixes:
            return
        self._places[prefixes[-1]] = engine
        self._places.move_to_end(prefixes[-1])
        while len(self._places) > REMEMBERED_CONVERSATIONS:
            self._places.popitem(last=False)
