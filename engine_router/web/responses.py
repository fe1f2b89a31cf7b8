"""The answers of the app: JSON, streams of events, and engines' answers that are passed on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from quart import Response, request

from engine_router.dialects.json_body import to_json
from engine_router.errors import RouterError
from engine_router.proxy.response_body import BrokenAnswer
from engine_router.upstream.http1 import Headers, ResponseHead


def json_response(data: object, status: int = 200) -> Response:
    """Answer with JSON."""
    return Response(to_json(data), status=status, content_type="application/json")


def stream_response(body: AsyncIterator[bytes]) -> Response:
    """Answer with a stream of server-sent events."""
    # A HEAD request gets no body, which would never end.
    response = Response(b"" if request.method == "HEAD" else body, content_type="text/event-stream")
    response.timeout = None
    return response


def as_response(head: ResponseHead, body: bytes | AsyncIterator[bytes]) -> Response:
    """Make an answer of an engine's head and a body, whole or in pieces."""
    response = Response(body, status=head.status)
    response.headers.clear()
    response.timeout = None
    return with_headers(response, head.headers)


class Chunked(Protocol):
    """An engine's answer that comes in pieces."""

    async def chunk(self) -> bytes:
        """Return the next bytes of the answer; empty at its end."""
        ...


async def pieces_of(answer: Chunked) -> AsyncIterator[bytes]:
    """Yield the pieces of an answer that is passed on as it is.

    Raises:
        BrokenAnswer: it broke off.
    """
    try:
        while data := await answer.chunk():
            yield data
    except RouterError as error:
        raise BrokenAnswer(error) from error


def with_headers(response: Response, headers: Headers) -> Response:
    """Add headers to an answer."""
    for name, value in headers:
        response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
    return response
