"""What each kind of key may do, on both tiers: routes, models, lists, priorities, requests at the same time."""

import json
import re
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.asgi import Received
from support.keyed import ADMINS, KEYS, OTHERS, engine, keyed, keyed_text
from support.served import RawClient, served
from test_web import message_of
from trio_websocket import ConnectionRejected, wrap_client_stream
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule

from engine_router import Router
from engine_router.cli.address import locate
from engine_router.config import KeyConfig, parse_config, rights_of
from engine_router.engines.base import ResidentId
from engine_router.errors import BadRequest, ConfigError
from engine_router.models.config_warnings import warnings
from engine_router.models.key_rights import may_use
from engine_router.models.target import Target
from engine_router.proxy import route_scopes
from engine_router.proxy.keys import KeyRing, priority_of
from engine_router.proxy.route_scopes import Scope, scope_of

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

CHAT, MESSAGES, OLLAMA_CHAT = "/v1/chat/completions", "/v1/messages", "/api/chat"
DIALECTS = (CHAT, MESSAGES, OLLAMA_CHAT)


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)


async def said(
    url: str, key: str | None, method: str, target: str, body: object = None, headers: Sequence[str] = ()
) -> Received:
    """Send a request with a key, and return the answer."""
    async with RawClient.to(url) as client:
        data = b"" if body is None else json.dumps(body).encode()
        lines = [] if key is None else [f"Authorization: Bearer {key}"]
        await client.request(method, target, data, headers=[*lines, *headers])
        return await client.answer(method)


def chat(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "do": "echo", **more}


# The table of scopes.


def example_of(rule: Rule) -> str:
    """Return a path that a rule matches."""
    return re.sub(r"<(path|id):\w+>", "any/thing", re.sub(r"<\w+>", "j1", rule.rule))


def entry_of(method: str, path: str) -> str | None:
    """Return the pattern of the entry that decides on a route; None where none does."""
    for (methods, pattern, _), (_, regex, _) in zip(route_scopes.TABLE, route_scopes._COMPILED, strict=True):
        if (methods == "ANY" or method in methods.split()) and regex.fullmatch(path):
            return pattern
    return None


# These say where what is not known otherwise goes: to an engine, or nowhere.
CATCH_ALL = {
    "/v1/*": "/v1/<path:rest>",
    "/sdapi/*": "/sdapi/<path:rest>",
    "/upstream/*": "/upstream/<id:rest>",
}


async def test_every_route_has_a_scope() -> None:
    async with keyed() as router:
        found = set[str]()
        for rule in router.app.url_map.iter_rules():
            path = example_of(rule)
            for method in (rule.methods or {"GET"}) - {"OPTIONS", "HEAD"}:
                pattern = entry_of(method, path)
                if rule.rule == "/api/<path:rest>":
                    assert scope_of(method, path) is Scope.ADMIN  # what is not named below it
                elif pattern is None:
                    assert scope_of(method, path) is Scope.KEY, f"{method} {path} has no entry in the table"
                elif pattern in CATCH_ALL and rule.websocket is False:
                    assert rule.rule == CATCH_ALL[pattern], f"{method} {path} needs an entry of its own"
                found.add(f"{rule.rule} {scope_of(method, path).name}")
        assert {"/admin/load ADMIN", "/unload ADMIN", "/running KEY", "/health OPEN", "/ OPEN"} <= found


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/", Scope.OPEN),
        ("GET", "/ui/app.js", Scope.OPEN),
        ("POST", "/ui/app.js", Scope.ADMIN),
        ("GET", "/uix", Scope.ADMIN),
        ("POST", "/admin/session", Scope.OPEN),
        ("POST", "/admin/session/x", Scope.ADMIN),
        ("GET", "/admin/anything-new", Scope.ADMIN),
        ("GET", "/admin", Scope.ADMIN),
        ("POST", "/api/models/unload", Scope.ADMIN),
        ("POST", "/api/models/unload/a/b", Scope.ADMIN),
        ("POST", "/models/load", Scope.ADMIN),
        ("POST", "/v1/models/eject", Scope.ADMIN),
        ("POST", "/v1/models/a/reset", Scope.ADMIN),
        ("GET", "/v1/models/a/b", Scope.KEY),
        ("POST", "/api/pull", Scope.ADMIN),
        ("DELETE", "/api/delete", Scope.ADMIN),
        ("POST", "/api/chat", Scope.KEY),
        ("POST", "/api/chat/../delete", Scope.ADMIN),
        ("POST", "/api/./create", Scope.ADMIN),
        ("HEAD", "/api/blobs/sha256:1", Scope.ADMIN),
        ("GET", "/a/b/props", Scope.KEY),
        ("GET", "/a/b/slots", Scope.ADMIN),
        ("GET", "/v1/queue/stats", Scope.ADMIN),
        ("POST", "/tokenize", Scope.KEY),
        ("GET", "/nothing", Scope.ADMIN),
    ],
)
def test_scopes(method: str, path: str, scope: Scope) -> None:
    assert scope_of(method, path) is scope


