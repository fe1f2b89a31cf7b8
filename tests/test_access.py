"""What pages of other sites, careless clients and attackers make of paths, methods and headers."""

import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.routes import tidied
from engine_router.testing.asgi import Received, ask
from engine_router.testing.served import RawClient, served

LIMIT_S = 30.0
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
    return any(pool.ledger.residences for pool in router.supervisor.pools.values())


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
        "/health%00/status", "/k", "/k/", "/k//status", "/k/wrong/status", "/v1//models/", "/api/./tags",
        "/upstream/m/health", "//upstream//m/health", "/upstream/../health/x",
    ]  # fmt: skip
    async with routing('api_keys = ["secret"]', fast=fast) as router, served(router) as url:
        assert (await said(url, "GET", "/health?/../status=1&x")).status == 200
        for method in ("GET", "POST", "DELETE"):
            for target in targets:
                answer = await said(url, method, target, {} if method == "POST" else None)
                assert answer.status in (400, 401), (method, target, answer.body)
        assert not is_loaded(router)
