"""The capture of a proxied request: what its client sends, and what it gets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from attrs import define

from engine_router.dialects.routed import Routed
from engine_router.guards.foreign_text import printable
from engine_router.guards.masking import masked_text
from engine_router.in_flight import CLIENT_LEFT, RequestScope
from engine_router.proxy.request_body import IncomingRequest
from engine_router.proxy.response_body import Sink
from engine_router.proxy.streamed_body import StreamedRequest
from engine_router.telemetry.captures import Capture, Captures
from engine_router.upstream.http1 import ResponseHead

_RELAYED = "a large body is relayed as it comes, and is not kept"


def begin_capture(
    captures: Captures, incoming: IncomingRequest, routed: Routed | StreamedRequest, scope: RequestScope
) -> Capture:
    """Keep a request whose model is known, and follow it to its end."""
    capture = captures.begin(
        scope.id,
        model=scope.model or routed.model,
        engine=scope.engine or "",
        endpoint=scope.path,
        method=incoming.method,
        query=printable(masked_text(incoming.query.decode("latin-1"))),
        key=scope.key_name,
        client=scope.client or None,
        headers=incoming.headers,
    )
    if isinstance(routed, Routed):
        capture.request.add(routed.body)
    else:
        capture.body_note = _RELAYED
    scope.on_leave(lambda: capture.end(scope.status or CLIENT_LEFT, scope.error))
    return capture


@define(eq=False, repr=False)
class CapturingSink:
    """A client's connection that keeps what goes into it."""

    _sink: Sink
    _capture: Capture

    def put(self, data: bytes, chunk: bytes = b"") -> bool:
        """Send a piece; see `Sink`."""
        self._capture.answer.add(data)
        return self._sink.put(data, chunk)

    async def flush(self) -> None:
        """Send what is left; see `Sink`."""
        await self._sink.flush()


def captured_body(
    capture: Capture, head: ResponseHead, body: bytes | AsyncGenerator[bytes, None]
) -> bytes | AsyncGenerator[bytes, None]:
    """Return the body of an answer, which is kept as it goes out."""
    capture.begin_answer(head.status, head.headers)
    if isinstance(body, bytes):
        capture.answer.add(body)
        return body
    return _pieces(capture, body)


async def _pieces(capture: Capture, body: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(body):
        async for data in body:
            capture.answer.add(data)
            yield data
