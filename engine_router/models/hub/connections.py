"""Connections to the hub: straight, or through the proxy that the environment names."""

from __future__ import annotations

import base64
import socket
import ssl
from typing import Final
from urllib.parse import unquote, urlsplit

import trio
from attrs import field, frozen

from engine_router.errors import EngineUnreachable, HubError
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MAX_HEAD_BYTES
from engine_router.upstream.client import Upstream
from engine_router.upstream.connect import Wire, secured
from engine_router.upstream.http1 import UpstreamRequest
from engine_router.upstream.socket_stream import RawStream

_END: Final = b"\r\n\r\n"


@frozen
class Proxy:
    """A proxy that tunnels."""

    host: str
    port: int
    login: str = field(default="", repr=False)


class HubConnections(Upstream):
    """Connections to the hub and its CDN, kept while idle. Made by `open`."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__()
        self._tls = tls

    @classmethod
    async def open(cls) -> HubConnections:
        """Make them; certificates take long to load."""
        return cls(await trio.to_thread.run_sync(ssl.create_default_context))

    async def connect(self, request: UpstreamRequest) -> Wire:
        """Make a connection for a request.

        Raises:
            EngineUnreachable: it was not accepted.
            HubError: the proxy of the environment cannot be used.
        """
        proxy = await trio.to_thread.run_sync(proxy_for, request.base_url)
        if proxy is None:
            return await super().connect(request)
        try:
            with trio.fail_after(request.connect_timeout_s):
                return await self._tunnel(proxy, request)
        except trio.TooSlowError:
            why = f"the proxy {proxy.host} does not answer within {request.connect_timeout_s:g} s"
        except (OSError, trio.BrokenResourceError) as error:
            why = f"the proxy {proxy.host} cannot be used: {error}"
        raise EngineUnreachable(request.engine, f"cannot be reached: {why}")

    async def _tunnel(self, proxy: Proxy, request: UpstreamRequest) -> Wire:
        to = urlsplit(request.base_url)
        host, port = to.hostname or "", to.port or (443 if to.scheme == "https" else 80)
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        stream = await trio.open_tcp_stream(proxy.host, proxy.port)
        is_made = False
        try:
            login = f"Proxy-Authorization: Basic {proxy.login}\r\n" if proxy.login else ""
            await stream.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n".encode())
            await _tunnelled(stream)
            is_made = True
        finally:
            if not is_made:
                stream.socket.close()
        if to.scheme == "https" and self._tls is not None:
            return await secured(stream, host, self._tls)
        return RawStream(socket.socket(fileno=stream.socket.detach()))


async def _tunnelled(stream: trio.SocketStream) -> None:
    """Wait until a proxy has made the tunnel; byte by byte, since what follows the head is not the proxy's.

    Raises:
        OSError: it does not.
    """
    head = bytearray()
    while not head.endswith(_END):
        piece = await stream.receive_some(1)
        head += piece
        if not piece or len(head) > MAX_HEAD_BYTES:
            raise OSError("it does not answer as a proxy does")
    words = bytes(head).split(b" ", 2)
    if len(words) < 2 or not words[1].startswith(b"2"):
        raise OSError(f"it answers {shown(bytes(head).splitlines()[0].decode('latin-1'))}")


def proxy_for(url: str) -> Proxy | None:
    """Return the proxy by which the environment, or the system, wants an address to be reached; None for none. Blocks.

    Raises:
        HubError: it is of a kind that is not known here.
    """
    import urllib.request  # noqa: PLC0415 - takes long to load, and this is called in a thread

    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    named = proxies.get(parts.scheme) or proxies.get("all")
    if not named or urllib.request.proxy_bypass(f"{host}:{parts.port}" if parts.port else host):
        return None
    try:
        proxy = urlsplit(named if "://" in named else f"http://{named}")
        port = proxy.port or 80
    except ValueError:
        raise HubError("the proxy that the environment names is no URL") from None
    if proxy.scheme != "http" or not proxy.hostname:
        raise HubError(
            f"the proxy that the environment names ({shown(proxy.scheme)}://...) is of a kind that is not known here; "
            "http://host:port is"
        )
    login = ""
    if proxy.username is not None:
        secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        login = base64.b64encode(secret.encode()).decode()
    return Proxy(proxy.hostname, port, login)
