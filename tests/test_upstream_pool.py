"""The pool of connections to engines: reuse, failures, cancellation and uploads."""

from __future__ import annotations

import errno
import math
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import trio
import trio.testing
from support.cancel_at import CancelAt
from support.upstream_wire import CHUNKED, HELLO, OK, WHOLE, Line, Script, Wire, answering, rest_of, wire

import engine_router.upstream.idle
from engine_router.errors import BadRequest, EngineBroke, EngineUnreachable
from engine_router.upstream.client import Exchange, Upstream


def once_each(*answers: bytes) -> Script:
    """Answer the requests of one connection one after the other, then wait for its end."""

    async def script(line: Line) -> None:
        for answer in answers:
            if await line.request():
                await line.send(answer)
        await line.until_left()

    return script


# The pool.


async def test_the_connection_used_last_is_used_first() -> None:
    async with wire(answering(HELLO)) as engine:
        exchanges = [await engine.send() for _ in range(3)]
        for exchange in exchanges:
            assert await exchange.head()
            assert await rest_of(exchange) == b"hello"
        assert engine.idle() == 3
        first, *_, last = (exchange._stream for exchange in exchanges)
        exchange = await engine.send()
        assert exchange._stream is last
        assert exchange._stream is not first
        exchange.close()
        assert engine.idle() == 2


async def test_a_small_request_goes_out_at_once_where_the_engine_accepts_at_once() -> None:
    async with wire(answering(HELLO)) as engine:
        exchange = engine.upstream.send_at_once(engine.request())
        assert exchange is not None
        assert await rest_of(exchange) == b"hello"
        assert (len(engine.lines), engine.idle()) == (1, 1)


@pytest.mark.parametrize(
    "url", ["http://localhost:{port}", "https://127.0.0.1:{port}", "http://192.0.2.1:{port}"]
)
async def test_a_connection_that_may_have_to_be_waited_for_is_not_begun_at_once(url: str) -> None:
    async with wire(answering(HELLO)) as engine:
        request = engine.request()
        request.base_url = url.format(port=urlsplit(engine.base_url).port)
        assert engine.upstream.send_at_once(request) is None
        assert engine.lines == []


async def test_a_request_to_an_engine_that_accepts_nothing_is_left_to_what_tells_why() -> None:
    async with wire(answering(HELLO)) as engine:
        request = engine.request()
    assert engine.upstream.send_at_once(request) is None
    with pytest.raises(EngineUnreachable, match="connection refused"):
        await engine.upstream.send(request)


async def test_a_small_request_goes_out_at_once_where_a_connection_is_idle() -> None:
    async with wire(answering(HELLO)) as engine:
        await engine.fetch()
        assert engine.upstream.send_at_once(engine.request("POST", bytes(100_000))) is None
        assert engine.idle() == 1
        exchange = engine.upstream.send_at_once(engine.request("POST", b"small"))
        assert exchange is not None
        assert engine.idle() == 0
        assert exchange.take_whole() is None  # nothing has come yet
        await exchange.head()
        assert exchange.take_whole() == b"hello"
        assert engine.idle() == 1
        assert len(engine.lines) == 1


async def test_what_cannot_be_sent_leaves_no_connection_behind() -> None:
    async with wire(answering(HELLO)) as engine:
        await engine.fetch()
        with pytest.raises(BadRequest, match="line break"):
            engine.upstream.send_at_once(engine.request(headers=[(b"x", b"a\r\nb")]))
        await engine.lines[0].until_left()
        assert engine.idle() == 0


async def test_connections_are_not_shared_between_addresses() -> None:
    async with wire(answering(HELLO)) as engine, wire(answering(HELLO)) as other:
        await engine.fetch()
        exchange = await engine.upstream.send(other.request())
        assert await rest_of(exchange) == b"hello"
        assert (len(engine.lines), len(other.lines)) == (1, 1)
        assert engine.idle() == 2


async def test_a_connection_idle_for_too_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_router.upstream.idle, "MAX_IDLE_S", 0.05)
    async with wire(answering(HELLO)) as engine:
        await engine.fetch()
        await trio.sleep(0.1)
        await engine.fetch()
        await engine.fetch()
        assert len(engine.lines) == 2


async def test_connections_to_an_address_that_is_gone_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_router.upstream.idle, "MAX_IDLE_S", 0.02)
    upstream = Upstream()
    for _ in range(5):  # an engine that gets another port with each start
        async with wire(answering(HELLO)) as engine:
            engine.upstream = upstream
            await engine.fetch()
        await trio.sleep(0.03)
    assert len(upstream._idle) == 1
    upstream.close()


