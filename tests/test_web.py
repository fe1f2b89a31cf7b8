"""Every route of the app, in all three dialects, in front of engines that are real processes.

Whatever is posted to a proxied route is so on both tiers: a test that takes `fast` runs once with each.
"""

import base64
import functools
import gzip
import inspect
import json
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import httpx
import pytest
import trio
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import TrioSingleTask, WorkerContext
from support.asgi import Conversation, Received, ask, conversation
from support.scripted import Answer, Call, ScriptedOllama
from support.served import RawClient, served
from support.served import ask as ask_over_a_socket

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.engines.base import ResidentId

PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"
LIMIT_S = 200.0
CHAT, COMPLETIONS, MESSAGES, OLLAMA_CHAT = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/api/chat",
)
DIALECTS = [CHAT, MESSAGES, OLLAMA_CHAT]
KEEPALIVE = b": keepalive\n\n"
HELLO = {"role": "user", "content": "hello"}


def process(name: str, *options: str, models: tuple[str, ...] = (), **more: object) -> str:
    """Write the table of an engine that does as it is told."""
    argv = [sys.executable, "-I", "-S", str(PROGRAM), "{port}", *options]
    table = {"type": "process", "argv": argv, "models": [*(models or (name,))], **more}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join([f"[engines.{name}]", *lines])


# An engine that no test of the router's own answers may ever need.
NEVER = """
[engines.never]
type = "http"
base_url = "http://127.0.0.1:9"
models = ["alpha", "team/beta:7b"]
unload.path = "/unload"
loaded.path = "/loaded"
"""


@asynccontextmanager
async def routing(
    *engines: str,
    fast: bool = True,
    server: Mapping[str, object] | None = None,
    scheduling: Mapping[str, object] | None = None,
    more: str = "",
) -> AsyncIterator[Router]:
    """Run a router without a gauge and without a state file that could be written, for a limited time."""
    sections = {
        "pools.default": {"gauge": "none"},
        "server": {"shutdown_timeout_s": 0.1, "fast_path": fast, **(server or {})},
        "scheduling": {"abandon_grace_s": 0.05, **(scheduling or {})},
    }
    tables = [
        "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())])
        for name, section in sections.items()
    ]
    text = "\n".join(['state_file = "/dev/null/state.json"', *tables, *engines, more])
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router:
            yield router


class Post(Protocol):
    """Posts to a path, as `asgi.ask` does."""

    async def __call__(
        self, path: str, *, query: str = "", headers: Mapping[str, str] | None = None, body: object = None
    ) -> Received: ...


@asynccontextmanager
async def posting(router: Router) -> AsyncIterator[Post]:
    """Reach a router through the tier that it runs on: the fast one is behind a socket, the other one is the app."""
    if router.config.server.fast_path:
        async with served(router) as url:
            yield functools.partial(ask_over_a_socket, url, "POST")
    else:
        yield functools.partial(ask, router.app, "POST")


def message_in(path: str, talk: Received) -> str:
    """Return the message of an error answer, which must have the shape of its path's dialect."""
    assert talk.headers["content-type"] == "application/json"
    assert talk.error is None
    return message_of(path, talk.json())


def message_of(path: str, data: object) -> str:
    assert isinstance(data, dict)
    error = data["error"]
    if path.startswith("/api/"):
        assert data.keys() == {"error"}
        assert isinstance(error, str)
        return error
    if path.startswith("/v1/messages"):
        assert data["type"] == "error"
        assert error.keys() == {"type", "message"}
    else:
        assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["type"], str)
    return str(error["message"])


def assert_nothing_left(router: Router) -> None:
    for pool in router.supervisor.domains.values():
        assert pool.leases == {}
        assert list(pool.ledger.waiting()) == []


