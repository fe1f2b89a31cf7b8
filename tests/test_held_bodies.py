"""What all requests hold together with their bodies: bounded, and nothing of it stays counted."""

import gzip
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.served import RawClient, ask, served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.errors import TooMuchHeld, UnpacksTooLarge
from engine_router.guards.limits import UNPACK_FREE_BYTES
from engine_router.proxy.held_bodies import HeldBodies, HeldShare, HoldsNoMore
from engine_router.proxy.request_body import decoded

LIMIT_S = 200.0
PATHS = ["/v1/chat/completions", "/v1/messages", "/api/chat"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=30))
def test_all_together_is_bounded_and_comes_back(steps: list[tuple[int, int]]) -> None:
    held = HeldBodies(lambda: 100)
    shares = [HeldShare(held) for _ in range(4)]
    counts = [0] * 4
    for index, count in steps:
        is_too_much = count > 0 and sum(counts) + count > 100 and sum(counts) > counts[index]
        if is_too_much:
            with pytest.raises(TooMuchHeld):
                shares[index].grow(count)
        else:
            shares[index].grow(count)
            counts[index] += count
        assert held.held_bytes == sum(counts)
    for share in [*shares, *shares]:
        share.release()
    assert held.held_bytes == 0


def test_one_request_alone_is_always_taken() -> None:
    held = HeldBodies(lambda: 100)
    share = HeldShare(held)
    share.grow(1000)
    with pytest.raises(TooMuchHeld, match=r"server\.max_held_mb"):
        HeldShare(held).grow(1)


async def test_a_thread_whose_request_has_ended_unpacks_no_more() -> None:
    share = HeldShare(HeldBodies(lambda: 100))
    share.release()
    with pytest.raises(HoldsNoMore):
        await decoded(gzip.compress(bytes(range(256)) * 1000), b"gzip", 10_000_000, share.grow)


async def test_what_unpacks_out_of_all_proportion_is_refused() -> None:
    bomb = gzip.compress(b"\0" * (UNPACK_FREE_BYTES + 2_000_000))
    with pytest.raises(UnpacksTooLarge, match="send it as it is") as caught:
        await decoded(bomb, b"gzip", 500_000_000)
    assert caught.value.status == 413


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)


@asynccontextmanager
async def waiting(*, fast: bool) -> AsyncIterator[tuple[Router, str]]:
    """Serve a router whose model never gets ready, with room for one megabyte of bodies."""
    argv = json.dumps([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
    text = f"""
        state_file = "/dev/null/state.json"
        [pools.default]
        gauge = "none"
        [scheduling]
        abandon_grace_s = 0.05
        [server]
        max_held_mb = 1
        shutdown_timeout_s = 0.1
        fast_path = {str(fast).lower()}
        [engines.slow]
        type = "process"
        argv = {argv}
        base_url = "http://127.0.0.1:9"
        models = ["m"]
        discover = false
        """
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router, served(router) as url:
            yield router, url


async def until_held(router: Router, matches: range) -> None:
    while router.held_bodies.held_bytes not in matches:
        await trio.sleep(0.01)


def body(count: int) -> bytes:
    return b'{"model": "m", "max_tokens": 5, "messages": [], "x": "' + b"x" * count + b'"}'


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("packed", [False, True])
async def test_whoever_comes_when_too_much_is_held_is_told_to_come_again(
    path: str, packed: bool, fast: bool
) -> None:
    async with waiting(fast=fast) as (router, url), RawClient.to(url) as first:
        await first.request("POST", path, body(700_000))
        await until_held(router, range(700_000, 10_000_000))
        headers = {"content-type": "application/json"} | ({"content-encoding": "gzip"} if packed else {})
        more = gzip.compress(body(700_000)) if packed else body(700_000)
        refused = await ask(url, "POST", path, headers=headers, body=more)
        assert refused.status == 503
        assert "server.max_held_mb" in b"".join(refused.pieces).decode()
        assert int(refused.headers["retry-after"]) > 0
        first.close()
        await until_held(router, range(1))
        async with RawClient.to(url) as second:
            await second.request("POST", path, body(700_000))
            await until_held(router, range(700_000, 10_000_000))
        await until_held(router, range(1))


async def test_a_large_body_counts_as_it_comes(fast: bool) -> None:
    async with waiting(fast=fast) as (router, url), RawClient.to(url) as client:
        whole = b'{"x": "' + b"x" * 3_000_000 + b'", "model": "m"}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(whole)
        await client.send(head + whole[:2_500_000])
        await until_held(router, range(2_000_000, 2_600_000))
        client.close()
        await until_held(router, range(1))