async def test_no_more_than_so_many_connections_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_router.upstream.idle, "MAX_IDLE_CONNECTIONS", 2)
    async with wire(answering(HELLO)) as engine:
        exchanges = [await engine.send() for _ in range(4)]
        for exchange in exchanges:
            await rest_of(exchange)
        assert engine.idle() == 2
        assert [exchange._stream.sock.fileno() for exchange in exchanges[:2]] == [-1, -1]


async def test_nothing_is_kept_once_the_pool_is_closed() -> None:
    async with wire(answering(HELLO)) as engine:
        exchange = await engine.send()
        engine.upstream.close()
        assert await rest_of(exchange) == b"hello"
        assert engine.idle() == 0
        assert exchange._stream.sock.fileno() == -1


@pytest.mark.parametrize("how", ["closed", "reset", "unasked bytes"])
async def test_a_stale_connection_is_noticed_before_it_is_used(how: str) -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.send(HELLO)
        await trio.sleep(0.01)
        if how == "unasked bytes":
            await line.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            await line.until_left()
        elif how == "reset":
            line.reset()

    async with wire(script) as engine:
        for _ in range(3):
            _, got = await engine.fetch()
            assert got == b"hello"
            assert engine.idle() == 1
            await trio.sleep(0.05)
        assert len(engine.lines) == 3


@pytest.mark.parametrize("extra", [b"x", HELLO, b"HTTP/1.1", b"0\r\n\r\n"])
async def test_bytes_after_the_end_spoil_the_connection_but_not_the_answer(extra: bytes) -> None:
    async with wire(answering(HELLO + extra)) as engine:
        for _ in range(2):
            head, got = await engine.fetch()
            assert (head.status, got) == (200, b"hello")
        assert len(engine.lines) == 2
        assert engine.idle() == 0


async def test_bytes_after_a_last_answer_are_no_error_either() -> None:
    closing = OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello\r\nx"
    async with wire(answering(closing)) as engine:
        assert (await engine.fetch())[1] == b"hello"


async def test_a_second_answer_is_not_taken_for_that_to_the_next_request() -> None:
    async with wire(once_each(HELLO + OK + b"Content-Length: 4\r\n\r\nevil")) as engine:
        for _ in range(2):
            assert (await engine.fetch())[1] == b"hello"


async def test_an_exchange_closed_before_its_end_closes_the_connection() -> None:
    left = trio.Event()

    async def script(line: Line) -> None:
        await line.request()
        await line.send(CHUNKED, b"5\r\nhello\r\n")
        await line.until_left()
        left.set()

    async with wire(script) as engine:
        exchange = await engine.send()
        assert await exchange.chunk() == b"hello"
        exchange.close()
        with trio.fail_after(200):
            await left.wait()
        assert engine.idle() == 0


# No connection at all.


async def test_nobody_listens() -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    sock.close()
    request = Wire(Upstream(), f"http://127.0.0.1:{port}", []).request()
    with trio.fail_after(200), pytest.raises(EngineUnreachable, match="connection refused"):
        await Upstream().send(request)


async def test_a_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    async def open_tcp_stream(host: str, port: int) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)
    with pytest.raises(EngineUnreachable, match="not known"):
        await Upstream().send(Wire(Upstream(), "http://engine.invalid:1", []).request())


async def test_an_engine_by_name() -> None:
    async with wire(answering(HELLO)) as engine:
        engine.base_url = engine.base_url.replace("127.0.0.1", "localhost")
        assert (await engine.fetch())[1] == b"hello"


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
async def test_an_engine_by_its_ipv6_address() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError as error:
            pytest.skip(str(error))
        sock.listen()
        request = Wire(Upstream(), f"http://[::1]:{sock.getsockname()[1]}", []).request()
        exchange = await Upstream().send(request)
        exchange.close()


async def test_an_engine_that_does_not_accept_in_time() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:  # the queue of the listener is full after these
            filler.setblocking(False)
            assert filler.connect_ex(full.getsockname()) in (0, errno.EINPROGRESS, errno.EWOULDBLOCK)
        request = Wire(Upstream(), f"http://127.0.0.1:{full.getsockname()[1]}", []).request(
            connect_timeout_s=0.1
        )
        with trio.fail_after(200), pytest.raises(EngineUnreachable, match=r"within 0\.1 s"):
            await Upstream().send(request)
        for filler in fillers:
            filler.close()


