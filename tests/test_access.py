"""What pages of other sites, careless clients and attackers make of paths, methods and headers."""

import contextlib
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from support.asgi import Received, ask
from support.served import RawClient, served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.errors import ConfigError, Unauthorized
from engine_router.proxy.access import AccessCheck
from engine_router.proxy.routes import tidied
from engine_router.server import accept as wire_server
from engine_router.web import stream_reader

LIMIT_S = 200.0
PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"
BROWSER = {"user-agent": "Mozilla/5.0 (X11)"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "do": "echo"}


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)


@asynccontextmanager
async def routing(server: str = "", *, fast: bool = True) -> AsyncIterator[Router]:
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}"])
    text = f"""
        state_file = "/dev/null/state.json"
        [pools.default]
        gauge = "none"
        [server]
        shutdown_timeout_s = 0.1
        fast_path = {str(fast).lower()}
        {server}
        [engines.m]
        type = "process"
        argv = {argv}
        models = ["m"]
    """
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router:
            yield router


async def said(
    url: str, method: str, target: str, body: object = None, headers: Sequence[str] = ()
) -> Received:
    """Send a target as it is, and return the answer."""
    async with RawClient.to(url) as client:
        data = b"" if body is None else json.dumps(body).encode()
        await client.request(method, target, data, headers=headers)
        return await client.answer(method)


def is_loaded(router: Router) -> bool:
    return any(pool.ledger.states for pool in router.supervisor.domains.values())


# Pages of other sites.

FOREIGN: list[Mapping[str, str]] = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {**BROWSER, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    {"sec-fetch-site": "something new"},
]
# A browser at an address without TLS says nothing of the site when it sends a GET.
UNTOLD: list[Mapping[str, str]] = [BROWSER, {**BROWSER, "referer": "https://evil.example/router.test"}]
CHANGES = [
    ("POST", "/admin/load", {"model": "m"}),
    ("POST", "/admin/unload", {"all": True}),
    ("POST", "/admin/reload", None),
    ("POST", "/api/pull", {"model": "m"}),
    ("POST", "/v1/chat/completions", CHAT),
    ("DELETE", "/api/delete", {"model": "m"}),
]
GETS = [
    ("GET", "/upstream/m/props", None),
    ("GET", "/%75pstream/m/props", None),
    ("HEAD", "/upstream/m/props", None),
    ("GET", "//upstream/m/props", None),
    ("GET", "/admin/rescan", None),
    ("GET", "/admin/rescan/", None),
    ("GET", "/admin//rescan", None),
    ("GET", "/models?reload=1", None),
    ("GET", "/models?%72eload=1", None),
    ("GET", "/models/?reload=1", None),
    ("GET", "/unload", None),
    ("GET", "/api/anything", None),
    ("GET", "/m/props", None),
]


@pytest.mark.parametrize("is_there", [False, True], ids=["unloaded", "ready"])
async def test_no_page_of_another_site_has_an_effect(is_there: bool) -> None:
    async with routing() as router, served(router) as url:
        if is_there:
            assert (await said(url, "POST", "/admin/load", {"model": "m", "wait": True})).status == 200
        for headers in (*FOREIGN, *UNTOLD):
            for method, target, body in (*(CHANGES if headers in FOREIGN else ()), *GETS):
                lines = [f"{name}: {value}" for name, value in headers.items()]
                answer = await said(url, method, target, body, lines)
                assert answer.status == 403, (method, target, headers)
                assert is_loaded(router) is is_there


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"user-agent": "curl/8"},
        {**BROWSER, "sec-fetch-site": "same-origin"},
        {**BROWSER, "sec-fetch-site": "none"},
        {**BROWSER, "referer": "http://router.test/upstream/m/"},
        {"origin": "http://router.test"},
    ],
)
async def test_programs_and_the_routers_own_page_may(headers: Mapping[str, str]) -> None:
    async with routing() as router:
        assert (await ask(router.app, "GET", "/admin/rescan", headers=headers)).status == 200
        assert (await ask(router.app, "GET", "/models", query="reload=1", headers=headers)).status == 200
        assert (await ask(router.app, "GET", "/upstream/m/props", headers=headers)).status == 200


# Slashes.


