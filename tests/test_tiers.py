"""Both tiers in front of an engine that says which bytes it got: they take the same, and hand on the same.

What is sent here is what requests are smuggled with (RFC 9112, section 11.2), and what a fuzzer makes of it.
"""

import contextlib
import json
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import psutil
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.served import RawClient, served

from engine_router import Router, open_router
from engine_router.config import Config, parse_config
from engine_router.server.serve import listen, serve
from engine_router.web import monitoring

CHAT = "/v1/chat/completions"
LIMIT_S = 200.0
TIERS = (True, False)
# Seconds without a further byte from a router at rest after which there is nothing more to come.
QUIET_S = 0.02
# Who disagrees is asked again, in case that something takes its time.
PATIENT_S = 1.0

ENGINE = r"""
import json, socket, sys, threading, time

seen, sent, lock, go = [], [0], threading.Lock(), threading.Event()


def answer(sock, data):
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))


def attend(sock):
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                return
            data += more
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = [line.split(": ", 1) for line in lines[1:]]
        length = sum(int(value) for name, value in headers if name.lower() == "content-length")
        while len(data) < length:
            data += sock.recv(65536)
        body, data = data[:length], data[length:]
        path = lines[0].split(" ")[1]
        if path == "/seen":
            with lock:
                answer(sock, json.dumps({"seen": seen, "sent": sent[0]}).encode())
                del seen[:]
            continue
        if path == "/go":
            go.set()
        if path in ("/health", "/v1/models", "/go"):
            answer(sock, b'{"object": "list", "data": []}')
            continue
        with lock:
            seen.append([lines[0], headers, body.decode("latin-1")])
        wish = json.loads(body).get("do") if body.startswith(b"{") else None
        if wish == "flood":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            frame = b"data: " + b"a" * 4000 + b"\n\n"
            while True:
                sock.sendall(b"%x\r\n%s\r\n" % (len(frame), frame))
                sent[0] += len(frame)
        if wish == "slow":
            go.wait()
        answer(sock, b'{"ok": true}')


def guarded(sock):
    with sock:
        try:
            attend(sock)
        except OSError:
            pass


with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128) as listener:
    while True:
        threading.Thread(target=guarded, args=(listener.accept()[0],), daemon=True).start()
"""


def configuration(folder: Path, *, fast: bool, **scheduling: float) -> Config:
    program = folder / "engine.py"
    program.write_text(ENGINE)
    argv = json.dumps([sys.executable, "-I", "-S", str(program), "{port}"])
    engines = [
        f'[engines.{name}]\ntype = "process"\nargv = {argv}\nmodels = ["{name}"]\ndiscover = false'
        for name in "ab"
    ]
    head = [
        'state_file = "/dev/null/state.json"\n[pools.default]\ngauge = "none"',
        f"[server]\nfast_path = {json.dumps(fast)}\nmax_body_mb = 0.002\nshutdown_timeout_s = 600",
        "\n".join(["[scheduling]", *(f"{key} = {value}" for key, value in scheduling.items())]),
    ]
    return parse_config("\n".join([*head, *engines]))


# Both tiers at once, for clients that are threads.


@attrs.frozen
class Outcome:
    """What became of some bytes.

    Attributes:
        statuses: of every answer.
        closed: the router closed the connection.
        seen: the requests that the engine got: line, headers in no order, body.
    """

    statuses: tuple[int, ...]
    closed: bool
    seen: tuple[tuple[str, tuple[tuple[str, str], ...], str], ...]


