"""A request that only loads a model. It has what is needed of a `ProxyExchange`, and asks no engine anything."""

from __future__ import annotations

import math

import trio
from attrs import define, field

from engine_router.dialects.ollama.load_only import CONTENT_TYPE, keep_alive_s, load_answer
from engine_router.dialects.routed import Routed
from engine_router.errors import EngineRefused
from engine_router.in_flight import LeaseHolder, RequestScope
from engine_router.models.target import Target
from engine_router.residency.supervisor import Supervisor
from engine_router.upstream.body_watch import TakePiece
from engine_router.upstream.http1 import ResponseHead


@define(eq=False, repr=False)
class LoadOnly(LeaseHolder):
    """A request that only loads a model, and its answer once the model is there."""

    _answer: bytes = field(kw_only=True)
    has_length: bool = True
    has_chunk: bool = True

    async def head(self, until: float = math.inf) -> ResponseHead | None:
        """Wait until the model is there; None if it is not by `until` (the clock of trio).

        Raises:
            RouterError: it cannot be loaded.
        """
        with trio.move_on_at(until) as scope:
            await self.granted()
        if scope.cancelled_caught:
            return None
        self.first_byte_s = self.queue_wait_s
        length = b"%d" % len(self._answer)
        return ResponseHead(200, [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", length)])

    def take_whole(self) -> bytes | None:
        """Return the answer, and give everything back."""
        self.close()
        return self._answer

    async def chunk(self) -> bytes:
        """Return the answer; then nothing, when everything has been given back."""
        answer, self._answer = self._answer, b""
        if not answer:
            self.close()
        return answer

    async def chunk_by(self, until: float) -> bytes | None:  # noqa: ARG002 - it never waits
        """Return what `chunk` returns."""
        return await self.chunk()

    async def pass_on(self, take: TakePiece) -> None:
        """Hand over nothing: the answer is one piece."""

    async def refusal(self, status: int) -> EngineRefused:
        """Return the error that an answer of this status is; there is none."""
        raise RuntimeError(f"nobody answered {status}")


def load_only(
    supervisor: Supervisor, path: str, routed: Routed, target: Target, scope: RequestScope
) -> LoadOnly | None:
    """Return a request that only loads its model; None where it unloads it, as soon as nobody uses it: not waited for.

    Raises:
        AdminOnly: whoever sent it may not unload models.
    """
    if keep_alive_s(routed.keep_alive) == 0:
        scope.need_admin("unload models")
        supervisor.keep_alive(target.resident, 0)
        return None
    answer = load_answer(path, routed.model, unloaded=False)
    return LoadOnly(supervisor, target.resident, answer=answer)
