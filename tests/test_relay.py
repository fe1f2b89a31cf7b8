"""The relay: a lease and an exchange with an engine become one answer, or one error, and nothing is left."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from support.cancel_at import CancelAt
from support.simulated_engine import Script, SimulatedEngine
from support.simulated_memory import SimulatedMemory
from trio.testing import MockClock

import engine_router.proxy.exchange as exchanges
from engine_router.config.load import parse_config
from engine_router.dialects import OLLAMA, OPENAI, Dialect
from engine_router.dialects.base import Translation
from engine_router.dialects.keep_alive import keep_alive_for
from engine_router.dialects.ollama.answers import translate
from engine_router.engines.base import DOUBT_S, Ended, Endpoint, ResidentId, Supervision
from engine_router.errors import (
    EngineBroke,
    EngineDied,
    EngineRefused,
    EngineStartFailed,
    EngineUnreachable,
    LeaseRevoked,
    RouterError,
)
from engine_router.events import EventHub
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.forward_plan import ForwardPlan
from engine_router.proxy.response_body import BrokenAnswer, StreamOptions, plain_body, waiting_body
from engine_router.residency.ledger import Rules
from engine_router.residency.measurements import Measurements
from engine_router.residency.supervisor import Supervisor
from engine_router.upstream.client import Upstream
from engine_router.upstream.forwarding import (
    EngineRequests,
    Outgoing,
    named_in_connection,
    response_headers,
)
from engine_router.upstream.http1 import Headers, ResponseHead, UpstreamRequest

A, B = ResidentId("a"), ResidentId("b")
RULES = Rules(drain_timeout_s=0.05, max_wait_s=0.0, abandon_grace_s=0.0, failed_start_memory_s=0.0)

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT, END = b"data: {}\n\n", b"0\r\n\r\n"
KEEPALIVE = b": keepalive\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer_of(body: bytes, status: str = "200 OK", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


# Headers.

CLIENT: Headers = [
    (b"host", b"router"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip"),
    (b"authorization", b"Bearer k"),
    (b"x-api-key", b"k"),
    (b"cookie", b"c"),
    (b"connection", b"keep-alive, X-Hop"),
    (b"connection", b" x-Other ,,"),
    (b"x-hop", b"1"),
    (b"x-other", b"2"),
    (b"keep-alive", b"5"),
    (b"te", b"trailers"),
    (b"trailer", b"x"),
    (b"transfer-encoding", b"chunked"),
    (b"upgrade", b"h2c"),
    (b"proxy-authorization", b"p"),
    (b"proxy-connection", b"p"),
    (b"content-length", b"7"),
    (b"expect", b"100-continue"),
    (b"content-type", b"application/json"),
    (b"x-custom", b"1"),
    (b"x-custom", b"2"),
]
KEPT = [(b"content-type", b"application/json"), (b"x-custom", b"1"), (b"x-custom", b"2")]


def forwarded(added: dict[str, str], *, strip_keys: bool) -> Headers:
    server = "[server]\napi_keys = ['k']\n" if strip_keys else ""
    config = parse_config(server + "[engines.a]\ntype = 'ollama'\n")
    engine = attrs.evolve(config.engines["a"], headers=added)
    return EngineRequests(attrs.evolve(config, engines={"a": engine}), "a").headers(CLIENT)


def test_what_an_engine_gets_of_a_clients_headers() -> None:
    keys = [(b"authorization", b"Bearer k"), (b"x-api-key", b"k")]
    identity = (b"accept-encoding", b"identity")
    assert forwarded({}, strip_keys=True) == [(b"accept", b"*/*"), *KEPT, identity]
    assert forwarded({}, strip_keys=False) == [
        (b"accept", b"*/*"),
        *keys,
        *KEPT,
        identity,
    ]


def test_configured_headers_win() -> None:
    added = {"authorization": "Bearer ü", "X-CUSTOM": "mine", "X-New": "n"}
    for strip_keys in (True, False):
        got = forwarded(added, strip_keys=strip_keys)
        assert got[-3:] == [
            (b"authorization", "Bearer ü".encode()),
            (b"x-custom", b"mine"),
            (b"x-new", b"n"),
        ]
        names = [name for name, _ in got]
        assert names.count(b"authorization") == names.count(b"x-custom") == 1


def test_what_a_client_gets_of_an_engines_headers() -> None:
    headers = [
        (b"server", b"uvicorn"),
        (b"date", b"now"),
        (b"set-cookie", b"c"),
        (b"connection", b"close, X-Hop"),
        (b"x-hop", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"content-length", b"7"),
        (b"content-type", b"text/plain"),
        (b"x-request-id", b"1"),
    ]
    assert response_headers(headers) == headers[-3:]
    assert named_in_connection(headers) == {b"close", b"x-hop"}


# A world with real sockets.


@attrs.define(eq=False)
class Engine(SimulatedEngine):
    """A simulated engine that answers at a real address.

    Attributes:
        base_urls: where it answers, start after start; the last one stays.
        doubts: how often somebody doubted that it is there.
        dies_of_doubt: it finds that it is gone when it is doubted.
        doubt_s: seconds that it takes to find that.
    """

    base_urls: list[str] = attrs.field(factory=list)
    doubts: int = 0
    dies_of_doubt: bool = False
    doubt_s: float = 0.0

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        ready = supervision.on_ready
        base_url = self.base_urls.pop(0) if len(self.base_urls) > 1 else self.base_urls[0]
        supervision.on_ready = lambda _: ready(Endpoint(base_url))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear_doubts, resident, supervision)
            ended = await SimulatedEngine.run_resident(self, resident, supervision, adopt=adopt)
            nursery.cancel_scope.cancel()
        return ended

    async def _hear_doubts(self, resident: ResidentId, supervision: Supervision) -> None:
        while True:
            await supervision.doubted()
            self.doubts += 1
            if self.dies_of_doubt:
                await trio.sleep(self.doubt_s)
                self.kill(resident)


@attrs.define(eq=False)
class World:
    """A supervisor, two engines, and the server that speaks for both."""

    supervisor: Supervisor
    upstream: Upstream
    engine: Engine
    other: Engine
    base_url: str
    requests: list[bytes]
    open_lines: list[trio.SocketStream]

    def exchange(
        self, translation: Translation | None = None, body: bytes = b"{}", **ticket: Any
    ) -> ProxyExchange:
        outgoing = Outgoing(
            engine="a",
            method="POST",
            target="/v1/chat/completions",
            headers=[(b"x-a", b"1")],
            body=translation.body if translation else body,
            connect_timeout_s=1.0,
        )
        course = ForwardPlan(outgoing=outgoing, translation=translation)
        exchange = ProxyExchange(self.supervisor, A, upstream=self.upstream, plan=course)
        exchange.enter(**ticket)
        return exchange

    async def warm_up(self, resident: ResidentId = A) -> None:
        """Make a resident ready before the test begins."""
        lease = self.supervisor.request(resident)
        await lease.granted()
        lease.release()

    async def assert_nothing_left(self, *, kept: int | None = 0) -> None:
        """No lease, nobody who waits, and no connection but those that are kept."""
        await trio.testing.wait_all_tasks_blocked()
        for pool in self.supervisor.domains.values():
            assert pool.leases == {}
            assert list(pool.ledger.waiting()) == []
            assert not any(state.leases for state in pool.ledger.states)
        idle = len(self.upstream._idle)
        assert kept is None or idle == kept
        with trio.fail_after(200):
            while len(self.open_lines) > idle:
                await trio.sleep(0.001)


Answering = Callable[[trio.SocketStream], Awaitable[object]]


def sending(*parts: bytes, close: bool = False) -> Answering:
    async def answer(stream: trio.SocketStream) -> None:
        for part in parts:
            await stream.send_all(part)
            await trio.sleep(0.002)
        if close:
            stream.socket.close()

    return answer


async def hanging(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


def then_hanging(*parts: bytes) -> Answering:
    async def answer(stream: trio.SocketStream) -> None:
        await sending(*parts)(stream)
        await hanging(stream)

    return answer


@asynccontextmanager
async def world(
    answer: Answering = hanging,
    *,
    rules: Rules = RULES,
    start_s: float = 0.0,
    seconds: float = 200.0,
    scripts: Sequence[Script] = (),
) -> AsyncIterator[World]:
    memory = SimulatedMemory()
    engines = {name: Engine(name, memory, start_s=start_s, stop_s=0.0) for name in "ab"}
    engines["a"].scripts.extend(scripts)
    supervisor = Supervisor(
        engines=engines,
        gauges={"default": memory},
        pools_of=dict.fromkeys("ab", ("default",)),
        rules=rules,
        settle_timeout_s=0.01,
        hub=EventHub(),
        measurements=Measurements(),
    )
    requests: list[bytes] = []
    lines: list[trio.SocketStream] = []

    async def serve(stream: trio.SocketStream) -> None:
        lines.append(stream)
        try:
            while data := await stream.receive_some():
                requests.append(bytes(data))
                await answer(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one of the two has left
        finally:
            stream.socket.close()
            lines.remove(stream)

    upstream = Upstream()
    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            with listener.socket:
                base_url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
                for engine in engines.values():
                    engine.base_urls.append(base_url)
                nursery.start_soon(trio.serve_listeners, serve, [listener])
                await nursery.start(supervisor.run)
                try:
                    yield World(supervisor, upstream, engines["a"], engines["b"], base_url, requests, lines)
                finally:
                    upstream.close()
                    nursery.cancel_scope.cancel()
    assert memory.faults == []


async def collected(body: AsyncIterator[bytes], into: list[bytes] | None = None) -> list[bytes]:
    parts = [] if into is None else into
    async for part in body:
        parts.append(part)
    return parts


async def error_of(step: Callable[[], Awaitable[object]], kind: type[RouterError]) -> RouterError:
    with pytest.raises(kind) as caught:
        await step()
    assert type(caught.value) is kind
    return caught.value


def plain(
    exchange: ProxyExchange, dialect: Dialect, errors: list[RouterError] | None = None, *, streams: bool
) -> AsyncIterator[bytes]:
    told = [] if errors is None else errors
    return plain_body(exchange, manner(dialect, math.inf, told.append), streams=streams)


PATHS = {"openai": "/v1/chat/completions", "ollama": "/api/chat", "anthropic": "/v1/messages"}


def manner(dialect: Dialect, interval_s: float, on_error: Callable[[RouterError], object]) -> StreamOptions:
    return StreamOptions(
        dialect=dialect,
        make_frames=lambda: keep_alive_for(PATHS[dialect.name], "m"),
        interval_s=interval_s,
        on_error=on_error,
    )


def waiting(
    exchange: ProxyExchange, dialect: Dialect, interval_s: float, on_error: Callable[[RouterError], object]
) -> AsyncIterator[bytes]:
    return waiting_body(exchange, manner(dialect, interval_s, on_error))


def framed(error: RouterError) -> bytes:
    return OPENAI.stream_error(error)


# Answers.


async def test_the_engines_own_status_and_headers_where_nothing_has_to_be_waited_for() -> None:
    raw = answer_of(b'{"x":1}', "418 Teapot").replace(b"Content-Type", b"X-Odd: 1\r\nContent-Type")
    async with world(sending(raw)) as w:
        exchange = w.exchange()
        assert math.isnan(exchange.queue_wait_s)
        head = await exchange.head()
        assert head == ResponseHead(
            418, [(b"x-odd", b"1"), (b"content-type", b"application/json"), (b"content-length", b"7")]
        )
        assert exchange.queue_wait_s >= 0
        assert exchange.first_byte_s >= exchange.queue_wait_s
        assert await exchange.head() == head
        assert b"".join(await collected(plain(exchange, OPENAI, streams=False))) == b'{"x":1}'
        assert await exchange.chunk() == b""
        exchange.close()
        await w.assert_nothing_left(kept=1)
        assert b"x-a: 1\r\ncontent-length: 2\r\n\r\n{}" in w.requests[0]


async def test_keepalives_while_an_engine_starts_and_while_it_thinks() -> None:
    async def slow(stream: trio.SocketStream) -> None:
        await trio.sleep(0.4)
        await sending(SSE, chunk(EVENT), chunk(EVENT) + END)(stream)

    async with world(slow, start_s=0.4) as w:
        exchange = w.exchange()
        assert await exchange.head(trio.current_time() + 0.01) is None
        errors: list[RouterError] = []
        parts = await collected(waiting(exchange, OPENAI, 0.01, errors.append))
        waits = parts.index(EVENT)
        assert waits >= 6
        assert set(parts[:waits]) == {KEEPALIVE}
        assert b"".join(parts[waits:]) == EVENT * 2
        assert errors == []
        assert len(w.requests) == 1
        await w.assert_nothing_left(kept=1)


async def test_an_error_before_anything_was_said() -> None:
    async with world(scripts=[Script("fail")]) as w:
        exchange = w.exchange()
        await error_of(exchange.head, EngineStartFailed)
        exchange.close()
        await w.assert_nothing_left()


async def test_an_error_after_the_wait_began_is_told_in_the_stream() -> None:
    async with world(scripts=[Script("exit", after_s=0.5)]) as w:
        exchange = w.exchange()
        errors: list[RouterError] = []
        *waits, last = await collected(waiting(exchange, OPENAI, 0.01, errors.append))
        assert waits == [KEEPALIVE] * len(waits)
        assert len(waits) > 2
        assert [type(error) for error in errors] == [EngineStartFailed]
        assert last == framed(errors[0])
        await w.assert_nothing_left()


async def test_the_engines_refusal_after_the_wait_began_is_told_in_the_stream() -> None:
    async with world(sending(answer_of(b'{"error":{"message":"too long"}}', "400 Bad")), start_s=0.03) as w:
        errors: list[RouterError] = []
        parts = await collected(waiting(w.exchange(), OPENAI, 0.01, errors.append))
        assert (errors[0].status, str(errors[0])) == (400, "too long")
        assert parts[-1] == framed(errors[0])
        await w.assert_nothing_left(kept=None)


@pytest.mark.parametrize("raw", [b"", b'{"error":'])
async def test_a_refusal_that_breaks_off_is_still_a_refusal(raw: bytes) -> None:
    refusal = answer_of(b"x" * 50, "500 Oops").replace(b"x" * 50, raw)
    async with world(sending(refusal, close=True), start_s=0.03) as w:
        errors: list[RouterError] = []
        await collected(waiting(w.exchange(), OPENAI, 0.01, errors.append))
        assert isinstance(errors[0], EngineRefused)
        assert (errors[0].status, str(errors[0])) == (500, raw.decode() or "the engine answered 500")


# Answers that break off.

BREAKS = {
    "before anything": (SSE, b"", True),
    "after an event": (SSE + chunk(EVENT), EVENT, True),
    "after an event in two": ((SSE + chunk(EVENT[:-1]), chunk(EVENT[-1:])), EVENT, True),
    "after a CRLF event": (SSE + chunk(b"data: {}\r\n\r\n"), b"data: {}\r\n\r\n", True),
    "inside an event": (SSE + chunk(EVENT + b"data: {"), EVENT, True),
    "after a line": (SSE + chunk(b"data: {}\n"), b"", True),
    "inside what is no frame": (SSE + chunk(b"x" * 300_000), b"x" * 300_000, False),
    "inside a chunk": (SSE + b"ff\r\n" + EVENT, EVENT, True),
    "before a promised length": (answer_of(EVENT * 2)[: -2 * len(EVENT)], b"", False),
    "within a promised length": (answer_of(EVENT * 2)[: -len(EVENT)], EVENT, False),
}


@pytest.mark.usefixtures("no_news")
@pytest.mark.parametrize("where", BREAKS)
async def test_an_answer_that_breaks_off(where: str) -> None:
    raw, body, can_tell = BREAKS[where]
    parts = raw if isinstance(raw, tuple) else (raw,)
    async with world(sending(*parts, close=True)) as w:
        await w.warm_up()
        exchange = w.exchange()
        assert await exchange.head()
        got: list[bytes] = []
        errors: list[RouterError] = []
        body_of = plain(exchange, OPENAI, errors, streams=True)
        if can_tell:
            await collected(body_of, got)
            assert [type(error) for error in errors] == [EngineBroke]
            assert "in the middle of its answer" in str(errors[0])
            assert got.pop() == framed(errors[0])
        else:
            with pytest.raises(BrokenAnswer, match="in the middle of its answer"):
                await collected(body_of, got)
            assert errors == []
        assert b"".join(got) == body
        assert w.engine.doubts == 1
        await w.assert_nothing_left()


@pytest.mark.usefixtures("no_news")
async def test_an_answer_in_one_piece_that_breaks_off_is_never_continued() -> None:
    async with world(sending(SSE, close=True)) as w:
        exchange = w.exchange()
        await exchange.head()
        with pytest.raises(BrokenAnswer) as caught:
            await collected(plain(exchange, OPENAI, streams=False))
        assert isinstance(caught.value.error, EngineBroke)
        await w.assert_nothing_left()


@pytest.mark.usefixtures("no_news")
async def test_a_promised_length_does_not_bind_what_was_begun_without_it() -> None:
    async with world(sending(answer_of(EVENT * 2)[: -len(EVENT)], close=True), start_s=0.03) as w:
        parts = await collected(waiting(w.exchange(), OPENAI, 0.01, lambda _: None))
        assert parts[-2] == EVENT
        assert b'"error"' in parts[-1]


@pytest.mark.usefixtures("no_news")
async def test_the_beginning_of_a_line_that_never_ends_is_not_passed_on() -> None:
    line = b'{"response":"a' + b" " * 9
    async with world(sending(SSE + chunk(line), close=True)) as w:
        exchange = w.exchange()
        await exchange.head()
        errors: list[RouterError] = []
        parts = await collected(plain(exchange, OLLAMA, errors, streams=True))
        assert len(errors) == 1
        assert [json.loads(part) for part in parts] == [{"error": str(errors[0])}]


# Why it broke off.


@pytest.mark.usefixtures("patient_for_news")
@pytest.mark.parametrize("sent", [b"", SSE, SSE + chunk(EVENT)])
async def test_the_news_of_a_death_is_better_than_that_it_broke_off(sent: bytes) -> None:
    async with world(sending(*([sent] if sent else []), close=True)) as w:
        await w.warm_up()
        exchange = w.exchange()

        async def die() -> None:
            while not w.engine.doubts:
                await trio.sleep(0.001)
            await trio.sleep(0.03)
            w.engine.kill(A)

        async def use() -> None:
            await exchange.head()
            while await exchange.chunk():
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(die)
            assert "exited with code 9" in str(await error_of(use, EngineDied))
        exchange.close()
        await w.assert_nothing_left()


async def test_the_news_is_not_waited_for_longer_than_a_moment(autojump_clock: MockClock) -> None:
    """No socket is involved here: the connection is one that breaks at once."""
    async with simulated() as (supervisor, engine):
        exchange = by_hand(supervisor, Breaking())
        began = trio.current_time()
        await error_of(exchange.head, EngineBroke)
        assert trio.current_time() - began == pytest.approx(engine.start_s + exchanges.NEWS_GRACE_S)
        exchange.close()


async def test_a_revoked_lease_ends_the_exchange_with_the_reason() -> None:
    async with world(then_hanging(SSE, chunk(EVENT))) as w:
        exchange = w.exchange()
        await exchange.head()
        assert await exchange.chunk() == EVENT
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.warm_up, B)
            error = await error_of(exchange.chunk, LeaseRevoked)
        assert w.engine.doubts == 0
        exchange.close()
        assert error.status == 503
        await w.assert_nothing_left()


async def test_a_revoked_lease_is_told_where_the_client_waits_for_the_head() -> None:
    async with world(hanging) as w:
        exchange = w.exchange()
        errors: list[RouterError] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collected, waiting(exchange, OPENAI, 0.02, errors.append))
            while not w.requests:
                await trio.sleep(0.001)
            await w.warm_up(B)
        assert [type(error) for error in errors] == [LeaseRevoked]
        await w.assert_nothing_left()


# Engines that do not accept.

NOBODY = "http://127.0.0.1:1"


@pytest.mark.usefixtures("patient_for_news")
async def test_an_engine_that_is_gone_is_queued_for_again_once() -> None:
    async with world(sending(answer_of(b"ok"))) as w:
        w.engine.base_urls.insert(0, NOBODY)
        w.engine.dies_of_doubt = True
        exchange = w.exchange()
        head = await exchange.head()
        assert head is not None
        assert head.status == 200
        assert await exchange.chunk() == b"ok"
        assert (w.engine.doubts, w.engine.count("start")) == (1, 2)
        exchange.close()
        await w.assert_nothing_left(kept=1)


@pytest.mark.usefixtures("patient_for_news")
async def test_a_request_that_is_queued_again_is_still_its_clients() -> None:
    async with world(sending(answer_of(b"ok"))) as w:
        w.engine.base_urls.insert(0, NOBODY)
        w.engine.dies_of_doubt = True
        exchange = w.exchange(priority="high", keep_alive_s=7.0, client="key 0")
        assert (first := exchange.lease) is not None
        await exchange.head()
        assert (again := exchange.lease) is not None
        assert again is not first
        assert (again.ticket.priority, again.ticket.keep_alive_s) == ("high", 7.0)
        assert again.ticket.client == "key 0"
        exchange.close()


@pytest.mark.usefixtures("patient_for_news")
async def test_an_engine_that_is_gone_again_is_an_error() -> None:
    async with world() as w:
        w.engine.base_urls[:] = [NOBODY]
        w.engine.dies_of_doubt = True
        exchange = w.exchange()
        await error_of(exchange.head, EngineUnreachable)
        assert (w.engine.doubts, w.engine.count("start")) == (1, 2)
        exchange.close()
        await w.assert_nothing_left()


async def test_an_engine_that_is_there_but_does_not_accept_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchanges, "DOUBT_GRACE_S", 0.05)
    async with world() as w:
        w.engine.base_urls[:] = [NOBODY]
        exchange = w.exchange()
        await error_of(exchange.head, EngineUnreachable)
        assert (w.engine.doubts, w.engine.count("start")) == (1, 1)
        exchange.close()
        await w.assert_nothing_left()


# Translated answers.


def translation() -> Translation:
    return translate("/api/chat", {"messages": []}, model="m", upstream="up")


def text(content: str, finish: str | None = None) -> bytes:
    choice = {"delta": {"content": content}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


async def test_a_translated_answer() -> None:
    async with world(sending(SSE, chunk(text("a")), chunk(text("b", "stop")) + END)) as w:
        exchange = w.exchange(translation())
        assert await exchange.head() == ResponseHead(200, [(b"content-type", b"application/x-ndjson")])
        assert not exchange.has_length
        lines = b"".join(await collected(plain(exchange, OLLAMA, streams=True))).splitlines()
        assert [json.loads(line)["message"]["content"] for line in lines] == ["a", "b", ""]
        assert b'"model":"up"' in w.requests[0]
        await w.assert_nothing_left(kept=1)


async def test_an_engines_error_is_translated() -> None:
    async with world(sending(answer_of(b'{"error":{"message":"too long"}}', "400 Bad"))) as w:
        exchange = w.exchange(translation())
        error = await error_of(exchange.head, EngineRefused)
        assert (error.status, str(error)) == (400, "too long")
        await w.assert_nothing_left(kept=1)


@pytest.mark.usefixtures("no_news")
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((chunk(text("a")), END), "broke off: its stream ended before its end"),
        ((chunk(text("a")), chunk(b'data: {"error":"oom"}\n\n')), "broke off: oom"),
        ((chunk(text("a")), chunk(b"data: ?\n\n")), "broke off: its answer is not JSON: ?"),
        ((chunk(text("a")), b"?"), "broke off: its answer is not HTTP"),
    ],
)
async def test_a_translated_answer_that_fails_says_so_in_its_last_line(
    parts: tuple[bytes, ...], message: str
) -> None:
    async with world(then_hanging(SSE, *parts)) as w:
        exchange = w.exchange(translation())
        await exchange.head()
        *_, last = b"".join(await collected(plain(exchange, OLLAMA, streams=True))).splitlines()
        assert json.loads(last)["error"].startswith(f"engine 'a' {message}")
        await w.assert_nothing_left(kept=None)


# Closing.


@pytest.mark.parametrize("state", ["waiting", "granted", "sent", "head", "body", "end"])
async def test_closing_gives_everything_back_in_any_state(state: str) -> None:
    parts = (SSE, chunk(EVENT)) if state != "sent" else ()
    async with world(then_hanging(*parts) if state != "end" else sending(*parts, END)) as w:
        if state == "granted":
            await w.warm_up()
        exchange = w.exchange()
        if state == "granted":
            await trio.testing.wait_all_tasks_blocked()
        elif state == "sent":
            while not w.requests:  # on a busy machine the engine hears of it late
                assert await exchange.head(trio.current_time() + 0.03) is None
        elif state in ("head", "body", "end"):
            await exchange.head()
            if state != "head":
                assert await exchange.chunk() == EVENT
            if state == "end":
                assert await exchange.chunk() == b""
        for _ in range(3):
            exchange.close()
        assert all(pool.leases == {} for pool in w.supervisor.domains.values())
        await w.assert_nothing_left(kept=1 if state == "end" else 0)
        assert await exchange.chunk() == b""
        if state in ("waiting", "granted"):
            with pytest.raises(trio.ClosedResourceError):
                await exchange.head()
        assert len(w.requests) == (state not in ("waiting", "granted"))


async def test_closing_ends_the_wait_of_another_task_and_doubts_nobody() -> None:
    async with world(then_hanging(SSE)) as w:
        exchange = w.exchange()
        await exchange.head()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(error_of, exchange.chunk, EngineBroke)
            await trio.sleep(0.01)
            exchange.close()
        assert w.engine.doubts == 0
        await w.assert_nothing_left()


def test_an_exchange_is_entered_before_it_is_used() -> None:
    async def main() -> None:
        async with simulated() as (supervisor, _):
            exchange = by_hand(supervisor, Breaking(), enter=False)
            exchange.close()
            assert await exchange.chunk() == b""
            with pytest.raises(RuntimeError):
                await exchange.head()

    trio.run(main, clock=MockClock(autojump_threshold=0))


# Moments that meet. No sockets, a virtual clock.


class Silent:
    """An exchange that never answers."""

    closed = False

    async def head_by(self, until: float) -> ResponseHead | None:
        with trio.move_on_at(until):
            await trio.sleep_forever()
        return None

    async def chunk(self) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    def close(self) -> None:
        self.closed = True


class Breaking:
    """Connections that break at once, or stay silent, or cannot be made."""

    def __init__(self, error: type[RouterError] | None = EngineBroke) -> None:
        self.error = error
        self.sent = 0
        self.exchange = Silent()
        self.on_send: Callable[[], object] = lambda: None

    def send_at_once(self, request: UpstreamRequest) -> None:
        """No connection is idle."""

    async def send(self, request: UpstreamRequest) -> Silent:
        await trio.lowlevel.checkpoint()
        self.sent += 1
        self.on_send()
        if self.error is not None:
            raise self.error(request.engine, "broke off")
        return self.exchange


@asynccontextmanager
async def simulated(start_s: float = 10.0) -> AsyncIterator[tuple[Supervisor, Engine]]:
    memory = SimulatedMemory()
    engines = {name: Engine(name, memory, start_s=start_s, base_urls=["http://x"]) for name in "ab"}
    supervisor = Supervisor(
        engines=engines,
        gauges={"default": memory},
        pools_of=dict.fromkeys("ab", ("default",)),
        rules=Rules(drain_timeout_s=5.0, max_wait_s=60.0, abandon_grace_s=2.0, failed_start_memory_s=5.0),
        settle_timeout_s=60.0,
        hub=EventHub(),
        measurements=Measurements(),
        wall_clock=trio.current_time,
    )
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            yield supervisor, engines["a"]
            await trio.testing.wait_all_tasks_blocked()
            assert supervisor.domains["default"].leases == {}
            assert list(supervisor.domains["default"].ledger.waiting()) == []
            nursery.cancel_scope.cancel()


def by_hand(supervisor: Supervisor, upstream: Breaking, *, enter: bool = True) -> ProxyExchange:
    outgoing = Outgoing(
        engine="a",
        method="POST",
        target="/",
        headers=(),
        body=b"",
        connect_timeout_s=1.0,
    )
    exchange = ProxyExchange(supervisor, A, upstream=upstream, plan=ForwardPlan(outgoing=outgoing))
    if enter:
        exchange.enter()
    return exchange


async def test_keepalives_come_at_their_interval(autojump_clock: MockClock) -> None:
    async with simulated(start_s=12.0) as (supervisor, _):
        exchange = by_hand(supervisor, Breaking(None))
        times: list[float] = []
        began = trio.current_time()
        with trio.move_on_after(29):
            async for frame in waiting(exchange, OPENAI, 5.0, lambda _: None):
                assert frame == KEEPALIVE
                times.append(trio.current_time() - began)
        exchange.close()
        assert times == pytest.approx([0, 5, 10, 15, 20, 25])


async def test_a_grant_in_the_step_in_which_the_time_is_up(autojump_clock: MockClock) -> None:
    async with simulated() as (supervisor, engine):
        for offset in (0.0, 1e-9, -1e-9):
            for _ in range(10):  # the order of tasks within a step is drawn by chance
                upstream = Breaking(None)
                exchange = by_hand(supervisor, upstream)
                until = trio.current_time() + engine.start_s
                assert await exchange.head(until + offset) is None
                assert await exchange.head(trio.current_time() + 1) is None
                assert upstream.sent == 1
                exchange.close()
                await supervisor.until_unloaded(A)


async def test_a_time_that_is_up_already(autojump_clock: MockClock) -> None:
    async with simulated() as (supervisor, _):
        upstream = Breaking(None)
        exchange = by_hand(supervisor, upstream)
        assert await exchange.head(-math.inf) is None
        await trio.sleep(20)
        for _ in range(3):
            assert await exchange.head(-math.inf) is None
        assert upstream.sent == 1
        exchange.close()
        assert upstream.exchange.closed


async def test_closing_in_the_step_of_the_grant_sends_nothing(autojump_clock: MockClock) -> None:
    async with simulated() as (supervisor, _):
        upstream = Breaking(None)
        exchange = by_hand(supervisor, upstream)
        lease = exchange.lease
        assert lease is not None
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await exchange.head()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            lease.grant(Endpoint("http://x"), trio.current_time())
            exchange.close()
        assert upstream.sent == 0


async def test_closing_while_the_request_goes_out_closes_what_comes_of_it(autojump_clock: MockClock) -> None:
    async with simulated() as (supervisor, _):
        upstream = Breaking(None)
        exchange = by_hand(supervisor, upstream)
        upstream.on_send = exchange.close
        with pytest.raises(trio.ClosedResourceError):
            await exchange.head()
        assert upstream.exchange.closed


async def test_closing_in_the_step_in_which_the_engine_is_found_dead_does_not_queue_again(
    autojump_clock: MockClock,
) -> None:
    async with simulated() as (supervisor, _):
        upstream = Breaking(EngineUnreachable)
        exchange = by_hand(supervisor, upstream)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await exchange.head()

            nursery.start_soon(wait)
            while not upstream.sent:
                await trio.sleep(0.1)
            lease = exchange.lease
            assert lease is not None
            lease.refuse(EngineDied("a", "exited"))
            exchange.close()
        assert upstream.sent == 1


async def test_an_engine_that_cannot_be_reached_gets_a_moment_to_be_found_dead(
    autojump_clock: MockClock,
) -> None:
    async with simulated() as (supervisor, engine):
        exchange = by_hand(supervisor, Breaking(EngineUnreachable))
        began = trio.current_time()
        await error_of(exchange.head, EngineUnreachable)
        assert trio.current_time() - began == pytest.approx(engine.start_s + exchanges.DOUBT_GRACE_S)
        assert engine.doubts == 1
        exchange.close()


async def test_a_request_waits_for_an_engine_that_takes_its_time_to_find_that_it_is_gone(
    autojump_clock: MockClock,
) -> None:
    async with simulated() as (supervisor, engine):
        engine.dies_of_doubt, engine.doubt_s = True, DOUBT_S
        upstream = Breaking(EngineUnreachable)
        exchange = by_hand(supervisor, upstream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(error_of, exchange.head, EngineUnreachable)
            # It is started again for the request, which waits for that.
            while engine.count("start") < 2:
                await trio.sleep(0.1)
            assert upstream.sent == 1
            nursery.cancel_scope.cancel()
        exchange.close()


# Cancellation.


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("way", ["plain", "waiting", "translated", "requeued", "broken"])
async def test_nothing_is_left_wherever_a_request_is_cancelled(way: str, after: bool) -> None:
    parts = {
        "translated": (SSE, chunk(text("a")), chunk(text("", "stop")) + END),
        "broken": (SSE, chunk(EVENT), b"?"),
    }.get(way, (SSE, chunk(EVENT), END))
    async with world(sending(*parts)) as w:
        w.engine.dies_of_doubt = way == "requeued"

        async def request(exchange: ProxyExchange) -> None:
            dialect = OLLAMA if way == "translated" else OPENAI
            if way == "waiting":
                await collected(waiting(exchange, dialect, 0.001, lambda _: None))
            else:
                await exchange.head()
                await collected(plain(exchange, dialect, streams=True))

        for n in range(1, 300):
            if way == "requeued":
                await w.supervisor.until_unloaded(A)
                w.engine.base_urls[:] = [NOBODY, w.base_url]
            with CancelAt(n, after=after) as sweep, sweep.scope:
                exchange = w.exchange(translation() if way == "translated" else None)
                try:
                    await request(exchange)
                finally:
                    exchange.close()
            await w.assert_nothing_left(kept=None)
            w.upstream.close()
            w.upstream._closed = False
            await w.assert_nothing_left()
            if not sweep.fired:
                break
        assert n > 4
        w.engine.base_urls[:] = [w.base_url]
        await w.warm_up()
