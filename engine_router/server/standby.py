"""A router that stands by: every connection is passed on to the router that leads, byte by byte.

So whatever clients speak reaches the leader: streams, WebSockets, TLS. While nobody leads they are told to come again.
"""

from __future__ import annotations

import json
import logging
import math
import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol
from urllib.parse import urlsplit

import trio
from attrs import define, frozen

logger = logging.getLogger(__name__)

_CONNECT_WITHIN_S: Final = 2.0
_MOST_CONNECTIONS: Final = 2000
_PIECE_BYTES: Final = 65536
# Seconds for a client to end its side, too, once the leader has ended: it would keep a place for ever.
_LINGER_S: Final = 10.0
# Seconds for a client to say what it wants before it is refused: one that is not listened to at all sees a reset.
_HEARD_S: Final = 1.0
# Seconds after which a client shall come again where this router has just become the leader.
_SOON_S: Final = 1
# How connections begin whose clients would not understand an answer in HTTP/1; and how the leader agrees to something else.
_TLS: Final = b"\x16"
_HTTP2: Final = b"PRI * HTTP/2"
_SWITCHING: Final = b"HTTP/1.1 101"
# And for one piece to be taken, whoever gets it.
_SEND_WITHIN_S: Final = 120.0

_MESSAGE: Final = "no router leads just now; another one takes over within seconds"
_BODY: Final = json.dumps(
    {"error": {"message": _MESSAGE, "type": "server_error", "code": "no_leader"}}
).encode()
_HEAD: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: %d\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n"
)


class Leader(Protocol):
    """Who leads, as far as is known."""

    @property
    def leader_address(self) -> str | None:
        """The base URL of the router that leads; None while nobody does."""
        ...

    @property
    def takeover_s(self) -> float:
        """Seconds after which there is another leader, if the one that is known does not answer any more."""
        ...

    async def look(self) -> None:
        """Ask who leads now, since the one that is known does not answer."""
        ...


async def stand_by(sockets: Sequence[socket.socket], leader: Leader, refusals: trio.Nursery) -> None:
    """Pass connections on until cancelled, which closes them. The listening sockets stay open.

    Args:
        refusals: where those without a leader get their answer, also when this has been cancelled since; that takes
            seconds at most.
    """
    places = trio.CapacityLimiter(_MOST_CONNECTIONS)
    async with trio.open_nursery() as nursery:
        for sock in sockets:
            nursery.start_soon(_accept, sock, _Standby(leader, places, nursery, refusals))


@frozen(eq=False, repr=False)
class _Standby:
    """What a router that stands by has while it does."""

    leader: Leader
    places: trio.CapacityLimiter
    passed_on: trio.Nursery
    refusals: trio.Nursery


async def _accept(sock: socket.socket, standby: _Standby) -> None:
    sock.setblocking(False)
    while True:
        # First, so that what there is no place for waits to be accepted, by whoever serves then.
        place = object()
        await standby.places.acquire_on_behalf_of(place)
        client = trio.SocketStream(trio.socket.from_stdlib_socket(await _accepted(sock)))
        standby.passed_on.start_soon(_pass_on, client, standby, place)


async def _accepted(sock: socket.socket) -> socket.socket:
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            return sock.accept()[0]
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            continue
        except OSError as error:
            logger.warning("a connection cannot be accepted: %s", error)
            await trio.sleep(1)


async def _pass_on(client: trio.SocketStream, standby: _Standby, place: object) -> None:
    passed, after_s = _Passed(), _SOON_S
    try:
        server = await _reached_leader(standby.leader)
        if server is not None:
            passed.is_waiting = False
            async with server, trio.open_nursery() as nursery:
                scope = nursery.cancel_scope
                nursery.start_soon(_pump, client, server, scope, passed.from_client)
                await _pump(server, client, scope, passed.from_leader)
                scope.deadline = trio.current_time() + _LINGER_S
        after_s = math.ceil(standby.leader.takeover_s)
    finally:  # also where this router has just become the leader: then the client comes again soon
        if passed.has_to_be_told:
            standby.refusals.start_soon(_refuse, client, passed, standby.places, place, after_s)
        else:
            client.socket.close()
            standby.places.release_on_behalf_of(place)


@define(eq=False, repr=False)
class _Passed:
    """What has passed on a connection.

    Attributes:
        is_heard: the client has said something.
        is_waiting: it has had no answer to the last thing that it said, or no leader was reached yet.
        is_plain: it speaks HTTP/1, so that it understands an answer in it.
    """

    is_heard: bool = False
    is_waiting: bool = True
    is_plain: bool = True

    @property
    def has_to_be_told(self) -> bool:
        """True where the client would otherwise see its connection end without an answer."""
        return self.is_plain and self.is_waiting

    def from_client(self, data: bytes) -> bool:
        """Note what the client says; at its end, pass that on."""
        if data and not self.is_heard:
            self.is_heard = True
            self.is_plain = not data.startswith((_TLS, _HTTP2))
        self.is_waiting = self.is_waiting or bool(data)
        return True

    def from_leader(self, data: bytes) -> bool:
        """Note what the leader answers; at its end, return whether to pass that on."""
        if data:
            self.is_waiting = False
            self.is_plain = self.is_plain and not data.startswith(_SWITCHING)
        return not self.has_to_be_told


async def _reached_leader(leader: Leader) -> trio.SocketStream | None:
    address = leader.leader_address
    if (server := await _reached(address)) is not None:
        return server
    await leader.look()  # one that was ended has given the lead back, and the next one is here soon
    return await _reached(leader.leader_address) if leader.leader_address != address else None


async def _reached(address: str | None) -> trio.SocketStream | None:
    if address is None:
        return None
    with trio.move_on_after(_CONNECT_WITHIN_S):
        try:
            url = urlsplit(address)
            port = url.port or (443 if url.scheme == "https" else 80)
            return await trio.open_tcp_stream(url.hostname or "", port)
        except (OSError, ValueError):  # it is gone, or has told something that is no address
            return None
    return None


async def _refuse(
    client: trio.SocketStream, passed: _Passed, places: trio.CapacityLimiter, place: object, after_s: int
) -> None:
    try:
        async with client:
            with trio.move_on_after(0 if passed.is_heard else _HEARD_S):
                await client.receive_some(_PIECE_BYTES)
            with trio.move_on_after(_HEARD_S):
                await client.send_all(_HEAD % (after_s, len(_BODY)) + _BODY)
                await client.send_eof()
                while await client.receive_some(_PIECE_BYTES):
                    pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        places.release_on_behalf_of(place)


async def _pump(
    source: trio.SocketStream,
    target: trio.SocketStream,
    scope: trio.CancelScope,
    note: Callable[[bytes], bool],
) -> None:
    """Pass on what comes from one side until it ends its side; a break ends both.

    Args:
        note: called with each piece, and with an empty one at the end; False there for an end that is not passed on.
    """
    try:
        while data := await source.receive_some(_PIECE_BYTES):
            note(data)
            with trio.move_on_after(_SEND_WITHIN_S) as sending:
                await target.send_all(data)
            if sending.cancelled_caught:  # it reads nothing: its place is another's
                scope.cancel()
        if note(b""):
            await target.send_eof()
        else:
            scope.cancel()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        scope.cancel()
