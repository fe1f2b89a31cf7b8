"""The exchange of a request that turns to another model: wherever it ends, nothing is left of either attempt."""

from __future__ import annotations

import contextlib

import pytest
import trio
from support.cancel_at import CancelAt
from test_relay import EVENT, SSE, A, B, World, chunk, sending, world

import engine_router.proxy.exchange as exchanges
from engine_router.errors import EngineBroke, RouterError
from engine_router.proxy.forward_plan import ForwardPlan
from engine_router.proxy.route_exchange import RouteExchange
from engine_router.upstream.forwarding import Outgoing

END = b"0\r\n\r\n"
GONE = (EngineBroke, trio.ClosedResourceError)  # what a task sees whose request was given back under it


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for news of an engine's death that will not come."""
    monkeypatch.setattr(exchanges, "NEWS_GRACE_S", 0.01)


class Turns:
    """A server that ends the first request of each exchange without an answer, and what turns to the next model."""

    def __init__(self) -> None:
        self.failures: list[RouterError] = []
        self.ends_next = True

    async def answer(self, stream: trio.SocketStream) -> None:
        if self.ends_next:
            self.ends_next = False
            stream.socket.close()
            return
        await sending(SSE, chunk(EVENT), END)(stream)

    def exchange(self, w: World, *, is_repeatable: bool = True) -> RouteExchange:
        """Enter a request for A that turns to B."""
        self.ends_next, self.failures = True, []
        outgoing = Outgoing(
            engine="a",
            method="POST",
            target="/v1/chat/completions",
            headers=[],
            body=b"{}",
            connect_timeout_s=1.0,
        )
        plan = ForwardPlan(outgoing=outgoing)

        async def fall_back(error: RouterError) -> bool:
            self.failures.append(error)
            await trio.lowlevel.checkpoint()  # plans how it goes on
            exchange.turn_to(B, plan)
            return len(self.failures) == 1

        exchange = RouteExchange(
            w.supervisor, A, upstream=w.upstream, plan=plan, fall_back=fall_back, is_repeatable=is_repeatable
        )
        exchange.enter()
        return exchange


class Leaves:
    """What a sweep does at its step: the client leaves, which gives all back, and then its task is cancelled."""

    def __init__(self, exchange: RouteExchange, scope: trio.CancelScope) -> None:
        self.exchange, self.scope = exchange, scope

    def cancel(self) -> None:
        self.exchange.close()
        self.scope.cancel()


async def test_a_request_whose_engine_ended_is_answered_by_the_next() -> None:
    turns = Turns()
    async with world(turns.answer) as w:
        exchange = turns.exchange(w)
        head = await exchange.head()
        assert head is not None
        assert (head.status, exchange.resident) == (200, B)
        assert [type(failure) for failure in turns.failures] == [EngineBroke]
        while await exchange.chunk():
            pass
        await w.assert_nothing_left(kept=1)


async def test_what_may_not_be_sent_twice_is_not() -> None:
    turns = Turns()
    async with world(turns.answer) as w:
        exchange = turns.exchange(w, is_repeatable=False)
        with pytest.raises(EngineBroke):
            await exchange.head()
        exchange.close()
        assert turns.failures == []
        await w.assert_nothing_left()


@pytest.mark.parametrize("leaves", [False, True], ids=["cancelled", "left"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_nothing_is_left_wherever_it_ends(after: bool, leaves: bool) -> None:
    turns = Turns()
    async with world(turns.answer) as w:
        has_turned = False
        for n in range(1, 300):
            exchange = turns.exchange(w)
            scope = trio.CancelScope()
            cancel = Leaves(exchange, scope) if leaves else scope
            with CancelAt(n, cancel, after=after) as sweep, scope, contextlib.suppress(*GONE):  # type: ignore[arg-type]
                try:
                    await exchange.head()
                    while await exchange.chunk():
                        pass
                finally:
                    exchange.close()
            has_turned |= bool(turns.failures)
            await w.assert_nothing_left(kept=None)
            w.upstream.close()
            w.upstream._closed = False
            await w.assert_nothing_left()
            if not sweep.fired:
                break
        assert n > 4
        assert has_turned