async def test_the_fast_tier_answers_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no test here believes itself on the fast tier, and everything is handed to the other one."""
    monkeypatch.delattr("engine_router.server.ordinary_tier.OrdinaryConnection")
    async with routing(process("a"), fast=True) as router, posting(router) as post:
        for body in ({"model": "a"}, (b'{"model"', b': "a"}')):
            assert (await post(CHAT, body=body)).status == 200


# What cannot be understood.

BAD_BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "empty"),
    "blank": (b"  \r\n", 400, "empty"),
    "not JSON": (b"{nope", 400, "not JSON"),
    "cut off": (b'{"model": "alpha"', 400, "not JSON"),
    "an array": (b'["alpha"]', 400, "JSON object"),
    "a number": (b"3", 400, "JSON object"),
    "null": (b"null", 400, "JSON object"),
    "no model": (b"{}", 400, "names no model"),
    "model null": (b'{"model": null}', 400, "names no model"),
    "model a number": (b'{"model": 5}', 400, "must be a string"),
    "model an object": (b'{"model": {"id": "alpha"}}', 400, "must be a string"),
    "model empty": (b'{"model": ""}', 400, "is empty"),
    "model blank": (b'{"model": " \\t"}', 400, "is empty"),
    "unknown model": (b'{"model": "alpa"}', 404, "'alpa' not found; did you mean 'alpha'?"),
    "unknown, nothing like it": (b'{"model": "xyzzy"}', 404, "model 'xyzzy' not found"),
    "bad UTF-8": (b'{"model": "\xff"}', 400, "not UTF-8"),
    "cut UTF-8": (b'{"model": "alpha", "x": "\xc3', 400, "not UTF-8"),
    "UTF-16": ('{"model": "alpha"}'.encode("utf-16"), 400, ""),
    "lone surrogate": (b'{"model": "\\ud800"}', 400, ""),
    "NUL": (b'{"model": "\\u0000"}', 404, "not found"),
    "endless nesting": (b"[" * 200_000, 400, "JSON"),
    "endless number": (b'{"model": ' + b"9" * 5000 + b"}", 400, ""),
    "gzip": (gzip.compress(b'{"model": "alpha"}'), 400, ""),
}


@pytest.mark.parametrize("path", DIALECTS)
async def test_a_bad_body_gets_a_plain_error_in_the_dialect_of_its_path(path: str, fast: bool) -> None:
    async with routing(NEVER, fast=fast) as router, posting(router) as post:
        for name, (body, status, words) in BAD_BODIES.items():
            talk = await post(path, body=body)
            assert talk.status == status, name
            assert words in message_in(path, talk), name
            assert talk.headers["x-should-retry"] == "false", name
        assert_nothing_left(router)
        assert (await ask(router.app, "GET", "/metrics")).status == 200


@pytest.mark.parametrize("path", DIALECTS)
async def test_a_body_too_large_is_refused(path: str, fast: bool) -> None:
    async with routing(NEVER, fast=fast, server={"max_body_mb": 0.001}) as router, posting(router) as post:
        body = json.dumps({"model": "alpha", "text": "x" * 2000}).encode()
        in_pieces = tuple(body[start : start + 100] for start in range(0, len(body), 100))
        for framed in (body, in_pieces):
            answer = await post(path, body=framed)
            assert answer.status == 413
            assert "0.001 MB" in message_in(path, answer)


def lingering(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let both tiers take in for so long what a client still sends whose request was refused."""
    for tier in ("web.connection", "server.fast_connection"):
        monkeypatch.setattr(f"engine_router.{tier}.LINGER_S", seconds)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_client_in_the_middle_of_an_upload_can_read_why_it_is_refused(
    framing: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection closed with bytes unread is reset, and the reset may overtake the answer."""
    lingering(monkeypatch, LIMIT_S)
    async with (
        routing(NEVER, fast=fast, server={"max_body_mb": 0.001}) as router,
        served(router) as url,
        RawClient.to(url) as client,
    ):
        piece = b"x" * 60_000
        if framing == "length":
            await client.request("POST", CHAT, headers=[f"Content-Length: {500 * len(piece)}"])
        else:
            await client.request("POST", CHAT, headers=["Transfer-Encoding: chunked"])
            piece = b"%x\r\n%s\r\n" % (len(piece), piece)
        for _ in range(500):
            await client.send(piece)
        if framing == "chunked":
            await client.send(b"0\r\n\r\n")
        assert (await client.until(b"max_body_mb")).startswith(b"HTTP/1.1 413")


async def test_an_upload_that_nobody_wants_ends(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    lingering(monkeypatch, 0.1)
    async with (
        routing(NEVER, fast=fast, server={"max_body_mb": 0.001}) as router,
        served(router) as url,
        RawClient.to(url) as client,
    ):
        await client.request("POST", CHAT, headers=["Content-Length: 1000000"])
        assert (await client.rest()).startswith(b"HTTP/1.1 413")
        with pytest.raises(trio.BrokenResourceError):
            await keep_sending(client)


async def keep_sending(client: RawClient) -> None:
    while True:
        await client.send(b"x")
        await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/model/unload", 404),
        ("POST", "/v1/load_lora_adapter", 404),
        ("POST", "/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/messages", 405),
        ("PUT", "/v1/models", 405),
        ("GET", "/nothing", 404),
        ("POST", "/health", 405),
        ("GET", "/admin/swap", 405),
        ("GET", "/admin/nothing", 404),
        ("GET", "/v1/models/nothing", 404),
        ("GET", "/api/chat", 405),
        ("DELETE", "/api/generate", 405),
        ("POST", "/api/nothing", 404),
        ("POST", "/api/push", 403),
        ("POST", "/api/tags", 405),
        ("GET", "/api/show", 405),
        ("GET", "/v1/caf\u00e9\u0000", 404),
        ("GET", "//nothing", 404),
        ("TRACE", "/", 405),
        ("PROPFIND", "/api/chat", 405),
    ],
)
async def test_a_route_that_is_not_there(method: str, path: str, status: int) -> None:
    async with routing(NEVER) as router:
        talk = await ask(router.app, method, path, body={"model": "alpha"} if method != "GET" else None)
        assert talk.status == status
        assert message_in(path, talk)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/audio/../../api/delete",
        "/v1/audio/./speech",
        "/v1/audio//speech",
        "/v1/audio/speech HTTP/1.1\r\nX-Smuggled: 1\r\n",
        "/v1/audio/sp\u00e9\u00e8ch",
        "/v1/images/?model=b",
        "/v1/audio/..",
        "/v1/images/generations/",
    ],
)
async def test_no_path_reaches_an_engine_but_the_one_that_was_checked(path: str, fast: bool) -> None:
    async with routing(process("a"), fast=fast) as router, posting(router) as post:
        talk = await post(path, body={"model": "a"})
        assert talk.status in (200, 404)
        assert talk.error is None
        if talk.status == 200:
            target = talk.json()["target"]
            assert re.match("/v1/(audio|images)(/|$)", target)
            assert re.fullmatch(r"[!-~]+", target)
            assert ".." not in target
            assert "?" not in target
        assert not [line for line in router.engines["a"].log.tail(100) if "Smuggled" in line]


@pytest.mark.parametrize("host", ["", "a b", "[", "x:y", "\u00e9", "..", "a" * 5000, "evil@x", "x/y"])
async def test_a_strange_host_does_no_harm(host: str, fast: bool) -> None:
    async with routing(NEVER, fast=fast) as router, posting(router) as post:
        for path in DIALECTS:
            talk = await post(path, headers={"host": host}, body={"model": "xyzzy"})
            assert talk.status in (400, 403, 404)
            assert message_in(path, talk)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://x/health", 200),
        ("http://x/nothing", 404),
        ("http://[/health", 404),
        ("?", 200),
        ("*", 404),
        ("%ff", 404),
        ("/%ff", 404),
        ("/health?%ff", 200),
        ("/health#x", 404),
    ],
)
async def test_a_strange_target_does_no_harm(target: str, status: int) -> None:
    async with routing(NEVER) as router, served(router) as url, RawClient.to(url) as client:
        await client.request("GET", target, headers=["Connection: close"])
        assert int((await client.rest()).split()[1]) == status


async def test_an_old_client_that_names_no_host() -> None:
    async with routing(NEVER) as router, served(router) as url, RawClient.to(url) as client:
        await client.send(b"GET /health HTTP/1.0\r\n\r\n")
        assert b'{"status":"ok"}' in await client.rest()


async def test_there_are_no_websockets_but_those_that_are_routed() -> None:
    upgrade = [
        "Connection: upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    async with routing(NEVER) as router, served(router) as url, RawClient.to(url) as client:
        await client.request("GET", CHAT, headers=upgrade)
        await client.until(b"there is no WebSocket at")
        assert client.received.startswith(b"HTTP/1.1 404")


# Keys and origins.

KEYS = ["the key", "schl\u00fcssel"]
BASIC = "Basic " + base64.b64encode(b"anybody:the key").decode()


@pytest.mark.parametrize(
    ("headers", "is_right"),
    [
        ({}, False),
        ({"authorization": "Bearer the key"}, True),
        ({"authorization": "bearer  the key "}, True),
        ({"authorization": BASIC}, True),
        ({"authorization": "Basic !!!"}, False),
        ({"authorization": "Basic \u00e9"}, False),
        ({"authorization": "the key"}, False),
        ({"authorization": "Bearer"}, False),
        ({"authorization": "Bearer the kex"}, False),
        ({"authorization": "Bearer schl\u00fcssel"}, True),
        ({"authorization": "Bearer schl\u00fcssex"}, False),
        ({"authorization": "Bearer \U0001f511"}, False),
        ({"x-api-key": "the key"}, True),
        ({"x-admin-token": "the key"}, True),
        ({"x-admin-token": "another"}, False),
        ({"x-api-key": "\u00fc"}, False),
        ({"authorization": "Bearer wrong", "x-api-key": "the key"}, True),
        ({"authorization": "Bearer the key", "x-api-key": "wrong"}, True),
        ({"cookie": "key=the key"}, False),
    ],
)
async def test_the_key(headers: dict[str, str], is_right: bool, fast: bool) -> None:
    async with routing(NEVER, fast=fast, server={"api_keys": KEYS}) as router, posting(router) as post:
        for path in DIALECTS:
            talk = await post(path, headers=headers, body={"model": "xyzzy"})
            assert talk.status == (404 if is_right else 401)
            assert message_in(path, talk)
            challenge = None if is_right else 'Bearer realm="engine-router"'
            assert talk.headers.get("www-authenticate") == challenge


async def test_every_route_that_tells_something_asks_for_the_key() -> None:
    async with routing(NEVER, server={"api_keys": KEYS}) as router:
        rules = list(router.app.url_map.iter_rules())
        assert len(rules) > 10
        for rule in rules:
            path = rule.rule.replace("<path:model>", "alpha").replace("<path:rest>", "tags")
            for method in rule.methods or ():
                talk = await ask(router.app, method, path)
                is_public = path in ("/", "/health", "/admin/session") or path.startswith("/ui/")
                assert (talk.status != 401) is is_public, f"{method} {path}"
        assert (await ask(router.app, "GET", "/nothing")).status == 401


async def test_a_browser_gets_the_page_without_a_key_and_may_send_it_as_a_password() -> None:
    async with routing(NEVER, server={"api_keys": KEYS}) as router:
        html = {"accept": "text/html,application/xhtml+xml"}
        page = await ask(router.app, "GET", "/", headers=html)
        assert (page.status, page.headers.get("www-authenticate")) == (200, None)
        asked = await ask(router.app, "GET", "/status", headers=html)
        assert asked.status == 401
        assert asked.headers["www-authenticate"].startswith("Basic realm=")
        assert (await ask(router.app, "GET", "/", headers={**html, "authorization": BASIC})).status == 200
        assert (await ask(router.app, "GET", "/status", headers={"authorization": BASIC})).status == 200


@pytest.mark.parametrize("is_locked", [True, False])
async def test_the_routers_keys_never_reach_an_engine(is_locked: bool, fast: bool) -> None:
    keys = {"Authorization": "Bearer the key", "X-API-Key": "the key"}
    server = {"api_keys": ["the key"]} if is_locked else {}
    async with (
        routing(process("a"), 'headers.X-Mine = "yes"', fast=fast, server=server) as router,
        posting(router) as post,
    ):
        talk = await post(CHAT, headers=keys, body={"model": "a"})
        assert talk.status == 200
        got = {name.lower(): value for name, value in talk.json()["headers"]}
        assert got["x-mine"] == "yes"
        assert ("authorization" in got) is not is_locked
        assert ("x-api-key" in got) is not is_locked


@pytest.mark.parametrize("is_locked", [True, False])
async def test_nor_do_they_reach_ollama(is_locked: bool, fast: bool) -> None:
    headers = {"authorization": "Bearer the key", "cookie": "a=b"}
    async with ScriptedOllama("small").running() as ollama:
        server = {"api_keys": ["the key"]} if is_locked else {}
        async with routing(daemon(ollama), fast=fast, server=server) as router, posting(router) as post:
            for path, body in (("/api/show", {"model": "small"}), (OLLAMA_CHAT, {"model": "small"})):
                assert (await post(path, headers=headers, body=body)).status == 200
        for call in (*relayed(ollama, "/api/show"), *relayed(ollama, "/api/chat")):
            assert ("authorization" in call.headers) is not is_locked
            assert "cookie" not in call.headers


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://router.test", 404),
        ("https://evil.example", 403),
        ("http://router.test.evil.example", 403),
        ("http://router.test:81", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
        ("http://[::1]x", 403),
        ("\u00fc", 403),
    ],
)
async def test_pages_of_other_sites_change_nothing(origin: str, status: int, fast: bool) -> None:
    async with routing(NEVER, fast=fast) as router, posting(router) as post:
        for path in DIALECTS:
            talk = await post(path, headers={"origin": origin}, body={"model": "xyzzy"})
            assert talk.status == status
            assert message_in(path, talk)


@pytest.mark.parametrize(
    "path", ["/", "/health", "/status", "/v1/models", "/v1/models/alpha", "/models", "/api/tags"]
)
async def test_what_only_reads_may_come_from_anywhere(path: str) -> None:
    async with routing(NEVER) as router:
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert (await ask(router.app, "GET", path, headers=headers)).status == 200


async def test_nor_do_they_where_no_host_is_named(fast: bool) -> None:
    async with routing(NEVER, fast=fast) as router, posting(router) as post:
        headers = {"host": "", "origin": "null"}
        assert (await post(CHAT, headers=headers, body={"model": "x"})).status == 403


# What is handed to Ollama, and what is not.


def relayed(ollama: ScriptedOllama, path: str) -> list[Call]:
    """Return the POSTs that came from clients: the router's own questions are asked by httpx."""
    return [call for call in ollama.called("POST", path) if "user-agent" not in call.headers]


def daemon(ollama: ScriptedOllama, name: str = "ollama", models: tuple[str, ...] = ()) -> str:
    lines = [f"[engines.{name}]", 'type = "ollama"', f'base_url = "{ollama.base_url}"']
    return "\n".join([*lines, f"models = {json.dumps(models)}"])


@asynccontextmanager
async def ollama_routing(
    *models: str, more: str = "", **server: object
) -> AsyncIterator[tuple[ScriptedOllama, Router]]:
    async with (
        ScriptedOllama(*models).running() as ollama,
        routing(daemon(ollama), server=server, more=more) as router,
    ):
        yield ollama, router


GUARDED = [
    "DELETE /api/delete",
    "DELETE /api/./delete",
    "DELETE /api/chat/../delete",
    "DELETE /api//delete",
    "DELETE //api/delete",
    "DELETE /api/%2e/delete",
    "DELETE /api/chat/%2e%2e/delete",
    "DELETE /api/chat/%2E%2E/delete",
    "DELETE /api/chat%2f..%2fdelete",
    "DELETE /api/x/y/../../delete",
    "DELETE /api/../api/delete",
    "DELETE /api/%2e%2e/api/delete",
    "DELETE /api/%2fdelete",
    "DELETE /api/delete/",
    "DELETE /api/delete/.",
    "DELETE /api/delete%00",
    "DELETE /api/delete?x",
    "DELETE /api/pull/../delete",
    "DELETE /api/%252e%252e/delete",
    "DELETE /API/delete",
    "DELETE /v1/../api/delete",
    "DELETE /./api/delete",
    "DELETE /api\\delete",
    "DELETE http://router.test/api/delete",
    "POST /api/delete",
    "GET /api/delete",
    "POST /api/blobs/..",
    "POST /api/blobs/../create",
    "POST /api/create",
    "POST /api/copy",
    "POST /api/push",
    "HEAD /api/blobs/sha256:00",
    "POST /api/blobs/sha256:00",
    "POST /api/..",
    "POST /api/.",
    "POST /api/",
    "POST /api",
]


async def test_what_could_do_harm_never_reaches_ollama() -> None:
    async with ollama_routing("small") as (ollama, router), served(router) as url:
        for line in GUARDED:
            method, _, target = line.partition(" ")
            async with RawClient.to(url) as client:
                await client.request(method, target, b'{"model": "small"}', headers=["Connection: close"])
                status = int((await client.rest()).split()[1])
                assert status in (400, 403, 404, 405), f"{line}: {client.received!r}"
        harmless = {"GET /api/ps", "GET /api/tags", "GET /api/version", "GET /v1/models", "POST /api/show"}
        assert {str(call) for call in ollama.calls} <= harmless


@pytest.mark.parametrize(
    "target", ["/api/delete", "/api/./delete", "/api/chat/%2e%2e/delete", "/api/delete?really=1"]
)
async def test_where_it_is_allowed_the_plain_form_goes_on(target: str) -> None:
    async with (
        ollama_routing("small", allow_destructive_ollama_api=True) as (ollama, router),
        served(router) as url,
        RawClient.to(url) as raw,
    ):
        await raw.request("DELETE", target, b'{"model": "small"}', headers=["Connection: close"])
        assert (await raw.rest()).startswith(b"HTTP/1.1 404")  # the scripted daemon has no such route
        (call,) = ollama.called("DELETE", "/api/delete")
        assert call.body == {"model": "small"}
        assert call.query == target.partition("?")[2]


async def test_a_pull_is_passed_on_as_it_comes() -> None:
    may_go_on = trio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"status":"pulling manifest"}\n'
        await may_go_on.wait()
        yield b'{"status":"success"}\n'

    async with ollama_routing("small") as (ollama, router), served(router) as url:
        ollama.script.answers["/api/pull"] = Answer(content_type="application/x-ndjson", pieces=pieces())
        async with RawClient.to(url) as client:
            await client.request("POST", "/api/pull", b'{"model": "new"}')
            await client.until(b"pulling manifest")
            assert b"success" not in client.received
            may_go_on.set()
            await client.until(b"0\r\n\r\n")
            assert b"application/x-ndjson" in client.received
            assert router.supervisor.domains["default"].ledger.is_empty


