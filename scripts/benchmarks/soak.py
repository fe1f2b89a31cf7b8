"""Whether anything stays behind: many requests of all kinds, half of which end badly, then a look at what is left.

A router, its engine and a client are processes of their own. The client sends whole requests and streams, leaves at
random moments (FIN, RST), stalls, splits its packets, pipelines and sends nonsense. Then the router has to hold no
lease, no place in the queue, no more descriptors than before but a few idle connections, and no more memory than in
the middle. The exit status is 1 where something is left. Everything stays on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from benchmarks import client, environments, routers
from benchmarks.environments import Missing, say
from benchmarks.lab import Failed, Lab

PROGRAM = Path(__file__).resolve()
MODEL = "alpha"
WORKERS = 32
ANSWER_WITHIN_S = 20.0
WARM_UP = 2000
QUIET_WITHIN_S = 15.0
# What the router may keep: idle connections to its engine (of which a pool holds 64), and files of its own.
SPARE_DESCRIPTORS = 72
# What the allocator and full caches may add after the middle of the run.
GROWTH_MB = 6.0
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
NONSENSE = (
    b"what do you want?\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(100)),
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX: a\rb\r\nContent-Length: 1\r\n\r\na",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nConnection: close\r\n\r\nnot JSON!",
    b"GET /v1/models HTTP/1.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)


# The engine.


async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection: an answer of some words, as a whole or as a stream."""
    with suppress(OSError, EOFError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, found, rest = head.partition(b"\r\ncontent-length: ")
            body = await reader.readexactly(int(rest.partition(b"\r\n")[0]) if found else 0)
            if b'"stream": true' not in body:
                writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"data": [ ]}')
                continue
            wish = json.loads(body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
            writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
            chunk = CHUNK * wish["times"]
            for _ in range(wish["count"]):
                writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                await writer.drain()
                await asyncio.sleep(wish["every_s"])
            writer.write(b"0\r\n\r\n")
    writer.close()


async def engine(port: int) -> None:
    server = await asyncio.start_server(attend, "127.0.0.1", port, backlog=512)
    await server.serve_forever()


# The client.


class Load:
    """Requests of all kinds, so many of them and for so long at most.

    Attributes:
        asked: requests of each kind.
        errors: answers that were not what they should be, in words.
    """

    def __init__(self, port: int, requests: int, seconds: float, seed: int) -> None:
        self.port = port
        self.random = random.Random(seed)
        self.left = requests
        self.until = time.monotonic() + seconds
        self.asked: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    async def run(self) -> None:
        await asyncio.gather(*(self.work() for _ in range(WORKERS)))

    async def work(self) -> None:
        kinds: list[Callable[[], Awaitable[int]]] = [self.kept] * 6 + [self.stream] * 3 + [self.leave] * 5
        kinds += [self.split, self.split, self.pipelined, self.nonsense, self.nonsense]
        while self.left > 0 and time.monotonic() < self.until:
            # A stall takes long, for the client: few of them go on at a time.
            kind = self.stall if self.random.random() < 0.01 else self.random.choice(kinds)
            try:
                count = await asyncio.wait_for(kind(), ANSWER_WITHIN_S)
            except Exception as error:  # noqa: BLE001 - whatever went wrong is counted
                count = 1
                self.errors[f"{kind.__name__}: {type(error).__name__} {error}"[:200]] += 1
            self.asked[kind.__name__] += count
            self.left -= count

    def body(self, *, stream: bool, count: int = 3, every_s: float = 0.0, times: int = 1) -> bytes:
        wish = {"stream": stream, "count": count, "every_s": every_s, "times": times, "model": MODEL}
        return json.dumps(wish).encode()

    def request(self, body: bytes) -> bytes:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        if self.random.random() < 0.2:
            middle = len(body) // 2
            parts = (middle, body[:middle], len(body) - middle, body[middle:])
            return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % parts
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def kept(self) -> int:
        """Whole requests one after the other on one connection."""
        reader, writer = await self.connect()
        count = self.random.randint(1, 8)
        with closing(writer):
            for _ in range(count):
                writer.write(self.request(self.body(stream=False)))
                await self.whole(reader)
        return count

    async def whole(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ValueError(head[:40])
        if await reader.readexactly(13) != b'{"data": [ ]}':
            raise ValueError("another body")

    async def stream(self) -> int:
        """A stream, to its end."""
        reader, writer = await self.connect()
        with closing(writer):
            count = self.random.randint(1, 20)
            body = self.body(stream=True, count=count, every_s=self.random.choice((0.0, 0.0, 0.002)))
            writer.write(self.request(body))
            found = await reader.readuntil(b"\r\n0\r\n\r\n")
            if found.count(CHUNK) != count:
                raise ValueError(f"{found.count(CHUNK)} of {count} chunks")
        return 1

    async def leave(self) -> int:
        """Leave at any moment, politely or not."""
        reader, writer = await self.connect()
        streams = self.random.random() < 0.7
        data = self.request(self.body(stream=streams, count=1000, every_s=0.001))
        if self.random.random() < 0.3:
            data = data[: self.random.randint(0, len(data))]
        writer.write(data)
        if self.random.random() < 0.5:
            await asyncio.sleep(self.random.choice((0.0, 0.001, 0.005, 0.03)))
        elif len(data) > 200 and streams:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(self.random.choice((1, 300, 3000))), 0.05)
        if self.random.random() < 0.5:
            reset(writer)
        writer.close()
        return 1

    async def stall(self) -> int:
        """Ask for much and read nothing of it."""
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", self.port))
            await loop.sock_sendall(sock, self.request(self.body(stream=True, count=2000, times=100)))
            await asyncio.sleep(self.random.uniform(0.05, 0.6))
        return 1

    async def split(self) -> int:
        """A request in many packets."""
        reader, writer = await self.connect()
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with closing(writer):
            data = self.request(self.body(stream=False))
            while data:
                size = self.random.randint(1, 80)
                writer.write(data[:size])
                await asyncio.sleep(0)
                data = data[size:]
            await self.whole(reader)
        return 1

    async def pipelined(self) -> int:
        """Requests with a length, without waiting for the answers."""
        reader, writer = await self.connect()
        body = self.body(stream=False)
        count = self.random.randint(2, 6)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        with closing(writer):
            writer.write((head % len(body) + body) * count)
            for _ in range(count):
                await self.whole(reader)
        return count

    async def nonsense(self) -> int:
        """What no server takes, or only the ordinary tier."""
        reader, writer = await self.connect()
        with closing(writer), suppress(ConnectionError, asyncio.TimeoutError):
            writer.write(self.random.choice(NONSENSE))
            await asyncio.wait_for(reader.read(65536), 0.2)
        return 1


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Watched:
    """The router, as it and the system see it."""

    def __init__(self, pid: int, port: int) -> None:
        import psutil  # noqa: PLC0415 - the interpreter of the router has it, the one of the benchmark need not

        self.process = psutil.Process(pid)
        self.port = port

    async def look(self) -> dict[str, Any]:
        """Wait until nothing is held any more, or for long enough, and tell what is."""
        until = time.monotonic() + QUIET_WITHIN_S
        while True:
            found = await self.now()
            if not (found["leases"] or found["queued"] or found["clients"]) or time.monotonic() > until:
                return found
            await asyncio.sleep(0.2)

    async def now(self) -> dict[str, Any]:
        pools = client.get(self.port, "/status")["pools"].values()
        await asyncio.sleep(0.05)  # until the router has closed the connection that asked
        connections = self.process.net_connections("tcp")
        established = [it for it in connections if it.status != "LISTEN"]
        return {
            "leases": sum((pool["resident"] or {}).get("in_flight", 0) for pool in pools),
            "queued": sum(sum(pool["waiting"].values()) for pool in pools),
            "clients": sum(1 for it in established if it.laddr.port == self.port),
            "descriptors": self.process.num_fds() if hasattr(self.process, "num_fds") else 0,
            "rss_mb": round(self.process.memory_info().rss / 1e6, 1),
            "cpu_s": round(sum(self.process.cpu_times()[:2]), 2),
        }


async def load(port: int, pid: int, requests: int, seconds: float, seed: int) -> None:
    """Run the load in two halves, looking before, between and after; the result is one line of JSON."""
    watched = Watched(pid, port)
    await Load(port, min(WARM_UP, requests // 10), seconds / 10, seed).run()
    looks, halves = [await watched.look()], []
    for half in (1, 2):
        part = Load(port, requests // 2, seconds * 0.45, seed + half)
        began = time.monotonic()
        await part.run()
        halves.append((part, time.monotonic() - began))
        looks.append(await watched.look())
    asked, errors = Counter[str](), Counter[str]()
    for part, _ in halves:
        asked += part.asked
        errors += part.errors
    result = {"looks": looks, "asked": asked, "errors": errors, "seconds": sum(took for _, took in halves)}
    print(json.dumps(result))


# The run.


def faults(result: dict[str, Any]) -> list[str]:
    """Tell what is left, or went wrong; nothing where all is well."""
    start, middle, end = result["looks"]
    found = [f"{end[name]} {name} left" for name in ("leases", "queued", "clients") if end[name]]
    more = end["descriptors"] - start["descriptors"]
    if more > SPARE_DESCRIPTORS:
        found.append(f"{more} descriptors more than at the start")
    grown = end["rss_mb"] - middle["rss_mb"]
    if grown > GROWTH_MB:
        found.append(f"{grown:.1f} MB of memory more than in the middle")
    return found + [f"{count} times {words}" for words, count in result["errors"].items()]


def report(result: dict[str, Any]) -> str:
    total = sum(result["asked"].values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(result["asked"].items()))
    lines = [f"{total} requests in {result['seconds']:.0f} s: {kinds}"]
    lines += [
        f"{sum(result['errors'].values())} errors",
        "",
        f"{'':12} {'start':>9} {'middle':>9} {'end':>9}",
    ]
    for name in result["looks"][0]:
        lines.append(f"{name:12} " + " ".join(f"{look[name]:>9}" for look in result["looks"]))
    return "\n".join(lines)


def soak(lab: Lab, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    router = routers.open_router(lab, routers.ours(python), SoakEngines(python, [MODEL]), "soak")
    argv = [
        python,
        PROGRAM,
        "load",
        router.port,
        router.process.pid,
        options.requests,
        options.seconds,
        options.seed,
    ]
    process = lab.spawn(argv, output="load.out", env={"PYTHONPATH": str(PROGRAM.parents[1])})
    try:
        process.wait(options.seconds + 4 * QUIET_WITHIN_S + ANSWER_WITHIN_S)
    except subprocess.TimeoutExpired:
        raise Failed("the client did not come to an end") from None
    said = (lab.folder / "load.out").read_text(errors="replace")
    if process.returncode != 0:
        raise Failed(f"the client ended with status {process.returncode}: {said[-2000:]}")
    if router.process.poll() is not None:
        raise Failed(f"the router ended with status {router.process.returncode}")
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    log = (lab.folder / "soak-engine_router.out").read_text(errors="replace")
    if "Traceback" in log:
        result["errors"][f"a traceback in the router's log: {log[log.index('Traceback') :][:2000]}"] = 1
    return result


class SoakEngines(routers.Engines):
    """The engine of this file."""

    def argv(self, lab: Lab, name: str, model: str, port: int) -> list[str]:  # noqa: ARG002
        start = f"import sys; sys.path.insert(0, {str(PROGRAM.parents[1])!r}); "
        run = f"from benchmarks import soak; soak.engine_main({str(lab.log)!r}, {name!r}, {port})"
        return [str(self.python), "-c", start + run]


def engine_main(log: str, name: str, port: int) -> None:
    from benchmarks.instant_engine import note_start  # noqa: PLC0415

    note_start(log, name)
    asyncio.run(engine(port))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000, metavar="N", help="at most (%(default)s)")
    parser.add_argument("--seconds", type=float, default=240.0, metavar="S", help="at most (%(default)g)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random mix (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        python = environments.engine_router()
        with closing(Lab()) as lab:
            result = soak(lab, python, options)
    except (Missing, Failed) as error:
        say(str(error))
        return 1
    print(json.dumps(result, indent=1) if options.json else report(result))
    found = faults(result)
    for words in found:
        say(f"LEFT OR WRONG: {words}")
    return 1 if found else 0


if __name__ == "__main__" and sys.argv[1:2] == ["load"]:
    with contextlib.suppress(KeyboardInterrupt):
        wanted = sys.argv[2:]
        asyncio.run(load(int(wanted[0]), int(wanted[1]), int(wanted[2]), float(wanted[3]), int(wanted[4])))