@pytest.mark.parametrize(
    ("came", "is_served_as"),
    [
        (b"/v1//chat/completions", b"/v1/chat/completions"),
        (b"//v1///chat//completions//", b"/v1/chat/completions"),
        (b"/v1/models/", b"/v1/models"),
        (b"/", b"/"),
        (b"//", b"/"),
        (b"/v1/models/%2Fhome%2F/", b"/v1/models/%2Fhome%2F"),
        (b"/upstream/m//a//b/", b"/upstream/m//a//b/"),
        (b"//upstream//m//a/", b"/upstream/m//a/"),
    ],
)
def test_slashes_that_mean_nothing_go(came: bytes, is_served_as: bytes) -> None:
    assert tidied(came) == is_served_as
    assert tidied(is_served_as) == is_served_as


async def test_careless_paths_are_served(fast: bool) -> None:
    async with routing(fast=fast) as router, served(router) as url:
        for target in ("/v1//chat/completions", "/v1/chat/completions/", "//v1/chat/completions?a=b"):
            answer = await said(url, "POST", target, CHAT)
            assert answer.status == 200, target
            assert answer.json()["target"].startswith("/v1/chat/completions")
        for target in ("/health/", "//health", "/v1/models/", "/api//tags", "http://router.test//health/"):
            assert (await said(url, "GET", target)).status == 200, target


async def test_no_spelling_of_a_path_gets_past_the_key(fast: bool) -> None:
    targets = [
        "/status", "//status", "/status/", "/health/../status", "//health/../status", "/health//../status",
        "/health/%2e%2e/status", "/health%2f..%2fstatus", "/./status", "/%2fstatus", "/%73tatus", "/;/status",
        "/health;/status", "http://x/status", "http://x//status/", "/\\status",
        "/health%00/status", "/k", "/k/", "/k//status/status", "/k/wrong/status", "/v1//models/", "/api/./tags",
        "/upstream/m/health", "//upstream//m/health", "/upstream/../health/x",
    ]  # fmt: skip
    async with routing('api_keys = ["secret"]', fast=fast) as router, served(router) as url:
        assert (await said(url, "GET", "/health?/../status=1&x")).status == 200
        for method in ("GET", "POST", "DELETE"):
            for target in targets:
                answer = await said(url, method, target, {} if method == "POST" else None)
                assert answer.status in (400, 401), (method, target, answer.body)
        assert not is_loaded(router)


# Clients that cannot send a key.

KEYED = 'api_keys = ["s3cret/key", "plain"]'
IN_PATH = ["/k/plain", "/k/s3cret%2Fkey", "//k//plain/", "/k/pl%61in"]


@pytest.mark.parametrize("prefix", IN_PATH)
async def test_a_key_in_the_path(prefix: str, fast: bool) -> None:
    async with routing(KEYED, fast=fast) as router, served(router) as url:
        assert (await said(url, "GET", f"{prefix}/v1/models")).status == 200
        assert (await said(url, "GET", f"{prefix}/status")).status == 200
        answer = await said(url, "POST", f"{prefix}/v1/chat/completions?a=b", CHAT)
        assert answer.status == 200
        assert answer.json()["target"] == "/v1/chat/completions?a=b"
        assert (await said(url, "GET", f"{prefix}/upstream/m/props?a")).json()["target"] == "/props?a"


@pytest.mark.parametrize(
    "prefix",
    [
        "/k/wrong", "/k/plai", "/k/plainx", "/k/PLAIN", "/K/plain", "/k/plain%00", "/k/plain;x",
        "/k/wrong/k/plain", "/x/k/plain", "/k/../k/plain", "/k/%2e%2e/plain", "/k%2Fplain", "/k",
    ],
)  # fmt: skip
async def test_nothing_but_a_key_in_the_path_is_one(prefix: str, fast: bool) -> None:
    async with routing(KEYED, fast=fast) as router, served(router) as url:
        assert (await said(url, "GET", f"{prefix}/v1/models")).status == 401
        assert (await said(url, "POST", f"{prefix}/v1/chat/completions", CHAT)).status == 401
        assert not is_loaded(router)


