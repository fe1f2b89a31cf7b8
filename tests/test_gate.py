"""Who may talk to the router: by which names, from which pages; and what it tells browsers of that."""

import functools
import json
import string
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import hypothesis
import pytest
import trio
from hypothesis import strategies as st
from support.asgi import Received, ask
from support.scripted import Answer, ScriptedOllama
from support.served import RawClient, served
from support.served import ask as ask_over_a_socket

from engine_router import Router, open_router
from engine_router.config import ServerConfig, parse_config
from engine_router.errors import ConfigError, Forbidden
from engine_router.models.config_warnings import warnings
from engine_router.proxy import access as gate
from engine_router.proxy.access import AccessCheck

CHAT, MESSAGES, OLLAMA_CHAT = "/v1/chat/completions", "/v1/messages", "/api/chat"
DIALECTS = [CHAT, MESSAGES, OLLAMA_CHAT]
BODY = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
LIMIT_S = 200.0
PAGE, EVIL = "http://localhost:3000", "https://evil.example"


def server_of(text: str = "") -> ServerConfig:
    return parse_config(f'[server]\n{text}\n[engines.o]\ntype = "ollama"').server


def refused(check: Callable[[], object]) -> str | None:
    """Return the words with which something is refused; None if it is not."""
    try:
        check()
    except Forbidden as error:
        return str(error)
    return None


def answers_to(host: bytes | None, text: str = "") -> bool:
    """Tell whether a router configured so lets a request with this Host header in."""
    headers = [(b"accept", b"*/*"), *([(b"host", host)] if host is not None else [])]
    refusal = refused(lambda: AccessCheck(server_of(text)).check_host(headers))
    assert refusal is None or "server.allowed_hosts" in refusal
    return refusal is None


# Names.

LOCAL = [
    b"localhost",
    b"localhost:8077",
    b"LOCALHOST.:8077",
    b" localhost ",
    b"a.b.localhost",
    b"127.0.0.1",
    b"127.0.0.1:8077",
    b"127.1",
    b"0.0.0.0:1",
    b"192.168.1.5:8077",
    b"203.0.113.9",
    b"[::1]",
    b"[::1]:8077",
    b"[FE80::1%25eth0]:80",
    b"[2001:db8::1]:8077",
    b"box",
    b"BOX:8077",
    b"engine_router:8077",
    b"box.local",
    b"Box.Local.:8077",
    b"host.docker.internal:8077",
    b"host.containers.internal",
    b"box.lan",
    b"box.home.arpa",
    b"router.test",
    b"",
    None,
]
FOREIGN = [
    b"evil.example",
    b"evil.example:8077",
    b"EVIL.EXAMPLE.",
    b"localhost.evil.example",
    b"127.0.0.1.evil.example",
    b"127.0.0.1.nip.io",
    b"127-0-0-1.evil.example:8077",
    b"evillocal.com",
    b"local.com",
    b"evil.alan",
    b"evil.contest",
    b"notlocalhost.dev",
    b"evil.example.localhost.com",
    b"box.tail1234.ts.net",
    b"home.arpa.evil.example",
    b"a b",
    b"[",
    b"[]",
    b"[::1]x",
    b"[::1].evil.example",
    b"[evil.example]",
    b"localhost:80:evil.example",
    b"localhost:evil",
    b"localhost@evil.example",
    b"evil.example/localhost",
    b"evil.example#.localhost",
    b"..",
    b".localhost",
    b"evil..localhost",
    b"\xe9.localhost",
    b"localhost\x00",
    b":8077",
]


@pytest.mark.parametrize("host", LOCAL)
def test_local_names_and_addresses_are_its_own(host: bytes | None) -> None:
    assert answers_to(host)
    assert answers_to(host, 'allowed_hosts = ["llm.example.com"]')


