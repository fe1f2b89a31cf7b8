"""Counts of a prompt's tokens, for clients that ask before they send it."""

from __future__ import annotations

from typing import Final

from engine_router.dialects.routed import Routed
from engine_router.models.target import Target
from engine_router.proxy.request_body import off_loop
from engine_router.proxy.snapshot import Snapshot
from engine_router.residency.read_model import ReadModel
from engine_router.residency.resident_state import Phase

COUNT_TOKENS: Final = "/v1/messages/count_tokens"


async def counted_tokens(
    read_model: ReadModel, snapshot: Snapshot, routed: Routed, target: Target
) -> bytes | None:
    """Return an answer with an estimate; None where the engine runs and counts itself: nothing is loaded for a mere count.

    Raises:
        BadRequest: the request cannot be understood.
    """
    status = read_model.resident(target.resident)
    base_url = status.base_url if status.phase is Phase.READY else None
    if base_url and await snapshot.endpoint_support.serves(target.engine, base_url, COUNT_TOKENS):
        return None
    from engine_router.dialects.anthropic.tokens import count_tokens_body  # noqa: PLC0415 - few need it

    return await off_loop(len(routed.body), lambda: count_tokens_body(routed.data()))