@attrs.frozen
class Side:
    """A router that serves by one tier, and its engine."""

    port: int
    engine_port: int
    router: Router
    token: trio.lowlevel.TrioToken

    def answer(self, data: bytes) -> tuple[bytes, set[bytes], bytes]:
        """Return the status line, the headers but for the date, and the body of what the router says to a request."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S) as sock:
            sock.sendall(data[:-2] + b"Connection: close\r\n\r\n")
            said = b"".join(iter(lambda: sock.recv(65_536), b""))
        head, _, body = said.partition(b"\r\n\r\n")
        line, *headers = head.lower().split(b"\r\n")
        return line, {header for header in headers if not header.startswith(b"date:")}, body

    async def _rest(self) -> None:
        """Wait until all that came is read, and all that was asked is answered, as far as anything will be."""
        await trio.testing.wait_all_tasks_blocked(0.005)
        while self.router.supervisor.domains["default"].leases:
            await trio.sleep(0.001)
            await trio.testing.wait_all_tasks_blocked(0.005)

    def send(self, pieces: Sequence[bytes], quiet_s: float = QUIET_S) -> Outcome:
        """Send pieces, each on its own, and read what comes until it is over."""
        received, closed = b"", False
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(ConnectionError):  # it may have been refused already
                for number, piece in enumerate(pieces):
                    if number:
                        time.sleep(0.001)
                    sock.sendall(piece)
            trio.from_thread.run(self._rest, trio_token=self.token)
            sock.settimeout(quiet_s)
            try:
                while more := sock.recv(65536):
                    received += more
                closed = True
            except TimeoutError:
                pass
            except ConnectionError:
                closed = True
        return Outcome(tuple(statuses_in(received)), closed, self.seen())

    def seen(self) -> tuple[tuple[str, tuple[tuple[str, str], ...], str], ...]:
        """Return what the engine got since this was asked last."""
        address = f"127.0.0.1:{self.engine_port}"  # the one thing that may differ
        return tuple(
            (
                line,
                tuple(sorted((name.lower(), value.replace(address, "ENGINE")) for name, value in headers)),
                body,
            )
            for line, headers, body in asked(self.engine_port)["seen"]
        )


def asked(engine_port: int, path: str = "/seen") -> dict:
    with socket.create_connection(("127.0.0.1", engine_port), timeout=LIMIT_S) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < length_in(data):
            data += sock.recv(65536)
        return json.loads(data.partition(b"\r\n\r\n")[2])


def length_in(answer: bytes) -> int:
    lines = answer.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    return next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)


def statuses_in(received: bytes) -> Iterator[int]:
    """Yield the status of each answer; all that are expected here have a length."""
    while received.startswith(b"HTTP/1.1 "):
        yield int(received[9:12])
        _, _, rest = received.partition(b"\r\n\r\n")
        received = rest[length_in(received) :]
    assert not received, received


class Both:
    """Routers of both tiers, run by trio in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready: queue.Queue[object] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sides: dict[bool, Side] = {}

    def __enter__(self) -> "Both":  # noqa: PYI034
        self._thread.start()
        ready = self._ready.get(timeout=LIMIT_S)
        if isinstance(ready, BaseException):
            raise ready
        self._token, self._stop = ready
        return self

    def __exit__(self, *_: object) -> None:
        self._token.run_sync_soon(self._stop.set)
        self._thread.join(LIMIT_S)

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: BLE001
            self._ready.put(error)

    async def _serve(self) -> None:
        stop = trio.Event()
        async with contextlib.AsyncExitStack() as stack:
            for fast in TIERS:
                config = configuration(self._folder, fast=fast)
                router = await stack.enter_async_context(open_router(config))
                url = await stack.enter_async_context(served(router))
                engine = await engine_port(router, "a")
                token = trio.lowlevel.current_trio_token()
                self.sides[fast] = Side(int(url.rpartition(":")[2]), engine, router, token)
            self._ready.put((token, stop))
            await stop.wait()


async def engine_port(router: Router, model: str) -> int:
    """Make a model resident and return its engine's port."""
    lease = router.supervisor.request((await router.resolve(model)).resident)
    with trio.fail_after(LIMIT_S):
        endpoint = await lease.granted()
    lease.release()
    return int(endpoint.base_url.rpartition(":")[2])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with Both(tmp_path_factory.mktemp("engine")) as running:
        yield running


LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: localhost\r\n"
BODY = b'{"model":"a"}'
LENGTH = b"Content-Length: 13\r\n"
CODING = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"d\r\n" + BODY + b"\r\n0\r\n\r\n"
PLAIN = LINE + HOST + LENGTH + b"\r\n" + BODY
IN_CHUNKS = LINE + HOST + CODING + b"\r\n" + CHUNKS
NONSENSE = b"what do you want?\r\n\r\n"
HIDDEN = b"POST /v1/embeddings HTTP/1.1\r\n" + HOST + LENGTH + b"X-Hidden: 1\r\n\r\n" + BODY


def head(*more: bytes, line: bytes = LINE, host: bytes = HOST, framing: bytes = LENGTH) -> bytes:
    return line + host + framing + b"".join(item + b"\r\n" for item in more) + b"\r\n"


