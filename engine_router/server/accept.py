"""The accept loop, and the tier of each connection: the fast tier first, Hypercorn for what is unusual.

The accept loop is ours, so that every accepted socket is known: at the end of a shutdown all of them are
closed, whoever is stuck in them. Hypercorn serves a connection through its own `TCPServer`, which gets the
bytes that the fast tier has read already in front of what is still to come. It is loaded when the first connection
needs it: Hypercorn and Quart take as long to import as all else together, and a fifth of the memory.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from engine_router.server.fast_connection import FastConnection
from engine_router.upstream.socket_stream import RawStream

if TYPE_CHECKING:
    from engine_router.server.ordinary_tier import OrdinaryTier

logger = logging.getLogger(__name__)

# Seconds between two looks for connections on which nothing happens.
SWEEP_INTERVAL_S = 5.0
# Seconds to wait when the system has no descriptor left for a further connection.
OUT_OF_DESCRIPTORS_S = 0.1
# Seconds in which a cancelled connection ends by itself before its socket is closed.
UNWIND_S = 0.5

MakeFast = Callable[[RawStream], FastConnection]
Load = Callable[[], Awaitable["OrdinaryTier"]]


@define(eq=False, repr=False)
class Server:
    """One server: its listening sockets, its connections, its end.

    Args:
        load: loads the ordinary tier.
        make_fast: makes the fast tier's side of a connection; None where there is no fast tier.
        keep_alive_s: for how long an idle connection is kept.
        grace_s: for how long requests may go on at the end.
        when_loaded: called when the ordinary tier is loaded.
    """

    load: Load
    make_fast: MakeFast | None
    keep_alive_s: float
    grace_s: float
    when_loaded: Callable[[], None]
    _fast: set[FastConnection] = field(factory=set)
    _ordinary: OrdinaryTier | None = None
    _wants_ordinary: trio.Event = field(factory=trio.Event)
    _has_ordinary: trio.Event = field(factory=trio.Event)
    _sockets: set[socket.socket] = field(factory=set)
    _ending: trio.Event = field(factory=trio.Event)
    _deadline: float = math.inf

    async def run(
        self,
        listeners: Sequence[socket.socket],
        shutdown_trigger: Callable[[], Awaitable[object]],
        *,
        task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until the trigger returns; then let requests end for `grace_s`, and close what is left.

        Cancellation closes everything at once.
        """
        async with trio.open_nursery() as app:
            app.start_soon(self._load, app)
            async with trio.open_nursery() as watching:
                watching.start_soon(self._close_the_last)
                async with trio.open_nursery() as connections:
                    await self._accept_until(shutdown_trigger, listeners, connections, task_status)
                    connections.cancel_scope.deadline = self._deadline
                watching.cancel_scope.cancel()
            if self._ordinary is not None:
                await self._ordinary.stop()
            app.cancel_scope.cancel()

    def want_ordinary(self) -> None:
        """Have the ordinary tier loaded, if it is not yet."""
        self._wants_ordinary.set()

    async def _load(self, nursery: trio.Nursery) -> None:
        if self.make_fast is not None:
            await self._wants_ordinary.wait()
        ordinary = await self.load()
        await ordinary.start(nursery)
        self._ordinary = ordinary
        self._has_ordinary.set()
        self.when_loaded()
        if self._ending.is_set():
            await ordinary.finish_soon()

    async def _accept_until(
        self,
        shutdown_trigger: Callable[[], Awaitable[object]],
        listeners: Sequence[socket.socket],
        connections: trio.Nursery,
        task_status: trio.TaskStatus[list[str]],
    ) -> None:
        try:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(self._accept, listener, connections)
                accepting.start_soon(self._sweep)
                task_status.started([_url(listener) for listener in listeners])
                await shutdown_trigger()
                accepting.cancel_scope.cancel()
        finally:
            for listener in listeners:
                _close(listener)
        self._deadline = trio.current_time() + self.grace_s
        self._ending.set()
        if self._ordinary is not None:
            await self._ordinary.finish_soon()
        for connection in self._fast:
            connection.finish_soon()

    async def _accept(self, listener: socket.socket, connections: trio.Nursery) -> None:
        while True:
            try:
                await trio.lowlevel.wait_readable(listener)
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                continue
            except OSError as error:
                logger.warning("a connection cannot be accepted: %s", error)
                await trio.sleep(OUT_OF_DESCRIPTORS_S)
                continue
            connections.start_soon(self._serve, sock)

    async def _serve(self, sock: socket.socket) -> None:
        """Serve one connection, by whichever tier its requests need."""
        self._sockets.add(sock)
        try:
            first = await self._serve_fast(sock, self.make_fast) if self.make_fast is not None else b""
            if first is not None:
                await self._serve_ordinarily(sock, first)
        except Exception:
            # One connection's trouble, a defect even, is no other one's.
            logger.exception("a connection failed")
        finally:
            self._sockets.discard(sock)
            _close(sock)

    async def _serve_fast(self, sock: socket.socket, make_fast: MakeFast) -> bytes | None:
        fast = make_fast(RawStream(sock))
        self._fast.add(fast)
        if self._ending.is_set():  # it was accepted in the very step in which the end began
            fast.finish_soon()
        try:
            return await fast.run()
        finally:
            self._fast.discard(fast)

    async def _serve_ordinarily(self, sock: socket.socket, first: bytes) -> None:
        self.want_ordinary()
        await self._has_ordinary.wait()
        if self._ordinary is not None:
            await self._ordinary.serve(sock, first)

    async def _sweep(self) -> None:
        """Close connections on which nothing, or next to nothing, has happened for long though it should."""
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            oldest = trio.current_time() - self.keep_alive_s
            for connection in self._fast:
                if connection.quiet_since < oldest:
                    connection.stream.close()
            if self._ordinary is not None:
                self._ordinary.sweep(self.keep_alive_s)

    async def _close_the_last(self) -> None:
        """Close every socket when its time is over: Hypercorn's sends are shielded, and end in no other way."""
        try:
            await self._ending.wait()
            await trio.sleep_until(self._deadline + UNWIND_S)
        finally:
            for sock in self._sockets:
                _close(sock)


def _close(sock: socket.socket) -> None:
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
        sock.close()


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