async def test_a_pull_that_breaks_off_is_no_success() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"status":"pulling manifest"}\n'
        raise trio.BrokenResourceError

    async with ollama_routing("small") as (ollama, router), served(router) as url:
        ollama.script.answers["/api/pull"] = Answer(content_type="application/x-ndjson", pieces=pieces())
        async with RawClient.to(url) as client:
            await client.request("POST", "/api/pull", b'{"model": "new"}')
            await client.rest()
            assert not client.received.endswith(b"0\r\n\r\n")
            assert (await ask(router.app, "GET", "/health")).status == 200


async def test_ollama_that_does_not_listen_is_an_error_in_its_dialect() -> None:
    async with routing('[engines.ollama]\ntype = "ollama"\nbase_url = "http://127.0.0.1:9"') as router:
        talk = await ask(router.app, "POST", "/api/pull", body={"model": "x"})
        assert talk.status == 502
        assert "connection refused" in message_in("/api/pull", talk)


async def test_what_ollamas_clients_ask_first() -> None:
    aliases = '[aliases]\n"gpt-4o" = "a"'
    async with routing(process("a"), process("b", models=("b:1", "team/b")), more=aliases) as router:
        version = (await ask(router.app, "GET", "/api/version")).json()["version"]
        assert tuple(int(part) for part in version.split(".")) >= (0, 13, 4)
        assert (await ask(router.app, "GET", "/api/ps")).json() == {"models": []}
        tags = (await ask(router.app, "GET", "/api/tags")).json()["models"]
        assert [entry["model"] for entry in tags] == ["a", "gpt-4o", "b:1", "team/b"]
        for entry in tags:
            assert entry["name"] == entry["model"]
            assert entry.keys() >= {"modified_at", "size", "digest", "details"}
            assert re.fullmatch("[0-9a-f]{64}", entry["digest"])
        for body in ({"model": "gpt-4o"}, {"name": "a"}, {"model": "a:latest"}):
            shown = (await ask(router.app, "POST", "/api/show", body=body)).json()
            assert isinstance(shown["capabilities"], list)
            assert shown["model_info"]["general.architecture"]
        missing = await ask(router.app, "POST", "/api/show", body={"model": "nothing"})
        assert missing.status == 404
        assert (
            message_in("/api/show", missing)
            == "model 'nothing' not found; engine-router models, or GET /v1/models, lists them"
        )
        assert router.supervisor.domains["default"].ledger.is_empty
        await ask(router.app, "POST", CHAT, body={"model": "a"})
        assert [m["model"] for m in (await ask(router.app, "GET", "/api/ps")).json()["models"]] == [
            "a",
            "gpt-4o",
        ]
        assert (await ask(router.app, "HEAD", "/api/tags")).status == 200