async def test_a_key_in_the_path_is_told_to_nobody(fast: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with routing(KEYED, fast=fast) as router, served(router) as url:
        events = router.hub.subscribe()
        page = f"Referer: {url}/k/plain/upstream/m/"
        got: list[object] = []
        for prefix, headers in (("/k/plain", [page]), ("", ["X-API-Key: plain", page])):
            answer = await said(url, "POST", f"{prefix}/v1/chat/completions", CHAT, headers)
            got.append(answer.json())
            got.append((await said(url, "GET", f"{prefix}/upstream/m/props", None, headers)).json())
            got.append((await said(url, "GET", f"{prefix}/nothing", None, headers)).json())
            got.append((await said(url, "POST", f"{prefix}/v1/models", {}, headers)).json())
        told = [event.as_dict() for event in events.take()]
        assert [event["path"] for event in told if event["event"] == "request_ended"]
        shown = (await said(url, "GET", "/status", None, ["X-API-Key: plain"])).body
        metrics = (await said(url, "GET", "/metrics", None, ["X-API-Key: plain"])).body
        everything = json.dumps([got, told, caplog.messages]) + repr(shown) + repr(metrics)
        assert "/props" in everything
        assert "plain" not in everything
        assert "engine-router-key" not in everything.lower()


async def test_without_keys_one_in_the_path_is_nobodys_either(fast: bool) -> None:
    async with routing(fast=fast) as router, served(router) as url:
        answer = await said(url, "POST", "/k/plain/v1/chat/completions", CHAT)
        assert answer.status == 200
        assert b"plain" not in answer.body


NEARBY = 'api_keys = ["plain"]\ntrusted_networks = ["127.0.0.0/8"]'
PROXIED = ["X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", "Via: 1.1 x", "X-Real-IP: 127.0.0.1"]


async def test_a_trusted_network_needs_no_key(fast: bool) -> None:
    async with routing(NEARBY, fast=fast) as router, served(router) as url:
        assert (await said(url, "GET", "/status")).status == 200
        assert (await said(url, "POST", "/v1/chat/completions", CHAT)).status == 200
        assert (
            await said(url, "POST", "/v1/chat/completions", CHAT, ["Authorization: Bearer none"])
        ).status == 200
        for line in PROXIED:
            assert (await said(url, "GET", "/status", None, [line])).status == 401
            assert (await said(url, "POST", "/v1/chat/completions", CHAT, [line])).status == 401
            with_key = [line, "X-API-Key: plain"]
            assert (await said(url, "POST", "/v1/chat/completions", CHAT, with_key)).status == 200


async def test_another_network_does(fast: bool) -> None:
    server = 'api_keys = ["plain"]\ntrusted_networks = ["192.168.0.0/16", "127.0.0.2", "fd00::/8"]'
    async with routing(server, fast=fast) as router, served(router) as url:
        assert (await said(url, "GET", "/status")).status == 401
        for line in ("X-Forwarded-For: 127.0.0.2", "X-Other: 1"):
            assert (await said(url, "POST", "/v1/chat/completions", CHAT, [line])).status == 401


async def test_a_page_under_a_false_name_is_not_trusted_for_its_network(fast: bool) -> None:
    async with routing(NEARBY, fast=fast) as router, served(router) as url:
        for headers, status in (
            (["Host: evil.example"], 403),
            (["Host: evil.example", "Authorization: Bearer wrong"], 403),
            (["Host: llm.example.com", "X-API-Key: plain"], 200),
        ):
            async with RawClient.to(url) as client:
                body = json.dumps(CHAT).encode()
                lines = [
                    "POST /v1/chat/completions HTTP/1.1",
                    *headers,
                    f"Content-Length: {len(body)}",
                    "",
                    "",
                ]
                await client.send("\r\n".join(lines).encode() + body)
                assert (await client.answer()).status == status


@pytest.mark.parametrize(
    ("network", "peer", "is_in"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.5/8", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("fe80::/10", "fe80::1%eth0", True),
        ("::/0", "10.1.2.3", False),
        ("0.0.0.0/0", "::1", False),
        ("10.0.0.0/8", "somewhere", False),
    ],
)
def test_who_is_in_a_network(network: str, peer: str, is_in: bool) -> None:
    text = f'[server]\napi_keys = ["k"]\ntrusted_networks = ["{network}"]\n[engines.o]\ntype = "ollama"'
    gate = AccessCheck(parse_config(text).server)
    with contextlib.nullcontext() if is_in else pytest.raises(Unauthorized):
        gate.check_key("GET", "/status", [], peer)
    with pytest.raises(Unauthorized):
        gate.check_key("GET", "/status", [], None)


@pytest.mark.parametrize("network", ["", "10.0.0.0/33", "box", "10.0.0", "10.0.0.1-10.0.0.9"])
def test_what_is_no_network_is_a_fault(network: str) -> None:
    with pytest.raises(ConfigError, match=r"192\.168\.1\.0/24"):
        parse_config(f'[server]\ntrusted_networks = ["{network}"]\n[engines.o]\ntype = "ollama"')


# Streams that go on until their reader leaves.

STREAMS = [
    "/admin/events",
    "/admin/events?patches=1",
    "/admin/logs?router=1&follow=1",
    "/models/sse",
    "/v1/models/status/stream",
    "/admin/logs?engine=m&follow=1",
]


@pytest.mark.parametrize("target", STREAMS)
async def test_a_key_that_is_taken_away_ends_its_streams(target: str) -> None:
    async with routing('api_keys = ["a", "b"]') as router, served(router) as url:
        async with RawClient.to(url) as gone, RawClient.to(url) as stays:
            await gone.request("GET", target, headers=["X-API-Key: a"])
            await stays.request("GET", target, headers=["X-API-Key: b"])
            for client in (gone, stays):
                assert b" 200 " in await client.until(b"\r\n\r\n")
            server = attrs.evolve(router.config.server, api_keys=("b",))
            config = attrs.evolve(router.config, server=server)
            router.snapshot = attrs.evolve(router.snapshot, config=config)
            await gone.until(b"\r\n0\r\n\r\n")
            assert sum(router.hub.readers.values()) == 1
        while router.hub.readers:
            await trio.sleep(0.01)


async def test_streams_are_bounded_for_each_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_reader, "MAX_READERS_OF_ONE", 3)
    monkeypatch.setattr(stream_reader, "MAX_READERS", 5)
    async with routing('api_keys = ["a", "b"]') as router, served(router) as url, AsyncExitStack() as stack:
        for key, status in (
            ("a", 200),
            ("a", 200),
            ("a", 200),
            ("a", 503),
            ("b", 200),
            ("b", 200),
            ("b", 503),
        ):
            client = await stack.enter_async_context(RawClient.to(url))
            await client.request("GET", STREAMS[0], headers=[f"X-API-Key: {key}"])
            assert f" {status} ".encode() in await client.until(b"\r\n\r\n")
        assert (await said(url, "GET", "/status", None, ["X-API-Key: a"])).status == 200


