"""Connecting to an engine: plain TCP as a `RawStream`, TLS as the same kind of stream on top of trio's own."""

from __future__ import annotations

import errno
import functools
import ipaddress
import math
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import trio
from attrs import frozen

from engine_router.upstream.address import address_of
from engine_router.upstream.socket_stream import RECEIVE_BYTES, ConnectionLost, RawStream

# Windows says of a connection under way that it would block.
_NO_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))
_UNDER_WAY = frozenset(
    (errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", errno.EWOULDBLOCK))
)
# Windows goes on with a connection to this machine behind the program's back; elsewhere it is there at once.
_CONNECTS_AT_ONCE: Final = sys.platform != "win32"


# A host that does not answer for two minutes has gone. In seconds, a number, and milliseconds.
_KEEPALIVE: Final = (
    ("TCP_KEEPIDLE", 60),
    ("TCP_KEEPALIVE", 60),  # macOS's name for it
    ("TCP_KEEPINTVL", 15),
    ("TCP_KEEPCNT", 4),
    ("TCP_USER_TIMEOUT", 120_000),
)


class Wire(Protocol):
    """A connection to an engine. What may be cancelled and what is raised: see `RawStream`."""

    async def receive(self, until: float = math.inf) -> bytes | None:
        """Return what came in; nothing once the engine has ended its side; None if nothing has come by `until`."""
        ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything."""
        ...

    def park(self) -> None:
        """Nobody asks for anything now: see `RawStream.park`."""
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

    async def receive(self, until: float = math.inf) -> bytes | None:
        """Return what came in; nothing once the engine has ended its side; None if nothing has come by `until`."""
        try:
            with trio.move_on_at(until):
                return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLost(str(error)) from error
        return None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLost(str(error)) from error

    def park(self) -> None:
        """See `Wire.park`: here `is_quiet` tells what has come."""

    def is_quiet(self) -> bool:
        """Tell whether the connection is open and nothing has come on it, not even its end."""
        sock = self._stream.transport_stream.socket
        return sock.fileno() >= 0 and not sock.is_readable()

    def close(self) -> None:
        """Close the connection now."""
        self._stream.transport_stream.socket.close()


async def dial(base_url: str, ca_file: str | None = None) -> Wire:
    """Connect to `http://host:port` or `https://...`.

    Args:
        ca_file: the authorities that vouch for its certificate; None for the system's.

    Raises:
        OSError: it does not accept the connection, or the TLS handshake failed.

    Cancellation closes the connection that is being made.
    """
    place = _place(base_url)
    if place.is_secure:
        tls = await trio.to_thread.run_sync(tls_context, ca_file)
        stream = await trio.open_tcp_stream(place.host, place.port)
        _watch_over(stream.socket)
        return await _secured(stream, place.host, tls)
    if place.address is None:
        named = await trio.open_tcp_stream(place.host, place.port)
        _watch_over(named.socket)
        return RawStream(socket.socket(fileno=named.socket.detach()))
    # An address needs no name look-up, and none of the machinery that goes with several addresses.
    return await _connected(place)


class NotAccepted(Exception):
    """An engine does not accept connections; the message says that of it, and where, and does not name it."""


async def dial_within(
    timeout_s: float, base_url: str, ca_file: str | None = None, *, shown: str = ""
) -> Wire:
    """Connect as `dial` does, within so many seconds.

    Args:
        shown: the address as people know it.

    Raises:
        NotAccepted: it does not accept the connection, or not in time.

    Cancellation closes the connection that is being made.
    """
    shown = shown or base_url
    try:
        with trio.fail_after(timeout_s):
            return await dial(base_url, ca_file)
    except trio.TooSlowError:
        raise NotAccepted(f"does not accept connections within {timeout_s:g} s at {shown}") from None
    except OSError as error:
        if error.errno in _NO_DESCRIPTORS:
            few = "the router has no open file left (ulimit -n, LimitNOFILE= of its service)"
            raise NotAccepted(f"cannot be connected to at {shown}: {few}") from error
        raise NotAccepted(f"does not accept connections at {shown}: {_reason(error)}") from error


def dial_at_once(base_url: str) -> RawStream | None:
    """Connect to an engine on this machine without a wait; None where it is elsewhere, or does not accept at once."""
    place = _place(base_url)
    if place.is_secure or place.address is None or not (_CONNECTS_AT_ONCE and place.address.is_loopback):
        return None
    try:
        sock = _socket_for(place)
    except OSError:  # no descriptor is left: likewise
        return None
    try:
        sock.connect_ex((place.host, place.port))
        sock.getpeername()
    except OSError:  # not connected, for whatever reason: `dial` waits, and tells it
        sock.close()
        return None
    return RawStream(sock)


@frozen(repr=False)
class _Place:
    """The place of an engine: what a base URL says of it. `address` is None where the host is a name."""

    host: str
    port: int
    is_secure: bool
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None


@functools.lru_cache(maxsize=256)
def _place(base_url: str) -> _Place:
    host, port = address_of(base_url)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    return _Place(host, port, urlsplit(base_url).scheme == "https", address)


def _socket_for(place: _Place) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in place.host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


async def _connected(place: _Place) -> RawStream:
    sock = _socket_for(place)
    try:
        code = sock.connect_ex((place.host, place.port))
        if code in _UNDER_WAY:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))  # noqa: TRY301 - closed below like every other failure
    except BaseException:
        sock.close()
        raise
    if place.address is not None and not place.address.is_loopback:
        _watch_over(sock)
    return RawStream(sock)


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return what verifies the certificates of engines; made once, and again for a file that has changed. Blocks.

    Raises:
        OSError: the file cannot be read, or holds no certificates.
    """
    try:
        return _tls_context(ca_file, None if ca_file is None else Path(ca_file).stat().st_mtime_ns)
    except OSError as error:
        raise OSError(f"its ca_file cannot be used: {error.strerror or error}") from error


@functools.lru_cache(maxsize=16)
def _tls_context(ca_file: str | None, _changed: int | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _watch_over(sock: socket.socket | trio.socket.SocketType) -> None:
    """Have the system notice a host that has vanished, however long its answer may take to come."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _KEEPALIVE:
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, seconds)


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


def _reason(error: OSError) -> str:
    """Return why a connection could not be made, in words."""
    if isinstance(error, ConnectionRefusedError) or error.errno == errno.ECONNREFUSED:
        return "connection refused"
    return error.strerror or str(error)
