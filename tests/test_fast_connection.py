"""A connection of the fast tier reads while it serves, pauses where too much comes, and reads on."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing

from engine_router.errors import EngineBroke
from engine_router.events import EventHub
from engine_router.guards.limits import MAX_AHEAD_BYTES, MAX_BACKLOG_BYTES
from engine_router.in_flight import RequestScope
from engine_router.proxy.handler import Reply
from engine_router.proxy.request_body import IncomingRequest
from engine_router.proxy.response_body import BrokenAnswer, Sink
from engine_router.proxy.routes import is_proxied
from engine_router.proxy.streamed_body import Upload
from engine_router.server.fast_connection import FastConnection
from engine_router.server.fast_parser import RequestReader
from engine_router.upstream import socket_poll
from engine_router.upstream.http1 import ResponseHead
from engine_router.upstream.socket_stream import RawStream

LIMIT_S = 200.0
LARGE_BYTES = 1000
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
Serve = Callable[[IncomingRequest, RequestScope, Sink], Awaitable[Reply]]


@pytest.fixture(params=[socket_poll.EpollPoll, socket_poll.TaskPoll], ids=["epoll", "tasks"], autouse=True)
def poll(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the poll of one platform or the other."""
    if request.param is socket_poll.EpollPoll and sys.platform != "linux":
        pytest.skip("epoll")
    monkeypatch.setattr(socket_poll, "make_poll", request.param)


def answer(text: bytes) -> Reply:
    return Reply(ResponseHead(200, ((b"content-length", b"%d" % len(text)),)), text)


@contextlib.asynccontextmanager
async def connected(serve: Serve) -> AsyncIterator[tuple[trio.SocketStream, trio.Event, FastConnection]]:
    """Yield a client, an event that is set at the end of its connection, and the connection."""
    ours, theirs = socket.socketpair()
    reader = RequestReader(is_proxied, 100_000_000, LARGE_BYTES, ())
    connection, ended = FastConnection(RawStream(ours), reader, serve, EventHub()), trio.Event()

    async def run() -> None:
        try:
            assert await connection.run() is None
        finally:
            connection.stream.close()
            ended.set()

    async with trio.open_nursery() as nursery:
        client = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        async with client:
            nursery.start_soon(run)
            yield client, ended, connection
        nursery.cancel_scope.cancel()


async def received(client: trio.SocketStream, text: bytes, times: int) -> None:
    got = b""
    while got.count(text) < times:
        data = await client.receive_some()
        assert data
        got += data


async def test_requests_ahead_are_read_again_once_they_are_served() -> None:
    count = 4 * MAX_AHEAD_BYTES // len(HEAD)
    may_go = trio.Event()

    async def serve(_incoming: IncomingRequest, _scope: RequestScope, _sink: Sink) -> Reply:
        await may_go.wait()
        return answer(b"<here>")

    with trio.fail_after(LIMIT_S):
        async with connected(serve) as (client, ended, connection), trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, (HEAD % 2 + b"hi") * count)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert MAX_AHEAD_BYTES < len(connection._reader.raw) < 3 * MAX_AHEAD_BYTES
            may_go.set()
            await received(client, b"<here>", count)
            await client.aclose()
            await ended.wait()


async def test_requests_ahead_are_bounded_though_each_one_is_served_at_once() -> None:
    count = 8 * MAX_AHEAD_BYTES // len(HEAD)
    most = 0

    async def serve(_incoming: IncomingRequest, _scope: RequestScope, _sink: Sink) -> Reply:
        nonlocal most
        await trio.lowlevel.checkpoint()
        most = max(most, len(connection._reader.raw))
        return answer(b"<here>")

    with trio.fail_after(LIMIT_S):
        async with connected(serve) as (client, _, connection), trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, (HEAD % 2 + b"hi") * count)
            await received(client, b"<here>", count)
    assert MAX_AHEAD_BYTES < most < 3 * MAX_AHEAD_BYTES


