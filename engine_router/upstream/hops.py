"""Hops: the routers that a request has passed through, told in a header, so that none goes round in a circle."""

from __future__ import annotations

import re
import secrets
from typing import Final

from engine_router.errors import LoopDetected
from engine_router.upstream.http1 import Headers

HOPS_HEADER: Final = b"x-engine-router-hops"
"""The header with the ids of the routers that a request has passed through, by which a peer knows another router."""

VIA_HEADER: Final = b"x-engine-router-via"
"""The same for other remotes: any of them may be a router, too. It ends loops, and changes nothing else."""

MOST_HOPS: Final = 8
"""The most routers that a request may have passed through."""

_ID_BYTES: Final = 8
HOP_HEADERS: Final = frozenset((HOPS_HEADER, VIA_HEADER))
"""Both of them."""

_LINE: Final = re.compile(rb"[0-9a-f]{1,32}( ?, ?[0-9a-f]{1,32})*")
_LONGEST: Final = MOST_HOPS * 40


def new_instance_id() -> str:
    """Return an id for a running router, which no other one has."""
    return secrets.token_hex(_ID_BYTES)


def hops_in(headers: Headers, instance_id: str) -> tuple[str, ...]:
    """Return the ids of the routers that a request has passed through on its way among peers.

    Args:
        instance_id: the id of the router that got the request.

    Raises:
        LoopDetected: it has been here before, or has passed through too many; or its header cannot be read, so that
            neither can be told.
    """
    hops: list[str] = []
    others: list[str] = []
    for name, value in headers:
        if name not in HOP_HEADERS or not value:
            continue
        if len(value) > _LONGEST or not _LINE.fullmatch(value):
            raise LoopDetected("the list of routers that the request has passed through cannot be read")
        found = hops if name == HOPS_HEADER else others
        found += value.decode("ascii").replace(" ", "").split(",")
    if instance_id in hops or instance_id in others:
        raise LoopDetected(
            "the request has passed through this router before: routers are each other's peers or remotes, and none of "
            "them has the model itself; take one of them out of [peers] or [engines], or name the model on one side only"
        )
    if (count := len(hops) + len(others)) >= MOST_HOPS:
        raise LoopDetected(
            f"the request has passed through {count} routers, and no more may follow; peers or remotes lead in a circle, "
            "or in too long a chain"
        )
    return tuple(hops)


def hop_header(headers: Headers, instance_id: str, *, to_peer: bool) -> tuple[bytes, bytes]:
    """Return the header for the next server: the ids that came, and this router's own.

    Args:
        headers: of the request as it came.
        to_peer: the next server is a peer. Another remote gets the header of peers only for what came from one.
    """
    came = [(name, value) for name, value in headers if name in HOP_HEADERS and value]
    is_among_peers = to_peer or any(name == HOPS_HEADER for name, _ in came)
    line = b", ".join((*(value for _, value in came), instance_id.encode("ascii")))
    return (HOPS_HEADER if is_among_peers else VIA_HEADER), line