async def test_show_of_ollamas_own_model_is_ollamas_own_answer() -> None:
    more = '[models.small]\nengine = "ollama"\nupstream = "small:1b"\naliases = ["tiny"]'
    async with ollama_routing("small:1b", more=more) as (ollama, router):
        await router.discover()
        for name in ("small:1b", "small", "tiny"):
            shown = await ask(router.app, "POST", "/api/show", body={"model": name, "verbose": True})
            assert shown.status == 200, name
            assert shown.json()["details"]["parameter_size"] == "1B"
        assert [call.body for call in relayed(ollama, "/api/show")] == [
            {"model": "small:1b", "verbose": True}
        ] * 3


async def test_show_asks_the_daemon_that_has_the_model() -> None:
    async with ScriptedOllama("one").running() as first, ScriptedOllama("two").running() as second:
        tables = [daemon(first, "first", ("one",)), daemon(second, "second", ("two",))]
        async with routing(*tables) as router:
            assert (await ask(router.app, "POST", "/api/show", body={"model": "two"})).status == 200
        assert len(relayed(second, "/api/show")) == 1
        assert relayed(first, "/api/show") == []


async def test_a_chat_with_ollamas_own_model_is_not_translated(fast: bool) -> None:
    async with ollama_routing("small", fast_path=fast) as (_, router), posting(router) as post:
        streamed = await post(OLLAMA_CHAT, body={"model": "small", "messages": [{}]})
        lines = [json.loads(line) for line in streamed.body.splitlines()]
        assert lines[-1]["done"] is True
        assert lines[0]["message"]["content"] == "small:latest"
        whole = await post(OLLAMA_CHAT, body={"model": "small", "messages": [{}], "stream": False})
        assert whole.json()["done"] is True


# The model list, and the page.


async def test_the_model_list() -> None:
    more = '[models."big/one:7b"]\nengine = "a"\nupstream = "raw-name"\naliases = ["gpt-4o"]'
    async with routing(process("a", "models=raw-name,found", models=("small",)), more=more) as router:
        listed = (await ask(router.app, "GET", "/v1/models")).json()
        assert listed["object"] == "list"
        assert [entry["id"] for entry in listed["data"]] == ["small", "big/one:7b", "gpt-4o"]
        assert {entry["object"] for entry in listed["data"]} == {"model"}
        assert {entry["state"] for entry in listed["data"]} == {"off"}
        assert [entry["status"] for entry in listed["data"]] == [{"value": "unloaded"}] * 3
        for name in ("small", "big/one:7b", "gpt-4o"):
            one = await ask(router.app, "GET", f"/v1/models/{name}")
            assert one.status == 200
            assert one.json()["id"] == name
            assert one.json()["engine"] == "a"
        unknown = await ask(router.app, "GET", "/v1/models/smal")
        assert unknown.status == 404
        assert unknown.json()["error"]["code"] == "model_not_found"
        assert "did you mean 'small'" in message_in("/v1/models/smal", unknown)

        assert (await ask(router.app, "POST", CHAT, body={"model": "found"})).status == 404
        await ask(router.app, "POST", CHAT, body={"model": "small"})
        while "found" not in str((await ask(router.app, "GET", "/v1/models")).body):
            await trio.sleep(0.01)  # the engine is asked once it is ready
        ready = {m["id"]: m["state"] for m in (await ask(router.app, "GET", "/v1/models")).json()["data"]}
        assert ready["found"] == "ready"
        assert "raw-name" not in ready
        # What the engine lists under its own name is the configured model.
        raw = await ask(router.app, "GET", "/v1/models/raw-name")
        assert raw.status == 200
        assert raw.json()["state"] == "ready"
        assert raw.json()["status"] == {"value": "loaded"}
        assert (await ask(router.app, "POST", CHAT, body={"model": "found"})).status == 200
        assert (await ask(router.app, "POST", CHAT, body={"model": "raw-name"})).status == 200