ONCE = {
    "plain": PLAIN,
    "chunks": IN_CHUNKS,
    "other cases": PLAIN.replace(b"Content-Length", b"CONTENT-length"),
    "values with spaces around": head(b"X-A:   a b  ", b"X-B:\tb\t") + BODY,
    "an empty value": head(b"X-A:", b"X-B: ") + BODY,
    "the same name twice": head(b"X-A: 1", b"x-a: 2") + BODY,
    "bytes beyond ASCII": head(b"X-A: \xe4\xff\x80") + BODY,
    "a length with zeros": LINE + HOST + b"Content-Length: 0013\r\n\r\n" + BODY,
    "a length with spaces around": LINE + HOST + b"Content-Length: \t13 \r\n\r\n" + BODY,
    "a list of equal lengths": LINE + HOST + b"Content-Length: 13, 13\r\n\r\n" + BODY,
    "two equal lengths": head(b"Content-Length: 13") + BODY,
    "hop by hop": head(b"Connection: X-A, keep-alive", b"X-A: 1", b"Keep-Alive: 9", b"X-B: 2") + BODY,
    "connection names the framing": head(b"Connection: content-length, host, x-a", b"X-A: 1") + BODY,
    "a cookie": head(b"Cookie: a=b", b"Proxy-Connection: keep-alive", b"Accept-Encoding: gzip") + BODY,
    "a query": PLAIN.replace(b" HTTP", b"?a=b&c=%2f+%20;/?\"<>'|\\^`{} HTTP", 1),
    "extensions": LINE + HOST + CODING + b"\r\n" + b"d;a=b\r\n" + BODY + b"\r\n0;c\r\n\r\n",
    "a trailer": LINE + HOST + CODING + b"\r\n" + b"d\r\n" + BODY + b"\r\n0\r\nX-A: 1\r\nHost: x\r\n\r\n",
    "an empty line before": b"\r\n" + PLAIN,
    "an empty line behind": PLAIN + b"\r\n",
    "absolute form": PLAIN.replace(b" /v1", b" http://elsewhere/v1", 1),
    "bare LF": PLAIN.replace(b"\r\n", b"\n"),
    "Expect": head(b"Expect: 100-continued"),
    "obs-fold": head(b"X-A: a", b"  b") + BODY,
}
"""What RFC 9112 allows, at least to a lenient server: where it is taken, it is one request."""

