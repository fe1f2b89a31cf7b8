"""The router's own calls over TLS; certificates are loaded where an engine has it, and only there."""

import contextlib
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from engine_router.upstream.control_client import control_client

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
            assert (await client.get(url)).text == "ok"


async def test_another_certificate_is_not(tls: ssl.SSLContext) -> None:
    async with answering(tls) as url, control_client() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


async def test_none_is_loaded_for_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("certificates are loaded")

    for name in ("load_verify_locations", "load_default_certs", "set_default_verify_paths"):
        monkeypatch.setattr(ssl.SSLContext, name, load)
    async with answering(None) as url, control_client() as client:
        assert (await client.get(url)).text == "ok"
