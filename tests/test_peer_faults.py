"""Two peers that are real routers, behind lines with random faults: no request is lost without a clear error."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import sys
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
from attrs import define, field
from support.asgi import Received
from support.served import ask
from test_peers import HELLO, LIMIT_S, a_process, answers, engine, peer, running

from engine_router.web.status import status

REQUESTS = int(os.environ.get("PEER_FAULT_REQUESTS", "200"))
AT_ONCE = 8
PATHS = ("/v1/chat/completions", "/v1/messages", "/api/chat")
ENDS = ("[DONE]", "message_stop", '"done":true')
GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


def reset(stream: trio.SocketStream) -> None:
    """Close a connection with a reset."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@define(eq=False)
class FaultyLine:
    """A line to a server: most connections work, the others are cut, held, or answered by nonsense.

    Attributes:
        is_up: connections are accepted; else they are reset at once.
        is_faulty: faults happen.
        faults: those that happened, by what they were.
    """

    target: str
    chance: random.Random
    is_up: bool = True
    is_faulty: bool = True
    faults: Counter[str] = field(factory=Counter)
    url: str = ""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        await trio.serve_listeners(self._connection, [listener], task_status=task_status)  # type: ignore[arg-type]

    async def _connection(self, client: trio.SocketStream) -> None:
        fault = "none"
        if not self.is_up:
            fault = "vanished"
        elif self.is_faulty and self.chance.random() < 0.5:
            fault = self.chance.choice(("reset", "hang", "nonsense", "cut", "closed"))
        self.faults[fault] += 1
        with suppress(*GONE):
            await self._act(client, fault)

    async def _act(self, client: trio.SocketStream, fault: str) -> None:
        if fault in ("reset", "vanished"):
            reset(client)
        elif fault == "nonsense":
            await client.receive_some(1)
            await client.send_all(
                self.chance.choice(
                    (b"\0\1\2", b"HTTP/1.1 999 \r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
                )
            )
            await client.aclose()
        elif fault == "hang":
            await trio.sleep(self.chance.random())
            reset(client)
        else:
            most = {"cut": self.chance.randrange(1, 3000), "closed": 300}.get(fault)
            # One that works does not work for ever: a client that keeps it would never see another.
            worn = self.chance.randrange(2000, 12_000) if self.is_faulty else None
            await self._relay(client, worn if most is None else most)

    async def _relay(self, client: trio.SocketStream, most: int | None) -> None:
        url = urlsplit(self.target)  # a connection to a router that is there is made
        server = await trio.open_tcp_stream(url.hostname or "", url.port or 0)
        async with server, client, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_on, client, server, None, nursery.cancel_scope)
            nursery.start_soon(self._pass_on, server, client, most, nursery.cancel_scope)

    async def _pass_on(
        self, source: trio.SocketStream, sink: trio.SocketStream, most: int | None, scope: trio.CancelScope
    ) -> None:
        """Pass bytes on, until there are none, or so many have gone by."""
        gone = 0
        with suppress(*GONE):
            async for data in source:
                gone += len(data)
                if most is not None and gone >= most:
                    await sink.send_all(data[: max(0, len(data) - (gone - most))])
                    break
                await sink.send_all(data)
        scope.cancel()


def outcome(path: str, answer: Received, *, stream: bool) -> str:
    """Return what became of a request: `answered`, `error`, `cut off`, or `lost`, which none must be."""
    if not answer.is_complete:
        return "cut off"  # as HTTP has it: its client sees that bytes are missing
    text = answer.body.decode()
    if answer.status >= 400:
        error = json.loads(text)["error"]
        words = error if isinstance(error, str) else error["message"]
        return "error" if len(words) > 20 else "lost"
    if not stream:
        told = json.loads(text)
        return "error" if "error" in told else "answered" if "my friend" in text else "lost"
    if ENDS[PATHS.index(path)] in text.replace('"done": true', '"done":true'):
        return "answered"
    return "error" if '"error"' in text else "lost"


@pytest.mark.timeout(1200)
async def test_with_random_faults_nothing_is_lost_without_an_error(tmp_path: Path) -> None:
    chance = random.Random(16)
    found: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(LIMIT_S + REQUESTS / 2))
        nursery = await stack.enter_async_context(trio.open_nursery())
        lines = []
        for _ in range(2):
            far = await stack.enter_async_context(a_process(tmp_path, engine()))
            lines.append(FaultyLine(far, random.Random(chance.random())))
            await nursery.start(lines[-1].run)
        text = "".join(
            peer(line.url, 'models = ["m"]', name=name)
            for line, name in zip(lines, ("one", "two"), strict=True)
        )
        router, url = await stack.enter_async_context(running(text))
        left = iter(range(REQUESTS))

        async def ask_on() -> None:
            for number in left:
                path, stream = PATHS[number % 3], chance.random() < 0.5
                body = {
                    "model": "m",
                    "messages": [*HELLO, {"role": "user", "content": f"{number}"}],
                    "stream": stream,
                    "max_tokens": 9,
                }
                with trio.fail_after(60):
                    answer = await ask(url, "POST", path, body=body)
                became = outcome(path, answer, stream=stream)
                found[became] += 1
                assert became != "lost", (path, stream, answer.status, answer.body[-500:])

        async def come_and_go() -> None:
            while True:
                await trio.sleep(chance.random())
                line = chance.choice(lines)
                line.is_up = False
                await trio.sleep(chance.random() / 2)
                line.is_up = True

        async with trio.open_nursery() as asking:
            nursery.start_soon(come_and_go)
            for _ in range(AT_ONCE):
                asking.start_soon(ask_on)
        faults = sum((line.faults for line in lines), Counter[str]())
        told = f"{REQUESTS} requests: {dict(found)}; connections: {dict(faults)}"
        if "PEER_FAULT_REQUESTS" in os.environ:
            sys.stderr.write(f"{told}\n")
        assert found.total() == REQUESTS
        assert found["answered"] > REQUESTS / 5, told
        # Nothing is held of any of them, and it goes on as if nothing had been.
        for line in lines:
            line.is_faulty = False
        entry = status(router)["pools"]["remotes"]
        assert all(resident["in_flight"] == 0 for resident in entry["residents"])
        assert not any(entry["waiting"].values())
        while (await ask(url, "POST", PATHS[0], body={"model": "m", "messages": HELLO})).status != 200:
            await trio.sleep(0.1)
        assert await answers(url)
        nursery.cancel_scope.cancel()