async def test_a_handshake_that_fails_leaves_no_socket() -> None:
    async with wire(answering(HELLO)) as engine:
        engine.base_url = engine.base_url.replace("http:", "https:")

        async def garbage(line: Line) -> None:
            await line.stream.receive_some()
            await line.send(b"HTTP/1.1 400 This is not TLS\r\n\r\n")

        async with wire(garbage) as other:
            before = psutil.Process().num_fds()
            other.base_url = other.base_url.replace("http:", "https:")
            with pytest.raises(EngineUnreachable, match="TLS handshake failed"):
                await other.fetch()
            with pytest.raises(EngineUnreachable, match=r"within 0\.05 s"):
                await engine.send(connect_timeout_s=0.05)
            engine.lines.clear()
            other.lines.clear()
            await trio.sleep(0.02)
            assert psutil.Process().num_fds() <= before


async def test_over_tls(tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)

    async def script(line: Line) -> None:
        secured = trio.SSLStream(line.stream, server, server_side=True, https_compatible=True)
        line.stream = secured
        await answering(HELLO)(line)

    async with wire(script) as engine:
        engine.ca_file = str(tmp_path / "ca.pem")
        authority.cert_pem.write_to_path(engine.ca_file)
        engine.base_url = engine.base_url.replace("http:", "https:")
        for _ in range(2):
            assert (await engine.fetch())[1] == b"hello"
        # A connection that is idle is left to whoever may wait, and is used again.
        assert engine.upstream.send_at_once(engine.request()) is None
        assert (engine.idle(), len(engine.lines)) == (1, 1)
        assert (await engine.fetch())[1] == b"hello"
        assert len(engine.lines) == 1
        assert (await engine.fetch("POST", bytes(10**6)))[1] == b"hello"


# A request that is still being sent.

TOO_LARGE = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!"

BIG = bytes(30 * 10**6)


@pytest.mark.parametrize("then", ["waits", "closes", "keeps reading"])
async def test_an_answer_before_the_request_was_read(then: str) -> None:
    async def script(line: Line) -> None:
        await line.stream.receive_some(1000)
        await line.send(TOO_LARGE)
        if then == "waits":
            await trio.sleep_forever()
        elif then == "keeps reading":
            await line.until_left()

    async with wire(script) as engine:
        with trio.fail_after(200):
            head, body = await engine.fetch("POST", BIG)
        assert (head.status, body) == (413, b"no!")
        assert engine.idle() == 0


async def test_an_interim_answer_does_not_end_the_sending() -> None:
    async def script(line: Line) -> None:
        await line.stream.receive_some(1)
        line.received += b"P"
        await line.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = await line.request()
        await line.send(OK + b"Content-Length: 8\r\n\r\n%08d" % len(request))

    async with wire(script) as engine:
        _, body = await engine.fetch("POST", BIG)
        assert int(body) > len(BIG)


async def test_a_large_request_leaves_its_connection_to_the_next() -> None:
    async with wire(answering(HELLO)) as engine:
        for _ in range(2):
            assert (await engine.fetch("POST", BIG))[1] == b"hello"
        assert len(engine.lines) == 1


@pytest.mark.parametrize("how", ["closes", "resets", "talks nonsense"])
async def test_an_engine_that_breaks_off_while_it_reads(how: str) -> None:
    async def script(line: Line) -> None:
        await line.stream.receive_some(1000)
        if how == "resets":
            line.reset()
        elif how == "talks nonsense":
            await line.send(b"nonsense\r\n")
            await trio.sleep_forever()

    async with wire(script) as engine:
        exchange = await engine.send("POST", BIG)
        for _ in range(2):
            with pytest.raises(EngineBroke):
                await exchange.head()
        exchange.close()


async def test_a_cancelled_sending_closes_the_connection() -> None:
    left = trio.Event()

    async def script(line: Line) -> None:
        await line.stream.receive_some(1000)
        await trio.sleep(0.1)
        await line.until_left()
        left.set()

    async with wire(script) as engine:
        with trio.move_on_after(0.05) as scope:
            await engine.send("POST", BIG)
        assert scope.cancelled_caught
        await left.wait()


# Cancellation, and an end from outside.


@pytest.mark.parametrize("kind", ["length", "extensions", "trailers", "interim"])
async def test_steps_that_are_cancelled_and_taken_up_again_lose_nothing(kind: str) -> None:
    answer, body = WHOLE[kind]
    gate = trio.Event()

    async def script(line: Line) -> None:
        while await line.request():
            for cut in range(1, len(answer)):
                await line.stream.send_all(answer[cut - 1 : cut])
                await gate_passed()
            await line.stream.send_all(answer[-1:])

    async def gate_passed() -> None:
        nonlocal gate
        gate = trio.Event()
        await gate.wait()

    async with wire(script) as engine:
        exchange = await engine.send()
        head, got, ended = None, b"", False
        while not ended:
            with trio.move_on_after(0.0005):
                if head is None:
                    head = await exchange.head()
                else:
                    data = await exchange.chunk()
                    got, ended = got + data, not data
            gate.set()
        assert head is not None
        assert head.status == 200
        assert got == body
        assert engine.idle() == 1


