"""Additions of the router's own to an answer: its footer, and the frames that keep a waiting client."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import trio

from engine_router.dialects.routed import Routed
from engine_router.errors import BadRequest
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.streamed_body import StreamedRequest

if TYPE_CHECKING:
    from engine_router.dialects.footer import Footer
    from engine_router.dialects.keep_alive import KeepAliveFrames

# Waiting for less than this, in seconds, is no load of a model.
WARM_S = 0.001


def footer_of(path: str, routed: Routed, exchange: Callable[[], ProxyExchange]) -> Footer | None:
    """Return the footer of a request's answer, with the times of its exchange; None where it gets none."""
    from engine_router.dialects.footer import footer_for  # noqa: PLC0415 - few need it

    def load_s() -> float:
        waited = exchange().queue_wait_s
        return waited if waited >= WARM_S else math.nan

    return footer_for(
        path,
        _request_of(routed),
        sent_at=lambda: exchange().sent_at,
        load_s=load_s,
        clock=trio.current_time,
    )


def keep_alive_frames(path: str, routed: Routed | StreamedRequest) -> KeepAliveFrames:
    """Return the keep-alive frames for the answer to a request."""
    from engine_router.dialects.keep_alive import keep_alive_for  # noqa: PLC0415 - who need not wait need it not

    return keep_alive_for(path, routed.model, request=lambda: _request_of(routed))


def _request_of(routed: Routed | StreamedRequest) -> Mapping[str, Any]:
    """Return the whole request; empty where it is not to be had."""
    if isinstance(routed, Routed):
        with contextlib.suppress(BadRequest):
            return routed.data()
    return {}
