"""The exchange of a request that named a route: where its model cannot be started or reached, it turns to the next."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final

from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.errors import (
    EngineBroke,
    EngineDied,
    EngineStartFailed,
    EngineUnreachable,
    NeverFits,
    QueueFull,
    RouterError,
)
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.forward_plan import ChoosePlan, ForwardPlan
from engine_router.upstream.http1 import ResponseHead

FALLS_BACK: Final = (EngineStartFailed, EngineUnreachable, NeverFits, QueueFull)
"""The errors after which the next model is asked: nothing of the request has come to an engine that could answer."""

ENDED: Final = (EngineDied, EngineBroke)
"""The errors after which it is asked where the request may be sent twice, and nothing of an answer has come."""

MakeExchange = Callable[[ResidentId, ForwardPlan | ChoosePlan], ProxyExchange]
"""Makes the exchange of a request with a resident, or turns the one that there is to it."""


@define(eq=False, repr=False)
class RouteExchange(ProxyExchange):
    """An exchange that may turn to another model, as long as nothing of an answer has come.

    Args:
        is_repeatable: the request may be sent again though an engine that ended has got it; see `REPEATABLE`.
    """

    _fall_back: Callable[[RouterError], Awaitable[bool]] = field(kw_only=True)
    _is_repeatable: bool = field(kw_only=True)

    async def head(self, until: float = math.inf) -> ResponseHead | None:
        """Wait for the head of the answer, of whichever model gives one; see `ProxyExchange.head`."""
        while True:
            try:
                return await super().head(until)
            except (*FALLS_BACK, *ENDED) as error:
                if self._raw_head is not None or not self._may_turn_after(error):
                    raise
                failure = error
            if not await self._fall_back(failure):
                raise failure
            await self._ensure_open()
            self._enter_again()

    def turn_to(self, resident: ResidentId, plan: ForwardPlan | ChoosePlan) -> None:
        """Have another resident answer, from the beginning; what is held of the old one is given back."""
        was_closed = self._closed  # the client may have left meanwhile
        self.close()
        self.resident, self._plan, self._retried, self._closed = resident, plan, False, was_closed
        self._exchange = self._sending = self._choose = None

    def _may_turn_after(self, error: RouterError) -> bool:
        if not isinstance(error, ENDED):
            return True
        return self._is_repeatable and (self._exchange is None or not self._exchange.has_heard)

    def _enter_again(self) -> None:
        """Take a place in the queue of the resident that the exchange has turned to."""
        if self.lease is None:
            raise RuntimeError("a request is entered before it waits")
        ticket = self.lease.ticket
        self.enter(priority=ticket.priority, keep_alive_s=ticket.keep_alive_s, client=ticket.client)
