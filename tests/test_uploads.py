"""Large bodies: relayed while they are still coming, once it is known for whom they are."""

import gc
import itertools
import json
import re
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.one_engine import before_one_engine
from support.served import RawClient

from engine_router import Router
from engine_router.dialects.scanning import FormScanner, JsonScanner
from engine_router.errors import BadRequest
from engine_router.guards.limits import LARGE_BYTES
from engine_router.proxy.streamed_body import Upload

CHAT = "/v1/chat/completions"
MANY = LARGE_BYTES + 500_000

# Writes what it got so far, a line for each piece of a body, then answers with its length.
ENGINE = r"""
import json, os, socket, sys, threading


def attend(sock):
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"POST /v1"):
        sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        return
    lines = [line.partition(b": ") for line in head.lower().split(b"\r\n")]
    length = next((int(value) for name, _, value in lines if name == b"content-length"), None)
    os.write(1, b"head %b\n" % (b"chunked" if length is None else b"%d" % length))
    refuses = b"early" in body or b"early" in head
    if refuses:
        sock.sendall(b"HTTP/1.1 418 Whatever\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        return
    while not (body.endswith(b"0\r\n\r\n") if length is None else len(body) >= length):
        piece = sock.recv(65536)
        if not piece:
            os.write(1, b"left\n")
            return
        body += piece
        os.write(1, b"has %d\n" % len(body))
    if b"early" in body[:200]:
        refuses = True
    answer = json.dumps({"bytes": len(body), "begins": body[:40].decode("latin-1")}).encode()
    sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))


with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64) as listener:
    while True:
        sock = listener.accept()[0]
        threading.Thread(target=lambda sock=sock: [attend(sock), sock.close()], daemon=True).start()
"""


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def is_fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def uploading(
    folder: Path, *, fast: bool, max_body_mb: float = 16
) -> AbstractAsyncContextManager[tuple[Router, RawClient]]:
    """Serve a router with one engine, which runs already, and connect to it."""
    return before_one_engine(folder, ENGINE, fast=fast, max_body_mb=max_body_mb)


def said(router: Router) -> list[str]:
    lines = router.engines["e"].log.tail(1000)
    return [line for line in lines if line.startswith(("head", "has", "left"))]


async def until_said(router: Router, word: str) -> None:
    while not any(line.startswith(word) for line in said(router)):
        await trio.sleep(0.005)


def head(length: int | None, path: str = CHAT, kind: str = "application/json") -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{framing}\r\n\r\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def answered(client: RawClient) -> dict:
    return json.loads(re.search(rb'\{"bytes".*?\}', client.received)[0])


BEGINNING, END = b'{"model": "m", "image": "', b'"}'


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_engine_gets_the_beginning_before_the_end_has_come(
    tmp_path: Path, is_fast: bool, chunked: bool
) -> None:
    length = MANY + len(BEGINNING) + len(END)
    framed = chunk if chunked else bytes
    async with uploading(tmp_path, fast=is_fast) as (router, client):
        await client.send(head(None if chunked else length) + framed(BEGINNING))
        await client.send(framed(b"x" * MANY))
        await until_said(router, "has")
        await client.send(framed(END) + (b"0\r\n\r\n" if chunked else b""))
        await client.until(b"begins")
        answer = answered(client)
        assert answer["bytes"] >= length if chunked else answer["bytes"] == length
        assert said(router)[0] == ("head chunked" if chunked else f"head {length}")
        # The connection goes on with the next request, a small one.
        client.received = b""
        await client.request("POST", CHAT, b'{"model": "m"}', headers=["Connection: close"])
        assert b"HTTP/1.1 200" in await client.rest()
        assert said(router).count("head 14") == 1
        assert router.supervisor.domains["default"].leases == {}


@pytest.mark.parametrize(
    "beginning", [b'{"model": "other", "image": "', b'{"image": "'], ids=["an alias", "the model comes last"]
)
async def test_what_cannot_be_relayed_yet_is_taken_in_as_a_whole(
    tmp_path: Path, is_fast: bool, beginning: bytes
) -> None:
    end = b'"}' if b"model" in beginning else b'", "model": "m"}'
    async with uploading(tmp_path, fast=is_fast) as (router, client):
        body = beginning + b"x" * MANY + end
        await client.send(head(len(body)) + body[:-4])
        await trio.sleep(0.05)
        assert said(router) == []
        await client.send(body[-4:])
        await client.until(b"begins")
        assert answered(client)["bytes"] == len(
            json.dumps(json.loads(body) | {"model": "m"}, separators=(",", ":"))
            if b"other" in beginning
            else body
        )


async def test_a_form_is_relayed_as_it_comes(tmp_path: Path, is_fast: bool) -> None:
    start = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    )
    body = start + b"\x00" * MANY + b"\r\n--b--\r\n"
    async with uploading(tmp_path, fast=is_fast) as (router, client):
        await client.send(
            head(len(body), "/v1/audio/transcriptions", "multipart/form-data; boundary=b") + body[:-2]
        )
        await until_said(router, "has")
        await client.send(body[-2:])
        await client.until(b"begins")
        assert answered(client)["bytes"] == len(body)


async def test_a_client_that_leaves_in_its_upload_ends_it_at_the_engine(
    tmp_path: Path, is_fast: bool
) -> None:
    async with uploading(tmp_path, fast=is_fast) as (router, client):
        await client.send(head(MANY) + BEGINNING + b"x" * 100_000)
        await until_said(router, "has")
        assert len(router.supervisor.domains["default"].leases) == 1
        client.close()
        with trio.fail_after(200):
            await until_said(router, "left")
        assert router.supervisor.domains["default"].leases == {}


