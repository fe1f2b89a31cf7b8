"""Availability of a model: when it could take up one more request, as far as is known. Pure: values in, an order out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, TypeVar

from attrs import frozen

Presence = Literal["ready", "starting", "absent"]
"""Whether a resident is in memory, on its way there, or neither."""

UNKNOWN_START_S: Final = 10.0
"""Seconds of a start that nobody has measured, here or at a peer: in choices of victims, of places and of routes."""

K = TypeVar("K")


@frozen(kw_only=True)
class Availability:
    """The moment at which a resident could take up one more request.

    Attributes:
        presence: whether it is in memory, or on its way.
        fits: it could be in memory without anybody else having to go.
        requests: those that use it or wait for it.
        wait_s: seconds until it could begin with what is new, about; what has no measured start counts with a guess.
        is_guessed: nobody has measured how long its start takes.
        failed_for_s: seconds for which it is not tried again after a failure; 0 where it may be tried.
    """

    presence: Presence = "absent"
    fits: bool = False
    requests: int = 0
    wait_s: float = 0.0
    is_guessed: bool = False
    failed_for_s: float = 0.0

    @property
    def may_begin(self) -> bool:
        """Whether a request would be let in now, or wait, and not be refused for a failure."""
        return self.failed_for_s <= 0


def soonest(availabilities: Iterable[tuple[K, Availability]]) -> list[K]:
    """Return keys in the order in which what they stand for could begin; of equals, the first one first.

    Routes choose among models by it, and a model among its places. What failed and is not tried again yet comes last.
    """
    found = [*availabilities]
    found.sort(key=lambda pair: (not pair[1].may_begin, pair[1].wait_s))
    return [key for key, _ in found]
