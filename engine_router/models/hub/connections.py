"""Connections to the hub: straight, or through the proxy that the environment names."""

from __future__ import annotations

import base64
import ipaddress
import socket
import ssl
from typing import Final
from urllib.parse import unquote, urlsplit

import trio
from attrs import field, frozen

from engine_router.errors import HubError
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MAX_HEAD_BYTES
from engine_router.upstream.address import address_of

_END: Final = b"\r\n\r\n"


@frozen
class Proxy:
    """A proxy that tunnels."""

    host: str
    port: int
    login: str = field(default="", repr=False)


async def dial(url: str) -> socket.socket:
    """Connect to the server of a URL, without TLS yet. Returns a socket that blocks.

    Raises:
        OSError: it cannot be reached.
        HubError: the proxy of the environment cannot be used.
    """
    proxy = await trio.to_thread.run_sync(proxy_for, url)
    host, port = address_of(url)
    if proxy is None:
        stream = await trio.open_tcp_stream(host, port)
    else:
        stream = await _tunnel(proxy, host, port)
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(True)
    return sock


def is_nearby(host: str) -> bool:
    """Tell whether a host is this machine, or one of the local network, as far as its name says so."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.lower().endswith(
            (".local", ".localhost", ".lan", ".home.arpa", ".internal")
        )
    return address.is_private or address.is_loopback or address.is_link_local


async def make_tls() -> ssl.SSLContext:
    """Return the context for TLS with the system's certificates, which take long to load."""
    return await trio.to_thread.run_sync(ssl.create_default_context)


async def _tunnel(proxy: Proxy, host: str, port: int) -> trio.SocketStream:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        stream = await trio.open_tcp_stream(proxy.host, proxy.port)
    except OSError as error:
        raise OSError(f"the proxy {proxy.host}:{proxy.port} cannot be reached: {error}") from None
    is_made = False
    try:
        login = f"Proxy-Authorization: Basic {proxy.login}\r\n" if proxy.login else ""
        await stream.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n".encode())
        await _tunnelled(stream, proxy)
        is_made = True
    except trio.BrokenResourceError:
        raise OSError(f"the proxy {proxy.host}:{proxy.port} closed the connection") from None
    finally:
        if not is_made:
            stream.socket.close()
    return stream


async def _tunnelled(stream: trio.SocketStream, proxy: Proxy) -> None:
    """Wait until a proxy has made the tunnel; byte by byte, since what follows the head is not the proxy's.

    Raises:
        OSError: it does not.
    """
    head = bytearray()
    while not head.endswith(_END):
        piece = await stream.receive_some(1)
        head += piece
        if not piece or len(head) > MAX_HEAD_BYTES:
            raise OSError(f"the proxy {proxy.host}:{proxy.port} does not answer as a proxy does")
    words = bytes(head).split(b" ", 2)
    if len(words) < 2 or not words[1].startswith(b"2"):
        said = shown(bytes(head).splitlines()[0].decode("latin-1"))
        raise OSError(f"the proxy {proxy.host}:{proxy.port} answers {said}")


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
