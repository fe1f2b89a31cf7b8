"""Hops: the routers that a request has passed through, told in a header, so that none goes round in a circle."""

from __future__ import annotations

import re
import secrets
from typing import Final

from engine_router.errors import LoopDetected
from engine_router.upstream.http1 import Headers

HOPS_HEADER: Final = b"x-engine-router-hops"
"""The header with the ids of the routers that a request has passed through, the first one first."""

MOST_HOPS: Final = 8
"""The most routers that a request may have passed through."""

_ID_BYTES: Final = 8
_LINE: Final = re.compile(rb"[0-9a-f]{1,32}( ?, ?[0-9a-f]{1,32})*")
_LONGEST: Final = MOST_HOPS * 40


def new_instance_id() -> str:
    """Return an id for a running router, which no other one has."""
    return secrets.token_hex(_ID_BYTES)


def hops_in(headers: Headers, instance_id: str) -> tuple[str, ...]:
    """Return the ids of the routers that a request has passed through.

    Args:
        instance_id: the id of the router that got the request.

    Raises:
        LoopDetected: it has been here before, or has passed through too many; or its header cannot be read, so that
            neither can be told.
    """
    hops: list[str] = []
    for name, value in headers:
        if name != HOPS_HEADER or not value:
            continue
        if len(value) > _LONGEST or not _LINE.fullmatch(value):
            raise LoopDetected("the list of routers that the request has passed through cannot be read")
        hops += value.decode("ascii").replace(" ", "").split(",")
    if instance_id in hops:
        raise LoopDetected(
            "the request has passed through this router before: routers are each other's peers, and none of them has "
            "the model itself; take one of the [peers] out, or name the model on one side only"
        )
    if len(hops) >= MOST_HOPS:
        raise LoopDetected(
            f"the request has passed through {len(hops)} routers, and no more may follow; peers lead in a circle, or in "
            "too long a chain"
        )
    return tuple(hops)


def hops_line(headers: Headers, instance_id: str) -> bytes:
    """Return the value of the header for the next router: what came, and this router's own id."""
    came = [value for name, value in headers if name == HOPS_HEADER and value]
    return b", ".join((*came, instance_id.encode("ascii")))