@pytest.mark.parametrize("after", [False, True])
async def test_a_cancellation_at_any_step_loses_nothing(after: bool) -> None:
    parts = (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        CHUNKED[:10],
        CHUNKED[10:],
        b"3\r\nhel",
        b"\r\n2\r\nlo\r\n0\r\n",
        b"\r\n",
    )
    async with wire(answering(*parts)) as engine:
        for n in range(1, 200):
            exchange = await engine.send()
            got: list[bytes] = []

            async def read(exchange: Exchange = exchange, got: list[bytes] = got) -> None:
                await exchange.head()
                while not got or got[-1]:
                    got.append(await exchange.chunk())

            with CancelAt(n, after=after) as sweep, sweep.scope:
                await read()
            if not got or got[-1]:
                await read()
            assert b"".join(got) == b"hello"
            if not sweep.fired:
                break
        assert n > 3
        assert len(engine.lines) == 1


async def test_a_cancellation_at_any_step_of_the_sending_leaves_no_connection() -> None:
    async with wire(answering(HELLO)) as engine:
        for body in (b"", bytes(10**6)):
            for n in range(1, 500):
                exchange = None
                with CancelAt(n) as sweep, sweep.scope:
                    exchange = await engine.send("POST", body)
                if exchange is not None:
                    assert await rest_of(exchange) == b"hello"
                if not sweep.fired:
                    break
                engine.upstream.close()
                engine.upstream._closed = False
            assert n > 1
        with trio.fail_after(200):
            while len(open_lines(engine.lines)) > 1:
                await trio.sleep(0.01)


def open_lines(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.stream.socket.fileno() >= 0]


STATES: dict[str, tuple[bytes, ...]] = {
    "no head": (b"",),
    "half a head": (OK,),
    "no body": (CHUNKED,),
    "half a body": (CHUNKED + b"5\r\nhel",),
}


@pytest.mark.parametrize("state", STATES)
async def test_closing_wakes_whoever_waits(state: str) -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.send(*filter(None, STATES[state]))
        await line.until_left()

    async with wire(script) as engine:
        exchange = await engine.send()
        errors: list[EngineBroke] = []

        async def read() -> None:
            try:
                await exchange.head()
                await rest_of(exchange)
            except EngineBroke as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(0.03)
            assert errors == []
            exchange.close()
            exchange.close()
        assert "closed" in str(errors[0])
        assert "closed" in repr(exchange)
        assert engine.idle() == 0


@pytest.mark.parametrize("when", ["sent", "head", "body", "all", "end"])
async def test_closing_is_synchronous_in_every_state(when: str) -> None:
    async with wire(answering(HELLO)) as engine:
        exchange = await engine.send()
        if when != "sent":
            await exchange.head()
        if when in ("body", "end"):
            assert await exchange.chunk() == b"hello"
        if when == "end":
            assert await exchange.chunk() == b""
        exchange.close()
        exchange.close()
        kept = when in ("body", "end")
        assert engine.idle() == kept
        assert (exchange._stream.sock.fileno() >= 0) == kept
        if kept:  # whoever asks again cannot take what belongs to the next request
            assert await exchange.chunk() == b""
            assert engine.idle() == 1


# Nothing is left.


async def test_no_descriptor_is_left() -> None:
    async def script(line: Line) -> None:
        request = await line.request()
        what = request.split()[1]
        await line.send({b"/ok": HELLO, b"/bad": b"nonsense", b"/early": HELLO[:-1]}.get(what, OK))
        if what == b"/hang":
            await line.until_left()

    async with wire(script) as engine:
        exchange = await engine.send(target="/ok")
        assert await rest_of(exchange) == b"hello"
        process = psutil.Process()
        await trio.sleep(0.05)
        before = process.num_fds()
        for target in ("/ok", "/bad", "/early", "/hang") * 10:
            exchange = await engine.send(target=target)
            with trio.move_on_after(0.01 if target == "/hang" else math.inf):
                try:
                    await exchange.head()
                    await rest_of(exchange)
                except EngineBroke:
                    pass
            exchange.close()
        engine.upstream.close()
        engine.lines.clear()
        with trio.fail_after(200):
            while process.num_fds() > before:
                await trio.sleep(0.01)
