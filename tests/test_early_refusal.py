"""Requests that are refused for their heads alone: at once, and nothing of their bodies is kept."""

import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from support.served import RawClient, served

from engine_router import open_router
from engine_router.config import parse_config

LIMIT_S = 200.0
BODY_BYTES = 2_000_000
PATHS = ["/v1/chat/completions", "/v1/messages", "/api/chat", "/admin/load"]


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)


@asynccontextmanager
async def keyed(*, fast: bool) -> AsyncIterator[str]:
    text = f"""
        state_file = "/dev/null/state.json"
        [pools.default]
        gauge = "none"
        [server]
        api_keys = ["right"]
        allowed_hosts = ["localhost"]
        shutdown_timeout_s = 0.1
        fast_path = {str(fast).lower()}
        [engines.o]
        type = "ollama"
        base_url = "http://127.0.0.1:9"
        models = ["m"]
        """
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router, served(router) as url:
            yield url


def beginning(path: str, *lines: str, host: str = "localhost", chunked: bool = False) -> bytes:
    """Return a head, and a body of which the end never comes."""
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {BODY_BYTES}"
    head = "\r\n".join([f"POST {path} HTTP/1.1", f"Host: {host}", framing, *lines, "", ""]).encode()
    return head + (b"f4240\r\n" if chunked else b"") + b'{"model": "m", "x": "' + b"x" * 100_000


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_request_without_a_key_is_refused_before_its_body_has_come(
    path: str, chunked: bool, fast: bool
) -> None:
    async with keyed(fast=fast) as url, RawClient.to(url) as client:
        await client.send(beginning(path, chunked=chunked))
        assert (await client.answer()).status == 401


async def test_nothing_is_read_before_the_head_is_judged(fast: bool) -> None:
    async with keyed(fast=fast) as url, RawClient.to(url) as client:
        await client.send(beginning(PATHS[0])[: -100_000 - 21])  # the head alone
        assert (await client.answer()).status == 401


@pytest.mark.parametrize(
    ("host", "line"), [("evil.example", "X-None: 1"), ("localhost", "Origin: https://evil.example")]
)
async def test_a_foreign_name_or_page_is_refused_as_early(host: str, line: str, fast: bool) -> None:
    key = ["Authorization: Bearer right"] if host == "localhost" else []
    async with keyed(fast=fast) as url, RawClient.to(url) as client:
        await client.send(beginning(PATHS[0], line, *key, host=host))
        assert (await client.answer()).status == 403


async def test_the_refused_can_finish_what_they_say_and_nothing_of_it_is_kept(fast: bool) -> None:
    rest = b"x" * 1_800_000
    async with keyed(fast=fast) as url, RawClient.to(url) as client:
        await client.send(beginning(PATHS[0]))
        assert (await client.answer()).status == 401
        tracemalloc.start()
        try:
            await client.send(rest)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert tracemalloc.get_traced_memory()[0] < 1_000_000
        finally:
            tracemalloc.stop()
        await client.rest()


async def test_who_has_a_key_is_heard_to_the_end(fast: bool) -> None:
    async with keyed(fast=fast) as url, RawClient.to(url) as client:
        for _ in range(2):
            body = b'{"model": "nobody", "x": "' + b"x" * 100_000 + b'"}'
            head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer right\r\n"
            await client.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body[:50_000])
            await trio.testing.wait_all_tasks_blocked(0.01)
            await client.send(body[50_000:])
            assert (await client.answer()).status == 404