async def test_a_defect_at_a_clients_departure_ends_its_connection_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(_incoming: IncomingRequest, _scope: RequestScope, _sink: Sink) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    def client_left(_scope: RequestScope) -> bool:
        raise RuntimeError("a defect")

    monkeypatch.setattr(RequestScope, "client_left", client_left)
    with trio.fail_after(LIMIT_S), pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="a defect")):
        async with connected(serve) as (client, ended, _):
            await client.send_all(HEAD % 2 + b"hi")
            await trio.testing.wait_all_tasks_blocked(0.01)
            await client.aclose()
            await ended.wait()
    assert "could not be handled" in caplog.text


async def test_a_large_body_is_read_on_as_soon_as_what_came_is_taken(
    mock_clock: trio.testing.MockClock,
) -> None:
    size, found = 8 * MAX_BACKLOG_BYTES, bytearray()

    async def serve(incoming: IncomingRequest, _scope: RequestScope, _sink: Sink) -> Reply:
        assert isinstance(incoming.body, Upload)
        async for piece in incoming.body.pieces():
            found.extend(piece)
            await trio.testing.wait_all_tasks_blocked()  # more comes than there is room for
        return answer(b"<taken>")

    with trio.fail_after(LIMIT_S):
        async with connected(serve) as (client, _, _connection), trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, HEAD % size + bytes(size))
            await received(client, b"<taken>", 1)
    assert len(found) == size
    assert mock_clock.current_time() == 0  # no pause had to come to its end


async def test_a_client_that_leaves_is_noticed_though_nobody_takes_its_large_body() -> None:
    async def serve(_incoming: IncomingRequest, _scope: RequestScope, _sink: Sink) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    with trio.fail_after(LIMIT_S):
        async with connected(serve) as (client, ended, _):
            await client.send_all(HEAD % 10_000_000 + bytes(3 * MAX_BACKLOG_BYTES))
            await client.aclose()
            await ended.wait()


@pytest.mark.parametrize(("pieces", "status"), [((), b"502"), ((b"<half",), b"200")], ids=["nothing", "half"])
async def test_an_answer_that_breaks_before_any_of_it_went_out_is_a_bad_gateway(
    pieces: tuple[bytes, ...], status: bytes
) -> None:
    async def body() -> AsyncGenerator[bytes, None]:
        for piece in pieces:
            yield piece
        raise BrokenAnswer(EngineBroke("e", "broke off: in the middle"))

    async def serve(_incoming: IncomingRequest, _scope: RequestScope, _sink: Sink) -> Reply:
        return Reply(ResponseHead(200, ((b"content-length", b"50"),)), body())

    with trio.fail_after(LIMIT_S):
        async with connected(serve) as (client, ended, _):
            await client.send_all(HEAD % 2 + b"hi")
            if pieces:
                await ended.wait()
            got = await client.receive_some()
            assert (got[9:12], b"in the middle" in got, got.endswith(b"<half")) == (
                status,
                not pieces,
                bool(pieces),
            )
            assert ended.is_set() == bool(
                pieces
            )  # the connection serves on only where its client got a whole answer


async def test_a_defect_of_what_reads_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(_incoming: IncomingRequest, _scope: RequestScope, _sink: Sink) -> Reply:
        raise AssertionError

    def feed(_reader: RequestReader, _data: bytes) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(RequestReader, "feed", feed)
    with trio.fail_after(LIMIT_S), pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="a defect")):
        async with connected(serve) as (client, ended, _):
            await client.send_all(b"POST")
            await ended.wait()


async def test_whoever_goes_on_with_a_connection_alone_receives_from_it() -> None:
    async def serve(_incoming: IncomingRequest, _scope: RequestScope, _sink: Sink) -> Reply:
        raise AssertionError

    ours, theirs = socket.socketpair()
    reader = RequestReader(is_proxied, 1000, LARGE_BYTES, ())
    theirs.send(b"GET / HTTP/1.1\r\n\r\n")
    with trio.fail_after(LIMIT_S), ours, theirs:
        assert (
            await FastConnection(RawStream(ours), reader, serve, EventHub()).run()
            == b"GET / HTTP/1.1\r\n\r\n"
        )
        theirs.send(b"more")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert ours.recv(10) == b"more"
        assert repr(socket_poll.current_poll()).endswith("Poll of 0>")
