"""Connecting to an engine: plain TCP as a `RawStream`, TLS as the same kind of stream on top of trio's own."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
from typing import Protocol
from urllib.parse import urlsplit

import trio

from engine_router.upstream.socket_stream import RECEIVE_BYTES, ConnectionLost, RawStream

# Windows says of a connection under way that it would block.
_UNDER_WAY = frozenset(
    (errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", errno.EWOULDBLOCK))
)


class Wire(Protocol):
    """A connection to an engine. What may be cancelled and what is raised: see `RawStream`."""

    async def receive(self) -> bytes:
        """Return what came in; nothing once the engine has ended its side."""
        ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything."""
        ...

    def is_quiet(self) -> bool:
        """Tell whether the connection is open and nothing has come on it, not even its end."""
        ...

    def close(self) -> None:
        """Close the connection now; whoever waits on it gets ConnectionLost. May be called again."""
        ...


class SecureStream:
    """A connection over TLS."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream

    async def receive(self) -> bytes:
        """Return what came in; nothing once the engine has ended its side."""
        try:
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLost(str(error)) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLost(str(error)) from error

    def is_quiet(self) -> bool:
        """Tell whether the connection is open and nothing has come on it, not even its end."""
        sock = self._stream.transport_stream.socket
        return sock.fileno() >= 0 and not sock.is_readable()

    def close(self) -> None:
        """Close the connection now."""
        self._stream.transport_stream.socket.close()


async def dial(base_url: str, tls: ssl.SSLContext | None) -> Wire:
    """Connect to `http://host:port`, or `https://...` with a context for TLS.

    Raises:
        OSError: it does not accept the connection, or the TLS handshake failed.

    Cancellation closes the connection that is being made.
    """
    url = urlsplit(base_url)
    host = url.hostname or ""
    if url.scheme == "https":
        stream = await trio.open_tcp_stream(host, url.port or 443)
        return await _secured(stream, host, tls or ssl.create_default_context())
    try:
        ipaddress.ip_address(host)
    except ValueError:
        named = await trio.open_tcp_stream(host, url.port or 80)
        return RawStream(socket.socket(fileno=named.socket.detach()))
    # An address needs no name look-up, and none of the machinery that goes with several addresses.
    return await _connected(host, url.port or 80)


async def _connected(address: str, port: int) -> RawStream:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        code = sock.connect_ex((address, port))
        if code in _UNDER_WAY:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))  # noqa: TRY301 - closed below like every other failure
    except BaseException:
        sock.close()
        raise
    return RawStream(sock)


async def _secured(stream: trio.SocketStream, host: str, tls: ssl.SSLContext) -> SecureStream:
    secured = trio.SSLStream(stream, tls, server_hostname=host, https_compatible=True)
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        stream.socket.close()
        raise OSError(f"the TLS handshake failed: {error.__cause__ or error}") from error
    except BaseException:
        stream.socket.close()
        raise
    return SecureStream(secured)
