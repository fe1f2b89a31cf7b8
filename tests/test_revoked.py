"""A lease that is taken away ends its request in every phase: the question, the connecting, the upload."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
import trio
from support.asgi import Received
from test_answering import CHAT, TALK, routing
from test_relay import A, B, World, error_of, hanging, world

from engine_router.errors import LeaseRevoked
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.forward_plan import ForwardPlan
from engine_router.upstream.forwarding import Outgoing
from engine_router.upstream.socket_stream import RawStream

LARGE = b"x" * 32_000_000


async def deaf(_: trio.SocketStream) -> None:
    await trio.sleep_forever()


class Trickle:
    """A body that never comes."""

    length = 1_000_000

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        yield b"{"
        await trio.sleep_forever()


async def asking_for_ever(_: str) -> ForwardPlan:
    await trio.sleep_forever()
    raise AssertionError("unreachable")


def passage_of(w: World, body: bytes | Trickle) -> ProxyExchange:
    course = ForwardPlan(
        outgoing=Outgoing(engine="a", method="POST", target="/", headers=[], body=body, connect_timeout_s=1.0)
    )
    exchange = ProxyExchange(w.supervisor, A, upstream=w.upstream, plan=course)
    exchange.enter()
    return exchange


def asking(w: World) -> ProxyExchange:
    exchange = ProxyExchange(w.supervisor, A, upstream=w.upstream, plan=asking_for_ever)
    exchange.enter()
    return exchange


PHASES: dict[str, tuple[Callable[[trio.SocketStream], Awaitable[None]], Callable[[World], ProxyExchange]]] = {
    "asking what the engine can": (hanging, asking),
    "sending what the engine does not read": (deaf, lambda w: passage_of(w, LARGE)),
    "relaying what does not come": (hanging, lambda w: passage_of(w, Trickle())),
    "waiting for the head": (hanging, lambda w: passage_of(w, b"{}")),
}


@pytest.mark.parametrize("phase", PHASES)
async def test_a_revoked_lease_ends_its_request(phase: str) -> None:
    answer, make = PHASES[phase]
    async with world(answer) as w:
        await w.warm_up()
        exchange = make(w)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(error_of, exchange.head, LeaseRevoked)
            await trio.testing.wait_all_tasks_blocked()
            await w.warm_up(B)
        exchange.close()
        assert w.supervisor.domains["default"].leases == {}


async def test_a_defect_while_the_connection_is_closed_keeps_no_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leave_poll(_stream: RawStream) -> None:
        raise RuntimeError("a defect")

    async with world(hanging) as w:
        await w.warm_up()
        exchange = passage_of(w, b"{}")
        with trio.move_on_after(1):
            await exchange.head()
        assert len(w.supervisor.domains["default"].leases) == 1
        with monkeypatch.context() as patch:
            patch.setattr(RawStream, "_leave_poll", leave_poll)
            with pytest.raises(RuntimeError, match="a defect"):
                exchange.close()
        assert w.supervisor.domains["default"].leases == {}
        assert exchange._exchange is not None
        assert isinstance(stream := exchange._exchange._stream, RawStream)
        assert stream.sock.fileno() == -1


async def test_a_cancelled_upload_ends_at_once(fast: bool) -> None:
    async with routing("deaf=1000000", fast=fast) as client:
        answers: list[Received] = []
        body = json.dumps({**TALK, "pad": "x" * 32_000_000}).encode()

        async def post() -> None:
            answers.append(await client.post(CHAT, body, {"content-type": "application/json"}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(post)
            while "deaf" not in client.router.engines["e"].log.tail(100):
                await trio.sleep(0.01)
            (request,) = client.router.in_flight.by_ticket().values()
            client.router.in_flight.cancel(request.id)
        assert "ended by the person" in answers[0].json()["error"]["message"]
        assert client.router.supervisor.domains["default"].leases == {}
