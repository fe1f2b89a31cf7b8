"""The circuit breaker of a remote: whether a server that nobody here starts or stops can be reached."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from attrs import define

from engine_router.engines.base import LogRing, Supervision
from engine_router.engines.first_of import first_of
from engine_router.errors import RemoteUnreachable

FAILURES_TO_OPEN: Final = 3
"""So many failures to connect in a row open the circuit: the request's that raised the doubt, and those of looks after it."""

PAUSE_S: Final = 0.25
"""Seconds between the looks that decide it."""

COOL_DOWN_S: Final = 5.0
LONGEST_COOL_DOWN_S: Final = 60.0
# What is added to a cool-down, at most, so that many routers do not come back together.
_JITTER: Final = 0.25


@define(eq=False, repr=False)
class CircuitBreaker:
    """The circuit breaker of one remote.

    Closed, requests go through. A request that cannot connect, or whose connection breaks, raises a doubt, and the
    remote is looked at: a connection is made, and closed. When that has failed often enough the circuit opens: requests
    are refused until the cool-down is over, which is longer each time. Then one look decides (half-open); the requests
    that come meanwhile wait for its outcome. None is sent to find out.

    Attributes:
        connect: makes a connection and closes it. Returns None, or what was in the way.
    """

    engine: str
    log: LogRing
    connect: Callable[[], Awaitable[str | None]]

    async def run(self, supervision: Supervision) -> None:
        """Watch over the remote until cancelled."""
        while True:
            await supervision.doubted()
            fault = await self._fault()
            if fault is not None:
                await self._stay_open(supervision, fault)

    async def _fault(self) -> str | None:
        """Return why it cannot be reached; None as soon as it can."""
        for look in range(1, FAILURES_TO_OPEN):  # the first failure is the request's
            fault = await self.connect()
            if fault is None:
                return None
            self.log.write(f"cannot be reached: {fault}")
            if look < FAILURES_TO_OPEN - 1:
                await trio.sleep(PAUSE_S)
        return fault

    async def _stay_open(self, supervision: Supervision, fault: str) -> None:
        """Have requests refused until it can be reached."""
        cool_down_s = COOL_DOWN_S
        failure: str | None = fault
        while failure is not None:
            pause_s = cool_down_s * (1 + _JITTER * random.random())  # noqa: S311 - no secret
            words = f"cannot be reached: {failure}"
            supervision.shut(RemoteUnreachable(self.engine, words), trio.current_time() + pause_s)
            self.log.write(f"{words}; the next try is in {math.ceil(pause_s)} s")
            await first_of(over=functools.partial(trio.sleep, pause_s), asked=supervision.doubted)
            failure = await self.connect()
            cool_down_s = min(2 * cool_down_s, LONGEST_COOL_DOWN_S)
        self.log.write("can be reached again")
        supervision.opened()
