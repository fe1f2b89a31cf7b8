"""WebSockets, relayed to an engine that is a real process, with the lease of a request."""

import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.served import RawClient, served
from test_web import NEVER, assert_nothing_left, routing
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from engine_router import Router, open_router

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

PROGRAM = Path(__file__).parent / "programs" / "websocket_engine.py"
HANDSHAKE = (
    b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
KEY = {"server": {"api_keys": ["secret"]}}
NAMED = '[models.alias]\nengine = "a"\nupstream = "a"\n'


def engine(name: str = "a") -> str:
    return f'[engines.{name}]\ntype = "process"\nargv = {json.dumps([sys.executable, str(PROGRAM), "{port}"])}\nmodels = ["{name}"]'


@asynccontextmanager
async def connected(
    router: Router, target: str, headers: Mapping[str, str] | None = None, protocols: list[str] | None = None
) -> AsyncIterator[tuple[WebSocketConnection, Any]]:
    """Connect to a router; yields the connection and what the engine says that it was asked."""
    sent = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    async with served(router) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        # On a stream of our own: the library leaves an open one to a server that closes first.
        async with await trio.open_tcp_stream(host, int(port)) as stream, trio.open_nursery() as nursery:
            client = await wrap_client_stream(
                nursery, stream, "localhost", target, subprotocols=protocols, extra_headers=sent
            )
            yield client, json.loads(await client.get_message())
            nursery.cancel_scope.cancel()


async def refusal(router: Router, target: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Connect, which must fail; return the status and the text of the answer."""
    with pytest.raises(BaseExceptionGroup) as raised:
        async with connected(router, target, headers):
            pass
    error: BaseException = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, ConnectionRejected)
    return error.status_code, (error.body or b"").decode()


def in_flight(router: Router) -> int:
    return sum(len(pool.leases) for pool in router.supervisor.domains.values())


async def test_messages_go_both_ways_under_a_lease() -> None:
    async with routing(engine()) as router:
        async with connected(router, "/upstream/a/ws/x%20y?q=1") as (client, told):
            assert (told["path"], told["query"]) == ("/ws/x y", "q=1")
            for message in ("hello", "grüße", b"\x00\xff", "", "x" * 500_000):
                await client.send_message(message)
                assert await client.get_message() == message
            assert in_flight(router) == 1
            assert [it.path for it in router.in_flight.by_ticket().values()] == ["/upstream/a/ws/x y"]
        await until(lambda: in_flight(router) == 0)
        assert_nothing_left(router)


async def until(condition: Any) -> None:
    while not condition():
        await trio.sleep(0.01)


@pytest.mark.parametrize("path", [b"/upstream/a/ws", b"/upstream/nobody/ws", b"/nothing"])
async def test_a_client_that_sends_messages_too_early_holds_nothing(
    path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    message = b"\x81\x85\0\0\0\0hello"
    async with routing(engine()) as router, served(router) as url:
        async with RawClient.to(url) as first:  # the engine is started
            await first.send(HANDSHAKE % b"/upstream/a/ws")
            await until(lambda: in_flight(router) == 1)
        for pause in (None, 0, 0, 0, 1, 1, 2, 3):  # steps of trio's between the handshake and the message
            async with RawClient.to(url) as client:
                await client.send(HANDSHAKE % path + (message if pause is None else b""))
                for _ in range(pause or 0):
                    await trio.lowlevel.checkpoint()
                if pause is not None:
                    await client.send(message)
                await client.until(b"HTTP/1.1 ")
                if pause is None:  # it is refused, and stays
                    await until(lambda: in_flight(router) == 0)
        await until(lambda: in_flight(router) == 0)
        assert_nothing_left(router)
    assert "Traceback" not in caplog.text


async def test_realtime_finds_its_model_in_the_query() -> None:
    async with routing(engine(), more=NAMED, server={"default_model": "a"}) as router:
        for query, seen in (("?model=alias&x=1", "model=a&x=1"), ("", "")):
            async with connected(router, f"/v1/realtime{query}") as (_, told):
                assert (told["path"], told["query"]) == ("/v1/realtime", seen)


async def test_a_routes_name_leads_to_the_model_that_it_chooses() -> None:
    route = '[routes.auto]\nprefer = ["b", "a"]\n[[routes.auto.rules]]\ntools = false\nprefer = ["b"]\n'
    async with routing(engine(), engine("b"), more=route) as router:
        async with connected(router, "/upstream/a/ws"):
            pass
        for target, seen in (("/v1/realtime?model=auto", "/v1/realtime"), ("/upstream/auto/ws/x", "/ws/x")):
            async with connected(router, target) as (client, told):
                assert told["path"] == seen
                headers = {name.decode().lower(): value.decode() for name, value in client.handshake_headers}
                assert headers["x-engine-router-model"] == "a"
                assert headers["x-engine-router-route"] == "route 'auto' leads to 'a' by resident: loaded"
            await until(lambda: in_flight(router) == 0)


async def test_the_engines_close_reaches_the_client() -> None:
    async with routing(engine()) as router, connected(router, "/upstream/a/ws") as (client, _):
        await client.send_message("close4007")
        with pytest.raises(ConnectionClosed):
            await client.get_message()
        assert (client.closed.code, client.closed.reason) == (4007, "as you wish")
        await until(lambda: in_flight(router) == 0)


async def test_a_client_that_leaves_without_a_word_frees_the_engine() -> None:
    async with routing(engine()) as router, connected(router, "/upstream/a/ws") as (client, _):
        assert in_flight(router) == 1
        await trio.aclose_forcefully(client._stream)
        await until(lambda: in_flight(router) == 0)


async def test_a_request_that_is_ended_by_hand_tells_its_client() -> None:
    async with routing(engine()) as router, connected(router, "/upstream/a/ws") as (client, _):
        (entered,) = router.in_flight.by_ticket().values()
        router.in_flight.cancel(entered.id)
        with pytest.raises(ConnectionClosed):
            await client.get_message()
        assert client.closed.code in (1011, 1013)
        assert "ended by the person" in client.closed.reason
        assert in_flight(router) == 0


async def test_the_key_is_asked_for_and_never_passed_on() -> None:
    async with routing(engine(), **KEY) as router:
        assert (await refusal(router, "/upstream/a/ws"))[0] == 401
        async with connected(router, "/upstream/a/ws", {"Authorization": "Bearer secret"}) as (_, told):
            assert "secret" not in json.dumps(told)
        async with connected(router, "/k/secret/v1/realtime?model=a") as (_, told):
            assert told["path"] == "/v1/realtime"
            assert "secret" not in json.dumps(told)
        protocols = ["realtime", "openai-insecure-api-key.secret"]
        async with connected(router, "/v1/realtime?model=a", protocols=protocols) as (client, told):
            assert client.subprotocol == "realtime"
            assert told["protocols"] == ["realtime"]
            assert "secret" not in json.dumps(told)


async def test_its_ticket_says_whose_it_is() -> None:
    async with routing(engine(), **KEY) as router:
        headers = {"Authorization": "Bearer secret", "X-Request-Priority": "low"}
        async with connected(router, "/upstream/a/ws", headers):
            (lease,) = [entered.holder.lease for entered in router.in_flight.by_ticket().values()]
            assert lease is not None
            assert (lease.ticket.client, lease.ticket.priority) == ("key key 1", "low")


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        ("/upstream/nobody/ws", 404, "nobody"),
        ("/v1/realtime", 400, "?model="),
        ("/v1/realtime?model=nobody", 404, "nobody"),
        ("/nothing", 404, "no WebSocket"),
        ("/upstream/a/..%2fx", 400, "lead up"),
        ("/upstream/a/refused", 418, "418"),
        ("/upstream/alpha/ws", 503, "never"),
    ],
)
async def test_a_refused_handshake_says_why(target: str, status: int, words: str) -> None:
    async with routing(engine(), NEVER) as router:
        seen, said = await refusal(router, target)
        assert seen == status
        assert words in said
        assert_nothing_left(router)


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
async def test_a_page_of_another_site_cannot_open_one(origin: str) -> None:
    async with routing(engine()) as router:
        assert (await refusal(router, "/upstream/a/ws", {"Origin": origin}))[0] == 403
        assert not router.supervisor.domains["default"].ledger.states


async def test_ollamas_daemon_is_guarded() -> None:
    """Nobody listens at its address: it is not even asked."""
    daemon = '[engines.o]\ntype = "ollama"\nbase_url = "http://127.0.0.1:9"\nmodels = ["m"]'
    async with routing(daemon) as router:
        assert (await refusal(router, "/upstream/m/ws"))[0] == 403


async def test_an_engine_that_is_taken_out_under_a_waiting_websocket_serves_it(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    head = 'state_file = "/dev/null/state.json"\n[pools.default]\ngauge = "none"\n'
    path.write_text(f"{head}{engine('a')}\n{engine('b')}")

    async def take_out(router: Router) -> None:
        while not router.supervisor.residents():
            await trio.sleep(0.001)
        path.write_text(head + engine("b"))
        await router.reload()

    with trio.fail_after(200):
        async with open_router(path) as router, trio.open_nursery() as nursery:
            nursery.start_soon(take_out, router)
            async with connected(router, "/upstream/a/x") as (_, asked):
                assert list(router.engines) == ["b"]
            assert asked