async def test_an_upload_that_grows_too_large_is_refused_and_ended(tmp_path: Path, is_fast: bool) -> None:
    async with uploading(tmp_path, fast=is_fast, max_body_mb=4) as (router, client):
        await client.send(head(None) + chunk(BEGINNING) + chunk(b"x" * MANY))
        await until_said(router, "has")
        await client.send(chunk(b"x" * MANY))
        assert b"HTTP/1.1 413" in await client.until(b"}}")
        await until_said(router, "left")
        assert router.supervisor.domains["default"].leases == {}


async def test_an_engine_that_answers_early_is_heard_early(tmp_path: Path, is_fast: bool) -> None:
    async with uploading(tmp_path, fast=is_fast) as (router, client):
        await client.send(head(MANY, CHAT + "?early=1") + BEGINNING)
        assert b"HTTP/1.1 418" in await client.until(b"{}")
        # What follows would be the rest of the upload: no request of it may be served.
        await client.send(b"x" * 1000)
        assert client.received.count(b"HTTP/1.1") == 1
        assert await client.rest() == client.received
        assert router.supervisor.domains["default"].leases == {}


async def test_a_second_model_behind_the_first_is_refused(tmp_path: Path, is_fast: bool) -> None:
    async with uploading(tmp_path, fast=is_fast) as (router, client):
        body = BEGINNING + b"x" * MANY + b'", "model": "other"}'
        await client.send(head(len(body)) + body)
        assert b"HTTP/1.1 400" in await client.until(b"}}")
        assert b"more than one" in client.received
        assert "left" in [*said(router), "left"]


async def test_memory_stays_flat(tmp_path: Path, is_fast: bool) -> None:
    """What the engine has is not kept: of ten megabytes never more than a few are held at a time."""
    async with uploading(tmp_path, fast=is_fast) as (_, client):
        total = 12_000_000
        body = BEGINNING + b"x" * (total - len(BEGINNING) - len(END)) + END
        await client.send(head(total))
        held: list[int] = []
        for start in range(0, total, 500_000):
            await client.send(body[start : start + 500_000])
            await trio.sleep(0.005)
            held.append(sum(map(_held, _uploads())))
        await client.until(b"begins")
        assert answered(client)["bytes"] == total
        assert max(held) < 3_000_000


def _uploads() -> Iterable[Upload]:
    return [thing for thing in gc.get_objects() if isinstance(thing, Upload)]


def _held(upload: Upload) -> int:
    return sum(map(len, upload._gathered))


# The scanner.

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
MEMBERS = st.dictionaries(
    st.text() | st.sampled_from(["messages", "modell", "streams"]).map(str), JSON, max_size=6
).filter(lambda members: not members.keys() & {"model", "stream", "name"})


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, dict]:
    data = draw(MEMBERS)
    if draw(st.booleans()):
        data["stream"] = draw(JSON)
    data["model"] = draw(st.text(min_size=1).filter(str.strip))
    items = draw(st.permutations(list(data.items())))
    text = json.dumps(
        dict(items), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1, 4]))
    )
    return text.encode("utf-8", "surrogatepass"), data


def pieces_of(body: bytes, cuts: list[int]) -> Iterable[bytes]:
    marks = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    return [body[start:end] for start, end in itertools.pairwise(marks)]


@given(bodies(), st.lists(st.integers(0, 400), max_size=12))
def test_the_scanner_finds_what_a_parser_finds_however_the_body_is_split(
    given_body: tuple[bytes, dict], cuts: list[int]
) -> None:
    body, data = given_body
    scanner = JsonScanner()
    for piece in pieces_of(body, cuts):
        scanner.feed(piece)
    try:
        data["model"].encode()
    except UnicodeEncodeError:
        with pytest.raises(BadRequest):
            scanner.model  # noqa: B018
    else:
        assert scanner.model == data["model"]
    assert scanner.streams == (data.get("stream") is True)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_no_bytes_confuse_the_scanner(body: bytes, cuts: list[int]) -> None:
    whole, split = JsonScanner(), JsonScanner()
    outcomes = []
    for scanner, pieces in ((whole, [body]), (split, pieces_of(body, cuts))):
        try:
            for piece in pieces:
                scanner.feed(piece)
            outcomes.append((scanner.model, scanner.streams))
        except BadRequest as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "a", "x": {"model": "b"}, "y": ["model", {"stream": true}]}',
        b'{"x": "\\"model\\": \\"b\\"", "model": "a"}',
        b'{"x": "\\\\", "model": "a"}',
        b'\xef\xbb\xbf {"mod\\u0065l": "\\u0061"}',
    ],
)
def test_only_the_top_level_counts(body: bytes) -> None:
    for size in range(1, len(body) + 1):
        if body.startswith(b"\xef") and size < 3:
            continue  # a mark in two pieces is not looked for: the body is then read as a whole
        scanner = JsonScanner()
        for start in range(0, len(body), size):
            scanner.feed(body[start : start + size])
        assert (scanner.model, scanner.streams) == ("a", False)


@pytest.mark.parametrize("model", ['""', "null"])
def test_a_model_without_a_value_counts_as_absent(model: str) -> None:
    scanner = JsonScanner()
    scanner.feed(f'{{"model": {model}, "name": "m", "stream": true, '.encode())
    assert (scanner.model, scanner.streams) == (None, True)


@pytest.mark.parametrize("member", ["model", "stream"])
def test_a_member_twice_is_refused(member: str) -> None:
    with pytest.raises(BadRequest, match="more than one"):
        JsonScanner().feed(f'{{"{member}": "a", "{member}": "b"}}'.encode())


def test_a_form_names_its_model_wherever_it_is_split() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
    for size in range(1, len(body)):
        scanner = FormScanner("multipart/form-data; boundary=b")
        for start in range(0, len(body), size):
            scanner.feed(body[start : start + size])
        assert scanner.model == "m"