PIECES = st.lists(
    st.sampled_from(
        [
            "admin",
            "load",
            "unload",
            "api",
            "models",
            "v1",
            "chat",
            "completions",
            "upstream",
            "..",
            ".",
            "a",
            "ui",
            "sse",
            "session",
            "health",
            "slots",
            "props",
            "delete",
            "eject",
            "reset",
            "running",
            "logs",
            "status",
            "cancel",
            "",
        ]
    ),
    min_size=1,
    max_size=5,
).map(lambda pieces: "/" + "/".join(pieces))
ALLOWED_VIEWS = {
    "/api/<path:rest>",
    "/v1/<path:rest>",
    "/sdapi/<path:rest>",
    "/upstream/<id:rest>",
    "/upstream/<path:rest>",
}


@pytest.fixture(scope="module")
def rules() -> Any:
    """Return the app's rules, bound to a host."""

    async def read() -> Any:
        async with keyed() as router:
            return router.app.url_map.bind("router.test")

    return trio.run(read)


@given(st.sampled_from(["GET", "POST", "DELETE", "PUT"]), PIECES)
def test_no_path_leads_to_a_route_with_less_than_its_scope(rules: Any, method: str, path: str) -> None:
    try:
        rule, _ = rules.match(path, method=method, return_rule=True)
    except HTTPException:
        return
    if rule.rule not in ALLOWED_VIEWS:  # these look at the path again themselves
        assert scope_of(method, path) >= scope_of(method, example_of(rule)), rule.rule


# Kinds of keys and routes.

ADMIN_ROUTES: Sequence[tuple[str, str, object]] = [
    ("GET", "/status", None),
    ("GET", "/metrics", None),
    ("GET", "/admin/queue", None),
    ("GET", "/admin/residents", None),
    ("GET", "/admin/failed", None),
    ("GET", "/admin/jobs", None),
    ("GET", "/admin/logs?engine=small", None),
    ("POST", "/admin/unload", {"model": "small"}),
    ("POST", "/admin/reset", {"model": "small"}),
    ("POST", "/admin/pin", {"model": "small", "pinned": False}),
    ("POST", "/admin/discover", {}),
    ("POST", "/v1/models/eject", {"model": "small"}),
    ("POST", "/v1/models/small/reset", {}),
    ("POST", "/api/models/unload", None),
    ("POST", "/api/models/unload/small", None),
    ("GET", "/unload", None),
    ("GET", "/vram", None),
    ("GET", "/v1/queue/stats", None),
    ("GET", "/v1/telemetry/summary", None),
    ("GET", "/models?reload=1", None),
]
KEY_ROUTES: Sequence[tuple[str, str, object]] = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/small", None),
    ("GET", "/v1/models/small/status", None),
    ("GET", "/v1/models/status", None),
    ("GET", "/models", None),
    ("GET", "/running", None),
    ("GET", "/api/tags", None),
    ("GET", "/api/ps", None),
    ("GET", "/api/version", None),
    ("GET", "/api/status", None),
    ("POST", "/api/show", {"model": "small"}),
    *(("POST", path, chat("small")) for path in DIALECTS),
    ("POST", "/upstream/small/v1/chat/completions", chat("small")),
]
OPEN_ROUTES: Sequence[tuple[str, str, object]] = [
    ("GET", "/", None),
    ("GET", "/health", None),
    ("GET", "/admin/session", None),
]


