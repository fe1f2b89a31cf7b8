"""Ports for what tests start: no two tests that run at once get the same."""

from __future__ import annotations

from collections import deque

from engine_router.engines.ports import ClaimedPort

_claimed: deque[ClaimedPort] = deque()
# More than one test asks for.
_MOST = 50


def free_port() -> int:
    """Return a port on loopback that nobody uses now, and that no other test gets while this one runs."""
    _claimed.append(ClaimedPort())
    if len(_claimed) > _MOST:
        _claimed.popleft().release()
    return _claimed[-1].number
