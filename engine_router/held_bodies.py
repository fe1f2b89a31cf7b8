"""The memory that requests hold with their bodies: counted for all of them together, and bounded.

A request that waits for its model holds its body all the while: as it came, without its content encoding, and in the
words of its engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from attrs import define, field

from engine_router.errors import RouterError, TooMuchHeld
from engine_router.limits import HELD_RETRY_S


class HoldsNoMore(RouterError):
    """The request has ended while it was still being read; nobody hears of it."""


@define(eq=False)
class HeldBodies:
    """What all requests hold together.

    Args:
        limit_bytes: returns how much that may be.

    Attributes:
        held_bytes: how much it is.
    """

    limit_bytes: Callable[[], int]
    held_bytes: int = 0
    _lock: threading.Lock = field(factory=threading.Lock)

    def share(self) -> HeldShare:
        """Return the share of one request, which holds nothing yet."""
        return HeldShare(self, self._lock)


@define(eq=False)
class HeldShare:
    """What one request holds. May be used by threads, too."""

    _all: HeldBodies
    _lock: threading.Lock
    _bytes: int = 0
    _is_over: bool = False

    def grow(self, count: int) -> None:
        """Hold more, or less if negative. A request is never refused for what it holds while no other holds anything.

        Raises:
            TooMuchHeld: all requests together would hold too much.
            HoldsNoMore: the request has ended; nothing is held for it any more.
        """
        with self._lock:
            if self._is_over:
                raise HoldsNoMore("the request has ended")
            after, limit = self._all.held_bytes + count, self._all.limit_bytes()
            if count > 0 and after > limit and self._all.held_bytes > self._bytes:
                raise TooMuchHeld(
                    f"the requests that wait hold {limit / 1_000_000:g} MB together, as many as "
                    "server.max_held_mb in engines.toml allows; this one has no room left",
                    retry_after_s=HELD_RETRY_S,
                )
            self._all.held_bytes, self._bytes = after, self._bytes + count

    def release(self) -> None:
        """Hold nothing from now on; may be called again."""
        with self._lock:
            self._all.held_bytes -= self._bytes
            self._bytes, self._is_over = 0, True