async def test_each_kind_of_key_on_each_kind_of_route(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        for method, target, body in (*KEY_ROUTES, *OPEN_ROUTES):
            for key in (*ADMINS, *OTHERS):
                assert (await said(url, key, method, target, body)).status == 200, (key, method, target)
        for method, target, body in ADMIN_ROUTES:
            for key in OTHERS:
                answer = await said(url, key, method, target, body)
                assert answer.status == 403, (key, method, target)
                words = message_of(target.partition("?")[0], answer.json())
                assert key.removesuffix("-key") in words
                assert "admin = true" in words
                assert key not in answer.body.decode()
            for key in ADMINS:
                assert (await said(url, key, method, target, body)).status == 200, (key, method, target)
        for method, target, body in (*ADMIN_ROUTES, *KEY_ROUTES):
            for wrong in (None, "wrong-key", "guest"):
                assert (await said(url, wrong, method, target, body)).status == 401, (method, target)
        for method, target, body in OPEN_ROUTES:
            assert (await said(url, None, method, target, body)).status == 200


async def test_a_page_is_open_and_says_nothing(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        for key in (None, "wrong-key"):
            page = await said(url, key, "GET", "/", None, ["Accept: text/html"])
            assert page.status == 200
            assert "www-authenticate" not in page.headers
            assert b"small" not in page.body


async def test_without_keys_everybody_may_do_everything(fast: bool) -> None:
    async with keyed(keys="", fast=fast) as router, served(router) as url:
        for method, target, body in (*KEY_ROUTES, *ADMIN_ROUTES, *OPEN_ROUTES):
            for key in (None, "any"):
                assert (await said(url, key, method, target, body)).status == 200, (method, target)


async def test_a_wrong_base_url_gets_its_hint_whatever_the_key(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        for key in (*ADMINS, *OTHERS):
            for target in ("/chat/completions", "/v1/v1/chat/completions", "/api/chat/completions"):
                answer = await said(url, key, "POST", target, chat("small"))
                assert (answer.status, b"it is /v1/chat/completions" in answer.body) == (404, True), target
            assert (await said(url, key, "GET", "/nothing")).status == 404


async def test_a_machine_that_needs_no_key_has_the_rights_of_one_that_it_sends() -> None:
    async with keyed(more='trusted_networks = ["127.0.0.0/8"]') as router, served(router) as url:
        assert (await said(url, None, "GET", "/status")).status == 200
        assert (await said(url, "guest-key", "GET", "/status")).status == 403
        assert (await said(url, "boss-key", "GET", "/status")).status == 200


# Models.


def ids_in(target: str, data: Any) -> set[str]:
    match target:
        case "/v1/models" | "/models":
            return {entry["id"] for entry in data["data"]}
        case "/api/tags" | "/api/ps":
            return {entry["name"] for entry in data["models"]}
        case "/running":
            return {entry["model"] for entry in data["running"]}
        case _:
            return set(data["models"])


LISTS = ("/v1/models", "/models", "/api/tags", "/api/ps", "/running", "/v1/models/status")


async def test_lists_show_what_a_key_may_use(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        for model in ("small", "other"):
            assert (await said(url, "boss-key", "POST", CHAT, chat(model))).status == 200
        for target in LISTS:
            for key, ids in (
                ("boss-key", {"small", "other"}),
                ("guest-key", {"small", "other"}),
                ("narrow-key", {"small"}),
            ):
                answer = await said(url, key, "GET", target)
                assert {name.removesuffix(":latest") for name in ids_in(target, answer.json())} == ids, (
                    target,
                    key,
                )
                assert (b"other" in answer.body) is ("other" in ids), (target, key)
        commands = {
            key: (await said(url, key, "GET", "/running")).json()["running"][0]["cmd"]
            for key in ("boss-key", "guest-key")
        }
        assert (bool(commands["boss-key"]), commands["guest-key"]) == (True, "")


@pytest.mark.parametrize("path", DIALECTS)
async def test_another_model_is_not_found_and_nothing_tells_that_it_is_there(path: str, fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        answers = []
        for model in ("other", "othe", "nothing"):
            answer = await said(url, "narrow-key", "POST", path, chat(model))
            assert answer.status == 404
            words = message_of(path, answer.json())
            assert "'narrow'" in words
            answers.append(words.replace(f"'{model}'", "X"))
        assert len(set(answers)) == 1
        unknown = await said(url, "guest-key", "POST", path, chat("othe"))
        assert "did you mean 'other'" in message_of(path, unknown.json())
        assert list(router.read_model.present()) == []


async def test_no_route_leads_to_another_model() -> None:
    streams = (
        ("GET", "/upstream/other/v1/models", None),
        ("GET", "/other/props", None),
        ("GET", "/other/health", None),
    )
    routes = [
        *streams,
        ("GET", "/v1/models/other", None),
        ("GET", "/v1/models/other/status", None),
        ("GET", "/props?model=other", None),
        ("POST", "/api/show", {"model": "other"}),
        ("POST", "/v1/embeddings?model=other", {"input": "x"}),
        ("GET", "/v1/audio/voices?model=other", None),
        ("POST", "/upstream/other/v1/chat/completions", chat("small")),
        ("POST", "/tokenize", {"model": "other", "content": "x"}),
        ("POST", "/v1/messages/count_tokens", chat("other")),
        ("POST", "/api/generate", {"model": "other"}),
    ]
    async with keyed() as router, served(router) as url:
        assert (await said(url, "boss-key", "POST", CHAT, chat("other"))).status == 200
        for method, target, body in routes:
            assert (await said(url, "narrow-key", method, target, body)).status == 404, target
        assert (
            await said(url, "narrow-key", "GET", "/props")
        ).status == 409  # the last that it may see: none


async def test_the_default_model_is_no_way_around() -> None:
    async with keyed(more='default_model = "other"') as router, served(router) as url:
        assert (await said(url, "guest-key", "POST", CHAT, {"messages": [], "do": "echo"})).status == 200
        assert (await said(url, "narrow-key", "POST", CHAT, {"messages": [], "do": "echo"})).status == 404


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (CHAT, b'{"model":"other","messages":[],"do":"echo","model":"small"}'),
        (CHAT, b'{"model":"small","messages":[],"do":"echo","MODEL":"other"}'),
        (OLLAMA_CHAT, b'{"Model":"other","model":"small","messages":[{"role":"user","content":"x"}]}'),
        (OLLAMA_CHAT, b'{"model":"small","mod\\u0065L":"other","messages":[]}'),
        (CHAT + "?model=small", b" " * 70 + b'{"model":"other","messages":[],"do":"echo"}'),
        ("/v1/anything?model=small", (" " * 70 + '{"model":"other"}').encode("utf-16")),
        (CHAT, b'{"model":"other","x":"' + b"x" * 3_000_000 + b'","model":"small","do":"echo"}'),
        (CHAT, b'{"model":"small","x":"' + b"x" * 3_000_000 + b'","Model":"other","do":"echo"}'),
    ],
)
async def test_no_engine_reads_another_model_than_the_router(target: str, body: bytes, fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        async with RawClient.to(url) as client:
            await client.request("POST", target, body, headers=["X-API-Key: narrow-key"])
            answer = await client.answer()
        assert answer.status in (400, 404), answer.body
        assert not router.read_model.present()


async def test_a_body_that_names_a_model_elsewhere_too_is_none_of_these(fast: bool) -> None:
    nested = [{"model": "other", "Model": "x"}]
    async with keyed(fast=fast) as router, served(router) as url:
        for body in (chat("small", tools=nested), chat("small", x="x" * 3_000_000)):
            assert (await said(url, "narrow-key", "POST", CHAT, body)).status == 200
        assert (await said(url, "guest-key", "POST", CHAT, {**chat("small"), "MODEL": "y"})).status == 200


NAMES = st.text(st.sampled_from("abAB:/-_.[]*?"), min_size=1, max_size=8)


def target_of(model: str, *aliases: str) -> Target:
    return Target(model, "e", ResidentId("e"), model, aliases)


def key_for(*models: str) -> KeyConfig:
    return KeyConfig(name="n", key="k", models=models)


@given(NAMES, st.lists(NAMES, max_size=3))
def test_a_key_may_use_what_it_names(model: str, others: list[str]) -> None:
    assert may_use(key_for(*others, model), target_of(model))
    assert may_use(key_for(*others, "*"), target_of(model))
    assert may_use(None, target_of(model))
    assert may_use(KeyConfig(name="n", key="k"), target_of(model))
    assert not may_use(key_for(), target_of(model))


@pytest.mark.parametrize(
    ("names", "target", "is_allowed"),
    [
        (["qwen3*"], target_of("Qwen3-8B"), True),
        (["qwen3"], target_of("qwen3-8b"), False),
        (["fast"], target_of("qwen3-8b", "fast"), True),
        (["llama3"], target_of("llama3:latest"), True),
        (["llama3:latest"], target_of("llama3"), True),
        (["llama3"], target_of("llama3:8b"), False),
        (["*/8b"], target_of("org/8b"), True),
        (["8b"], target_of("org/8b"), False),
        (["a?c"], target_of("abc\nd"), False),
        (["a", "b"], target_of("b"), True),
    ],
)
def test_names_of_models(names: list[str], target: Target, is_allowed: bool) -> None:
    assert may_use(key_for(*names), target) is is_allowed


# Straight to an engine.


async def test_behind_upstream_a_model_can_be_used_and_its_engine_not_managed() -> None:
    async with keyed() as router, served(router) as url:
        for key in OTHERS:
            for method, target, status in (
                ("POST", "/upstream/small/v1/chat/completions", 200),
                ("POST", "/upstream/small/completion", 200),
                ("GET", "/upstream/small/", 200),
                ("GET", "/upstream/small/props", 200),
                ("POST", "/upstream/small/props", 403),
                ("GET", "/upstream/small/slots", 403),
                ("GET", "/upstream/small/%73lots", 403),
                ("GET", "/upstream/small/v1/../slots", 400),
                ("POST", "/upstream/small/v1/load_lora_adapter", 403),
                ("POST", "/upstream/small/v1/%6coad_lora_adapter", 403),
                ("POST", "/upstream/small//v1/load_lora_adapter", 403),
                ("POST", "/upstream/small/sleep", 403),
                ("DELETE", "/upstream/small/anything", 403),
            ):
                answer = await said(url, key, method, target, chat("small") if method == "POST" else None)
                assert answer.status == status, (key, method, target)
                assert (await said(url, "root-key", method, target)).status in (200, 400)


async def test_an_engine_of_several_models_is_not_open_to_a_key_for_one() -> None:
    both = engine("e", models=("small", "other"))
    async with keyed(both) as router, served(router) as url:
        answer = await said(url, "narrow-key", "POST", "/upstream/small/v1/chat/completions", chat("other"))
        assert answer.status == 403
        assert "use /v1 or /api" in answer.json()["error"]["message"]
        assert (await said(url, "narrow-key", "POST", CHAT, chat("small"))).status == 200
        assert (
            await said(url, "guest-key", "POST", "/upstream/small/v1/chat/completions", chat("x"))
        ).status == 200


# Ollama's ways to load and unload.


async def test_only_an_admin_says_how_long_a_model_stays(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        await said(url, "guest-key", "POST", "/api/chat", chat("small", keep_alive=-1))
        (resident,) = router.read_model.present()
        assert resident.keep_alive_s is None
        answer = await said(url, "guest-key", "POST", "/api/generate", {"model": "small", "keep_alive": 0})
        assert (answer.status, "unload models" in answer.json()["error"]) == (403, True)
        assert (await said(url, "guest-key", "POST", "/api/generate", {"model": "small"})).status == 200
        assert [status.resident for status in router.read_model.present()] == [resident.resident]
        await said(url, "boss-key", "POST", "/api/chat", chat("small", keep_alive=-1))
        (resident,) = router.read_model.present()
        assert resident.keep_alive_s is not None
        assert (
            await said(url, "boss-key", "POST", "/api/generate", {"model": "small", "keep_alive": 0})
        ).status == 200
        while router.read_model.present():
            await trio.sleep(0.01)


# Requests at the same time.


@asynccontextmanager
async def hanging(
    router: Router, url: str, key: str, target: str = CHAT, model: str = "small"
) -> AsyncIterator[RawClient]:
    """Have a request under way until the block ends."""
    async with RawClient.to(url) as client:
        body = json.dumps(chat(model, do="hang")).encode()
        before = len(router.in_flight)
        await client.request("POST", target, body, headers=[f"X-API-Key: {key}"])
        while len(router.in_flight) == before or any(
            request.holder.lease is None or request.holder.lease.endpoint is None
            for request in router.in_flight.by_ticket().values()
        ):
            await trio.sleep(0.01)
        yield client


BUSY: Sequence[tuple[str, str, object]] = [
    *(("POST", path, chat("small")) for path in DIALECTS),
    ("POST", "/v1/responses", {"model": "small", "input": "hi"}),
    ("POST", "/tokenize", {"model": "small", "content": "x"}),
    ("POST", "/v1/messages/count_tokens", chat("small")),
    ("POST", "/api/generate", {"model": "small"}),
    ("POST", "/upstream/small/v1/chat/completions", chat("small")),
    ("GET", "/v1/audio/voices?model=small", None),
    ("GET", "/small/props", None),
    ("GET", "/props", None),
]


async def test_a_key_has_no_more_in_flight_than_it_may(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        for first in (CHAT, "/upstream/small/v1/chat/completions"):
            async with hanging(router, url, "single-key", first):
                for method, target, body in BUSY:
                    answer = await said(url, "single-key", method, target, body)
                    assert answer.status == 429, (target, answer.body)
                    assert int(answer.headers["retry-after"]) >= 1
                    words = message_of(target.partition("?")[0], answer.json())
                    assert "'single'" in words
                    assert "max_in_flight" in words
                for method, target, body in (("GET", "/v1/models", None), ("GET", "/api/tags", None)):
                    assert (await said(url, "single-key", method, target, body)).status == 200
                assert (await said(url, "guest-key", "POST", CHAT, chat("small"))).status == 200
            while len(router.in_flight):
                await trio.sleep(0.01)
            for method, target, body in BUSY:  # what was refused is not counted, nor is what has ended
                answer = await said(url, "single-key", method, target, body)
                assert answer.status != 429, target
        while router.in_flight._of_keys:  # the last one's end may come a step after its answer
            await trio.sleep(0.01)


async def test_a_reload_forgets_no_request_of_a_key() -> None:
    async with keyed() as router, served(router) as url, hanging(router, url, "single-key"):
        config = parse_config(keyed_text(engine("small"), engine("other")))
        router.snapshot = attrs.evolve(router.snapshot, config=config)
        assert (await said(url, "single-key", "POST", CHAT, chat("small"))).status == 429


async def handshake(url: str, target: str, headers: Mapping[str, str], stack: AsyncExitStack) -> int:
    """Open a WebSocket and keep it open for as long as the stack; return the status of the handshake."""
    host, _, port = url.removeprefix("http://").partition(":")
    stream = await stack.enter_async_context(await trio.open_tcp_stream(host, int(port)))
    nursery = await stack.enter_async_context(trio.open_nursery())
    stack.callback(nursery.cancel_scope.cancel)
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    inner: BaseException
    try:
        client = await wrap_client_stream(nursery, stream, "localhost", target, extra_headers=sent)
    except BaseExceptionGroup as error:
        inner = error
        while isinstance(inner, BaseExceptionGroup):
            (inner,) = inner.exceptions
        assert isinstance(inner, ConnectionRejected)
        return inner.status_code
    await client.get_message()
    return 101


async def refused(url: str, target: str, headers: Mapping[str, str]) -> int:
    """Open a WebSocket that is refused; return the status."""
    host, _, port = url.removeprefix("http://").partition(":")
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    async with RawClient.to(url) as client:
        await client.send("\r\n".join([*lines, "", ""]).encode())
        return int((await client.until(b"\r\n\r\n")).split()[1])


async def test_websockets_obey_the_key() -> None:
    engines = engine("small", program="websocket_engine.py"), engine("other", program="websocket_engine.py")
    async with keyed(*engines) as router, served(router) as url:
        for target in ("/v1/realtime?model=other", "/upstream/other/v1/realtime"):
            assert await refused(url, target, {"X-API-Key": "narrow-key"}) == 404
            assert await refused(url, target, {}) == 401
        assert await refused(url, "/upstream/small/ws", {"X-API-Key": "narrow-key"}) == 403
        for target in ("/v1/realtime?model=small", "/upstream/small/v1/realtime"):
            async with AsyncExitStack() as stack:
                assert await handshake(url, target, {"X-API-Key": "single-key"}, stack) == 101
                assert await refused(url, target, {"X-API-Key": "single-key"}) == 429
            while router.in_flight._of_keys:
                await trio.sleep(0.01)


# Ending requests.


async def test_a_key_can_end_its_own_requests_only() -> None:
    async with keyed() as router, served(router) as url, hanging(router, url, "guest-key") as client:
        (request,) = router.in_flight.by_ticket().values()
        assert request.scope is not None
        assert (request.scope.key_name, request.scope.is_admin, request.scope.client) == (
            "guest",
            False,
            "127.0.0.1",
        )
        for key, count in (("narrow-key", 0), ("single-key", 0), ("guest-key", 1), ("boss-key", 1)):
            seen = (await said(url, key, "GET", "/admin/requests", None)).json()
            assert [entry["id"] for entry in seen["requests"]] == [request.id] * count
            assert seen["total"] == count
            assert all(
                (entry["key"], entry["client"]) == ("guest", "127.0.0.1") for entry in seen["requests"]
            )
        for key in ("narrow-key", "single-key"):
            assert (await said(url, key, "POST", "/admin/cancel", {"id": request.id})).status == 404
        assert (await said(url, "guest-key", "POST", "/admin/cancel", {"id": request.id})).status == 200
        assert (await client.answer()).status == 503
        async with hanging(router, url, "guest-key"):
            (request,) = router.in_flight.by_ticket().values()
            assert (await said(url, "boss-key", "POST", "/admin/cancel", {"id": request.id})).status == 200


async def test_events_tell_whose_a_request_was() -> None:
    async with keyed() as router, served(router) as url:
        events = router.hub.subscribe()
        for key in ("root-key", "guest-key"):
            assert (await said(url, key, "POST", CHAT, chat("small"))).status == 200
        ended = [event.as_dict() for event in events.take() if event.name == "request_ended"]
        assert [(event["key"], event["client"]) for event in ended] == [
            ("key 1", "127.0.0.1"),
            ("guest", "127.0.0.1"),
        ]
        assert "guest-key" not in json.dumps(ended)


# Priorities.


@pytest.mark.parametrize(
    ("key", "asked", "priority"),
    [
        (None, None, "normal"),
        (None, "high", "high"),
        ({}, "high", "high"),
        ({"priority": "low"}, None, "low"),
        ({"priority": "low"}, "high", "low"),
        ({"priority": "normal"}, "high", "normal"),
        ({"priority": "normal"}, "low", "low"),
        ({"priority": "high"}, "normal", "normal"),
        ({"priority": "low", "admin": True}, "high", "high"),
        ({"key": "listed"}, None, "low"),
        ({"key": "listed", "priority": "high"}, None, "high"),
    ],
)
def test_priorities(key: dict[str, Any] | None, asked: str | None, priority: str) -> None:
    rights = None if key is None else KeyConfig(**{"name": "n", "key": "k", **key})
    headers = [] if asked is None else [(b"x-request-priority", asked.encode())]
    assert priority_of(headers, {"listed": "low"}, rights) == priority
    with pytest.raises(BadRequest):
        priority_of([(b"x-request-priority", b"urgent")], {}, rights)


# The configuration.

ENGINE = '[engines.o]\ntype = "ollama"\n'


def test_keys_of_both_kinds() -> None:
    server = parse_config(f"[server]\napi_keys = [{KEYS}]\n{ENGINE}").server
    rights = rights_of(server.api_keys)
    assert [(key.name, key.admin) for key in rights] == [
        ("key 1", True),
        ("boss", True),
        ("guest", False),
        ("narrow", False),
        ("single", False),
    ]
    ring = KeyRing(server.api_keys)
    assert ring.find([b"wrong", b"guest-key", b"boss-key"]) == rights[2]
    assert ring.find([b"guest", b""]) is None


def test_a_table_of_its_own_for_each_key() -> None:
    text = '[[server.api_keys]]\nname = "a"\nkey = "${env:A}"\n[[server.api_keys]]\nname = "b"\nkey = "kb"\n'
    from engine_router.config.environment import Environment  # noqa: PLC0415 - needed here alone

    config = parse_config(text + ENGINE, environment=Environment({"A": "from outside"}))
    assert [key.key for key in rights_of(config.server.api_keys)] == ["from outside", "kb"]
    assert config.hidden == {"from outside": "${env:A}"}


SECRET = "s3cret-in-a-file"


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        (f'{{ name = "a", key = "{SECRET}", prioritty = "low" }}', "server.api_keys[0].prioritty"),
        (f'{{ name = "a", key = "{SECRET}", "{SECRET}" = 1 }}', "server.api_keys[0]"),
        (f'{{ name = "a", key = ["{SECRET}"] }}', "server.api_keys[0].key"),
        (f'{{ key = "{SECRET}" }}', "server.api_keys[0].name"),
        ('{ name = "a" }', "server.api_keys[0].key"),
        (f'{{ name = "a", key = "{SECRET}", max_in_flight = -1 }}', "server.api_keys[0].max_in_flight"),
        (f'{{ name = "a", key = "{SECRET}", models = "{SECRET}" }}', "server.api_keys[0].models"),
        (f'{{ name = "a", key = "{SECRET}", admin = "{SECRET}" }}', "server.api_keys[0].admin"),
        (f'"{SECRET}", {{ name = "a", key = "{SECRET}" }}', "server.api_keys[1]"),
        (f'{{ name = "a", key = "{SECRET}" }}, {{ name = "a", key = "x" }}', "server.api_keys[1].name"),
        (f'"{SECRET}", {{ name = "key 1", key = "x" }}', "server.api_keys[1].name"),
    ],
)
def test_faults_of_keys_name_their_place_and_no_secret(keys: str, place: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(f"[server]\napi_keys = [{keys}]\n{ENGINE}")
    assert [found for found, _ in raised.value.faults] == [place]
    assert SECRET not in str(raised.value)


async def test_no_key_is_shown_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with keyed() as router, served(router) as url:
        shown = [repr(router.config.server), repr(rights_of(router.config.server.api_keys))]
        for key in ("guest-key", "narrow-key"):
            for method, target, body in (*ADMIN_ROUTES[:3], *KEY_ROUTES[:3], ("POST", CHAT, chat("other"))):
                shown.append((await said(url, key, method, target, body)).body.decode())
        shown.append((await said(url, "boss-key", "GET", "/status")).body.decode())
        assert "-key" not in "".join(shown + caplog.messages)


def test_keys_of_which_none_may_do_everything_are_warned_of() -> None:
    for key, is_warned in (
        ('{ name = "a", key = "k" }', True),
        ('{ name = "a", key = "k", admin = true }', False),
        ('"k"', False),
    ):
        found = warnings(parse_config(f"[server]\napi_keys = [{key}]\n{ENGINE}"))
        assert any("no key may do everything" in words for _, words in found) is is_warned


@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        ('{ name = "a", key = "ka" }, { name = "b", key = "kb", admin = true }, "kc"', "kb"),
        ('{ name = "a", key = "ka" }, "kc"', "kc"),
        ('{ name = "a", key = "ka" }', "ka"),
    ],
)
def test_commands_send_the_first_key_that_may_do_everything(keys: str, sent: str, tmp_path: Path) -> None:
    (tmp_path / "engines.toml").write_text(f"[server]\napi_keys = [{keys}]\n{ENGINE}")
    options = Namespace(url=None, api_key=None, config=str(tmp_path / "engines.toml"))
    assert locate(options, {}).key == sent
