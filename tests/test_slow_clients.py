"""Clients that owe bytes and send next to none, or never read: they are let go, on both tiers."""

import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from support.served import RawClient, served

from engine_router import open_router
from engine_router.config import parse_config
from engine_router.guards.limits import SLOWEST_BYTES_PER_S
from engine_router.server import accept as wire_server
from engine_router.server import serve as serving
from engine_router.server.ordinary_connection import ReplayedStream
from engine_router.upstream.socket_stream import moved_on

LIMIT_S = 200.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
UPGRADE = b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %b\r\n%b\r\n"
WEBSOCKET = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
HEAD = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)


@asynccontextmanager
async def serving_impatiently(
    monkeypatch: pytest.MonkeyPatch, *, fast: bool, patience_s: float = 0.3, server: str = ""
) -> AsyncIterator[str]:
    monkeypatch.setattr(serving, "KEEP_ALIVE_S", patience_s)
    monkeypatch.setattr(wire_server, "SWEEP_INTERVAL_S", 0.05)
    text = f"""
        state_file = "/dev/null/state.json"
        [pools.default]
        gauge = "none"
        [server]
        shutdown_timeout_s = 0.1
        fast_path = {str(fast).lower()}
        {server}
        [engines.o]
        type = "ollama"
        base_url = "http://127.0.0.1:9"
        models = ["m"]
    """
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router, served(router) as url:
            yield url


async def test_how_far_bytes_move_the_time_of_a_client(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    await trio.sleep(20)
    assert moved_on(began, 1) == began + 1 / SLOWEST_BYTES_PER_S
    assert moved_on(began, 1_000_000) == trio.current_time()


@pytest.mark.parametrize(
    "sent",
    [
        HEAD % (b"/v1/chat/completions", 1000) + b"{",
        HEAD % (b"/v1/chat/completions", 100_000_000) + b"{",
        HEAD % (b"/admin/load", 1000) + b"{",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHos",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        PREFACE,
        UPGRADE % (b"websocket", WEBSOCKET),
        UPGRADE % (b"h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
        UPGRADE % (b"something", b""),
        b"",
    ],
)
async def test_silence_of_a_client_that_owes_bytes(
    sent: bytes, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_impatiently(monkeypatch, fast=fast) as url, RawClient.to(url) as client:
        await client.send(sent)
        await client.rest()


@pytest.mark.parametrize("target", [b"/v1/chat/completions", b"/admin/load"])
@pytest.mark.parametrize("keys", ["", 'api_keys = ["k"]'])
async def test_a_byte_now_and_then_is_no_progress(
    target: bytes, keys: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_impatiently(monkeypatch, fast=fast, server=keys) as url, RawClient.to(url) as client:
        await client.send(HEAD % (target, 100_000))
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while True:
                        await client.send(b" ")
                        await trio.sleep(0.1)

            nursery.start_soon(trickle)
            await client.rest()
            nursery.cancel_scope.cancel()


async def test_a_slow_client_that_makes_progress_is_heard_to_its_end(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        serving_impatiently(monkeypatch, fast=fast, patience_s=2.0) as url,
        RawClient.to(url) as client,
    ):
        pieces = 30
        body = json.dumps({"model": "xyzzy", "messages": []}).encode().ljust(1000 * pieces)
        await client.send(HEAD % (b"/v1/chat/completions", len(body)))
        for index in range(pieces):
            await trio.sleep(0.1)
            await client.send(body[1000 * index : 1000 * (index + 1)])
        assert (await client.answer()).status == 404


# What is said in the meantime.


async def test_reasons_stand_in_every_status_line(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_impatiently(monkeypatch, fast=fast, patience_s=LIMIT_S) as url:
        for sent, line in (
            (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK"),
            (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 404 Not Found"),
            (b"\x00\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
            (HEAD % (b"/v1/chat/completions", 2) + b"{}", b"HTTP/1.1 400 Bad Request"),
        ):
            async with RawClient.to(url) as client:
                await client.send(sent)
                assert (await client.until(b"\r\n")).partition(b"\r\n")[0] == line


@pytest.mark.parametrize("second", [b"\x00\x01\r\n\r\n", b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"])
async def test_a_malformed_request_behind_a_good_one(
    second: bytes, fast: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving_impatiently(monkeypatch, fast=fast, patience_s=LIMIT_S) as url:
        for target in ("/health", "/metrics", "/status"):
            async with RawClient.to(url) as client:
                await client.request("GET", target, extra=second)
                assert (await client.answer("GET")).status == 200
                assert (await client.answer("GET")).status == 400
                assert await client.rest() == b""
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_the_end_of_a_stream_does_not_clash_with_a_send_in_another_task() -> None:
    ours, theirs = socket.socketpair()
    with theirs, trio.fail_after(LIMIT_S):
        stream = ReplayedStream(ours, b"")

        async def send() -> None:
            with contextlib.suppress(
                trio.BrokenResourceError, trio.ClosedResourceError
            ):  # what a send is told whose stream has ended
                await stream.send_all(b"x" * 10_000_000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for _ in range(3):
                nursery.start_soon(stream.send_eof)
        await stream.aclose()