async def test_a_reader_that_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_reader, "STALL_S", 0.2)
    monkeypatch.setattr(wire_server, "SWEEP_INTERVAL_S", 0.05)
    async with (
        routing() as router,
        served(router) as url,
        RawClient.to(url, receive_buffer_bytes=2048) as client,
    ):
        await client.request("GET", STREAMS[0])
        await client.until(b"\r\n\r\n")
        note = "x" * 10_000
        while router.hub.readers:
            for _ in range(20):
                router.note(note)
            await trio.sleep(0.01)


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
async def test_every_address_is_every_address_of_both_kinds() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with (
        routing('host = "::"\napi_keys = ["k"]\ntrusted_networks = ["127.0.0.1"]') as router,
        served(router) as url,
    ):
        port = url.rpartition(":")[2]
        for target in ("/v1/models", "/status"):  # an old address is the same one on a socket for both
            assert (await said(f"http://127.0.0.1:{port}", "GET", target)).status == 200
        assert (await said(f"http://127.0.0.1:{port}", "POST", "/v1/chat/completions", CHAT)).status == 200
        stream = await trio.open_tcp_stream("::1", int(port))
        await stream.send_all(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 401 " in await stream.receive_some()
        await stream.aclose()


async def test_a_list_of_hosts_listens_at_each_of_them() -> None:
    async with routing('host = ["127.0.0.1", "127.0.0.2", "localhost"]') as router, served(router) as url:
        port = url.rpartition(":")[2]
        for host in ("127.0.0.1", "127.0.0.2"):
            assert (await said(f"http://{host}:{port}", "GET", "/health")).status == 200
