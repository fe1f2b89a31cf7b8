"""Tokens read on the way through the router: what the client gets stays byte for byte, and the events tell the figures."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.asgi import ask
from support.one_engine import before_one_engine
from support.served import RawClient
from support.usage_shapes import CHAT, MESSAGES, RERANK, SHAPES, Shape

from engine_router import Router
from engine_router.events import RequestEnded, Subscription

LIMIT_S = 200.0

# Sends its answer in the parts that stand in the request's `user`, or in its message, each after a pause.
ENGINE = r"""
import json, socket, sys, threading, time


def attend(sock):
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    if not data.startswith(b"POST"):
        sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        return
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    while len(body) < length:
        body += sock.recv(65536)
    asked = json.loads(body)
    wish = json.loads(asked.get("user") or asked["messages"][0]["content"])
    out = b"HTTP/1.1 %d OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % (wish["status"], wish["type"].encode())
    for part in wish["parts"]:
        part = part.encode("latin-1")
        time.sleep(wish["pause_s"])
        sock.sendall(out + b"%x\r\n%b\r\n" % (len(part), part))
        out = b""
    sock.sendall(b"0\r\n\r\n")


with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64) as listener:
    while True:
        sock = listener.accept()[0]
        threading.Thread(target=lambda sock=sock: [attend(sock), sock.close()], daemon=True).start()
"""


@asynccontextmanager
async def the_router(folder: Path, *, fast: bool) -> AsyncIterator[tuple[Router, RawClient, Subscription]]:
    async with before_one_engine(folder, ENGINE, fast=fast) as (router, client):
        yield router, client, router.hub.subscribe(RequestEnded)


async def ended(events: Subscription) -> RequestEnded:
    with trio.fail_after(LIMIT_S):
        event = await anext(events)
    assert isinstance(event, RequestEnded)
    return event


def figures(event: RequestEnded) -> tuple[int | None, int | None, int | None]:
    return event.tokens_in, event.tokens_cached, event.tokens_out


def request_for(shape: Shape, parts: list[bytes], *, pause_s: float = 0.0, status: int = 200) -> bytes:
    kind = "application/json"
    if shape.streams:
        kind = "application/x-ndjson" if shape.path.startswith("/api/") else "text/event-stream"
    wish = {
        "type": kind,
        "parts": [part.decode("latin-1") for part in parts],
        "pause_s": pause_s,
        "status": status,
    }
    asked = {"model": "m", "stream": shape.streams, "user": json.dumps(wish)}
    return json.dumps(asked).encode()


def cut(shape: Shape) -> list[list[bytes]]:
    """Return the parts in which an engine may send it: frame by frame, each in two, all at once, in very small ones."""
    body = shape.body
    halves = [part for frame in shape.frames for part in (frame[: len(frame) // 2], frame[len(frame) // 2 :])]
    return [list(shape.frames), halves, [body], [body[at : at + 700] for at in range(0, len(body), 700)]]


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "ordinary"])
async def test_every_byte_of_an_answer_stays_and_its_figures_are_told(tmp_path: Path, fast: bool) -> None:
    native = {name: shape for name, shape in SHAPES.items() if shape.path in (CHAT, RERANK)}
    async with the_router(tmp_path, fast=fast) as (_, client, events):
        for name, shape in native.items():
            for parts in cut(shape):
                await client.request("POST", shape.path, request_for(shape, parts))
                answer = await client.answer()
                assert answer.is_complete
                assert answer.body == shape.body, name
                event = await ended(events)
                assert figures(event) == shape.told[:3], name
                assert shape.told.tokens_per_s is None or event.tokens_per_s == shape.told.tokens_per_s


async def test_what_goes_straight_to_an_engine_is_read_too(tmp_path: Path) -> None:
    async with the_router(tmp_path, fast=True) as (_, client, events):
        for name, shape in SHAPES.items():
            for parts in cut(shape):
                await client.request("POST", f"/upstream/m{shape.path}", request_for(shape, parts))
                assert (await client.answer()).body == shape.body, name
                assert figures(await ended(events)) == shape.told[:3], name


async def test_a_stream_at_a_pace_and_its_times(tmp_path: Path) -> None:
    shape = SHAPES["vLLM, usage asked for"]
    async with the_router(tmp_path, fast=True) as (_, client, events):
        await client.request("POST", CHAT, request_for(shape, list(shape.frames), pause_s=0.03))
        assert (await client.answer()).body == shape.body
        event = await ended(events)
    assert event.first_token_s is not None
    assert event.first_byte_s is not None
    assert event.first_byte_s <= event.first_token_s < event.duration_s
    assert event.queue_wait_s == event.load_wait_s == 0.0
    assert event.id is not None
    assert event.id.startswith("r")


async def test_a_speed_that_no_engine_tells_is_measured(tmp_path: Path) -> None:
    shape = SHAPES["vLLM, usage asked for"]
    parts = [*shape.frames[1:2] * 40, *shape.frames[-3:]]  # the first one has text already
    async with the_router(tmp_path, fast=True) as (_, client, events):
        await client.request("POST", CHAT, request_for(shape, parts, pause_s=0.02))
        await client.answer()
        event = await ended(events)
    assert event.tokens_per_s is not None
    assert event.tokens_per_s > 7 / event.duration_s


@pytest.mark.parametrize("name", ["llama.cpp, nothing asked for", "vLLM, nothing asked for"])
async def test_the_engines_words_are_read_and_not_their_translation(tmp_path: Path, name: str) -> None:
    """Where the engine counts nothing, Ollama's client gets estimates: they are no figures."""
    shape = SHAPES[name]
    wish = json.loads(request_for(shape, list(shape.frames)))["user"]
    asked = {"model": "m", "messages": [{"role": "user", "content": wish}]}
    async with the_router(tmp_path, fast=True) as (_, client, events):
        await client.request("POST", "/api/chat", json.dumps(asked).encode())
        last = json.loads((await client.answer()).body.splitlines()[-1])
        assert last["done"]
        assert last["prompt_eval_count"] > 0
        assert figures(await ended(events)) == shape.told[:3]


