"""What each kind of key may do, route by route and on both tiers, and how keys are configured."""

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.keyed import (
    ADMINS,
    CHAT,
    DIALECTS,
    KEYS,
    OTHERS,
    chat,
    keyed,
    said,
)
from support.served import served
from test_web import message_of
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule

from engine_router.cli.address import locate
from engine_router.config import parse_config, rights_of
from engine_router.config.environment import Environment
from engine_router.errors import ConfigError
from engine_router.models.config_warnings import warnings
from engine_router.proxy import route_scopes
from engine_router.proxy.keys import KeyRing
from engine_router.proxy.route_scopes import Scope, scope_of


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)


# The table of scopes.


def example_of(rule: Rule) -> str:
    """Return a path that a rule matches."""
    return re.sub(r"<(path|id):\w+>", "any/thing", re.sub(r"<\w+>", "j1", rule.rule))


def entry_of(method: str, path: str) -> str | None:
    """Return the pattern of the entry that decides on a route; None where none does."""
    matching = (p for methods, p, _ in route_scopes.TABLE if route_scopes.matches(methods, p, method, path))
    return next(matching, None)


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


async def test_a_key_for_metrics_reads_these_and_nothing_else(fast: bool) -> None:
    keys = '{ name = "meter", key = "meter-key", metrics = true, models = [] }'
    async with keyed(keys=keys, fast=fast) as router, served(router) as url:
        metrics = await said(url, "meter-key", "GET", "/metrics")
        assert metrics.status == 200
        assert b"engine_router_build_info" in metrics.body
        for method, target, body in ADMIN_ROUTES:
            if target != "/metrics":
                assert (await said(url, "meter-key", method, target, body)).status == 403, (method, target)
        for path in DIALECTS:
            assert (await said(url, "meter-key", "POST", path, chat("small"))).status == 404
        assert (await said(url, "meter-key", "GET", "/v1/models")).json()["data"] == []


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


def test_a_key_that_could_be_guessed_is_warned_of_and_not_repeated() -> None:
    keys = ["hunter2", "0123456789abcdef", "fifteen-letters"]
    found = warnings(parse_config(f"[server]\napi_keys = {keys}\n{ENGINE}"))
    guessed = {place: words for place, words in found if "guessed" in words}
    assert list(guessed) == ["server.api_keys[0]", "server.api_keys[2]"]
    assert "7 characters" in guessed["server.api_keys[0]"]
    assert "openssl rand -hex 16" in guessed["server.api_keys[0]"]
    assert not any(key in words for key in keys for words in guessed.values())


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