REFUSED = {
    "two lengths": head(b"Content-Length: 5") + BODY + HIDDEN,
    "two lengths the other way round": head(b"Content-Length: 13", framing=b"Content-Length: 0\r\n") + BODY,
    "a list of lengths": head(framing=b"Content-Length: 13, 5\r\n") + BODY,
    "length +13": head(framing=b"Content-Length: +13\r\n") + BODY,
    "length 0xd": head(framing=b"Content-Length: 0xd\r\n") + BODY,
    "length -1": head(framing=b"Content-Length: -1\r\n") + BODY,
    "length 1_3": head(framing=b"Content-Length: 1_3\r\n") + BODY,
    "length 1 3": head(framing=b"Content-Length: 1 3\r\n") + BODY,
    "length in other digits": head(framing="Content-Length: ١٣\r\n".encode()) + BODY,
    "coding xchunked": head(framing=b"Transfer-Encoding: xchunked\r\n") + CHUNKS,
    "coding identity": head(framing=b"Transfer-Encoding: identity\r\n") + BODY,
    "coding gzip, chunked": head(framing=b"Transfer-Encoding: gzip, chunked\r\n") + CHUNKS,
    "coding chunked, identity": head(framing=b"Transfer-Encoding: chunked, identity\r\n") + CHUNKS,
    "coding chunked twice": head(framing=CODING + CODING) + CHUNKS,
    "coding chunked, chunked": head(framing=b"Transfer-Encoding: chunked, chunked\r\n") + CHUNKS,
    "coding with a vertical tab": head(framing=b"Transfer-Encoding: \x0bchunked\r\n") + CHUNKS,
    "coding with NUL": head(framing=b"Transfer-Encoding: chunked\x00\r\n") + CHUNKS,
    "a space before the coding's colon": head(framing=b"Transfer-Encoding : chunked\r\n") + CHUNKS,
    "a space before the length's colon": head(framing=b"Content-Length : 13\r\n") + BODY,
    "a folded first header": LINE + b" " + HOST + LENGTH + b"\r\n" + BODY,
    "NUL in a value": head(b"X-A: a\x00b") + BODY,
    "bare CR in a value": head(b"X-A: a\rTransfer-Encoding: chunked") + BODY,
    "bare CR as an end": PLAIN.replace(b"\r\n", b"\r") + b"\r\n\r\n",
    "no colon": head(b"X-A") + BODY,
    "no name": head(b": a") + BODY,
    "a name in quotes": head(b'"X-A": a') + BODY,
    "no host": head(host=b"") + BODY,
    "two hosts": head(host=HOST + HOST) + BODY,
    "another protocol": PLAIN.replace(b"HTTP/1.1", b"RTSP/1.1", 1),
    "HTTP/1.10": PLAIN.replace(b"HTTP/1.1", b"HTTP/1.10", 1),
    "two spaces": PLAIN.replace(b"POST ", b"POST  ", 1),
    "a space in the target": PLAIN.replace(b"/chat", b"/ch at", 1),
    "dot segments": PLAIN.replace(b"/chat", b"/audio/../chat", 1),
    "chunk 0xd": head(framing=CODING) + b"0x" + CHUNKS,
    "chunk +d": head(framing=CODING) + b"+" + CHUNKS,
    "chunk -d": head(framing=CODING) + b"-" + CHUNKS,
    "a space before a chunk": head(framing=CODING) + b" " + CHUNKS,
    "a chunk with bare LF": head(framing=CODING) + CHUNKS.replace(b"d\r\n", b"d\n"),
    "a chunk without an end": head(framing=CODING) + CHUNKS.replace(b"}\r\n", b"}"),
    "a chunk with another end": head(framing=CODING) + CHUNKS.replace(b"}\r\n", b"}xx"),
    "a huge chunk": head(framing=CODING) + b"ffffffffffffffff" + CHUNKS,
    "a chunk beyond all integers": head(framing=CODING) + b"f" * 40 + CHUNKS,
    "LF in an extension": head(framing=CODING) + CHUNKS.replace(b"d\r\n", b"d;a\nb\r\n"),
    "too large": head(framing=b"Content-Length: 2001\r\n") + b" " * 2001,
    "too large in chunks": head(framing=CODING) + b"7d1\r\n" + b" " * 2001 + b"\r\n0\r\n\r\n",
    "not our hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 600,
}
"""What has to be refused: the engine gets nothing of it."""

STRICTER = {
    "length and coding": head(framing=LENGTH + CODING) + CHUNKS,
    "coding and length": head(framing=CODING + LENGTH) + CHUNKS,
    "a trailer with a length": head(framing=CODING) + CHUNKS[:-2] + b"Content-Length: 9\r\n\r\n",
    "a trailer with a coding": head(framing=CODING) + CHUNKS[:-2] + b"Transfer-Encoding: chunked\r\n\r\n",
    "a space behind a chunk's size": head(framing=CODING) + CHUNKS.replace(b"d\r\n", b"d \r\n"),
    "a trailer with bare LF": head(framing=CODING) + CHUNKS[:-2] + b"X-A: 1\n\r\n",
    "a chunk with many zeros": head(framing=CODING) + b"0" * 30 + CHUNKS,
}
"""What is taken by one tier, or by both, by the rules of the parser that it has: never as two requests."""


def assert_agree(side_by_side: Both, pieces: Sequence[bytes]) -> dict[bool, Outcome]:
    """Send the same to both tiers and see that they agree.

    These differences are legitimate:
    - llhttp refuses chunks that h11 takes (a space behind a size, a trailer with framing in it): the fast
      tier may end with a 400 where the ordinary one goes on, but hands on nothing else.
    - h11 takes no more than 20 digits of a chunk's size, llhttp any number of zeros: likewise.
    - Behind a chunked request, what came with it in one piece is not read: the fast tier answers the first
      and closes, as RFC 9112 lets a server do at any time, and the client sends the next one again.
    - Behind the last request of a connection (`Connection: close`) nothing is allowed. The fast tier does not
      read it; h11 answers 400 as soon as it sees it, even to the request before, which is under way by then.
    """
    for quiet_s in (QUIET_S, PATIENT_S):
        if quiet_s == PATIENT_S:  # what was too late for the first look must not be counted in the second
            time.sleep(PATIENT_S)
            for side in side_by_side.sides.values():
                side.seen()
        found = {fast: side_by_side.sides[fast].send(pieces, quiet_s) for fast in TIERS}
        fast, ordinary = found[True], found[False]
        if (classes(fast) == classes(ordinary) and fast.seen == ordinary.seen) or may_differ(
            b"".join(pieces).lower(), fast, ordinary
        ):
            return found
    raise AssertionError(f"{pieces!r}: fast {found[True]}, ordinary {found[False]}")


