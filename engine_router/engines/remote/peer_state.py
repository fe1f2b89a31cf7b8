"""The state of a peer, as it tells it: its models, its queue, its swap."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import field, frozen

from engine_router.engines.readiness import dig
from engine_router.guards.limits import LISTED_MODELS, MODEL_NAME_CHARS
from engine_router.guards.numbers import amount
from engine_router.upstream.address import RemoteAddress

if TYPE_CHECKING:
    from engine_router.engines.remote.client import EngineClient

PeerKind = Literal["engine-router", "llama-swap", "ollama", "lmstudio", "other"]
"""The program that a peer is; `other` where it tells nothing of its state."""

# The longest time that is believed: four months.
_MOST_S: Final = 1e7
_UNSEEN: Final = (401, 403)
# The longest state, step or version that is shown: each has a column of its own.
_WORD_CHARS: Final = 40
# What an answer says of a model that serves now, and of one that is on its way.
_READY: Final = frozenset(("ready", "loaded", "draining"))
_COMING: Final = frozenset(("starting", "loading", "waking"))


@frozen(kw_only=True)
class PeerModel:
    """A model of a peer.

    Attributes:
        state: in the words of `/status`: off, starting, ready, draining, stopping, stuck, failed.
        in_flight: requests that it answers now.
        waiting: requests that wait for it there.
        start_s: seconds that its start takes; None where unknown.
    """

    state: str = "off"
    in_flight: int = 0
    waiting: int = 0
    start_s: float | None = None


@frozen(kw_only=True)
class PeerSwap:
    """A swap under way at a peer: its step in words, and the seconds that have passed and that it takes in all."""

    words: str
    target: str | None = None
    elapsed_s: float = 0.0
    expected_s: float | None = None


@frozen(kw_only=True, repr=False)
class PeerState:
    """The state of a peer.

    Attributes:
        at: trio's clock when it was told.
        models: by the names that the peer knows; those that it lists with a state.
        in_flight, waiting: of all its clients.
        swaps: those under way there.
        fault: why nothing is known of its state, though it answers; None where something is.
    """

    kind: PeerKind
    at: float
    version: str | None = None
    models: Mapping[str, PeerModel] = field(factory=dict)
    in_flight: int = 0
    waiting: int = 0
    swaps: tuple[PeerSwap, ...] = ()
    fault: str | None = None

    @property
    def is_used(self) -> bool:
        """Whether somebody uses it now, or waits for it."""
        return bool(self.in_flight or self.waiting)


async def ask_state(
    server: EngineClient, address: RemoteAddress, now: Callable[[], float], kind: PeerKind | None = None
) -> PeerState:
    """Ask a peer for its state.

    Args:
        kind: the program that it was found to be before; it is asked for first.

    Raises:
        EngineError: it cannot be reached, or broke off.

    Not bounded in time but by each call's own limit. Cancellation closes the connection.
    """
    fault: str | None = None
    for found in sorted(_READERS, key=lambda name: name != kind):
        path, read = _READERS[found]
        answer = await server.call("GET", address.beside(path))
        if answer.status in _UNSEEN:
            fault = fault or f"its key may not ask for {path} ({answer.status})"
        if answer.ok and (state := read(answer.data, now())) is not None:
            return state
    return PeerState(kind="other", at=now(), fault=fault)


def router_state(data: Any, now: float) -> PeerState | None:
    """Return what `/status` of engine-router tells; None where it is none."""
    pools = dig(data, "pools")
    if not isinstance(pools, Mapping) or not isinstance(dig(data, "version"), str):
        return None
    in_flight: dict[str, int] = {}
    waiting: dict[str, int] = {}
    swaps: list[PeerSwap] = []
    for pool in pools.values():
        for resident in _items(dig(pool, "residents")):
            in_flight[_text(dig(resident, "resident"))] = _count(dig(resident, "in_flight"))
        found = dig(pool, "waiting")
        for resident, count in found.items() if isinstance(found, Mapping) else ():
            waiting[_text(resident)] = _count(count)
        swaps += [_swap(swap) for swap in _items(dig(pool, "swaps"))]
    models: dict[str, PeerModel] = {}
    for entry in _items(dig(data, "models")):
        name, resident = _text(dig(entry, "id")), _text(dig(entry, "resident") or dig(entry, "engine"))
        model = PeerModel(
            state=_text(dig(entry, "state"))[:_WORD_CHARS],
            in_flight=in_flight.get(resident, 0),
            waiting=waiting.get(resident, 0),
            start_s=_seconds(dig(entry, "start_s")),
        )
        for known in (name, *map(_text, _items(dig(entry, "aliases")))):
            models[known] = model
    return PeerState(
        kind="engine-router",
        at=now,
        version=_text(dig(data, "version"))[:_WORD_CHARS],
        models=models,
        in_flight=sum(in_flight.values()),
        waiting=sum(waiting.values()),
        swaps=tuple(swaps),
    )


def _swap(swap: Any) -> PeerSwap:
    target, phase = (
        dig(swap, "target"),
        _text(dig(swap, "step") or dig(swap, "phase") or "swap")[:_WORD_CHARS],
    )
    return PeerSwap(
        words=f"{phase} {_text(target)}" if isinstance(target, str) else phase,
        target=_text(target) if isinstance(target, str) else None,
        elapsed_s=_seconds(dig(swap, "elapsed_s")) or 0.0,
        expected_s=_seconds(dig(swap, "expected_total_s")) or _seconds(dig(swap, "expected_s")),
    )


def _of_listing(
    data: Any, now: float, *, kind: PeerKind, key: str, name: str, state: str | None
) -> PeerState | None:
    """Read a list of what is loaded, as other routers have it.

    Args:
        key: of the list.
        name, state: keys of an entry; whatever is listed is loaded where there is none for its state.
    """
    entries = dig(data, key)
    if not isinstance(entries, list):
        return None
    models = {
        _text(dig(entry, name)): PeerModel(state=_own_word("ready" if state is None else dig(entry, state)))
        for entry in _items(entries)
        if isinstance(dig(entry, name), str)
    }
    return PeerState(kind=kind, at=now, models=models)


_Reader = Callable[[Any, float], PeerState | None]
_READERS: Final[Mapping[PeerKind, tuple[str, _Reader]]] = {
    "engine-router": ("/status", router_state),
    "llama-swap": (
        "/running",
        functools.partial(_of_listing, kind="llama-swap", key="running", name="model", state="state"),
    ),
    "ollama": (
        "/api/ps",
        functools.partial(_of_listing, kind="ollama", key="models", name="name", state=None),
    ),
    "lmstudio": (
        "/api/v0/models",
        functools.partial(_of_listing, kind="lmstudio", key="data", name="id", state="state"),
    ),
}


def _own_word(state: object) -> str:
    """Return the state of a model in our own words."""
    if not isinstance(state, str):
        return "off"
    if state in _READY:
        return "ready"
    return "starting" if state in _COMING else "stopping" if state == "stopping" else "off"


def _items(value: Any) -> list[Any]:
    return value[:LISTED_MODELS] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value[:MODEL_NAME_CHARS] if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else 0


def _seconds(value: object) -> float | None:
    return amount(value, _MOST_S)
