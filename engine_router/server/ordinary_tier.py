"""The ordinary tier: Hypercorn in front of the Quart-Trio app.

Imported when the fast tier serves already: Hypercorn and Quart take longer to import than all else together.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import wrap_app

from engine_router.server.ordinary_connection import OrdinaryConnection, ReplayedStream

if TYPE_CHECKING:
    from quart_trio import QuartTrio


@define(eq=False, repr=False)
class OrdinaryTier:
    """Hypercorn's connections, and the lifespan of the app behind them.

    Attributes:
        app: as Hypercorn wraps it.
        config: Hypercorn's settings.
    """

    app: AppWrapper
    config: HypercornConfig
    _lifespan: Lifespan
    _state: dict[str, Any]
    _context: WorkerContext = field(factory=lambda: WorkerContext(None))
    _connections: set[OrdinaryConnection] = field(factory=set)

    @classmethod
    def of(cls, app: QuartTrio, config: HypercornConfig) -> OrdinaryTier:
        """Return the tier of an app."""
        wrapped: Any = wrap_app(app, 0, "asgi")
        state: dict[str, Any] = {}
        return cls(wrapped, config, Lifespan(wrapped, config, state), state)

    async def start(self, nursery: trio.Nursery) -> None:
        """Start the app.

        Args:
            nursery: of the app's lifespan.
        """
        await nursery.start(self._lifespan.handle_lifespan)
        await self._lifespan.wait_for_startup()

    async def serve(self, sock: socket.socket, first: bytes) -> None:
        """Serve a connection of which `first` has been read already, until it ends."""
        held = ConnectionState(self._state.copy())
        connection = OrdinaryConnection(
            self.app, self.config, self._context, held, ReplayedStream(sock, first)
        )
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    def sweep(self, patience_s: float) -> None:
        """Close the connections whose clients owe bytes for longer than `patience_s`."""
        for connection in self._connections:
            if connection.is_stuck(patience_s):
                connection.stream.socket.close()

    async def finish_soon(self) -> None:
        """Serve the requests in hand to their end, and no others."""
        await self._context.terminated.set()

    async def stop(self) -> None:
        """Tell the app that nothing more will come, and wait for its end."""
        await self._lifespan.wait_for_shutdown()


def hypercorn_config(keep_alive_s: float, grace_s: float, backlog: int) -> HypercornConfig:
    """Return Hypercorn's settings: nothing in it may end a long stream, or count requests."""
    config = HypercornConfig()
    config.keep_alive_timeout = keep_alive_s
    config.keep_alive_max_requests = 1_000_000_000
    config.backlog = backlog
    config.read_timeout = None
    config.graceful_timeout = grace_s
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("engine_router.server")
    config.loglevel = "WARNING"
    return config
