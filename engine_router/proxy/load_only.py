"""A request that only loads or unloads a model. It has what is needed of a `ProxyExchange`, and asks no engine anything."""

from __future__ import annotations

import math

import trio
from attrs import define

from engine_router.config import Priority
from engine_router.dialects.ollama.load_only import CONTENT_TYPE
from engine_router.engines.base import ResidentId
from engine_router.errors import EngineRefused
from engine_router.residency.lease import Lease
from engine_router.residency.supervisor import Supervisor
from engine_router.upstream.http1 import ResponseHead


@define(eq=False)
class LoadOnly:
    """One such request, and its answer once the model is there.

    A model is unloaded as soon as nobody uses it any more: that is not waited for.

    Attributes:
        resident: what is loaded or unloaded.
        lease: as in `ProxyExchange`; None for an unload.
    """

    _supervisor: Supervisor
    resident: ResidentId
    _answer: bytes
    _unloads: bool
    lease: Lease | None = None
    queue_wait_s: float = math.nan
    first_byte_s: float = math.nan
    has_length: bool = True
    has_chunk: bool = True

    def enter(
        self, *, priority: Priority = "normal", keep_alive_s: float | None = None, client: str = ""
    ) -> None:
        """Take a place in the queue, or have the model unloaded."""
        if self._unloads:
            self._supervisor.keep_alive(self.resident, 0)
        else:
            self.lease = self._supervisor.request(
                self.resident, priority=priority, keep_alive_s=keep_alive_s, client=client
            )

    def close(self) -> None:
        """Give everything back. Never waits; may be called again."""
        if self.lease is not None:
            self.lease.release()

    async def head(self, until: float = math.inf) -> ResponseHead | None:
        """Wait until the model is there; None if it is not by `until` (the clock of trio).

        Raises:
            RouterError: it cannot be loaded.
        """
        if self.lease is not None:
            with trio.move_on_at(until) as scope:
                await self.lease.granted()
            if scope.cancelled_caught:
                return None
            self.queue_wait_s = self.first_byte_s = self.lease.queue_wait_s
        length = b"%d" % len(self._answer)
        return ResponseHead(200, [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", length)])

    async def chunk(self) -> bytes:
        """Return the answer; then nothing, when everything has been given back."""
        answer, self._answer = self._answer, b""
        if not answer:
            self.close()
        return answer

    async def chunk_by(self, until: float) -> bytes | None:  # noqa: ARG002 - it never waits
        """Return what `chunk` returns."""
        return await self.chunk()

    async def refusal(self, status: int) -> EngineRefused:
        """Return the error that an answer of this status is; there is none."""
        raise RuntimeError(f"nobody answered {status}")