async def test_a_path_without_v1_is_told_of() -> None:
    async with routing(NEVER) as router:
        talk = await ask(router.app, "POST", "/chat/completions", body={"model": "alpha"})
        assert talk.status == 404
        assert "it is /v1/chat/completions: the base URL ends in /v1" in talk.json()["error"]["message"]
        assert "/v1" not in (await ask(router.app, "POST", "/chat", body={})).json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "remedy"),
    [
        ("POST", "/v1/v1/messages", "it is /v1/messages: leave /v1 out of the base URL"),
        ("POST", "/v1/v1/chat/completions", "it is /v1/chat/completions: leave /v1 out of the base URL"),
        ("GET", "/v1/api/tags", "it is /api/tags: leave /v1 out of the base URL"),
        ("POST", "/api/api/chat", "it is /api/chat: leave /api out of the base URL"),
        ("POST", "/api/v1/chat/completions", "it is /v1/chat/completions: leave /api out of the base URL"),
        ("POST", "/api/chat/completions", "it is /v1/chat/completions: the base URL ends in /v1"),
        ("GET", "/v1", "GET /v1/models lists the models"),
        ("GET", "/api", "GET /api/tags lists the models"),
    ],
)
async def test_a_wrong_base_url_is_told_of_and_starts_nothing(method: str, path: str, remedy: str) -> None:
    async with routing(NEVER) as router:
        answer = await ask(router.app, method, path, body={"model": "alpha"} if method == "POST" else None)
        assert answer.status == 404
        assert remedy in str(answer.json()["error"])
        assert not router.supervisor.domains["default"].ledger.states


async def test_the_model_list_says_what_is_loaded() -> None:
    async with routing(
        process("a", "fail=no"), process("b", "delay=60"), process("c"), process("d")
    ) as router:

        async def status() -> dict[str, str]:
            listed = (await ask(router.app, "GET", "/v1/models")).json()["data"]
            return {entry["id"]: entry["status"]["value"] for entry in listed}

        assert await status() == dict.fromkeys("abcd", "unloaded")
        assert (await ask(router.app, "POST", CHAT, body={"model": "a"})).status == 503
        assert (await status())["a"] == "failed"
        assert (await ask(router.app, "POST", CHAT, body={"model": "c"})).status == 200
        assert await status() == {"a": "failed", "b": "unloaded", "c": "loaded", "d": "unloaded"}
        router.sleeping = lambda: [ResidentId("d")]
        assert (await status())["d"] == "sleeping"
        await ask(router.app, "POST", "/admin/load", body={"model": "b"})
        while (found := await status())["b"] != "loading":
            await trio.sleep(0.01)
        assert found["c"] == "unloaded"


async def test_a_request_during_the_first_discovery_waits_for_it(fast: bool) -> None:
    async with (
        ScriptedOllama("small").running() as ollama,
        routing(daemon(ollama), fast=fast) as router,
        posting(router) as post,
    ):
        talk = await post(OLLAMA_CHAT, body={"model": "small", "messages": [{}]})
        assert talk.status == 200


async def test_a_head_request_has_no_body_on_the_wire() -> None:
    async with routing(NEVER) as router, served(router) as url, RawClient.to(url) as client:
        await client.request("HEAD", "/", headers=["Connection: close"])
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"\r\n\r\n")
        assert b"\r\nserver:" not in answer.lower()


# What goes to an engine, and what comes back.


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, "/v1/responses", "/v1/embeddings"])
async def test_a_request_goes_on_as_it_is(path: str, fast: bool) -> None:
    body = b'{ "model":"a",\t"messages": [ ], "x": 1.50, "\\u00e9": "\xc3\xa9" }\n'
    headers = {
        "content-type": "application/json",
        "connection": "keep-alive, X-Private",
        "x-private": "1",
        "accept-encoding": "gzip, br",
        "cookie": "a=b",
        "anthropic-version": "2023-06-01",
        "authorization": "Bearer the engine's own",
    }
    async with routing(process("a"), fast=fast) as router, posting(router) as post:
        talk = await post(path, query="beta=true&x=%2F", headers=headers, body=body)
        assert talk.status == 200
        said = talk.json()
        assert said["target"] == f"{path}?beta=true&x=%2F"
        assert said["body"].encode("latin-1") == body
        got = {name.lower(): value for name, value in said["headers"]}
        assert got["anthropic-version"] == "2023-06-01"
        assert got["authorization"] == "Bearer the engine's own"
        assert got["content-length"] == str(len(body))
        assert got["accept-encoding"] == "identity"
        assert not got.keys() & {"x-private", "cookie", "connection", "transfer-encoding"}
        assert talk.headers["x-engine"] == "obedient"
        assert "x-hop" not in talk.headers


@pytest.mark.parametrize("name", ["te", "trailer", "expect"])
async def test_what_the_fast_tier_does_not_take_goes_on_too(name: str, fast: bool) -> None:
    value = "100-continue" if name == "expect" else "trailers"
    async with routing(process("a"), fast=fast) as router, posting(router) as post:
        talk = await post(CHAT, headers={name: value}, body={"model": "a"})
        assert talk.status == 200
        assert name not in {got.lower() for got, _ in talk.json()["headers"]}


async def test_a_query_in_another_alphabet_does_no_harm() -> None:
    async with routing(process("a")) as router:
        talk = await ask(router.app, "POST", CHAT, query="q=\u00e9", body={"model": "a"})
        assert talk.status == 200
        assert talk.json()["target"] == f"{CHAT}?q=%E9"


async def test_an_alias_reaches_the_engine_under_the_name_that_it_knows(fast: bool) -> None:
    more = '[models.nice]\nengine = "a"\nupstream = "raw-name"\naliases = ["gpt-4o"]'
    async with routing(process("a"), fast=fast, more=more) as router, posting(router) as post:
        for name in ("nice", "gpt-4o"):
            said = (await post(CHAT, body={"model": name, "x": "\u00e9"})).json()
            assert json.loads(said["body"].encode("latin-1")) == {"model": "raw-name", "x": "\u00e9"}


async def test_an_upload_is_routed_by_its_field(fast: bool) -> None:
    more = '[models.ears]\nengine = "a"\nupstream = "whisper-1"'
    sound = bytes(range(256)) * 300
    async with (
        routing(process("a"), fast=fast, more=more) as router,
        served(router) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=200) as client,
    ):

        async def send(model: str | None) -> httpx.Response:
            data = {"response_format": "json"} | ({"model": model} if model is not None else {})
            files = {"file": ("model", sound, "audio/wav")}
            return await client.post("/v1/audio/transcriptions", data=data, files=files)

        answer = await send("ears")
        assert answer.status_code == 200
        said = answer.json()
        assert said["target"] == "/v1/audio/transcriptions"
        got = said["body"].encode("latin-1")
        assert sound in got
        assert b"whisper-1" in got
        assert b"ears" not in got
        kind = {n.lower(): v for n, v in said["headers"]}["content-type"]
        assert kind.encode().partition(b"boundary=")[2] in got
        same = (await send("a")).json()["body"].encode("latin-1")
        assert sound in same
        unknown = await send("eers")
        assert unknown.status_code == 404
        assert "did you mean 'ears'" in message_of(CHAT, unknown.json())
        none = await send(None)
        assert none.status_code == 400
        assert 'no field "model"' in message_of(CHAT, none.json())


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=model\r\n\r\na"),
        ("multipart/form-data; boundary=x", b"--x\r\nnothing\r\n\r\na\r\n--x--\r\n"),
        ("multipart/mixed; boundary=x", b"--x\r\n\r\na\r\n--x--\r\n"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data; name=model\r\n\r\n\xff\r\n--x--\r\n",
        ),
        ("multipart/form-data; boundary=\u00e9", b"--\xc3\xa9--"),
    ],
)
async def test_an_upload_that_cannot_be_read(content_type: str, body: bytes, fast: bool) -> None:
    async with routing(NEVER, fast=fast) as router, posting(router) as post:
        path = "/v1/audio/transcriptions"
        talk = await post(path, headers={"content-type": content_type}, body=body)
        assert talk.status == 400
        assert message_in(path, talk)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_an_engines_own_refusal_stays_what_it_is_where_its_client_can_read_it(
    path: str, fast: bool
) -> None:
    async with routing(process("a"), fast=fast) as router, posting(router) as post:
        for status in (400, 404, 429, 500, 503):
            for stream in (True, False):
                body = {"model": "a", "messages": [], "do": "status", "status": status, "stream": stream}
                talk = await post(path, body=body)
                assert talk.status == status
                if path == CHAT:  # OpenAI's shape is what this engine speaks
                    assert talk.headers["x-engine"] == "obedient"
                    assert talk.json() == {"error": {"message": "no, says the engine"}}
                else:
                    assert message_in(path, talk) == "no, says the engine"
        assert_nothing_left(router)


