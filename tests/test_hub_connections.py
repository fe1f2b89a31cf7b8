"""Connections to the hub: TLS with the system's certificates, proxies of the environment, hosts that are not trusted."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme
from support.hub_server import Fault, HubServer, _Server

from engine_router.errors import BadRequest, HubError, HubUnreachable
from engine_router.models.hub.connections import proxy_for
from engine_router.models.hub.fetch import RetryPolicy
from engine_router.models.hub.progress import Progress
from engine_router.models.hub.pull import Pulled, Puller, PullRequest
from engine_router.models.hub.settings import HubSettings

REPO = "user/Tiny-GGUF"
WEIGHTS = bytes(range(256)) * 2000
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    server.add(REPO, {"tiny-Q4_K_M.gguf": WEIGHTS})
    with server.running():
        yield server


async def pull(hub: HubServer, folder: Path) -> Pulled:
    environ = {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hub.url}
    puller = Puller(
        settings=lambda: HubSettings.from_environment(environ), retries=RetryPolicy(tries=2, first_s=0.01)
    )
    with trio.fail_after(60):
        return await puller.pull(PullRequest(name=f"hf:{REPO}"), Progress("x"))


@pytest.fixture
def secure(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bool], None]:
    """Have the hub speak TLS."""

    def secured(is_trusted: bool) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        plain = _Server.get_request

        def get_request(server: _Server) -> tuple[ssl.SSLSocket, object]:
            sock, address = plain(server)
            return context.wrap_socket(sock, server_side=True), address

        monkeypatch.setattr(_Server, "get_request", get_request)
        if is_trusted:
            authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        hub.url = hub.url.replace("http://127.0.0.1", "https://localhost")
        hub.cdn_url = hub.cdn_url.replace("http://127.0.0.1", "https://localhost")

    return secured


async def test_a_download_over_tls(hub: HubServer, secure: Callable[[bool], None], tmp_path: Path) -> None:
    secure(True)
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(cut_after=200_000)]
    assert (await pull(hub, tmp_path)).path.read_bytes() == WEIGHTS
    assert hub.sent["tiny-Q4_K_M.gguf"] < len(WEIGHTS) + 2 * 65536


async def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    hub: HubServer, secure: Callable[[bool], None], tmp_path: Path
) -> None:
    secure(False)
    with pytest.raises(HubUnreachable, match="certificate cannot be trusted"):
        await pull(hub, tmp_path)


async def test_nobody_is_sent_from_tls_to_plain_text(
    hub: HubServer, secure: Callable[[bool], None], tmp_path: Path
) -> None:
    plain = hub.cdn_url
    secure(True)
    hub.cdn_url = plain
    with pytest.raises(HubError, match="address that is not trusted"):
        await pull(hub, tmp_path)


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:abc/x", "http://127.0.0.1:99999/x", "//cdn:-1/x", "http://:80/x", "file:///x"],
)
async def test_a_redirect_to_what_is_no_address_is_refused(
    target: str, hub: HubServer, tmp_path: Path
) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(status=302, headers={"Location": target})]
    with pytest.raises(HubError, match="an address that is not trusted"):
        await pull(hub, tmp_path)


@pytest.mark.parametrize("endpoint", ["http://hub:abc", "http://hub:99999", "http://:80", "http://["])
def test_an_endpoint_that_is_no_address_is_named(endpoint: str) -> None:
    with pytest.raises(BadRequest, match="HF_ENDPOINT is no URL"):
        HubSettings.from_environment({"HOME": "/nowhere", "HF_ENDPOINT": endpoint})


@pytest.mark.parametrize("folder", ["~nobody-of-that-name/x", "a\0b", "x" * 300, "/dev/null/x"])
async def test_a_folder_that_cannot_be_is_an_error_of_the_download(
    folder: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = PullRequest(name="http://127.0.0.1:9/x.gguf", to=folder)
    with trio.fail_after(60), pytest.raises(HubError, match="cannot be written"):
        await Puller(retries=RetryPolicy(tries=1)).pull(request, Progress("x"))


async def test_redirects_without_an_end_are_noticed(hub: HubServer, tmp_path: Path) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [
        Fault(status=302, headers={"Location": f"{hub.cdn_url}/user--Tiny-GGUF/tiny-Q4_K_M.gguf"})
    ] * 20
    with pytest.raises(HubError, match="without an end"):
        await pull(hub, tmp_path)


# Proxies.


@asynccontextmanager
async def proxying(
    answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n",
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Run a proxy that tunnels. Yields its port, and the heads of the requests that it gets."""
    heads: list[bytes] = []

    async def relay(source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            async for data in source:
                await target.send_all(data)
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def serve(client: trio.SocketStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await client.receive_some(1)
        heads.append(head)
        await client.send_all(answer)
        if b" 200 " not in answer:
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as server, trio.open_nursery() as both:
            both.start_soon(relay, client, server)
            both.start_soon(relay, server, client)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1], heads
        nursery.cancel_scope.cancel()


async def test_the_proxy_of_the_environment_is_used(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxying() as (port, heads):
        monkeypatch.setenv("http_proxy", f"http://me:se%63ret@127.0.0.1:{port}")
        assert (await pull(hub, tmp_path)).path.read_bytes() == WEIGHTS
    assert len(heads) == 3
    assert all(head.startswith(b"CONNECT 127.0.0.1:") for head in heads)
    login = base64.b64encode(b"me:secret")
    assert all(b"Proxy-Authorization: Basic " + login in head for head in heads)


async def test_a_proxy_that_refuses_says_so_without_its_password(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxying(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as (port, _):
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
        with pytest.raises(HubUnreachable, match=r"proxy 127\.0\.0\.1:\d+ answers HTTP/1\.1 407") as raised:
            await pull(hub, tmp_path)
    assert "secret" not in str(raised.value)


def test_which_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for("https://huggingface.co") is None
    monkeypatch.setenv("https_proxy", "proxy.lan:3128")
    found = proxy_for("https://huggingface.co")
    assert found is not None
    assert (found.host, found.port, found.login) == ("proxy.lan", 3128, "")
    monkeypatch.setenv("no_proxy", "huggingface.co")
    assert proxy_for("https://huggingface.co") is None
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("https_proxy", "socks5://proxy.lan:1080")
    with pytest.raises(HubError, match="socks5"):
        proxy_for("https://huggingface.co")


# Threads.


async def test_no_thread_and_no_connection_is_left_of_a_cancelled_download(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(stall_after=100_000)]
    progress = Progress("x")
    environ = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
    puller = Puller(settings=lambda: HubSettings.from_environment(environ), quiet_s=600)
    with trio.fail_after(60) as limit:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(puller.pull, PullRequest(name=f"hf:{REPO}"), progress)
            while progress.done_bytes < 100_000:
                await trio.sleep(0.01)
            limit.deadline = trio.current_time() + 30  # far less than a dead connection is given
            nursery.cancel_scope.cancel()
    limiter = trio.to_thread.current_default_thread_limiter()
    assert limiter.borrowed_tokens == 0
