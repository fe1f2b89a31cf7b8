"""The memory of the bodies of all requests together, and the share that each holds of it.

A request that waits for its model holds its body all the while: as it came, without its content encoding, and in the
words of its engine. That memory is counted for all requests together, and bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from attrs import define, field

from engine_router.errors import RouterError, TooMuchHeld
from engine_router.guards.limits import HELD_RETRY_S


class HoldsNoMore(RouterError):
    """The request has ended while it was still being read; nobody hears of it."""


@define(eq=False, repr=False)
class HeldBodies:
    """The memory of the bodies that all requests hold together.

    Args:
        limit_bytes: returns how much that may be.

    Attributes:
        held_bytes: how much it is.
        lock: held while that changes.
    """

    limit_bytes: Callable[[], int]
    held_bytes: int = 0
    lock: threading.Lock = field(factory=threading.Lock)


@define(eq=False, repr=False)
class HeldShare:
    """The memory of the body that one request holds. May be used by threads, too."""

    _all: HeldBodies
    _bytes: int = 0
    _is_over: bool = False

    def grow(self, count: int) -> None:
        """Hold more, or less if negative. A request is never refused for what it holds while no other holds anything.

        Raises:
            TooMuchHeld: all requests together would hold too much.
            HoldsNoMore: the request has ended; nothing is held for it any more.
        """
        with self._all.lock:
            if self._is_over:
                raise HoldsNoMore("the request has ended")
            after = self._all.held_bytes + count
            if (
                count > 0
                and self._all.held_bytes > self._bytes
                and after > (limit := self._all.limit_bytes())
            ):
                raise TooMuchHeld(
                    f"the requests that wait hold {limit / 1_000_000:g} MB together, as many as "
                    "server.max_held_mb in engines.toml allows; this one has no room left",
                    retry_after_s=HELD_RETRY_S,
                )
            self._all.held_bytes, self._bytes = after, self._bytes + count

    def release(self) -> None:
        """Hold nothing from now on; may be called again."""
        with self._all.lock:
            self._all.held_bytes -= self._bytes
            self._bytes, self._is_over = 0, True
