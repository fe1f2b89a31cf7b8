"""The course of a request: how it goes to its engine, and what its answer passes through on the way back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from attrs import frozen

from engine_router.dialects.base import Dialect, Translation
from engine_router.dialects.json_body import Octets
from engine_router.engines.base import ResidentId
from engine_router.upstream.http1 import Arriving, Headers, UpstreamRequest


class Filter(Protocol):
    """Changes an answer that stays in its dialect."""

    def begin(self, status: int, content_type: str, content_encoding: str = "") -> bool:
        """Take in the head of the answer; tell whether its body may change. Nothing is fed where it does not."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take in bytes of the answer, split anywhere; return what goes on."""
        ...

    def end(self) -> bytes:
        """Take in the end of the answer; return what was held back."""
        ...


@frozen(kw_only=True)
class Outgoing:
    """A request as it will be sent, once it is known where the resident answers."""

    engine: str
    resident: ResidentId
    method: str
    target: str
    headers: Headers
    body: Octets | Arriving
    connect_timeout_s: float

    def to(self, base_url: str) -> UpstreamRequest:
        """Address the request."""
        return UpstreamRequest(
            engine=self.engine,
            base_url=base_url,
            method=self.method,
            target=self.target,
            headers=self.headers,
            body=self.body,
            connect_timeout_s=self.connect_timeout_s,
        )


@frozen(kw_only=True)
class ForwardPlan:
    """How a request goes to its engine, and its answer back.

    Attributes:
        translation: between the client's dialect and the engine's, or from a stream to one piece; None where the answer
            goes on as it comes.
        dialect: the client's, where the engine speaks it too: its errors of another shape are told in it, and those of
            this one go on as they came. None where it speaks another, or nobody has to understand it.
        filters: what the answer passes through, in this order, in the client's dialect.
    """

    outgoing: Outgoing
    translation: Translation | None = None
    dialect: Dialect | None = None
    filters: Sequence[Filter] = ()


Choose = Callable[[str], Awaitable[ForwardPlan]]
"""Returns the course to an engine that answers at an address, where it takes that address to know it."""
