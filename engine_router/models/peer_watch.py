"""The watch over peers: what each tells of its models, its queue and its swaps, asked again and again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio
from attrs import define, field, frozen

from engine_router.config import Config, PeerConfig
from engine_router.config.remote import own_headers
from engine_router.engines.remote.peer_state import PeerKind, PeerModel, PeerState, ask_state, router_state
from engine_router.errors import EngineError
from engine_router.guards.foreign_text import shown
from engine_router.upstream.address import RemoteAddress
from engine_router.upstream.control_answers import has_too_many_parts, json_or_none
from engine_router.upstream.control_client import ControlClient
from engine_router.upstream.hops import HOPS_HEADER

if TYPE_CHECKING:
    from engine_router.engines.remote.client import EngineClient

BUSY_S: Final = 1.0
"""Seconds between two questions to a peer that answers requests of ours, or is waited for."""

IDLE_S: Final = 5.0
"""Seconds between two questions to one that does not."""

SILENT_S: Final = 15.0
"""Seconds between two questions to one that did not answer."""

TIMEOUT_S: Final = 3.0
"""Seconds that a peer has for its answer."""

STALE_S: Final = 20.0
"""Seconds for which what a peer told is believed."""

FOLLOW_AGAIN_S: Final = 60.0
"""Seconds after which a peer whose events could not be followed, or ended, is followed again. Meanwhile it is asked."""

SHOWN_READY: Final = 20
"""Models that are ready at a peer, as many as are told of it: a memory holds a few."""

_LATEST: Final = ":latest"


@frozen(kw_only=True, repr=False)
class PeerStatus:
    """What is known of a peer.

    Attributes:
        state: what it told last; None where it never told anything.
        fault: why it does not tell anything now; None where it does.
        heard_at: trio's clock when it was last heard that nothing has changed since it told its state.
    """

    state: PeerState | None = None
    fault: str | None = None
    heard_at: float = -math.inf

    @property
    def is_silent(self) -> bool:
        """Whether it did not answer when it was asked last; one that tells nothing of its state answers."""
        return self.fault is not None and (self.state is None or self.state.fault is None)

    def model(self, name: str, now: float) -> PeerModel | None:
        """Return what it tells of a model, by the name that it knows; None where that is not known, or too old."""
        if self.state is None or self.fault is not None:
            return None
        if now - max(self.state.at, self.heard_at) > STALE_S:
            return None
        spellings = (name, name.removesuffix(_LATEST), name + _LATEST)
        found = next((self.state.models[known] for known in spellings if known in self.state.models), None)
        if found is None and self.state.kind in ("llama-swap", "ollama"):
            return PeerModel()  # these list what is loaded
        return found


UNKNOWN: Final = PeerStatus()


@define(eq=False, repr=False)
class PeerWatch:
    """Asks the configured peers, and follows the events of those that are routers of this kind and let it.

    Args:
        config: returns the configuration in force.
        is_busy: tells whether requests of ours use an engine, or wait for it.

    Attributes:
        changes: how often anything that was told was something new.
    """

    _config: Callable[[], Config]
    _is_busy: Callable[[str], bool]
    changes: int = 0
    _known: dict[str, tuple[PeerConfig, PeerStatus]] = field(factory=dict)
    _asked_at: dict[str, float] = field(factory=dict)
    _followed: dict[str, tuple[PeerConfig, trio.CancelScope]] = field(factory=dict)
    _follow_at: dict[str, float] = field(factory=dict)

    async def run(self, client: ControlClient, instance_id: str, mask: Callable[[str], str]) -> None:
        """Ask whoever is due; runs until cancelled. One that hangs holds up nobody for more than 3 s.

        Args:
            client: for control calls.
            instance_id: the id of this router, which peers are told.
            mask: takes out what nobody is told.
        """
        async with trio.open_nursery() as followers:
            while True:
                now, peers = trio.current_time(), self._config().peers
                self._forget(peers)
                servers = {name: _server(name, peer, client, instance_id) for name, peer in peers.items()}
                async with trio.open_nursery() as nursery:
                    for name, peer in peers.items():
                        pause_s = self._pause_s(name)
                        if (
                            name not in self._followed
                            and now - self._asked_at.get(name, -math.inf) >= pause_s
                        ):
                            self._asked_at[name] = now
                            nursery.start_soon(self._ask, name, peer, servers[name], mask)
                for name, peer in peers.items():
                    if self._may_follow(name):
                        self._followed[name] = (peer, trio.CancelScope())
                        followers.start_soon(self._follow, name, peer, servers[name])
                await trio.sleep(BUSY_S if peers else IDLE_S)  # a reload may bring some

    def status(self, name: str) -> PeerStatus:
        """Return what is known of a peer."""
        return self._known[name][1] if name in self._known else UNKNOWN

    def words(self, engine: str, model: str) -> str | None:
        """Return what a request for a model, by its id here, waits for at a peer; None where nothing is known of that."""
        peer = self._config().peers.get(engine)
        if peer is None:
            return None
        return words_of(self.status(engine), peer.own_name(model), trio.current_time())

    def _pause_s(self, name: str) -> float:
        if self.status(name).fault is not None:
            return SILENT_S
        return BUSY_S if self._is_busy(name) else IDLE_S

    def _forget(self, peers: Mapping[str, PeerConfig]) -> None:
        """Forget peers that are gone, and follow none that has another address or key now."""
        for name in [name for name in self._known if name not in peers]:
            del self._known[name]
        for name, (peer, scope) in self._followed.items():
            if peers.get(name) != peer:
                scope.cancel()

    def _may_follow(self, name: str) -> bool:
        status = self.status(name)
        is_router = status.fault is None and status.state is not None and status.state.kind == "engine-router"
        is_due = trio.current_time() >= self._follow_at.get(name, -math.inf)
        return is_router and is_due and name not in self._followed

    async def _follow(self, name: str, peer: PeerConfig, server: EngineClient) -> None:
        """Take in what a peer tells by itself, until it ends; then it is asked again."""

        def take(event: str, data: bytes) -> None:
            now, known = trio.current_time(), self._known.get(name)
            if event == "status" and not has_too_many_parts(data):
                if (state := router_state(json_or_none(data), now)) is not None:
                    self._learn(name, peer, PeerStatus(state=state))
            elif known is not None:
                self._known[name] = (known[0], attrs.evolve(known[1], heard_at=now))

        path = RemoteAddress.of(peer).beside("/admin/events")
        with self._followed[name][1], suppress(EngineError):
            await server.follow(path, take, silence_s=STALE_S)
        del self._followed[name]
        self._follow_at[name] = trio.current_time() + FOLLOW_AGAIN_S

    async def _ask(
        self, name: str, peer: PeerConfig, server: EngineClient, mask: Callable[[str], str]
    ) -> None:
        before = self._known.get(name)
        last = before[1].state if before is not None and before[0] == peer else None
        status = PeerStatus(state=last, fault=f"did not answer within {TIMEOUT_S:g} s")
        kind: PeerKind | None = None if last is None else last.kind
        with trio.move_on_after(TIMEOUT_S):
            try:
                state = await ask_state(server, RemoteAddress.of(peer), trio.current_time, kind)
                status = PeerStatus(state=state, fault=state.fault)
            except EngineError as error:
                status = PeerStatus(state=last, fault=shown(mask(error.summary)))
        self._learn(name, peer, status)

    def _learn(self, name: str, peer: PeerConfig, status: PeerStatus) -> None:
        before = self._known.get(name)
        if before is None or _facts(before[1]) != _facts(status):
            self.changes += 1
        self._known[name] = (peer, status)


def _server(name: str, peer: PeerConfig, client: ControlClient, instance_id: str) -> EngineClient:
    """Return the client for a peer, which is told by whom it is asked."""
    from engine_router.engines.remote.client import EngineClient  # noqa: PLC0415 - few routers have peers

    address, hop = RemoteAddress.of(peer), {HOPS_HEADER.decode("ascii"): instance_id}
    named = attrs.evolve(peer, headers={**own_headers(peer), **hop})
    return EngineClient(name, named, address.origin, client, ca_file=address.ca_file)


def _facts(status: PeerStatus) -> tuple[object, ...]:
    """Return what is worth telling: not when it was told."""
    state = status.state
    return (
        status.fault,
        None if state is None else (state.models, state.in_flight, state.waiting, state.swaps),
    )


def peer_entry(status: PeerStatus) -> Mapping[str, object]:
    """Return what is known of a peer as plain data for JSON."""
    state = status.state
    if state is None:
        return {"program": None, "fault": status.fault}
    return {
        "program": state.kind,
        "version": state.version,
        "fault": status.fault,
        "in_flight": state.in_flight,
        "waiting": state.waiting,
        "ready": [name for name, model in state.models.items() if model.state == "ready"][:SHOWN_READY],
        "swaps": [attrs.asdict(swap) for swap in state.swaps],
    }


def words_of(status: PeerStatus, model: str, now: float) -> str | None:
    """Return what a request for a model waits for at a peer, in words; None where nothing is known of that."""
    found = status.model(model, now)
    if found is None or status.state is None:
        return None
    for swap in status.state.swaps:
        if found.state != "ready":
            passed_s = swap.elapsed_s + now - status.state.at
            about = "" if swap.expected_s is None else f" of about {swap.expected_s:.0f} s"
            return f"{swap.words} ({passed_s:.0f} s{about})"
    if found.waiting > 1:
        return f"{found.waiting} requests wait there"
    return None if found.state == "ready" else f"{model} is {found.state} there"