def may_differ(data: bytes, fast: Outcome, ordinary: Outcome) -> bool:
    ends_with_400 = {side: side.statuses[-1:] == (400,) and side.closed for side in (fast, ordinary)}
    if is_prefix(fast.seen, ordinary.seen) and fast.closed and b"chunked" in data:
        return bool(fast.seen) or ends_with_400[fast]
    has_last = b"connection: close" in data or b"http/1.0" in data
    return (
        ends_with_400[ordinary] and is_prefix(ordinary.seen, fast.seen) and (has_last or b"chunked" in data)
    )


def classes(outcome: Outcome) -> tuple[int, ...]:
    """Return the classes of the answers; a connection closed without one is a refusal as well as 400 is."""
    found = tuple(status // 100 for status in outcome.statuses)
    return (*found, 4) if outcome.closed and not (found and found[-1] >= 4) and not outcome.seen else found


def is_prefix(some: tuple[object, ...], more: tuple[object, ...]) -> bool:
    return more[: len(some)] == some


def in_pieces(data: bytes) -> Iterator[list[bytes]]:
    yield [data]
    middle = len(data) // 2
    yield [data[:middle], data[middle:]]
    step = -(-len(data) // 12)
    yield [data[at : at + step] for at in range(0, len(data), step)]


@pytest.mark.parametrize("data", ONCE.values(), ids=ONCE.keys())
def test_one_request_is_one_request(data: bytes, both: Both) -> None:
    for pieces in in_pieces(data):
        found = assert_agree(both, pieces)
        for outcome in found.values():
            assert len(outcome.seen) == outcome.statuses.count(200) <= 1
            for line, headers, body in outcome.seen:
                assert line.startswith(f"POST {CHAT}")
                assert line.endswith(" HTTP/1.1")
                names = [name for name, _ in headers]
                assert names.count("host") == names.count("content-length") == 1
                assert "transfer-encoding" not in names
                assert body == BODY.decode()


@pytest.mark.parametrize("name", ["plain", "chunks", "a query", "extensions", "bytes beyond ASCII"])
def test_what_is_right_is_taken(name: str, both: Both) -> None:
    for outcome in assert_agree(both, [ONCE[name]]).values():
        assert outcome.statuses == (200,)
        assert len(outcome.seen) == 1
        assert not outcome.closed


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_refused_by_both(data: bytes, both: Both) -> None:
    for pieces in in_pieces(data):
        for outcome in assert_agree(both, pieces).values():
            assert outcome.seen == ()
            assert all(status >= 400 for status in outcome.statuses)


@pytest.mark.parametrize("data", STRICTER.values(), ids=STRICTER.keys())
def test_what_parsers_see_differently_is_never_two_requests(data: bytes, both: Both) -> None:
    for pieces in in_pieces(data):
        for outcome in assert_agree(both, pieces).values():
            assert len(outcome.seen) <= 1
            assert "x-hidden" not in str(outcome.seen)


def test_behind_a_length_and_a_coding_nothing_is_read(both: Both) -> None:
    data = head(framing=CODING + b"Content-Length: 3\r\n") + b"0\r\n\r\n" + HIDDEN
    for outcome in assert_agree(both, [data]).values():
        assert outcome.seen == ()
        assert outcome.closed


PROBE = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"


def test_a_probe_is_answered_by_both_alike(both: Both) -> None:
    for data in (PROBE, PROBE + PLAIN + PROBE, PROBE[:-2] + b"Connection: close\r\n\r\n", PROBE + HIDDEN):
        for pieces in in_pieces(data):
            assert_agree(both, pieces)
    stranger = PROBE.replace(HOST, b"Host: stranger.example.com\r\n")
    for data in (PROBE, stranger, stranger.replace(b"health", b"status")):
        one, other = (both.sides[fast].answer(data) for fast in TIERS)
        assert one == other
    for path in (b"status", b"metrics"):
        one, other = (both.sides[fast].answer(PROBE.replace(b"health", path)) for fast in TIERS)
        assert one[0] == other[0] == b"http/1.1 200 ok"
        assert {h for h in one[1] if not h.startswith(b"content-length")} == {
            h for h in other[1] if not h.startswith(b"content-length")
        }


@pytest.mark.parametrize("path", sorted(monitoring.LISTS))
def test_a_list_is_answered_by_both_alike(path: str, both: Both) -> None:
    get = f"GET {path} HTTP/1.1\r\n".encode() + HOST
    for data in (
        get,
        get + b"Accept: application/json\r\n",
        get + b"Accept: text/html\r\n",
        get + b"Anthropic-Version: 2023-06-01\r\n",
        get + b"Origin: http://stranger.example.com\r\n",
        get + b"Content-Length: 0\r\n",
        get.replace(HOST, b"Host: stranger.example.com\r\n"),
        get.replace(b" HTTP", b"?limit=1 HTTP"),
        get.replace(b" HTTP", b"?limit=x HTTP") + b"Anthropic-Version: 2023-06-01\r\n",
        get.replace(b"GET", b"HEAD"),
        get.replace(b"GET", b"POST") + b"Content-Length: 0\r\n",
        get.replace(b"GET", b"POST").replace(b" HTTP", b"?x HTTP") + b"Content-Length: 0\r\n",
        get.replace(b"GET", b"DELETE"),
    ):
        one, other = (timeless(both.sides[fast].answer(data + b"\r\n")) for fast in TIERS)
        assert one == other, data
    assert_agree(both, [get + b"\r\n" + PLAIN])


def timeless(answer: tuple[bytes, set[bytes], bytes]) -> tuple[bytes, set[bytes], bytes]:
    """Return an answer without the times and ports in it."""
    line, headers, body = answer
    return line, headers, re.sub(rb"[0-9]+", b"0", body)


def test_a_body_is_never_a_request(both: Both) -> None:
    hidden = json.dumps({"model": "a", "x": HIDDEN.decode()}).encode()
    for data in (
        LINE + HOST + b"Content-Length: %d\r\n\r\n" % len(hidden) + hidden,
        LINE + HOST + CODING + b"\r\n%x\r\n" % len(hidden) + hidden + b"\r\n0\r\n\r\n",
    ):
        for pieces in in_pieces(data):
            for outcome in assert_agree(both, pieces).values():
                assert outcome.statuses == (200,)
                assert [body for *_, body in outcome.seen] == [hidden.decode()]


def test_pipelined_requests_are_answered_in_order(both: Both) -> None:
    data = b"".join(PLAIN.replace(b"Host", b"X-Number: %d\r\nHost" % number) for number in range(5))
    for pieces in in_pieces(data):
        for outcome in assert_agree(both, pieces).values():
            assert outcome.statuses == (200,) * 5
            numbers = [dict(headers)["x-number"] for _, headers, _ in outcome.seen]
            assert numbers == list("01234")


def test_behind_chunks_in_one_piece_the_connection_ends(both: Both) -> None:
    outcome = both.sides[True].send([IN_CHUNKS + PLAIN])
    assert (outcome.statuses, outcome.closed, len(outcome.seen)) == ((200,), True, 1)
    assert_agree(both, [IN_CHUNKS + PLAIN])
    later = both.sides[True].send([IN_CHUNKS, PLAIN], PATIENT_S)
    assert later.statuses in ((200,), (200, 200))


@pytest.mark.parametrize("fast", TIERS)
@pytest.mark.parametrize("data", [PLAIN, IN_CHUNKS])
def test_a_connection_lasts_for_as_long_as_its_client_wants(data: bytes, fast: bool, both: Both) -> None:
    side = both.sides[fast]
    kept = side.send([data], 0.1)
    assert (kept.statuses, kept.closed) == ((200,), False)
    last = data.replace(b"Host", b"Connection: close\r\nHost")
    closed = side.send([last], PATIENT_S)
    assert (closed.statuses, closed.closed, len(closed.seen)) == ((200,), True, 1)
    more = side.send([last + PLAIN], PATIENT_S)
    assert (len(more.statuses), more.closed) == (1, True)
    assert len(more.seen) <= 1


# Anything at all.

LINES = st.sampled_from([LINE] * 6 + [LINE.replace(b" HTTP", b"?a=b HTTP"), LINE.replace(b"1.1", b"1.0")])
HOSTS = st.sampled_from([HOST] * 6 + [b"", HOST + HOST, b"Host:\r\n", b"host:localhost\r\n"])
HEADERS = st.sampled_from(
    [
        *(b"X-A: 1", b"x-a:2", b"X-B:  b ", b"X-C:", b"Connection: x-a", b"Connection: close", b"X-D: \xe4"),
        *(b"TE: x", b"X : 1", b" folded", b"X-E: a\x00", b"X-F: a\rb", b"X-G: a\nX-H: b", b"Expect: x"),
        *(b"X-I: \x01", b"X"),
    ]
)
FRAMINGS = st.sampled_from(
    [LENGTH, CODING] * 6
    + [LENGTH + LENGTH, LENGTH + CODING, CODING + LENGTH, b"", CODING.replace(b":", b" :"), CODING + CODING]
    + [LENGTH.replace(b"13", length) for length in (b"13,13", b"+13", b"013", b"1", b"14", b"0", b"13;")]
    + [CODING.replace(b"chunked", coding) for coding in (b"Chunked", b"chunked,", b"gzip, chunked", b"x")]
)
SIZES = st.sampled_from([b"d"] * 6 + [b"D", b"0d", b"d;a=b", b"d ", b" d", b"0xd", b"+d", b"c", b"e", b""])
ENDS = st.sampled_from([b"0\r\n\r\n"] * 5 + [b"0\r\nX: y\r\n\r\n", b"0\n\n", b"\r\n", b"", b"00;x\r\n\r\n"])
BEHIND = st.sampled_from([b""] * 4 + [PLAIN, IN_CHUNKS, b"\r\n", b"garbage\r\n\r\n", HIDDEN])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A request that is right, or a little wrong, and perhaps something behind it."""
    framing = draw(FRAMINGS)
    data = head(*draw(st.lists(HEADERS, max_size=2)), line=draw(LINES), host=draw(HOSTS), framing=framing)
    if b"chunked" in framing.lower():
        data += (
            draw(SIZES) + b"\r\n" + BODY + draw(st.sampled_from([b"\r\n"] * 6 + [b"\n", b""])) + draw(ENDS)
        )
    else:
        data += BODY
    return data + draw(BEHIND)


def test_both_tiers_agree_on_anything(both: Both) -> None:
    until = time.monotonic() + 200

    @settings(
        max_examples=120,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(messages(), st.lists(st.integers(0, 10_000), max_size=4))
    def fuzz(data: bytes, cuts: list[int]) -> None:
        if time.monotonic() > until:
            return
        places = sorted({cut % len(data) for cut in cuts} | {0})
        pieces = [data[begin:end] for begin, end in zip(places, [*places[1:], len(data)], strict=True)]
        for outcome in assert_agree(both, pieces).values():
            # Never more at the engine than there were answers: nothing was smuggled.
            assert len(outcome.seen) <= len(outcome.statuses)

    fuzz()


# The life of a connection.


@attrs.define
class World:
    router: Router
    url: str
    stop: trio.Event
    stopped: trio.Event

    @property
    def leases(self) -> int:
        return len(self.router.supervisor.domains["default"].leases)


@asynccontextmanager
async def world(folder: Path, *, fast: bool, **scheduling: float) -> AsyncIterator[World]:
    """Run a router that can be told to end."""
    config = configuration(folder, fast=fast, **scheduling)
    stop, stopped = trio.Event(), trio.Event()
    with trio.fail_after(LIMIT_S):
        async with open_router(config) as router, trio.open_nursery() as nursery:
            sockets = listen(router.config.server, port=0)
            port = sockets[0].getsockname()[1]

            async def run(task_status: trio.TaskStatus[list[str]]) -> None:
                await serve(router, sockets=sockets, shutdown_trigger=stop.wait, task_status=task_status)
                stopped.set()

            await nursery.start(run)
            yield World(router, f"http://127.0.0.1:{port}", stop, stopped)
            nursery.cancel_scope.cancel()


def wish(model: str, do: str, *, stream: bool = False) -> bytes:
    return json.dumps({"model": model, "do": do, "stream": stream}).encode()


async def until(condition: object, limit_s: float = LIMIT_S) -> float:
    began = trio.current_time()
    with trio.fail_after(limit_s):
        while not condition():  # type: ignore[operator]
            await trio.sleep(0.005)
    return trio.current_time() - began


@pytest.mark.parametrize("fast", TIERS)
async def test_the_end_waits_for_requests_and_not_for_idle_connections(fast: bool, tmp_path: Path) -> None:
    async with (
        world(tmp_path, fast=fast) as place,
        RawClient.to(place.url) as idle,
        RawClient.to(place.url) as fresh,
        RawClient.to(place.url) as busy,
    ):
        await idle.request("POST", CHAT, wish("a", "echo"))
        await idle.until(b'{"ok": true}')
        await busy.request("POST", CHAT, wish("a", "slow"))
        await until(lambda: place.leases == 1)
        await trio.sleep(0.05)
        place.stop.set()
        await idle.rest()
        if fast:  # the ordinary tier lets a connection on which nothing ever came be until the others end
            await fresh.rest()
        assert place.leases == 1  # while the other one is still served
        await trio.to_thread.run_sync(asked, await engine_port(place.router, "a"), "/go")
        answer = await busy.rest()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b'{"ok": true}')
        assert b"connection: close" in answer.lower() or not fast
        await fresh.rest()
        await place.stopped.wait()


@pytest.mark.parametrize("fast", TIERS)
async def test_what_is_idle_for_too_long_is_closed(
    fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine_router.server.serve.KEEP_ALIVE_S", 0.2)
    monkeypatch.setattr("engine_router.server.accept.SWEEP_INTERVAL_S", 0.05)
    async with (
        world(tmp_path, fast=fast) as place,
        RawClient.to(place.url) as used,
        RawClient.to(place.url) as busy,
        RawClient.to(place.url) as fresh,
    ):
        await busy.request("POST", CHAT, wish("a", "slow"))
        await fresh.rest()
        await trio.to_thread.run_sync(asked, await engine_port(place.router, "a"), "/go")
        assert b"connection: close" not in (await busy.until(b'{"ok": true}')).lower()
        await used.rest()
        await busy.rest()
        assert place.leases == 0


@pytest.mark.parametrize("fast", TIERS)
async def test_a_slow_reader_fills_no_memory(fast: bool, tmp_path: Path) -> None:
    async with world(tmp_path, fast=fast) as place:
        port = await engine_port(place.router, "a")
        before = psutil.Process().memory_info().rss
        async with RawClient.to(place.url, receive_buffer_bytes=4096) as client:
            await client.request("POST", CHAT, wish("a", "flood", stream=True))
            sent, last = 1, 0
            while sent != last or sent == 0:
                await trio.sleep(0.3)
                sent, last = (await trio.to_thread.run_sync(asked, port))["sent"], sent
            # The buffers of the two connections are the system's, and hold a few MB each.
            assert sent < 24_000_000
            assert psutil.Process().memory_info().rss - before < 16_000_000
            assert place.leases == 1
            client.reset()
            await until(lambda: place.leases == 0)


@pytest.mark.parametrize("fast", TIERS)
async def test_a_stalled_reader_is_let_go_when_its_engine_has_to_yield(fast: bool, tmp_path: Path) -> None:
    scheduling = {"max_wait_s": 0.0, "drain_timeout_s": 0.2}
    async with (
        world(tmp_path, fast=fast, **scheduling) as place,
        RawClient.to(place.url, receive_buffer_bytes=4096) as stalled,
        RawClient.to(place.url) as next_one,
    ):
        await stalled.request("POST", CHAT, wish("a", "flood", stream=True))
        await until(lambda: place.leases == 1)
        await trio.sleep(0.3)
        await next_one.request("POST", CHAT, wish("b", "echo"))
        with trio.fail_after(200):
            assert (await next_one.until(b'{"ok": true}')).startswith(b"HTTP/1.1 200")
        await until(lambda: place.leases <= 1)


@pytest.mark.parametrize("fast", TIERS)
@pytest.mark.parametrize("data", [b"", b"GET /he", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", NONSENSE])
async def test_nothing_is_kept_of_a_client_that_has_left(data: bytes, fast: bool, tmp_path: Path) -> None:
    async with world(tmp_path, fast=fast) as place:
        port = int(place.url.rpartition(":")[2])

        def held() -> int:
            found = psutil.Process().net_connections("tcp")
            return sum(it.laddr.port == port and it.status != "LISTEN" for it in found)

        for leave in (RawClient.close, RawClient.reset):
            async with RawClient.to(place.url) as client:
                await client.send(data)
                await trio.sleep(0.05)
                leave(client)
            await until(lambda: held() == 0)
