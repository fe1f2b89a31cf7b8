"""The readers of endless streams, with their bounds: how many there may be, for how long, and how slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from quart import request

from engine_router.config import KeyConfig
from engine_router.errors import Forbidden, TooManyReaders, Unauthorized
from engine_router.guards.limits import MAX_READERS, MAX_READERS_OF_ONE
from engine_router.router import Router
from engine_router.server.ordinary_connection import STALLS, Stalls
from engine_router.web.connection import peer_of, scope_of, wire_headers

# Seconds for which a reader may leave unread what was sent to it.
STALL_S: Final = 30.0


class StreamReader:
    """The client that reads a stream. Made within the request that opens the stream, and gone with it.

    Raises:
        TooManyReaders: too many streams are open already.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._method, self._path, self._headers = request.method, request.path, wire_headers(request)
        self._peer, self._rights = peer_of(request), _rights_of(scope_of(request).key)
        self._enter(f"{self._peer} {scope_of(request).key_name}")
        held = (request.scope.get("extensions") or {}).get(STALLS, {}).get("stalls")
        if isinstance(held, Stalls):
            held.limit_s = STALL_S

    def _enter(self, name: str) -> None:
        readers = self._router.hub.readers
        if readers.total() >= MAX_READERS or readers[name] >= MAX_READERS_OF_ONE:
            raise TooManyReaders(
                f"{readers[name]} streams of events and logs are open to this client already, and "
                f"{readers.total()} in all; close some",
                retry_after_s=STALL_S,
            )
        readers[name] += 1

        def leave() -> None:
            readers[name] -= 1
            if not readers[name]:
                del readers[name]

        scope_of(request).on_leave(leave)

    @property
    def is_over(self) -> bool:
        """Whether the stream ends: the router has gone down, or does not know the client's key any more, or not for this."""
        if self._router.read_model.is_over:
            return True
        try:
            access = self._router.snapshot.access
            key = access.check_key(self._method, self._path, self._headers, self._peer)
        except (Unauthorized, Forbidden):
            return True
        return _rights_of(key) != self._rights


def _rights_of(key: KeyConfig | None) -> tuple[bool, Sequence[str] | None]:
    """Return what decides which streams a key may read, and what they show."""
    return (True, None) if key is None else (key.admin, key.models)
