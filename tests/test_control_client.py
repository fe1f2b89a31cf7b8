"""The router's own calls over TLS; certificates are loaded where an engine has it, and only there."""

import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from engine_router.upstream.control_answers import read_answer
from engine_router.upstream.control_client import CALM_S, ControlClient, control_client
from engine_router.upstream.control_errors import CallFailed, CannotBeSent, CannotConnect, ConnectTimedOut

trustme = pytest.importorskip("trustme")

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def answer(tls: ssl.SSLContext | None, stream: trio.SocketStream) -> None:
    line: trio.abc.Stream = stream
    if tls is not None:
        line = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
    with contextlib.suppress(trio.BrokenResourceError):
        async with line:
            if await line.receive_some(10_000):
                await line.send_all(ANSWER)


@contextlib.asynccontextmanager
async def answering(tls: ssl.SSLContext | None) -> AsyncIterator[str]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, partial(answer, tls), 0, host="127.0.0.1")
            listeners = await nursery.start(serve)
            port = listeners[0].socket.getsockname()[1]
            yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}/"
            nursery.cancel_scope.cancel()


async def got(client: ControlClient, url: str) -> bytes:
    async with client.stream("GET", url, headers={}) as response:
        return await read_answer(response)


@pytest.fixture
def authority() -> "trustme.CA":
    return trustme.CA()


@pytest.fixture
def tls(authority: "trustme.CA") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_the_systems_certificates_are_trusted(
    authority: "trustme.CA", tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with answering(tls) as url, control_client() as client:
        for _ in range(2):
            assert await got(client, url) == b"ok"


async def test_another_certificate_is_not(tls: ssl.SSLContext) -> None:
    async with answering(tls) as url, control_client() as client:
        with pytest.raises(CannotConnect):
            await got(client, url)


async def test_none_is_loaded_for_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("certificates are loaded")

    for name in ("load_verify_locations", "load_default_certs", "set_default_verify_paths"):
        monkeypatch.setattr(ssl.SSLContext, name, load)
    async with answering(None) as url, control_client() as client:
        assert await got(client, url) == b"ok"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectTimeout("x"), ConnectTimedOut),
        (httpx.ConnectError("x"), CannotConnect),
        (httpx.ReadError("x"), CallFailed),
        (httpx.RemoteProtocolError("x"), CallFailed),
        (httpx.InvalidURL("x"), CannotBeSent),
    ],
)
async def test_what_goes_wrong_is_told_without_the_library(error: Exception, kind: type[CallFailed]) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    async with aclosing(ControlClient(httpx.AsyncClient(transport=httpx.MockTransport(fail)))) as client:
        with pytest.raises(CallFailed) as raised:
            await got(client, "http://e:1/")
    assert type(raised.value) is kind
    assert (str(raised.value), raised.value.kind) == ("x", type(error).__name__)
    assert raised.value.__cause__ is error


async def test_what_breaks_off_while_it_is_read_is_told_likewise() -> None:
    async def broken(_: httpx.Request) -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"half"
            raise httpx.ReadError("gone")

        return httpx.Response(200, content=body())

    async with aclosing(ControlClient(httpx.AsyncClient(transport=httpx.MockTransport(broken)))) as client:
        with pytest.raises(CallFailed, match="gone"):
            await got(client, "http://e:1/")


async def test_calls_that_come_together_are_made_by_one_client() -> None:
    async with answering(None) as url, control_client() as client:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(got, client, url)
        assert await client.load() is await client.load()


async def test_it_is_loaded_a_moment_after_the_start(autojump_clock: trio.testing.MockClock) -> None:
    async with control_client() as client:
        assert not client.is_loaded
        await client.load_when_calm()
        assert client.is_loaded
        assert trio.current_time() == CALM_S
