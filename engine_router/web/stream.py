"""Server-sent events of what happens in the router, for pages and scripts that want to know at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import trio
from quart import Response, request

from engine_router.dialects.frames import named_event
from engine_router.events import Event, Subscription
from engine_router.router import Router
from engine_router.web.readers import Reader
from engine_router.web.status import status

# Events that are kept for a client that reads slowly. Were there more, it would be told of a past long gone.
BUFFER = 1000
# Seconds between two snapshots, at least; and between two looks whether there is anything to tell.
SNAPSHOT_INTERVAL_S = 1.0
LOOK_INTERVAL_S = 0.5
# Seconds of silence after which a comment keeps the connection open.
KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b": keep-alive\n\n"


def stream_response(body: AsyncIterator[bytes]) -> Response:
    """Answer with a stream of server-sent events."""
    # A HEAD request gets no body, which would never end.
    response = Response(b"" if request.method == "HEAD" else body, content_type="text/event-stream")
    response.timeout = None
    return response


async def next_events(events: Subscription) -> list[Event]:
    """Wait a moment for events and return what has come, which may be nothing. Cancellation loses none."""
    with trio.move_on_after(LOOK_INTERVAL_S):
        await events.ready()
    return events.take()


async def event_stream(router: Router, reader: Reader) -> AsyncIterator[bytes]:
    """Yield the body of `GET /admin/events`.

    First comes a `status`; then each event under its name, and another `status` when something has changed,
    at most once a second. A client that reads too slowly loses the oldest events, and is told in `lost` how
    many. It ends when the router has gone down, or the reader's key is none any more. It holds nothing but its subscription, which ends with it.
    """
    events = router.hub.subscribe(BUFFER)
    told_lost = 0
    seen = _picture(router)
    yield _snapshot(router)
    spoke_at = snapshot_at = trio.current_time()
    while not reader.is_over:
        pieces = [named_event(event.name, event.as_dict()) for event in await next_events(events)]
        if events.lost > told_lost:
            pieces.insert(0, named_event("lost", {"event": "lost", "count": events.lost - told_lost}))
            told_lost = events.lost
        now = trio.current_time()
        if now - snapshot_at >= SNAPSHOT_INTERVAL_S and (picture := _picture(router)) != seen:
            seen, snapshot_at = picture, now
            pieces.append(_snapshot(router))
        if not pieces and now - spoke_at >= KEEP_ALIVE_S:
            pieces.append(KEEP_ALIVE)
        if pieces:
            spoke_at = now
            yield b"".join(pieces)


def _snapshot(router: Router) -> bytes:
    return named_event("status", {"event": "status", **status(router)})


def _picture(router: Router) -> Any:
    """Return what is there, without what changes by itself all the time: ages and waits."""
    pools = [
        (
            [(r.resident, r.phase, len(r.leases), r.pinned, r.keep_alive_s) for r in pool.residents],
            pool.waiting,
            pool.settling,
            [(swap.source, swap.target, swap.phase) for swap in pool.swaps],
            {resident: failure.count for resident, failure in pool.failures.items()},
        )
        for pool in router.read_model.pools().values()
    ]
    return pools, [target.model for target in router.registry.targets()]


async def updates(
    router: Router,
    reader: Reader,
    picture: Callable[[], Mapping[str, object]],
    first: bytes,
    changed: Callable[[str], bytes],
    alive: Callable[[], bytes],
    alive_s: float,
) -> AsyncIterator[bytes]:
    """Yield the body of a stream that tells of whatever has changed, one thing at a time.

    Args:
        picture: tells what there is now, by name.
        first: what comes first.
        changed: renders the news of one name.
        alive: renders a sign of life, after `alive_s` seconds of silence.
    """
    events = router.hub.subscribe(BUFFER)
    before = dict(picture())
    yield first
    spoke_at = trio.current_time()
    while not reader.is_over:
        await next_events(events)
        now = dict(picture())
        pieces = [changed(name) for name, value in now.items() if before.get(name) != value]
        before = now
        if not pieces and trio.current_time() - spoke_at >= alive_s:
            pieces.append(alive())
        if pieces:
            spoke_at = trio.current_time()
            yield b"".join(pieces)
