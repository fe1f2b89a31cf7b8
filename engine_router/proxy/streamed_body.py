"""Large bodies that are relayed while they are still coming, once their model is known.

What has come is kept until it is sent, and not longer. Nothing here makes the client wait: a connection that
nobody reads from does not tell that its client has left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable

from attrs import define, field, frozen

from engine_router.dialects.scanning import Scanner
from engine_router.errors import BodyTooLarge
from engine_router.guards.limits import LARGE_BYTES
from engine_router.proxy.held_bodies import HeldShare

NextPiece = Callable[[], Awaitable[bytes | bytearray]]
"""Returns the next piece of a body; empty at its proper end."""


@define(eq=False, repr=False)
class Upload:
    """A body that is still coming.

    Attributes:
        length: in bytes, where the client says it before; None where it comes in chunks.
    """

    length: int | None
    _next_piece: NextPiece
    _max_bytes: int
    _gathered: deque[bytes | bytearray] = field(factory=deque)
    _received: int = 0
    _ended: bool = False
    _scanner: Scanner | None = None
    _held: HeldShare | None = None

    @property
    def streams(self) -> bool:
        """True if the client has asked for a stream, as far as the body has come."""
        return self._scanner is not None and self._scanner.streams

    @property
    def is_large(self) -> bool:
        """True if it is worth relaying as it comes."""
        return max(self.length or 0, self._received) > LARGE_BYTES

    def hold(self, share: HeldShare) -> None:
        """Count what is kept of the body from now on."""
        self._held = share

    async def find_model(self, scanner: Scanner) -> str | None:
        """Read until the model is known, and return it; None where the whole body had to be read.

        Raises:
            RouterError: the body broke off, is too large, or cannot be meant.

        Cancellation loses nothing that has come.
        """
        while not self.is_large:
            if not await self._gather():
                return None
        for piece in self._gathered:
            scanner.feed(piece)
        self._scanner = scanner
        while scanner.model is None:
            if not await self._gather():
                return None
        return scanner.model

    async def whole(self) -> bytearray:
        """Read to the end, and return the body from its beginning.

        Raises:
            RouterError: as for `find_model`.
        """
        self._scanner = None
        while await self._gather():
            pass
        body = bytearray()
        while self._gathered:
            body += self._gathered.popleft()
        return body

    async def pieces(self) -> AsyncGenerator[bytes | bytearray, None]:
        """Yield the body from its beginning, each piece once it has come. To be used once.

        Raises:
            RouterError: as for `find_model`.
        """
        while self._gathered:
            piece = self._gathered.popleft()
            if self._held is not None:
                self._held.grow(-len(piece))
            yield piece
        while data := await self._next():
            yield data

    async def _gather(self) -> bool:
        """Read another piece and keep it. Returns whether there may be more."""
        if data := await self._next():
            if self._held is not None:
                self._held.grow(len(data))
            self._gathered.append(data)
        return bool(data)

    async def _next(self) -> bytes | bytearray:
        if self._ended:
            return b""
        data = await self._next_piece()
        self._ended = not data
        self._received += len(data)
        if self._received > self._max_bytes:
            raise BodyTooLarge(self._max_bytes)
        if self._scanner is not None:
            self._scanner.feed(data)
        return data


@frozen(eq=False, repr=False)
class StreamedRequest:
    """A request that is relayed while it is still coming, in place of a `Routed`.

    Attributes:
        model: the model that the client named.
    """

    model: str
    body: Upload

    @property
    def streams(self) -> bool:
        """True if the client has asked for a stream, as far as the body has come."""
        return self.body.streams

    def renamed(self, model: str) -> Upload:
        """Return the body, in which nothing can be changed any more."""
        if model != self.model:
            raise ValueError(f"{self.model} cannot become {model} in a body that passes")
        return self.body
