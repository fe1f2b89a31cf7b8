"""A model's place: its engine, its resident, its names, and where the router knows it from."""

from __future__ import annotations

from typing import Final, Literal

from attrs import frozen

from engine_router.engines.base import ResidentId

LATEST: Final = ":latest"
"""The tag that Ollama adds to a name without one."""

Origin = Literal["configured", "folder", "argv", "live", "last seen"]
"""Where a model is known from: the file, a folder's scan, its engine's command, its engine's list, now or earlier."""


@frozen
class Target:
    """The place of a model.

    Attributes:
        model: the id under which the router lists it.
        engine: the engine's name.
        resident: what has to be resident for it.
        upstream: the name that the engine knows it by.
        aliases: other names that clients may use.
        origin: where it is known from; of several places the first in the order of `Origin`.
        is_paid: its answers cost money.
        is_peers: a peer has it.
        places: where it is, too: peers that have a model of this name.
        variant_of: the id of the model that it is a variant of; empty where it is none.
    """

    model: str
    engine: str
    resident: ResidentId
    upstream: str
    aliases: tuple[str, ...] = ()
    origin: Origin = "configured"
    is_paid: bool = False
    is_peers: bool = False
    places: tuple[Target, ...] = ()
    variant_of: str = ""

    @property
    def is_listed_only(self) -> bool:
        """True if nothing but its engine's list says that there is such a model."""
        return self.origin in ("live", "last seen")


@frozen
class KnownId:
    """A model of which an engine is known to have it.

    Attributes:
        origins: every place where that is known from, in the order of `Origin`.
        seen_at: when the engine listed it last, in seconds since the epoch; None if it never did.
    """

    target: Target
    origins: tuple[Origin, ...]
    seen_at: float | None


def spellings(name: str) -> tuple[str, ...]:
    """Return a name and the same with, or without, the tag that Ollama adds by default."""
    if name.endswith(LATEST):
        return (name, name.removesuffix(LATEST))
    return (name,) if ":" in name else (name, name + LATEST)
