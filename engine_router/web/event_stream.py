"""The streams of server-sent events, for pages and scripts that follow the router."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import trio

from engine_router.dialects.frames import named_event
from engine_router.events import (
    Event,
    MemorySettled,
    RequestEnded,
    ResidentDied,
    ResidentReady,
    RouterNotice,
    Subscription,
    SwapBegan,
    SwapEnded,
    SwapPhase,
    TenantAsked,
)
from engine_router.router import Router
from engine_router.web.page_state import PASSING, PageState
from engine_router.web.recent_use import RecentUse
from engine_router.web.state_publisher import StatePublisher
from engine_router.web.status import status
from engine_router.web.stream_reader import StreamReader

# Events that are kept for a client that reads slowly. Were there more, it would be told of a past long gone.
BUFFER = 1000
# Seconds between two snapshots, at least; and between two looks whether there is anything to tell.
SNAPSHOT_INTERVAL_S = 1.0
LOOK_INTERVAL_S = 0.5
# Seconds of silence after which a comment keeps the connection open.
KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b": keep-alive\n\n"


# What happens seldom, and is told at once; all else is told at the next look.
_TOLD_AT_ONCE: Final = (
    SwapBegan,
    SwapPhase,
    SwapEnded,
    ResidentReady,
    ResidentDied,
    MemorySettled,
    RouterNotice,
    TenantAsked,
)


def page_publisher(router: Router) -> StatePublisher:
    """Return the publisher of the page's state."""
    recent_use = RecentUse()
    router.hub.listen(recent_use.observe, RequestEnded)
    return StatePublisher(
        PageState(router, recent_use).render,
        router.hub,
        _TOLD_AT_ONCE,
        series=f"{int(router.started_at * 1000):x}",
        passing=PASSING,
        # Streams end with the router, and with a configuration that does not know their key any more.
        interruption=lambda: (router.read_model.is_over, id(router.snapshot)),
    )


async def next_events(events: Subscription) -> list[Event]:
    """Wait a moment for events and return what has come, which may be nothing. Cancellation loses none."""
    with trio.move_on_after(LOOK_INTERVAL_S):
        await events.ready()
    return events.take()


async def event_stream(router: Router, reader: StreamReader) -> AsyncIterator[bytes]:
    """Yield the body of `GET /admin/events`.

    First comes a `status`; then each event under its name, and another `status` when something has changed,
    at most once a second. A client that reads too slowly loses the oldest events; `lost` says how many.
    The stream ends when the router has gone down, or the reader's key is not valid any more. It holds nothing
    but its subscription, which ends with it.
    """
    events = router.hub.subscribe(buffer=BUFFER)
    reported_lost = 0
    sent_state = _state(router)
    yield _snapshot(router)
    sent_at = snapshot_at = trio.current_time()
    while not reader.is_over:
        pieces = [named_event(event.name, event.as_dict()) for event in await next_events(events)]
        if events.lost > reported_lost:
            pieces.insert(0, named_event("lost", {"event": "lost", "count": events.lost - reported_lost}))
            reported_lost = events.lost
        now = trio.current_time()
        if now - snapshot_at >= SNAPSHOT_INTERVAL_S and (states := _state(router)) != sent_state:
            sent_state, snapshot_at = states, now
            pieces.append(_snapshot(router))
        if not pieces and now - sent_at >= KEEP_ALIVE_S:
            pieces.append(KEEP_ALIVE)
        if pieces:
            sent_at = now
            yield b"".join(pieces)


async def state_stream(
    publisher: StatePublisher, reader: StreamReader, last_event_id: str
) -> AsyncIterator[bytes]:
    """Yield the body of `GET /admin/events?patches=1`: a `snapshot`, then a `patch` for each change.

    It ends as `event_stream` does, and holds nothing at all while it waits.
    """
    number, missed = await publisher.join(last_event_id)
    yield missed or KEEP_ALIVE
    while not reader.is_over:
        with trio.move_on_after(KEEP_ALIVE_S):
            await publisher.advance(number)
        number, patches = publisher.since(number)
        yield patches or KEEP_ALIVE


def _snapshot(router: Router) -> bytes:
    return named_event("status", {"event": "status", **status(router)})


def _state(router: Router) -> Any:
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
    reader: StreamReader,
    states: Callable[[], Mapping[str, object]],
    first: bytes,
    changed: Callable[[str], bytes],
    alive: Callable[[], bytes],
    alive_s: float,
) -> AsyncIterator[bytes]:
    """Yield the body of a stream that tells of whatever has changed, one thing at a time.

    Args:
        states: returns the present states, by name.
        first: what comes first.
        changed: renders the change of one name.
        alive: renders a sign of life, after `alive_s` seconds of silence.
    """
    events = router.hub.subscribe(buffer=BUFFER)
    before = dict(states())
    yield first
    sent_at = trio.current_time()
    while not reader.is_over:
        await next_events(events)
        now = dict(states())
        pieces = [changed(name) for name, value in now.items() if before.get(name) != value]
        before = now
        if not pieces and trio.current_time() - sent_at >= alive_s:
            pieces.append(alive())
        if pieces:
            sent_at = trio.current_time()
            yield b"".join(pieces)