@pytest.mark.parametrize("host", FOREIGN)
def test_names_that_anybody_can_have_are_not(host: bytes) -> None:
    assert not answers_to(host)
    assert not answers_to(host, 'allowed_hosts = ["llm.example.com"]')
    assert not answers_to(host, 'allowed_hosts = ["llm.example.com"]\napi_keys = ["k"]')
    assert answers_to(host, 'api_keys = ["k"]')
    assert answers_to(host, 'allowed_hosts = ["*"]')


LABEL = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=12)
TOP = st.sampled_from(["com", "net", "dev", "io", "ai", "box", "zip", "xn--p1ai", "localhost.com", "example"])


@hypothesis.given(
    st.lists(LABEL, min_size=1, max_size=3), TOP, st.sampled_from(["", "."]), st.integers(0, 70000)
)
def test_no_spelling_of_a_name_that_can_be_registered_passes(
    labels: list[str], top: str, dot: str, port: int
) -> None:
    name = ".".join([*labels, top]) + dot
    for host in (name, name.upper(), f"{name}:{port}"):
        assert not gate.is_local_name(gate.name_in(host.encode()))


@hypothesis.given(st.ip_addresses(), st.sampled_from(["", ":80"]))
def test_every_address_passes(address: object, port: str) -> None:
    text = f"[{address}]" if ":" in str(address) else str(address)
    assert gate.is_local_name(gate.name_in(f"{text}{port}".encode()))


@pytest.mark.parametrize(
    ("allowed", "host", "passes"),
    [
        ("llm.example.com", b"llm.example.com:443", True),
        ("LLM.example.com.", b"llm.Example.com.", True),
        ("llm.example.com", b"x.llm.example.com", False),
        ("llm.example.com", b"example.com", False),
        ("llm.example.com", b"xllm.example.com", False),
        ("*.example.com", b"a.b.example.com", True),
        ("*.example.com", b"example.com", False),
        ("*.example.com", b"evilexample.com", False),
        ("*.example.com", b"a.example.com.evil.org", False),
        ("*.my-net.ts.net", b"box.my-net.ts.net:8077", True),
        ("*.my-net.ts.net", b"box.other.ts.net:8077", False),
    ],
)
def test_names_can_be_added(allowed: str, host: bytes, passes: bool) -> None:
    assert answers_to(host, f'allowed_hosts = ["other.org", "{allowed}"]') is passes


def test_the_machines_own_name_and_the_one_that_is_listened_on_are_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not answers_to(b"box.example.com")
    assert answers_to(b"box.example.com", 'host = "Box.example.com"')
    monkeypatch.setattr("socket.gethostname", lambda: "Box.Example.com")
    assert answers_to(b"box.example.com")
    assert answers_to(b"box.example.com", 'allowed_hosts = ["other.org"]')
    assert not answers_to(b"example.com")


def test_the_message_names_the_name_and_no_more_than_a_little_of_it() -> None:
    rules = AccessCheck(server_of())
    with pytest.raises(Forbidden, match=r"the name llm\.example\.com:8077;") as caught:
        rules.check_host([(b"host", b"llm.example.com:8077")])
    assert caught.value.retryable is False
    with pytest.raises(Forbidden) as caught:
        rules.check_host([(b"host", b"x." + b"x" * 60_000)])
    assert len(str(caught.value)) < 300


# Pages.


def pages_in(*origins: str) -> AccessCheck:
    return AccessCheck(server_of(f"cors_origins = {json.dumps(origins)}"))


def is_answered(rules: AccessCheck, origin: str) -> bool:
    """Tell whether a page may send what it likes; then it may also ask before, and read the answer."""
    headers = [(b"host", b"localhost:8077"), (b"origin", origin.encode("latin-1"))]
    asking = [*headers, (b"access-control-request-method", b"POST")]
    added = dict(rules.answer_headers(headers))
    refusal = refused(lambda: rules.check_page("POST", CHAT, b"", headers))
    assert refusal == refused(lambda: rules.preflight("OPTIONS", asking))
    if refusal is not None:
        assert f"({origin})" in refusal
        assert "server.cors_origins" in refusal
        assert b"access-control-allow-origin" not in added
        return False
    assert added[b"access-control-allow-origin"] in (b"*", origin.encode("latin-1"))
    assert added[b"access-control-expose-headers"] == b"*"
    assert b"access-control-allow-credentials" not in added
    assert rules.preflight("OPTIONS", asking) is not None
    return True


