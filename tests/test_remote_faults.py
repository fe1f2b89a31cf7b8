"""Remotes that hang, lie or vanish, each in a phase of its own: that costs their own requests only, and each is told why."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from support.ports import free_port
from support.scripted.cloud import ScriptedCloud
from support.served import RawClient, ask, served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.web.status import status

LIMIT_S = 200.0
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = (
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"on"}}]}\n\n'
)
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)

Act = Callable[[trio.SocketStream], Awaitable[object]]


def says(data: bytes) -> Act:
    async def act(stream: trio.SocketStream) -> None:
        await stream.send_all(data)

    return act


def says_and_resets(data: bytes) -> Act:
    async def act(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        await trio.sleep(0.05)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return act


async def says_without_end(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send_all(b"x-more: " + b"y" * 8000 + b"\r\n")


async def hangs(_stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


@attrs.define
class Far:
    """A server that takes in a request and then does as it is told."""

    act: Act
    port: int = 0
    seen: int = 0

    async def serve(self, *, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        await trio.serve_tcp(self.connection, self.port, host="127.0.0.1", task_status=task_status)

    async def connection(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                if b"POST" in await stream.receive_some(65536):
                    self.seen += 1
                await self.act(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


@asynccontextmanager
async def beside_a_good_one(far: Far, more: str = "") -> AsyncIterator[tuple[Router, str]]:
    """Serve a router in front of a remote with the model `bad`, and one with the model `good`."""
    good = ScriptedCloud("good")
    async with good.running(), trio.open_nursery() as nursery:
        if not far.port:
            (listener,) = await nursery.start(far.serve)
            far.port = listener.socket.getsockname()[1]
        text = f"""
            state_file = "/dev/null/state.json"
            [server]
            shutdown_timeout_s = 0.1
            [engines.bad]
            type = "remote"
            base_url = "http://127.0.0.1:{far.port}/v1"
            models = ["bad"]
            discover = false
            connect_timeout_s = 2
            {more}
            [engines.good]
            type = "remote"
            base_url = "{good.base_url}{good.path}"
            models = ["good"]
            discover = false
            """
        with trio.fail_after(LIMIT_S):
            async with open_router(parse_config(text)) as router, served(router) as url:
                yield router, url
        nursery.cancel_scope.cancel()


def body_of(model: str, *, stream: bool = False) -> dict[str, object]:
    return {"model": model, "messages": HELLO, "stream": stream}


async def assert_the_good_one_serves(router: Router, url: str) -> None:
    assert (await ask(url, "POST", CHAT, body=body_of("good"))).status == 200
    residents = status(router)["pools"]["remotes"]["residents"]
    assert {entry["resident"]: entry["in_flight"] for entry in residents}["good"] == 0


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (says(b""), "without an answer"),
        (says(b"SSH-2.0-OpenSSH_9.2\r\n"), "not HTTP"),
        (says(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{}"), "middle of its answer"),
        (says_and_resets(b"HTTP/1.1 200 OK\r\ncontent-le"), "broke off"),
        (says_without_end, "headers without an end"),
        (says(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n"), "101"),
        (says(b"HTTP/1.1 500 X\r\ncontent-type: text/html\r\ncontent-length: 11\r\n\r\n<h1>No</h1>"), "No"),
    ],
    ids=["closes", "no-http", "short", "resets", "endless", "switches", "html"],
)
async def test_what_answers_wrongly_is_told_as_an_error(act: Act, words: str) -> None:
    far = Far(act)
    async with beside_a_good_one(far) as (router, url):
        answer = await ask(url, "POST", CHAT, body=body_of("bad"))
        # What was begun is cut off; else there is an error.
        assert answer.status >= 500 or not answer.is_complete
        if answer.status >= 500:
            assert words in answer.json()["error"]["message"]
        await assert_the_good_one_serves(router, url)
        assert status(router)["engines"]["bad"]["state"] == "ready"  # it accepts connections


@pytest.mark.parametrize("end", [says(STREAM + CHUNK), says_and_resets(STREAM + CHUNK)])
async def test_a_stream_that_breaks_off_ends_in_an_error(end: Act) -> None:
    far = Far(end)
    async with beside_a_good_one(far) as (router, url):
        answer = await ask(url, "POST", CHAT, body=body_of("bad", stream=True))
        assert answer.status == 200
        assert b'"content":"on"' in answer.body
        assert b'"error"' in answer.body
        await assert_the_good_one_serves(router, url)


@pytest.mark.parametrize("act", [hangs, says_and_resets(b"")], ids=["hangs", "vanishes"])
async def test_one_place_at_one_that_hangs_holds_up_its_own_requests_only(act: Act) -> None:
    far = Far(act)
    async with beside_a_good_one(far, "max_in_flight = 1") as (router, url):
        async with RawClient.to(url) as first, RawClient.to(url) as second:
            for client in (first, second):
                await client.request("POST", CHAT, json.dumps(body_of("bad")).encode())
            while not far.seen:
                await trio.sleep(0.01)
            for _ in range(5):
                await assert_the_good_one_serves(router, url)
            first.close()
            second.close()
        while status(router)["pools"]["remotes"]["waiting"]:
            await trio.sleep(0.01)


async def test_one_that_is_not_there_is_told_at_once_then_refused_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine_router.engines.remote.circuit.COOL_DOWN_S", 0.5)
    monkeypatch.setattr(
        "engine_router.proxy.exchange.DOUBT_GRACE_S", 2 * LIMIT_S
    )  # no news of an end will come
    far = Far(says(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"), port=free_port())
    async with beside_a_good_one(far) as (router, url):
        first = await ask(url, "POST", CHAT, body=body_of("bad"))
        assert first.status == 502
        assert "connection refused" in first.json()["error"]["message"]
        answer = first
        while answer.status != 503:
            answer = await ask(url, "POST", CHAT, body=body_of("bad"))
        assert "cannot be reached" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
        shown = status(router)
        assert shown["engines"]["bad"]["state"] == "failed"
        assert "connection refused" in shown["pools"]["remotes"]["failed"]["bad"]["error"]
        assert next(model["state"] for model in shown["models"] if model["id"] == "bad") == "failed"
        await assert_the_good_one_serves(router, url)
        async with trio.open_nursery() as nursery:
            await nursery.start(far.serve)
            while answer.status != 200:
                answer = await ask(url, "POST", CHAT, body=body_of("bad"))
            assert status(router)["engines"]["bad"]["state"] == "ready"
            nursery.cancel_scope.cancel()


async def test_tls_is_not_spoken_with_one_that_does_not() -> None:
    far = Far(says(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"))
    async with beside_a_good_one(far) as (_, _url):
        text = f"""
            state_file = "/dev/null/state.json"
            [engines.bad]
            type = "remote"
            base_url = "https://127.0.0.1:{far.port}/v1"
            models = ["bad"]
            discover = false
            """
        async with open_router(parse_config(text)) as router, served(router) as url:
            answer = await ask(url, "POST", CHAT, body=body_of("bad"))
            assert answer.status == 502
            assert "TLS handshake failed" in answer.json()["error"]["message"]