async def test_a_refusal_is_translated_for_ollamas_clients(fast: bool) -> None:
    async with routing(process("a", "translated=status"), fast=fast) as router, posting(router) as post:
        for stream in (True, False):
            talk = await post(OLLAMA_CHAT, body={"model": "a", "messages": [HELLO], "stream": stream})
            assert talk.status == 429
            assert message_in(OLLAMA_CHAT, talk) == "no, says the engine"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_chat_is_translated_for_ollamas_clients(stream: bool, fast: bool) -> None:
    async with (
        routing(process("a", f"translated={'stream' if stream else 'chat'}"), fast=fast) as router,
        posting(router) as post,
    ):
        body = {"model": "a", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
        talk = await post(OLLAMA_CHAT, body=body)
        assert talk.status == 200
        lines = [json.loads(line) for line in talk.body.splitlines()]
        assert lines[0]["message"]["content"].startswith("word0")
        assert lines[-1]["done"] is True
        assert lines[-1]["model"] == "a"
        kind = "application/x-ndjson" if stream else "application/json; charset=utf-8"
        assert talk.headers["content-type"] == kind


async def test_an_encoded_answer_keeps_the_header_that_says_so(fast: bool) -> None:
    async with routing(process("a"), fast=fast) as router, posting(router) as post:
        await post(CHAT, body={"model": "a"})
        talk = await post(CHAT, body={"model": "a", "do": "gzip", "stream": True})
        assert talk.headers["content-encoding"] == "gzip"
        assert talk.headers["content-length"] == str(len(talk.body))
        assert gzip.decompress(talk.body).endswith(b"[DONE]\n\n")


# Engines that fail.

FAILURES: dict[str, tuple[str, int, str]] = {
    "abort": ("engine_broke", 502, "broke off"),
    "garbage": ("engine_broke", 502, "not HTTP"),
    "die": ("engine_died", 502, "code 7"),
}


@pytest.mark.parametrize("action", FAILURES)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_breaks_before_it_answers(action: str, stream: bool, fast: bool) -> None:
    code, status, words = FAILURES[action]
    async with (
        routing(process("a"), fast=fast, scheduling={"failed_start_memory_s": 0.0}) as router,
        posting(router) as post,
    ):
        talk = await post(CHAT, body={"model": "a", "do": action, "stream": stream})
        assert talk.status == status
        assert words in message_in(CHAT, talk)
        assert talk.json()["error"]["code"] == code
        assert (await post(CHAT, body={"model": "a"})).status == 200
        assert_nothing_left(router)


async def test_an_engine_that_is_gone_is_started_again(fast: bool) -> None:
    async with routing(process("a"), fast=fast) as router, posting(router) as post:
        pids = set()
        for _ in range(2):
            talk = await post(CHAT, body={"model": "a"})
            pids.add(talk.json()["pid"])
            died = await post(CHAT, body={"model": "a", "do": "die"})
            assert died.json()["error"]["code"] == "engine_died"
        assert len(pids) == 2


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_cannot_start_has_a_true_status(path: str, stream: bool, fast: bool) -> None:
    async with routing(process("a", "fail=no such flag"), fast=fast) as router, posting(router) as post:
        for _ in range(2):  # the second one from memory
            talk = await post(path, body={"model": "a", "messages": [], "stream": stream})
            assert talk.status == 503
            assert "exited with code 3" in message_in(path, talk)
            assert "no such flag" in message_in(path, talk)
            assert talk.headers["x-should-retry"] == "false"
        assert "started pid" in router.engines["a"].log.tail(10)[0]
        assert sum("started pid" in line for line in router.engines["a"].log.tail(10)) == 1


@pytest.mark.parametrize("path", DIALECTS)
async def test_a_failing_start_in_a_stream_that_was_kept_open_is_an_error_frame(
    path: str, fast: bool
) -> None:
    server = {"keepalive_interval_s": 0.02}
    async with (
        routing(process("a", "delay=1", "fail=no such flag"), fast=fast, server=server) as router,
        posting(router) as post,
    ):
        talk = await post(path, body={"model": "a", "messages": [], "stream": True})
        assert talk.status == 200
        assert talk.is_complete
        assert talk.error is None
        frames, error = talk.pieces[:-1], talk.pieces[-1]
        assert len(frames) >= 2
        assert set(frames) == {b" " if path == OLLAMA_CHAT else KEEPALIVE}
        if path == OLLAMA_CHAT:
            assert talk.headers["content-type"] == "application/x-ndjson"
            assert error.endswith(b"\n")
            assert talk.body.count(b"\n") == 1
            data = error
        else:
            assert talk.headers["content-type"] == "text/event-stream"
            start = b"event: error\ndata: " if path == MESSAGES else b"data: "
            assert error.startswith(start)
            data = error.removeprefix(start)
        assert "no such flag" in message_of(path, json.loads(data))


@pytest.mark.parametrize("path", DIALECTS)
async def test_a_cold_start_is_bridged_by_frames_that_mean_nothing(path: str, fast: bool) -> None:
    server = {"keepalive_interval_s": 0.02}
    async with (
        routing(process("a", "delay=1", "translated=stream"), fast=fast, server=server) as router,
        posting(router) as post,
    ):
        body = {"model": "a", "messages": [HELLO], "stream": True, "do": "stream"}
        talk = await post(path, body=body)
        frame = b" " if path == OLLAMA_CHAT else KEEPALIVE
        count = sum(piece == frame for piece in talk.pieces)
        assert count >= 3
        assert talk.pieces[:count] == [frame] * count
        rest = b"".join(talk.pieces[count:])
        if path == OLLAMA_CHAT:
            assert talk.body.startswith(b" " * count + b"{")
            lines = [json.loads(line) for line in talk.body.splitlines()]
            assert lines[-1]["done"] is True
            assert talk.body.endswith(b"}\n")
        else:
            assert rest.startswith(b'data: {"id"')
            assert rest.endswith(b"data: [DONE]\n\n")


async def test_a_refusal_after_frames_is_an_error_frame(fast: bool) -> None:
    server = {"keepalive_interval_s": 0.02}
    async with (
        routing(process("a", "delay=0.3"), fast=fast, server=server) as router,
        posting(router) as post,
    ):
        body = {"model": "a", "stream": True, "do": "status", "status": 400}
        talk = await post(CHAT, body=body)
        assert talk.status == 200
        error = json.loads(talk.pieces[-1].removeprefix(b"data: "))
        assert message_of(CHAT, error) == "no, says the engine"


async def test_keep_alive_frames_can_be_turned_off(fast: bool) -> None:
    async with (
        routing(process("a", "delay=0.3"), fast=fast, server={"keepalive_interval_s": 0}) as router,
        posting(router) as post,
    ):
        body = {"model": "a", "stream": True, "do": "status", "status": 400}
        assert (await post(CHAT, body=body)).status == 400


async def test_no_frames_are_sent_where_no_stream_was_asked_for(fast: bool) -> None:
    server = {"keepalive_interval_s": 0.02}
    async with (
        routing(process("a", "delay=0.3"), fast=fast, server=server) as router,
        posting(router) as post,
    ):
        talk = await post(CHAT, body={"model": "a", "do": "status", "status": 418})
        assert talk.status == 418
        assert talk.headers["content-type"] == "application/json"


@pytest.mark.usefixtures("no_news")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("path", DIALECTS)
async def test_a_stream_that_breaks_off_ends_in_an_error_frame(path: str, half: bool, fast: bool) -> None:
    action = "messages" if path == MESSAGES else "break"
    async with routing(process("a", "translated=break"), fast=fast) as router, posting(router) as post:
        events = router.events()
        talk = await post(
            path,
            body={"model": "a", "messages": [HELLO], "stream": True, "do": action, "half": half},
        )
        assert talk.status == 200
        assert talk.is_complete
        if path == OLLAMA_CHAT:
            *_, last = talk.body.splitlines()
            assert "broke off" in message_of(path, json.loads(last))
        else:
            *_, last, nothing = talk.body.split(b"\n\n")
            assert nothing == b""
            start = b"event: error\ndata: " if path == MESSAGES else b"data: "
            assert last.startswith(start)
            assert "broke off" in message_of(path, json.loads(last.removeprefix(start)))
        assert_nothing_left(router)
        async for event in events:
            if event.name == "request_ended":
                assert "broke off" in event.as_dict()["error"]
                assert event.as_dict()["status"] == 502
                break


@pytest.mark.usefixtures("no_news")
@pytest.mark.parametrize(
    "wish",
    [
        {"do": "break", "half": False, "stream": False},
        {"do": "short", "stream": False},
        {"do": "short", "stream": True, "kind": "text/event-stream"},
    ],
)
async def test_an_answer_that_breaks_elsewhere_breaks_the_connection(
    wish: dict[str, object], fast: bool
) -> None:
    async with routing(process("a"), fast=fast) as router, served(router) as url, RawClient.to(url) as client:
        await client.request("POST", CHAT, json.dumps({"model": "a", **wish}).encode())
        answer = await client.rest()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"word0" in body
        assert b"broke" not in body
        if wish["do"] == "break":
            assert b"chunked" in head.lower()
            assert not body.endswith(b"0\r\n\r\n")
        else:
            assert b"content-length: 1000" in head.lower()
            assert len(body) < 1000
        async with httpx.AsyncClient(trust_env=False) as strict:
            with pytest.raises(httpx.RemoteProtocolError):
                await strict.post(f"{url}{CHAT}", json={"model": "a", **wish})
        assert_nothing_left(router)


async def test_a_connection_is_kept_for_the_next_request(fast: bool) -> None:
    async with routing(process("a"), fast=fast) as router, served(router) as url, RawClient.to(url) as client:
        for number, wish in enumerate(("echo", "stream", "status", "echo")):
            body = {"model": "a", "stream": wish == "stream", "do": wish, "status": 400, "number": number}
            await client.request("POST", CHAT, json.dumps(body).encode())
            answer = await client.answer()
            assert answer.is_complete
            assert {"echo": b'"pid":', "stream": b"[DONE]", "status": b"no, says"}[wish] in answer.body


async def test_requests_that_come_far_ahead_are_answered_one_after_the_other(fast: bool) -> None:
    """More than is read ahead, and more than the kernel holds: the client has to read meanwhile."""
    count, padding = 60, "x" * 100_000
    async with routing(process("a"), fast=fast) as router, served(router) as url, RawClient.to(url) as client:

        async def send() -> None:
            for number in range(count):
                body = {"model": "a", "do": "echo", "number": number, "padding": padding}
                await client.request("POST", CHAT, json.dumps(body).encode())

        with trio.fail_after(200):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                for number in range(count):
                    answer = await client.answer()
                    assert answer.is_complete
                    assert json.loads(answer.json()["body"])["number"] == number
        assert router.supervisor.domains["default"].leases == {}


@pytest.mark.parametrize("wish", ["echo", "stream", "status", "nothing"])
@pytest.mark.parametrize("asked", ["close", "keep-alive"])
async def test_a_connection_ends_after_its_answer(
    wish: str, asked: str, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """At once where the client said so, and otherwise when it was idle for long enough."""
    if asked == "keep-alive":  # far longer than a request takes to come on a busy machine
        monkeypatch.setattr("engine_router.server.serve.KEEP_ALIVE_S", 1.0)
        monkeypatch.setattr("engine_router.server.accept.SWEEP_INTERVAL_S", 0.05)
    async with routing(process("a"), fast=fast) as router, served(router) as url, RawClient.to(url) as client:
        model = "xyzzy" if wish == "nothing" else "a"
        body = json.dumps({"model": model, "stream": wish == "stream", "do": wish}).encode()
        await client.request("POST", CHAT, body, headers=[f"Connection: {asked}"])
        assert (await client.answer()).is_complete
        assert await client.rest() == b""


# The person who runs the router.


async def test_metrics(fast: bool) -> None:
    async with routing(process("a"), process("b"), fast=fast) as router, posting(router) as post:
        await post(CHAT, body={"model": "a"})
        await post(CHAT, body={"model": "b", "do": "status", "status": 418})
        await post(CHAT, body={"model": "made up by a client"})
        talk = await ask(router.app, "GET", "/metrics")
        assert talk.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = talk.body.decode().splitlines()
        assert 'engine_router_requests_total{model="a",status="200"} 1.0' in lines
        assert 'engine_router_requests_total{model="b",status="418"} 1.0' in lines
        assert 'engine_router_resident{pool="default",resident="b"} 1.0' in lines
        assert 'engine_router_swaps_total{result="ok",source="a",target="b"} 1.0' in lines
        assert not any("made up" in line for line in lines)


async def test_status_tells_what_is_there() -> None:
    async with routing(process("a"), process("b")) as router:
        empty = (await ask(router.app, "GET", "/status")).json()
        assert empty["pools"]["default"]["resident"] is None
        assert {model["state"] for model in empty["models"]} == {"off"}
        await ask(router.app, "POST", CHAT, body={"model": "a"})
        full = (await ask(router.app, "GET", "/status")).json()
        resident = full["pools"]["default"]["resident"]
        assert (resident["resident"], resident["phase"], resident["in_flight"]) == ("a", "ready", 0)
        assert full["engines"]["a"]["state"] == "ready"
        assert full["last_swap"]["target"] == "a"


QUICK = [
    ("GET", "/health"),
    ("GET", "/status"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/a"),
    ("GET", "/api/tags"),
    ("GET", "/api/ps"),
    ("GET", "/api/version"),
    ("POST", "/api/show"),
    ("GET", "/"),
]


async def assert_quick(router: Router) -> None:
    """Everything that must not wait for an engine answers while that engine never does."""
    for method, path in QUICK:
        with trio.fail_after(200):
            talk = await ask(router.app, method, path, body={"model": "a"} if method == "POST" else None)
        assert talk.status == 200, path


async def phase_is(router: Router, phase: str) -> None:
    pool = router.supervisor.domains["default"]
    while not any(state.phase.value == phase for state in pool.ledger.states):
        await trio.sleep(0.005)


async def test_what_needs_no_engine_answers_at_once_whatever_engines_do() -> None:
    async with ScriptedOllama("small").running() as ollama:
        tables = [process("a", "delay=0.8", "stop=0.8"), process("b"), daemon(ollama)]
        async with routing(*tables) as router:
            ollama.script.hang = {"/api/ps", "/api/tags", "/v1/models", "/api/version", "/api/show"}
            async with conversation(
                router.app, "POST", CHAT, body=[b'{"model": "a", "do": "hang"}']
            ) as hanging:
                await phase_is(router, "starting")
                await assert_quick(router)
                await phase_is(router, "ready")
                while "request POST /v1/chat/completions" not in router.engines["a"].log.tail(9):
                    await trio.sleep(0.005)
                await assert_quick(router)
                async with conversation(router.app, "POST", CHAT, body=[b'{"model": "b"}']) as other:
                    hanging.disconnect()
                    await phase_is(router, "stopping")
                    await assert_quick(router)
                    await other.over()
                    assert other.status == 200


async def test_swap_and_unload_by_hand() -> None:
    async with routing(
        process("a", models=("one", "two")), process("b"), process("empty", models=("c",))
    ) as (router):

        async def post(path: str, **body: object) -> Conversation:
            return await ask(router.app, "POST", f"/admin/{path}", body=body)

        swapped = (await post("swap", model="two")).json()
        assert (swapped["engine"], swapped["was"]) == ("a", None)
        assert swapped["base_url"].startswith("http://127.0.0.1:")
        assert (await post("swap", engine="b")).json()["was"] == "a"
        assert (await post("unload", engine="a")).json() == {"unloaded": []}
        assert (await post("unload", model="b")).json() == {"unloaded": ["b"]}
        assert not router.supervisor.domains["default"].ledger.states
        await post("swap", model="one")
        assert (await ask(router.app, "POST", "/admin/unload")).json() == {"unloaded": ["a"]}
        for path in ("swap", "unload"):
            assert (await post(path, model="nothing")).status == 404
            assert (await post(path, engine="nothing")).status == 404
            assert (await post(path, engine=5)).status == 400
            assert (await post(path, model=[])).status == 400
            assert (await ask(router.app, "POST", f"/admin/{path}", body=b"[]")).status == 400
        assert (await post("swap")).status == 400
        assert_nothing_left(router)


async def test_a_swap_that_fails_says_why() -> None:
    async with routing(process("a", "fail=no such flag")) as router:
        talk = await ask(router.app, "POST", "/admin/swap", body={"model": "a"})
        assert talk.status == 503
        assert "no such flag" in message_in("/admin/swap", talk)


async def test_the_log_of_an_engine() -> None:
    async with routing(process("a")) as router:
        for wish in ("echo", "chat"):
            await ask(router.app, "POST", CHAT, body={"model": "a", "do": wish})
        while "done chat" not in router.engines["a"].log.tail(1):
            await trio.sleep(0.005)
        whole = (await ask(router.app, "GET", "/admin/logs", query="engine=a")).body.decode().splitlines()
        assert whole[-2:] == [f"request POST {CHAT}", "done chat"]
        assert (await ask(router.app, "GET", "/admin/logs", query="engine=a&lines=1")).body == b"done chat\n"
        assert (await ask(router.app, "GET", "/admin/logs", query="engine=a&lines=0")).body == b""
        for query, status in (
            ("", 404),
            ("engine=nobody", 404),
            ("engine=a&lines=many", 400),
            ("engine=a&lines=-1", 400),
            ("engine=a&lines=%C2%B2", 400),
            ("engine=a&lines=" + "9" * 5000, 400),
        ):
            talk = await ask(router.app, "GET", "/admin/logs", query=query)
            assert talk.status == status, query


async def test_the_log_can_be_followed() -> None:
    async with routing(process("a")) as router:
        log = router.engines["a"].log
        log.write("before")
        async with conversation(router.app, "GET", "/admin/logs", query="engine=a&lines=5&follow=1") as talk:
            await talk.until(lambda: b"before\n" in talk.body)
            log.write("first")
            await talk.until(lambda: b"first\n" in talk.body)
            talk.stall()
            log.write("second")
            log.write("third")
            await trio.testing.wait_all_tasks_blocked(0.01)
            log.write("fourth")  # written while the client was not reading
            talk.resume()
            await talk.until(lambda: b"fourth\n" in talk.body)
            assert talk.body == b"before\nfirst\nsecond\nthird\nfourth\n"


async def test_lines_written_while_the_tail_is_sent_are_not_lost() -> None:
    async with routing(process("a")) as router:
        log = router.engines["a"].log
        log.write("before")
        async with conversation(router.app, "GET", "/admin/logs", query="engine=a&lines=5&follow=1") as talk:
            await talk.begun()
            talk.stall()
            await trio.testing.wait_all_tasks_blocked(0.01)
            log.write("meanwhile")
            talk.resume()
            await talk.until(lambda: b"meanwhile\n" in talk.body)
            assert talk.body == b"before\nmeanwhile\n"


# The library.


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    class Mine(Exception):
        pass

    with pytest.raises(Mine):
        async with routing(NEVER):
            raise Mine


async def test_a_defect_of_an_engines_list_does_not_end_the_router(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with routing(NEVER) as router:

        async def fail() -> None:
            raise RuntimeError("a defect")

        monkeypatch.setattr(type(router.engines["never"]), "list_models", lambda _: fail())
        await router.discover()
        assert "a defect" in caplog.text
        assert (await ask(router.app, "GET", "/health")).status == 200


async def test_the_app_survives_a_defect(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fast: bool
) -> None:
    async with routing(NEVER, fast=fast) as router, posting(router) as post:
        monkeypatch.setattr(router.registry, "resolve", lambda _: 1 / 0, raising=False)
        for path in DIALECTS:
            talk = await post(path, body={"model": "alpha"})
            assert talk.status == 500
            assert "its log has the details" in message_in(path, talk)
            assert "division" not in message_in(path, talk)
        assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("kind", "parameters", "methods"),
    [
        (TCPServer, ["app", "config", "context", "state", "stream"], ["run", "_read_data", "_idle_timeout"]),
        (
            Lifespan,
            ["app", "config", "state"],
            ["handle_lifespan", "wait_for_startup", "wait_for_shutdown"],
        ),
        (WorkerContext, ["max_requests"], []),
        (TrioSingleTask, [], ["restart", "stop"]),
    ],
)
def test_hypercorn_has_the_seams_that_the_server_is_built_on(
    kind: type, parameters: list[str], methods: list[str]
) -> None:
    assert list(inspect.signature(kind).parameters) == parameters
    assert all(callable(vars(kind)[method]) for method in methods)