@pytest.mark.parametrize(
    ("allowed", "origin", "passes"),
    [
        ("http://localhost:3000", "http://localhost:3000", True),
        ("http://localhost:3000", "http://localhost:3001", False),
        ("http://localhost:3000", "http://localhost:30000", False),
        ("http://localhost:3000", "https://localhost:3000", False),
        ("http://localhost:3000", "http://localhost", False),
        ("HTTP://LocalHost:3000/", "http://localhost:3000", True),
        ("http://localhost", "http://localhost", True),
        ("http://localhost:80", "http://localhost", True),
        ("https://chat.example.com:443", "https://chat.example.com", True),
        ("https://chat.example.com", "https://chat-example.com", False),
        ("https://chat.example.com", "https://chat.example.com.evil.org", False),
        ("http://localhost:*", "http://localhost", True),
        ("http://localhost:*", "http://localhost:5173", True),
        ("http://localhost:*", "https://localhost:5173", False),
        ("http://localhost:*", "http://localhost:evil", False),
        ("http://localhost:*", "http://localhost.evil.org:80", False),
        ("http://[::1]:*", "http://[::1]:5173", True),
        ("https://*.example.com", "https://a.b.example.com", True),
        ("https://*.example.com", "https://example.com", False),
        ("https://*.example.com", "https://evil.org/.example.com", False),
        ("https://*.example.com", "https://evil.org:1.example.com", False),
        ("https://*.example.com:*", "https://a.example.com:8443", True),
        ("app://obsidian.md", "app://obsidian.md", True),
        ("app://*", "app://obsidian.md", True),
        ("app://*", "app://", True),
        ("app://*", "application://x", False),
        ("app://*", "myapp://x", False),
        ("file://", "file://", True),
        ("tauri://localhost", "tauri://localhost", True),
        ("chrome-extension://*", "chrome-extension://abcdefgh", True),
        ("null", "null", True),
        ("app://*", "null", False),
        ("*", "null", True),
        ("*", EVIL, True),
        ("*", "", True),
    ],
)
def test_pages_that_are_allowed(allowed: str, origin: str, passes: bool) -> None:
    assert is_answered(pages_in("http://other.org", allowed), origin) is passes


@pytest.mark.parametrize("origin", [PAGE, EVIL, "null", "", "*", "app://obsidian.md", "http://[", "\xfc"])
def test_where_nothing_is_configured_no_page_is_allowed(origin: str) -> None:
    rules = AccessCheck(server_of())
    assert not is_answered(rules, origin)
    assert rules.answer_headers([(b"origin", origin.encode("latin-1"))]) == ()


def test_the_routers_own_page_needs_no_permission_and_gets_none() -> None:
    headers = [(b"host", b"localhost:8077"), (b"origin", b"http://localhost:8077")]
    for rules in (AccessCheck(server_of()), pages_in(PAGE)):
        rules.check_page("POST", CHAT, b"", headers)
        assert b"access-control-allow-origin" not in dict(rules.answer_headers(headers))


def test_what_differs_by_page_says_so() -> None:
    """A cache in between must not give one page's answer to another one."""
    vary = (b"vary", b"Origin")
    for headers in ([], [(b"origin", PAGE.encode())], [(b"origin", EVIL.encode())]):
        assert vary in pages_in(PAGE).answer_headers(headers)
        assert vary not in pages_in("*").answer_headers(headers)
    assert pages_in("*").answer_headers([]) == pages_in("*").answer_headers([(b"origin", b"null")])


