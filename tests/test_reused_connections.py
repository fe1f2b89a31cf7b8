"""Connections to an engine that are used again: what ends before a byte of the answer came, and what is let go."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

import pytest
import trio
from support.cancel_at import CancelAt
from support.upstream_wire import HELLO, Line, Script, rest_of, wire
from test_answering import CHAT, TALK, routing
from test_relay import A, answer_of, sending, world
from test_upstream import broken

from engine_router.errors import EngineBroke

LARGE = b"x" * 5_000_000


def ending(end: Callable[[Line], object], requests: list[bytes], *, after: bytes = b"") -> Script:
    """Answer the first request of each connection, and end it at the second, without a word of an answer."""

    async def script(line: Line) -> None:
        requests.append(await line.request())
        await line.send(HELLO)
        if request := await line.request():
            requests.append(request)
            await line.send(after)
            end(line)

    return script


def closed(line: Line) -> None:
    line.stream.socket.close()


@pytest.mark.parametrize("end", [closed, Line.reset])
@pytest.mark.parametrize("body", [b"", b"hello", LARGE], ids=["no body", "small", "large"])
async def test_a_reused_connection_that_ends_without_an_answer_is_replaced(
    body: bytes, end: Callable[[Line], object]
) -> None:
    requests: list[bytes] = []
    async with wire(ending(end, requests)) as engine:
        for _ in range(4):
            assert (await engine.fetch("POST", body))[1] == b"hello"
        assert len(requests) >= 6
        assert {request.endswith(b"\r\n\r\n" + body) for request in requests} == {True}


async def test_an_engine_that_closes_while_a_large_body_is_sent() -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.send(HELLO)
        await line.stream.receive_some(1000)

    async with wire(script) as engine:
        await engine.fetch()
        assert (await engine.fetch("POST", LARGE))[1] == b"hello"


async def test_what_ends_after_a_byte_of_the_answer_is_not_repeated() -> None:
    requests: list[bytes] = []
    async with wire(ending(closed, requests, after=b"H")) as engine:
        await engine.fetch()
        with pytest.raises(EngineBroke, match="without an answer"):
            await engine.fetch()
        assert len(requests) == 2


async def test_a_fresh_connection_is_not_replaced() -> None:
    async def script(line: Line) -> None:
        await line.request()

    async with wire(script) as engine:
        error, _ = await broken(engine)
        assert "without an answer" in str(error)
        assert len(engine.lines) == 1


async def test_a_request_is_repeated_once_only() -> None:
    async def script(line: Line) -> None:
        await line.request()
        if len(lines) == 1:
            await line.send(HELLO)
            await line.request()

    async with wire(script) as engine:
        lines = engine.lines
        await engine.fetch()
        with pytest.raises(EngineBroke, match="without an answer"):
            await engine.fetch()
        assert len(lines) == 2


class Piecemeal:
    """A body that can be sent once."""

    length = 5

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        yield b"hello"


async def test_a_body_that_can_be_sent_once_goes_over_a_fresh_connection() -> None:
    requests: list[bytes] = []
    async with wire(ending(closed, requests)) as engine:
        for _ in range(2):
            exchange = await engine.upstream.send(engine.request("POST", Piecemeal()))  # type: ignore[arg-type]
            assert await rest_of(exchange) == b"hello"
        assert len(engine.lines) == 2


async def test_a_cancellation_at_any_step_of_the_repetition_loses_nothing() -> None:
    fired, at = True, 0
    while fired:
        at += 1
        requests: list[bytes] = []
        async with wire(ending(closed, requests)) as engine:
            await engine.fetch()
            exchange = await engine.send("POST", b"hello")
            with CancelAt(at) as sweep, sweep.scope:
                await exchange.head()
            fired = sweep.fired
            assert await rest_of(exchange) == b"hello"
            exchange.close()
    assert at > 1


async def test_a_request_over_a_connection_that_the_engine_closes_is_answered(fast: bool) -> None:
    async with routing("closes=1", fast=fast) as client:
        for _ in range(6):
            assert (await client.post(CHAT, {**TALK, "do": "chat"})).status == 200


async def test_idle_connections_are_closed_before_an_engine_is_asked_to_end() -> None:
    async with world(sending(answer_of(b"ok"))) as w:
        stopped: list[tuple[str, int]] = []

        def on_stop(base_url: str) -> None:
            w.upstream.forget(base_url)
            stopped.append((base_url, w.engine.count("stop")))

        w.supervisor.on_stop(on_stop)
        exchange = w.exchange()
        await exchange.head()
        while await exchange.chunk():
            pass
        await w.assert_nothing_left(kept=1)
        w.supervisor.unload(A)
        while w.engine.count("stop") == 0:
            await trio.sleep(0.001)
        assert stopped == [(w.base_url, 0)]
        await w.assert_nothing_left(kept=0)


async def test_the_router_lets_go_of_idle_connections_before_it_stops_an_engine(fast: bool) -> None:
    async with routing(fast=fast) as client:
        router = client.router
        assert (await client.post(CHAT, {**TALK, "do": "chat"})).status == 200
        assert len(router.upstream._idle) == 1
        resident = router.engines["e"].resident_of("m")
        router.supervisor.unload(resident)
        while client.is_loaded:
            await trio.sleep(0.01)
        assert len(router.upstream._idle) == 0
