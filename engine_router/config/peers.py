"""Peers: other routers, whose models appear here, and what is wrong with their tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final, Literal

import attrs
from attrs import frozen

from engine_router.config.any_engine import AnyEngineConfig
from engine_router.config.engines import RemoteConfig
from engine_router.config.faults import Fault, quoted
from engine_router.config.kinds import Argv, Deadline, MacAddress, Name, OwnAddress, PacketAddress, Seconds
from engine_router.config.options import no_option, option
from engine_router.config.values import shown

_DISCARD: Final = 9  # the port that magic packets go to by custom


@frozen(kw_only=True, repr=False)
class PeerConfig(RemoteConfig):
    """`[peers.NAME]`: another router on another machine: engine-router, llama-swap, Ollama or LM Studio."""

    type: Literal["peer"] = no_option("peer")  # type: ignore[assignment]  # a remote in a table of its own
    prefix: Name | None = option(
        None,
        "Its models appear as PREFIX/MODEL. Without one they keep their names, and a model that several places have goes to "
        "the one that answers soonest.",
    )
    mac: MacAddress | None = option(
        None,
        "Address of its network card, such as aa:bb:cc:dd:ee:ff: where it does not answer, it is woken by wake-on-LAN.",
    )
    broadcast: PacketAddress = option(
        "255.255.255.255", "Address that the magic packet is sent to, as ADDRESS or ADDRESS:PORT."
    )
    interface: OwnAddress | None = option(
        None,
        "IPv4 address of this machine from which the magic packet is sent; the system's choice when absent.",
    )
    wake_timeout_s: Deadline = option(120.0, "Seconds within which it must answer once it is woken.")
    suspend_after_s: Seconds = option(
        0.0,
        "Seconds without a request after which suspend_command is run, unless it says that others use it; 0: never.",
    )
    suspend_command: Argv | None = option(
        None, 'Command that puts it to sleep, such as ["ssh", "attic", "systemctl", "suspend"].'
    )
    paid: bool = no_option(False)
    allow_default: bool = no_option(False)

    @property
    def sleeps(self) -> bool:
        """Whether it has to be woken, at times."""
        return self.mac is not None

    def shown_name(self, model: str) -> str:
        """Return the id here of a model, by the name that the peer knows."""
        return model if self.prefix is None else f"{self.prefix}/{model}"

    def own_name(self, model: str) -> str:
        """Return the name that the peer knows of a model, by its id here."""
        return model if self.prefix is None else model.removeprefix(f"{self.prefix}/")


def broadcast_address(text: str) -> tuple[str, int]:
    """Return the address and the port that magic packets are sent to; 9 where none is named.

    >>> broadcast_address("192.168.1.255"), broadcast_address("127.0.0.1:4009")
    (('192.168.1.255', 9), ('127.0.0.1', 4009))
    """
    host, _, port = text.partition(":")
    return host, int(port or _DISCARD)


def with_peers(
    engines: Mapping[str, AnyEngineConfig], peers: Mapping[str, PeerConfig]
) -> dict[str, AnyEngineConfig]:
    """Return all engines, peers among them; these come last, and name their models as they appear here."""
    shown_peers = {
        name: attrs.evolve(peer, models=tuple(map(peer.shown_name, peer.models)))
        for name, peer in peers.items()
    }
    return {**engines, **{name: peer for name, peer in shown_peers.items() if name not in engines}}


def place_of(name: str, engine: AnyEngineConfig) -> str:
    """Return the table of an engine, or of a peer, as a path."""
    return f"{'peers' if isinstance(engine, PeerConfig) else 'engines'}.{quoted(name)}"


def peer_faults(peers: Mapping[str, PeerConfig], engines: Collection[str]) -> Iterator[Fault]:
    """Yield what is wrong with peers, beside what is wrong with any remote."""
    for name, peer in peers.items():
        path = f"peers.{quoted(name)}"
        if name in engines:
            yield path, f"an engine is called {shown(name)}, too; give one of them another name"
        if peer.prefix is not None and (peer.prefix != peer.prefix.strip("/ ") or "//" in peer.prefix):
            yield (
                f"{path}.prefix",
                "has slashes or blanks at its ends; write it as in PREFIX/MODEL, without the slash",
            )
        if peer.suspend_after_s and peer.suspend_command is None:
            yield (
                f"{path}.suspend_command",
                "missing; suspend_after_s needs the command that suspends the peer",
            )
        if peer.suspend_command is not None and peer.mac is None:
            yield f"{path}.mac", "missing; without it, the peer could be suspended, but not be woken"