def test_a_browser_that_asks_is_told_what_a_page_may_do() -> None:
    rules = pages_in(PAGE)
    headers = [(b"origin", PAGE.encode()), (b"access-control-request-method", b"POST")]
    said = dict(rules.preflight("OPTIONS", headers) or ())
    assert said.keys() == {b"access-control-allow-methods", b"access-control-max-age"}
    assert {b"GET", b"POST", b"DELETE"} <= set(said[b"access-control-allow-methods"].split(b", "))
    more = [
        (b"access-control-request-headers", b"authorization,x-stainless-os"),
        (b"access-control-request-private-network", b"true"),
    ]
    said = dict(rules.preflight("OPTIONS", [*headers, *more]) or ())
    assert said[b"access-control-allow-headers"] == b"authorization,x-stainless-os"
    assert said[b"access-control-allow-private-network"] == b"true"
    assert rules.preflight("POST", headers) is None
    assert rules.preflight("OPTIONS", headers[:1]) is None
    assert rules.preflight("OPTIONS", headers[1:]) is None


# What may be configured.


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('allowed_hosts = "example.com"', "allowed_hosts", 'a list of names of hosts, or "auto"'),
        ('allowed_hosts = ["http://example.com"]', "allowed_hosts", "without scheme and port"),
        ('allowed_hosts = ["example.com:80"]', "allowed_hosts", "without scheme and port"),
        ('allowed_hosts = ["a.*.com"]', "allowed_hosts", '"*.example.com"'),
        ("allowed_hosts = [1]", "allowed_hosts", "got 1"),
        ('cors_origins = "*"', "cors_origins", 'expected a list, got "*"'),
        ('cors_origins = ["http://a", "localhost:3000"]', "cors_origins[1]", "an origin such as"),
        ('cors_origins = ["http://localhost:3000/chat"]', "cors_origins[0]", "an origin such as"),
        ('cors_origins = ["http://a.*.com"]', "cors_origins[0]", "an origin such as"),
        ('cors_origins = ["*://a"]', "cors_origins[0]", "an origin such as"),
        ('cors_origins = ["http://a:b"]', "cors_origins[0]", "an origin such as"),
        ("cors_origins = [true]", "cors_origins[0]", "got true"),
    ],
)
def test_what_cannot_be_meant_is_a_fault(text: str, place: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        server_of(text)
    ((path, said),) = caught.value.faults
    assert path == f"server.{place}"
    assert words in said


def test_what_is_configured_is_kept_as_browsers_write_it() -> None:
    text = 'allowed_hosts = ["Box.Example.com.", "*"]\ncors_origins = ["HTTPS://A:443/", "file:///", "http://a:443"]'
    server = server_of(text)
    assert server.allowed_hosts == ("box.example.com", "*")
    assert server.cors_origins == ("https://a", "file://", "http://a:443")


@pytest.mark.parametrize("name", ["allowed_hosts", "cors_origins"])
def test_to_let_everybody_in_deserves_a_warning(name: str) -> None:
    for text, is_warned in (
        ("", False),
        (f'{name} = ["*"]', True),
        (f'{name} = ["*"]\napi_keys = ["k"]', False),
    ):
        config = parse_config(f'[server]\n{text}\n[engines.o]\ntype = "ollama"')
        assert (f"server.{name}" in dict(warnings(config))) is is_warned


# Through the router, on both tiers.


class Asking:
    """A router, and an Ollama behind it that opens itself to every page."""

    def __init__(self, router: Router, ollama: ScriptedOllama, url: str | None) -> None:
        self.router, self.ollama = router, ollama
        self._ask = functools.partial(ask_over_a_socket, url) if url else functools.partial(ask, router.app)

    async def __call__(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: object = None
    ) -> Received:
        received: Received = await self._ask(method, path, headers=headers, body=body)
        assert received.error is None
        return received


OPEN = (
    ("Access-Control-Allow-Origin", "*"),
    ("access-control-allow-credentials", "true"),
    ("Access-Control-Expose-Headers", "X-Private"),
    ("Access-Control-Allow-Private-Network", "true"),
    ("Set-Cookie", "engine=1"),
    ("Connection", "X-Hop"),
    ("X-Hop", "1"),
    ("X-Engine", "yes"),
)


@asynccontextmanager
async def asking(fast: bool, server: str = "") -> AsyncIterator[Asking]:
    async with ScriptedOllama("small").running() as ollama:
        for path in DIALECTS:
            ollama.script.answers[path] = Answer(body=b'{"model": "small"}', headers=OPEN)
        text = f"""
            state_file = "/dev/null/state.json"
            [pools.default]
            gauge = "none"
            [server]
            shutdown_timeout_s = 0.1
            fast_path = {str(fast).lower()}
            {server}
            [engines.ollama]
            type = "ollama"
            base_url = "{ollama.base_url}"
            models = ["small"]
        """
        with trio.fail_after(LIMIT_S):
            async with open_router(parse_config(text)) as router:
                if fast:
                    async with served(router) as url:
                        yield Asking(router, ollama, url)
                else:
                    yield Asking(router, ollama, None)


def message_in(path: str, answer: Received) -> str:
    """Return the message of an error in the dialect of its path."""
    data = answer.json()
    assert (data.get("type") == "error") is (path == MESSAGES)
    error = data["error"]
    return str(error if path == OLLAMA_CHAT else error["message"])


async def test_a_page_under_a_false_name_can_neither_change_nor_read_anything(fast: bool) -> None:
    async with asking(fast) as request:
        rebound = {"host": "evil.example:8077", "origin": "http://evil.example:8077"}
        for path in DIALECTS:
            answer = await request("POST", path, rebound, BODY)
            assert answer.status == 403
            assert "server.allowed_hosts" in message_in(path, answer)
        posted = [call for call in request.ollama.calls if call.path in DIALECTS]
        assert posted == []
        # Every other method is the ordinary tier's.
        for rule in request.router.app.url_map.iter_rules():
            path = rule.rule.replace("<path:model>", "small").replace("<path:rest>", "tags")
            for method in rule.methods or ():
                answer = await ask(request.router.app, method, path, headers=rebound)
                assert answer.status == 403, f"{method} {path}"
        assert (await ask(request.router.app, "GET", "/", headers={"host": "localhost:1"})).status == 200


async def test_over_a_socket_too() -> None:
    async with asking(True) as request, served(request.router) as url, RawClient.to(url) as client:
        await client.send(b"GET /status HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert (await client.answer("GET")).status == 403
        await client.request("GET", "/status")
        assert (await client.answer("GET")).status == 200
        await client.send(b"GET /health HTTP/1.0\r\n\r\n")
        assert b'{"status":"ok"}' in await client.rest()


async def test_an_allowed_page_can_read_every_answer(fast: bool) -> None:
    server = f'cors_origins = ["{PAGE}"]\napi_keys = ["k"]\nmax_body_mb = 0.001'
    page = {"origin": PAGE, "authorization": "Bearer k"}
    async with asking(fast, server) as request:
        for path in DIALECTS:
            asked: list[tuple[int, Mapping[str, str], object]] = [
                (200, page, BODY),
                (200, page, (b'{"model":', b'"small"}')),
                (404, page, {"model": "xyzzy"}),
                (400, page, b"{"),
                (401, {"origin": PAGE}, BODY),
                (413, page, b"x" * 2000),
                (413, page, (b"x" * 600, b"x" * 600)),
            ]
            for status, headers, body in asked:
                answer = await request("POST", path, headers, body)
                assert answer.status == status
                assert answer.headers["access-control-allow-origin"] == PAGE
                assert answer.headers["access-control-expose-headers"] == "*"
                assert answer.headers["vary"] == "Origin"
                if status != 200:
                    assert message_in(path, answer)


async def test_other_pages_and_other_programs_are_told_nothing(fast: bool) -> None:
    async with asking(fast, f'cors_origins = ["{PAGE}"]') as request:
        answer = await request("POST", CHAT, {"origin": EVIL}, BODY)
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers
        answer = await request("POST", CHAT, {}, BODY)
        assert answer.status == 200
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("server", ["", f'cors_origins = ["{PAGE}"]', 'cors_origins = ["*"]'])
async def test_what_an_engine_says_about_pages_cookies_and_its_own_hop_stays_with_it(
    server: str, fast: bool
) -> None:
    mine = {"origin": PAGE, "cookie": "a=b", "connection": "keep-alive, X-Private", "x-private": "1"}
    async with asking(fast, server) as request:
        for path in (CHAT, OLLAMA_CHAT):  # which Ollama itself has, so that its headers are passed on
            for headers in ({**mine, "origin": "http://router.test"}, mine if server else {}):
                answer = await request("POST", path, headers, BODY)
                assert answer.status == 200
                assert answer.headers["x-engine"] == "yes"
                assert not answer.headers.keys() & {"set-cookie", "x-hop"}
                told = {name for name in answer.headers if name.startswith("access-control")}
                is_told = "*" in server or (server and headers["origin"] == PAGE)
                names = {"access-control-allow-origin", "access-control-expose-headers"}
                assert told == (names if is_told else set())
        for call in request.ollama.calls:
            assert not call.headers.keys() & {"cookie", "x-private", "origin"}


async def test_an_allowed_page_can_read_a_stream_from_its_first_frame(fast: bool) -> None:
    async with asking(fast, 'cors_origins = ["*"]\nkeepalive_interval_s = 0.02') as request:
        request.ollama.script.answers.clear()
        request.ollama.script.load_s = 0.1
        body = {"model": "small", "stream": True, "messages": []}
        for _ in ("while the model is loaded", "at once"):
            answer = await request("POST", CHAT, {"origin": PAGE}, body)
            assert answer.status == 200
            assert answer.body.endswith(b"data: [DONE]\n\n")
            assert answer.headers["access-control-allow-origin"] == "*"
            assert answer.headers.get("vary") is None


async def test_what_the_ordinary_tier_alone_serves_can_be_read_too() -> None:
    async with asking(False, f'cors_origins = ["{PAGE}"]') as request:
        wanted = [("GET", "/v1/models", 200), ("GET", "/", 200), ("GET", "/nothing", 404), ("GET", CHAT, 405)]
        for method, path, status in [*wanted, ("POST", "/api/show", 400), ("OPTIONS", "/status", 200)]:
            answer = await request(method, path, {"origin": PAGE})
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, PAGE)
            answer = await request(method, path, {"origin": EVIL})
            assert "access-control-allow-origin" not in answer.headers
            assert answer.headers["vary"] == "Origin"


async def test_a_preflight_is_answered_on_every_route_without_a_key() -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with asking(True, f'cors_origins = ["{PAGE}"]\napi_keys = ["k"]') as request:
        for path in (*DIALECTS, "/v1/models", "/status", "/api/tags", "/nothing", "/"):
            answer = await request("OPTIONS", path, {"origin": PAGE, **asks})
            assert (answer.status, answer.body) == (204, b"")
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert answer.headers["access-control-allow-headers"] == "authorization"
            assert "POST" in answer.headers["access-control-allow-methods"]
            assert not answer.headers.keys() & {"content-type", "content-length", "set-cookie"}
            answer = await request("OPTIONS", path, {"origin": EVIL, **asks})
            assert answer.status == 403
            assert "access-control-allow-origin" not in answer.headers
        assert (await request("OPTIONS", "/status", {"origin": PAGE})).status == 401
    async with asking(False, f'cors_origins = ["{PAGE}"]') as request:
        answer = await request("OPTIONS", CHAT, {"origin": PAGE, "host": "evil.example", **asks})
        assert answer.status == 403


async def test_a_page_goes_on_over_the_connection_of_its_preflight() -> None:
    async with (
        asking(True, 'cors_origins = ["http://localhost:*"]') as request,
        served(request.router) as url,
        RawClient.to(url) as client,
    ):
        await client.request(
            "OPTIONS", CHAT, headers=[f"Origin: {PAGE}", "Access-Control-Request-Method: POST"]
        )
        assert (await client.answer("OPTIONS")).status == 204
        await client.request("POST", CHAT, b'{"model": "small"}', headers=[f"Origin: {PAGE}"])
        answer = await client.answer()
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, PAGE)
