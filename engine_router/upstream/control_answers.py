"""An engine's answer to a call of the router's own, read as a whole and within bounds.

What an engine sends here is kept, parsed and looked through, so a program that sends without end, or very much in
few bytes, would take the router's memory and its time. Time is bounded by the callers: a load may take minutes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from engine_router.guards.limits import CONTROL_ANSWER_BYTES, CONTROL_ANSWER_PARTS

if TYPE_CHECKING:
    import httpx

ASKED_PLAIN: Final = {"Accept-Encoding": "identity"}
"""The header of a call that asks for an answer without a content encoding."""

# Of gzip and zlib alike: Content-Encoding's `deflate` is zlib's format.
_EITHER_FORMAT = zlib.MAX_WBITS | 32
_PARTS = (b",", b"{", b"[")


class UnreadableAnswer(ValueError):
    """An answer that is not read, or no further: it is too large, or in an encoding that nobody asked for.

    Its text goes on where a sentence says that somebody answered something.
    """


async def read_answer(response: httpx.Response, limit_bytes: int = CONTROL_ANSWER_BYTES) -> bytes:
    """Read the body of an answer that was begun as a stream, without its content encoding.

    Raises:
        UnreadableAnswer: it has more than `limit_bytes`, or more parts than any answer needs.
        httpx.HTTPError: it broke off.

    Cancellation ends the reading; whoever began the stream closes it.
    """
    decoded = _decoder(response.headers.get("content-encoding", "identity"))
    body, received, fault = bytearray(), 0, ""
    # Cancelled rather than left when there is enough: httpx's generators end properly only from within.
    with trio.CancelScope() as scope:
        async for data in response.aiter_raw():
            if fault:
                continue
            received += len(data)
            try:
                body += decoded(data, limit_bytes + 1 - len(body))
            except zlib.error:
                fault = "with a body that is not encoded as it says"
            if max(received, len(body)) > limit_bytes:
                fault = f"with more than {limit_bytes / 1_000_000:.1f} MB"
            if fault:
                scope.cancel()
    if not fault and has_too_many_parts(body):
        fault = f"with JSON of more than {CONTROL_ANSWER_PARTS:,} parts"
    if fault:
        raise UnreadableAnswer(fault)
    return bytes(body)


def has_too_many_parts(body: bytes | bytearray) -> bool:
    """Tell whether JSON has more members and items than any answer needs: to parse them would take too long."""
    return sum(map(body.count, _PARTS)) > CONTROL_ANSWER_PARTS


def _decoder(encoding: str) -> Callable[[bytes, int], bytes]:
    """Return what decodes the pieces of a body in a content encoding, each to no more than so many bytes."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return lambda data, _limit_bytes: data
    if encoding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(_EITHER_FORMAT).decompress
    raise UnreadableAnswer(f"in the content encoding '{encoding[:40]}', which it was not asked for")


def json_or_none(body: bytes | str) -> Any:
    """Parse JSON; None for anything else."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
