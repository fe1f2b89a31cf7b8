"""The idle connections to engines."""

from __future__ import annotations

from collections import deque

import trio

from engine_router.upstream.connect import Wire

# Servers close idle connections after 5 s (uvicorn, cpp-httplib); ours must go first, or a request may be
# sent into a connection that is being closed.
MAX_IDLE_S = 4.0
MAX_IDLE_CONNECTIONS = 64


class IdleConnections:
    """Connections that are kept while idle, by the address of their engine; last in, first out."""

    def __init__(self) -> None:
        self._idle: dict[str, deque[tuple[Wire, float]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    def keep(self, base_url: str, stream: Wire) -> None:
        """Keep a connection for the next request, and let go of those that were idle for too long."""
        now = trio.current_time()
        # For every address: an engine may never come back to the port that it had.
        for address, old in tuple(self._idle.items()):
            while old and old[0][1] < now - MAX_IDLE_S:
                old.popleft()[0].close()
            if not old:
                del self._idle[address]
        idle = self._idle.setdefault(base_url, deque())
        idle.append((stream, now))
        stream.park()
        if len(idle) > MAX_IDLE_CONNECTIONS:
            idle.popleft()[0].close()

    def take(self, base_url: str) -> Wire | None:
        """Take one out that can still be used; None where there is none."""
        idle = self._idle.get(base_url)
        oldest = trio.current_time() - MAX_IDLE_S
        while idle:
            stream, since = idle.pop()
            if since >= oldest and stream.is_quiet():
                return stream
            stream.close()
        return None

    def forget(self, base_url: str) -> None:
        """Close those to an engine. Never waits."""
        for stream, _ in self._idle.pop(base_url, ()):
            stream.close()

    def close(self) -> None:
        """Close all of them. Never waits."""
        for base_url in tuple(self._idle):
            self.forget(base_url)