async def test_an_error_tells_nothing(tmp_path: Path) -> None:
    shape = SHAPES["llama.cpp, whole"]
    async with the_router(tmp_path, fast=True) as (_, client, events):
        await client.request("POST", CHAT, request_for(shape, list(shape.frames), status=400))
        assert (await client.answer()).status == 400
        assert figures(await ended(events)) == (None, None, None)


async def test_a_client_that_leaves_early(tmp_path: Path) -> None:
    shape = SHAPES["llama.cpp, messages"]
    async with the_router(tmp_path, fast=True) as (_, client, events):
        parts = [*shape.frames[:4], *shape.frames[4:5] * 200]
        await client.request("POST", f"/upstream/m{MESSAGES}", request_for(shape, parts, pause_s=0.02))
        await client.until(b"text_delta")
        client.close()
        event = await ended(events)
    assert event.status == 499
    assert figures(event) == (30, 29, None)  # what it wrote in the end nobody has counted


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "ordinary"])
async def test_a_client_that_reads_no_more_behind_the_last_event_has_got_all(
    tmp_path: Path, fast: bool
) -> None:
    shape = SHAPES["vLLM, usage with each chunk"]
    parts = [*shape.frames, *[b": nothing more\n\n"] * 500]
    async with the_router(tmp_path, fast=fast) as (_, client, events):
        await client.request("POST", CHAT, request_for(shape, parts, pause_s=0.02))
        await client.until(b"[DONE]")
        client.close()
        event = await ended(events)
    assert event.status == 200
    assert event.tokens_out is not None


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "ordinary"])
async def test_what_is_known_before_the_end(tmp_path: Path, fast: bool) -> None:
    shape = SHAPES["vLLM, usage with each chunk"]
    parts = [shape.frames[0], *shape.frames[1:2] * 5000]
    async with the_router(tmp_path, fast=fast) as (router, client, _):
        await client.request("POST", CHAT, request_for(shape, parts, pause_s=0.01))
        await client.until(b'"completion_tokens":8')
        entry: dict[str, Any] = {"frames_per_s": None}
        while not entry["frames_per_s"]:
            await trio.sleep(0.1)
            (entry,) = (await ask(router.app, "GET", "/admin/requests")).json()["requests"]
        assert (entry["state"], entry["tokens_out"], entry["tokens_per_s"]) == ("running", 8, None)
        assert 0 < entry["first_token_s"] < entry["elapsed_s"]
        client.close()
