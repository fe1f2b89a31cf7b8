"""Events: one source, handed to everybody, waiting for nobody."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator

import trio
import trio.testing
from trio.testing import MockClock

from engine_router.events import Event, EventHub, RequestEnded, RouterNotice, SwapEnded


def notice(number: int) -> RouterNotice:
    return RouterNotice(at=float(number), severity="info", message=str(number))


def request() -> RequestEnded:
    return RequestEnded(at=0.0, model="m", engine="e", path="/", status=200, duration_s=1.0)


def test_an_event_knows_its_name_and_is_plain_data() -> None:
    event = SwapEnded(
        at=1.0,
        pool="p",
        source=None,
        target="b",
        cause="c",
        result="ok",
        duration_s=2.0,
        phases={"stop": 1.0},
    )
    assert event.name == "swap_ended"
    data = json.loads(json.dumps(event.as_dict()))
    assert data["event"] == "swap_ended"
    assert data["phases"] == {"stop": 1.0}


def test_listeners_hear_at_once_and_in_order() -> None:
    hub, heard = EventHub(), list[tuple[str, Event]]()
    hub.listen(lambda event: heard.append(("first", event)))
    hub.listen(lambda event: heard.append(("second", event)))
    hub.publish(notice(1))
    assert [(who, event.at) for who, event in heard] == [("first", 1.0), ("second", 1.0)]


def test_recent_events_are_kept_without_requests() -> None:
    hub = EventHub(recent=2)
    for number in range(3):
        hub.publish(notice(number))
        hub.publish(request())
    assert hub.recent == (notice(1), notice(2))


async def test_a_subscriber_gets_everything_since_it_subscribed() -> None:
    hub = EventHub()
    hub.publish(notice(0))
    events = hub.subscribe()
    hub.publish(notice(1))
    hub.publish(request())
    assert await following(events) == notice(1)
    assert await following(events) == request()


async def test_a_subscriber_waits_for_the_next_event(autojump_clock: MockClock) -> None:
    hub, got = EventHub(), list[Event]()

    async def follow() -> None:
        async for event in hub.subscribe():
            got.append(event)
            if len(got) == 3:
                return

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for number in range(3):
                await trio.sleep(1)
                hub.publish(notice(number))
                await trio.testing.wait_all_tasks_blocked()
                assert len(got) == number + 1


async def test_a_slow_subscriber_loses_the_oldest_and_holds_up_nobody() -> None:
    hub = EventHub()
    slow, fast = hub.subscribe(buffer=2), hub.subscribe()
    for number in range(5):
        hub.publish(notice(number))
    assert [(await following(slow)).at for _ in range(2)] == [3.0, 4.0]
    assert [(await following(fast)).at for _ in range(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]


async def test_leaving_the_loop_ends_the_subscription() -> None:
    hub = EventHub()

    async def follow() -> None:
        events = hub.subscribe()
        hub.publish(notice(1))
        async for _ in events:
            break

    await follow()
    gc.collect()
    assert not any(hub._subscriptions.values())


async def test_a_cancelled_wait_loses_no_event(autojump_clock: MockClock) -> None:
    hub = EventHub()
    events = hub.subscribe()
    with trio.fail_after(10):
        with trio.move_on_after(1) as scope:
            await following(events)
        assert scope.cancelled_caught
        hub.publish(notice(1))
        with trio.CancelScope() as scope:
            scope.cancel()
            await following(events)
        assert await following(events) == notice(1)


async def following(events: AsyncIterator[Event]) -> Event:
    """Return the next event, under a deadline."""
    with trio.fail_after(100):
        return await anext(events)
