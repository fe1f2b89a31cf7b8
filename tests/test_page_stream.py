"""The stream of the page's state: a snapshot, then patches that are made once for everybody who reads them."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from support.asgi import Conversation, ask, conversation
from support.served import RawClient, served
from test_control import CHAT, post, process, routing, streaming, waiting
from trio.testing import MockClock, wait_all_tasks_blocked

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.events import EventHub, RequestEnded, RouterNotice
from engine_router.web import event_stream, state_publisher
from engine_router.web.merge_patch import apply
from engine_router.web.state_publisher import StatePublisher

LIMIT_S = 200.0
PATH = "/admin/events"
QUERY = "patches=1"


@attrs.define
class Frame:
    """An event of the stream."""

    id: str
    name: str
    data: Any


def frames(body: bytes) -> list[Frame]:
    found: list[Frame] = []
    for piece in body.decode().split("\n\n"):
        if piece and not piece.startswith(":"):
            id_, name, data = piece.split("\n")
            values = id_.removeprefix("id: "), name.removeprefix("event: ")
            found.append(Frame(*values, json.loads(data.removeprefix("data: "))))
    return found


def state_of(body: bytes) -> Any:
    """Return what a reader knows by now."""
    state: object = None
    for frame in frames(body):
        state = frame.data if frame.name == "snapshot" else apply(state, frame.data)
    return state


# The publisher, under a virtual clock.


@attrs.define(eq=False)
class Source:
    """A state that is looked at."""

    state: dict[str, Any] = attrs.field(factory=lambda: {"count": 0, "still": "x"})
    looks: int = 0
    hub: EventHub = attrs.field(factory=EventHub)
    signal: int = 0

    async def render(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.looks += 1
        return dict(self.state)

    def publisher(self) -> StatePublisher:
        return StatePublisher(
            self.render, self.hub, (RouterNotice,), series="s", interruption=lambda: self.signal
        )

    def happen(self) -> None:
        self.state["count"] += 1
        self.hub.publish(RouterNotice(at=0.0, severity="info", message=""))


async def read(publisher: StatePublisher, got: list[tuple[float, bytes]], last_event_id: str = "") -> None:
    number, missed = await publisher.join(last_event_id)
    got.append((trio.current_time(), missed))
    while True:
        await publisher.advance(number)
        number, patches = publisher.since(number)
        got.append((trio.current_time(), patches))


async def test_at_most_one_patch_a_second_whatever_happens(autojump_clock: MockClock) -> None:
    source = Source()
    publisher, got = source.publisher(), list[tuple[float, bytes]]()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, publisher, got)
            await wait_all_tasks_blocked()
            for _ in range(10 * 500):
                source.happen()
                await trio.sleep(1 / 500)
            await trio.sleep(2)
            nursery.cancel_scope.cancel()
    times = [at for at, _ in got]
    assert 10 <= len(got) <= 13
    assert all(later - earlier > 0.999 for earlier, later in itertools.pairwise(times[1:]))
    assert state_of(b"".join(pieces for _, pieces in got)) == source.state == {"count": 5000, "still": "x"}


async def test_what_happens_after_a_silence_is_told_at_once(autojump_clock: MockClock) -> None:
    source = Source()
    publisher, got = source.publisher(), list[tuple[float, bytes]]()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, publisher, got)
            await trio.sleep(30.3)
            happened_at = trio.current_time()
            source.happen()
            await trio.sleep(0.01)
            assert [at for at, _ in got[1:]] == [happened_at]
            nursery.cancel_scope.cancel()


async def test_twenty_readers_cost_what_one_costs(autojump_clock: MockClock) -> None:
    source = Source()
    publisher, gots = source.publisher(), [list[tuple[float, bytes]]() for _ in range(20)]
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for got in gots:
                nursery.start_soon(read, publisher, got)
            await trio.sleep(10.5)
            assert source.looks <= 12
            source.happen()
            await trio.sleep(0.01)
            # All have it, and it was encoded once.
            assert len({id(publisher._ring[-1][1])}) == 1
            assert {got[-1][1] for got in gots} == {publisher._ring[-1][1]}
            nursery.cancel_scope.cancel()
        looks = source.looks
        source.happen()
        await trio.sleep(100)
        assert source.looks == looks  # nobody reads, so nobody looks


async def test_who_comes_while_others_wait_gets_a_snapshot_at_once(autojump_clock: MockClock) -> None:
    source = Source()
    publisher, gots = source.publisher(), [list[tuple[float, bytes]]() for _ in range(3)]
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for got in gots:
                nursery.start_soon(read, publisher, got)
                await trio.sleep(30.2)
            began_at = [got[0][0] for got in gots]
            nursery.cancel_scope.cancel()
    assert began_at == [pytest.approx(began_at[0] + number * 30.2) for number in range(3)]


async def test_when_the_one_who_looks_leaves_another_does(autojump_clock: MockClock) -> None:
    source = Source()
    publisher, got = source.publisher(), list[tuple[float, bytes]]()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()

            async def leave() -> None:
                with first:
                    await read(publisher, [])

            nursery.start_soon(leave)
            await wait_all_tasks_blocked()
            nursery.start_soon(read, publisher, got)
            await trio.sleep(5.2)
            first.cancel()
            await trio.sleep(0.5)
            source.happen()
            await trio.sleep(1)
            assert state_of(b"".join(pieces for _, pieces in got)) == source.state
            nursery.cancel_scope.cancel()


async def test_who_comes_back_is_told_what_it_missed(autojump_clock: MockClock) -> None:
    source = Source()
    publisher = source.publisher()
    with trio.fail_after(LIMIT_S):
        _, snapshot = await publisher.join()
        (begun,) = frames(snapshot)
        assert (begun.id, begun.name, begun.data) == ("s-0", "snapshot", source.state)
        for _ in range(3):
            source.happen()
            await trio.sleep(1)
            await publisher.join()
        _, missed = await publisher.join("s-1")
        assert [(frame.id, frame.name) for frame in frames(missed)] == [("s-2", "patch"), ("s-3", "patch")]
        assert frames(missed)[-1].data == {"count": 3}
        assert await publisher.join("s-3") == (3, b"")  # it missed nothing
        for stranger in ("s-4", "t-1", "s-", "s-x", "-1", "1", "s-1-1", f"s-{'9' * 50}", "s-\u0661"):
            _, answer = await publisher.join(stranger)
            (whole,) = frames(answer)
            assert (whole.id, whole.name, whole.data) == ("s-3", "snapshot", source.state)


async def test_what_is_kept_is_bounded_and_who_is_too_slow_gets_a_snapshot(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_publisher, "KEPT_PATCHES", 5)
    monkeypatch.setattr(state_publisher, "KEPT_BYTES", 1000)
    source = Source()
    publisher = source.publisher()
    with trio.fail_after(LIMIT_S):
        await publisher.join()
        for _ in range(20):
            source.happen()
            await trio.sleep(1)
            await publisher.join()
        assert len(publisher._ring) == 5
        assert [frame.name for frame in frames(publisher.since(15)[1])] == ["patch"] * 5
        assert [frame.name for frame in frames(publisher.since(14)[1])] == ["snapshot"]
        source.state["still"] = "y" * 900
        await trio.sleep(1)
        await publisher.join()
        assert publisher._ring_bytes == sum(len(patch) for _, patch in publisher._ring) <= 1000
        source.state["still"] = "z" * 2000  # more than is ever kept
        await trio.sleep(1)
        number, _ = await publisher.join()
        assert (len(publisher._ring), publisher._ring_bytes) == (0, 0)
        assert state_of(publisher.since(number - 1)[1]) == source.state


async def test_an_interruption_wakes_all_who_wait(autojump_clock: MockClock) -> None:
    source = Source()
    publisher = source.publisher()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(publisher.advance, 0)
            await trio.sleep(3.5)
            source.signal += 1
            began = trio.current_time()
        assert trio.current_time() - began <= 2


# The router's state.


@asynccontextmanager
async def watching(
    router: Router, last_event_id: str = "", *, in_query: bool = False
) -> AsyncIterator[Conversation]:
    headers = {"last-event-id": last_event_id} if last_event_id and not in_query else {}
    query = f"{QUERY}&last_event_id={last_event_id}" if in_query else QUERY
    async with conversation(router.app, "GET", PATH, query=query, headers=headers) as talk:
        await talk.until(lambda: bool(talk.pieces))
        yield talk


async def until(talk: Conversation, condition: Any) -> Any:
    """Wait until the state that is known by a stream is so, and return it."""
    await talk.until(lambda: condition(state_of(talk.body)))
    return state_of(talk.body)


async def test_the_snapshot_has_pools_engines_and_models() -> None:
    budget = '[pools.room]\ngauge = "psutil"\nmode = "budget"\nbudget_gb = 3'
    async with (
        routing(budget, process("a"), process("b", models=("bee",), memory_gb=1, pool="room")) as router,
        watching(router) as talk,
    ):
        assert talk.headers["content-type"].startswith("text/event-stream")
        (frame,) = frames(talk.body)
        assert frame.name == "snapshot"
        state = frame.data
        assert state["version"]
        assert state["adopting"] is False
        assert state["started_at"] == pytest.approx(router.started_at, abs=0.01)
        assert set(state["pools"]) == {"default", "room"}
        room = state["pools"]["room"]
        assert (room["mode"], room["budget_bytes"]) == ("budget", 3_000_000_000)
        assert room["residents"] == room["queue"] == room["swaps"] == room["next"] == []
        memory = room["memory"]
        assert 0 < memory["free_bytes"] <= memory["total_bytes"]
        assert memory["foreign_bytes"] == memory["total_bytes"] - memory["free_bytes"]
        assert memory["asleep_bytes"] == 0
        assert "total_bytes" not in state["pools"]["default"]["memory"]  # it is not measured
        assert state["engines"]["b"]["type"] == "process"
        bee = state["models"]["bee"]
        assert (bee["engine"], bee["state"], bee["origin"], bee["aliases"]) == ("b", "off", "configured", [])
        assert bee["need_bytes"] == 1_000_000_000
        assert (state["in_flight"], state["waiting"]) == (0, 0)


async def test_routes_are_told_with_what_they_choose_now() -> None:
    route = '[routes.auto]\nprefer = ["a", "b"]\n'
    async with routing(process("a"), process("b"), route) as router, watching(router) as talk:
        told = state_of(talk.body)["routes"]["auto"]
        assert told == {"strategy": "resident", "models": ["a", "b"], "leads_to": "a"}
        await post(router, "/admin/swap", model="b")
        await until(talk, lambda state: state["routes"]["auto"]["leads_to"] == "b")


async def test_a_swap_its_phases_and_why_it_was_decided_on() -> None:
    async with routing(process("a"), process("b", "delay=0.3")) as router:
        for model in ("b", "a"):  # so that it is known how long each takes
            await post(router, "/admin/swap", model=model)
        async with watching(router) as talk, trio.open_nursery() as nursery:
            assert state_of(talk.body)["models"]["a"]["state"] == "ready"
            nursery.start_soon(lambda: post(router, "/admin/swap", model="b"))
            state = await until(
                talk,
                lambda state: (
                    "load_cost_s" in state["models"]["b"] and "unload_cost_s" in state["models"]["a"]
                ),
            )
            patches = [frame.data for frame in frames(talk.body)[1:]]
        (resident,) = state["pools"]["default"]["residents"]
        assert (resident["resident"], resident["phase"]) == ("b", "ready")
        assert resident["usual"]["start_s"] > 0
        assert resident["started_at"] > router.started_at
        assert state["models"]["a"]["state"] == "off"
        assert state["models"]["b"]["load_cost_s"] > 0
        assert state["models"]["a"]["unload_cost_s"] >= 0
        texts = [decision["text"] for decision in state["decisions"]]
        assert texts[-2].startswith("b is wanted: a stops, ")
        assert texts[-1].startswith("b starts: requested")
        assert all(set(patch) <= set(state) for patch in patches)
        status = (await ask(router.app, "GET", "/status")).json()
        assert [decision["text"] for decision in status["decisions"]] == texts


async def test_a_swap_under_way_has_phases_with_usual_times() -> None:
    async with routing(process("a"), process("b", "delay=0.3")) as router:
        for model in ("b", "a"):
            await post(router, "/admin/swap", model=model)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: post(router, "/admin/swap", model="b"))
            while not (swaps := router.read_model.pool("default").swaps) or swaps[0].phase != "start":
                await trio.sleep(0.001)
            async with watching(router) as talk:
                (swap,) = state_of(talk.body)["pools"]["default"]["swaps"]
        assert (swap["source"], swap["target"], swap["phase"]) == ("a", "b", "start")
        assert [phase["name"] for phase in swap["phases"]] == ["stop", "settle", "start"]
        *over, start = swap["phases"]
        assert all(phase["usual_s"] is not None and phase["took_s"] >= 0 for phase in over)
        assert start["usual_s"] >= 0.3
        assert start["took_s"] is None
        assert swap["began_at"] <= swap["phase_began_at"]


async def test_the_queue_tells_who_waits_and_why_and_times_do_not_run() -> None:
    async with (
        routing(process("a"), process("b")) as router,
        streaming(router, "a"),
        waiting(router, "b"),
        watching(router) as talk,
    ):
        state = state_of(talk.body)
        pool = state["pools"]["default"]
        (entry,) = pool["queue"]
        assert (entry["model"], entry["place"], entry["reason"]) == ("b", 1, "a, busy with 1 request")
        assert entry["id"].startswith("r")
        assert entry["arrived_at"] > router.started_at
        assert pool["queue_length"] == state["waiting"] == 1
        assert state["in_flight"] == 1
        await trio.sleep(2.5)
        assert len(frames(talk.body)) == 1  # it waits, and nothing happens


async def test_requests_are_counted_and_the_last_use_is_told() -> None:
    async with routing(process("a")) as router, watching(router) as talk:
        assert "last_use_at" not in state_of(talk.body)["models"]["a"]
        await ask(router.app, "POST", CHAT, body={"model": "a"})
        state = await until(talk, lambda state: state["requests_ended"] == 1)
        assert state["models"]["a"]["last_use_at"] > router.started_at


@pytest.mark.parametrize("in_query", [False, True])
async def test_a_reader_that_comes_back_goes_on(in_query: bool) -> None:
    async with routing(process("a")) as router:
        async with watching(router) as talk:
            first = frames(talk.body)[0]
        router.note("meanwhile")
        await trio.sleep(1.1)
        async with watching(router, first.id, in_query=in_query) as talk:
            (patch,) = frames(talk.body)
            assert patch.name == "patch"
            assert patch.data["notices"][-1]["message"] == "meanwhile"
            assert patch.data.keys() <= {"notices", "pools"}


async def test_a_reader_that_missed_nothing_gets_a_sign_of_life() -> None:
    async with routing(process("a")) as router:
        async with watching(router) as talk:
            first = frames(talk.body)[0]
        async with watching(router, first.id) as talk:
            assert talk.body == event_stream.KEEP_ALIVE


async def test_over_a_thousand_models_a_patch_has_only_what_changed() -> None:
    many = tuple(f"model-{number}" for number in range(1000))
    async with routing(process("a", models=many), process("b")) as router, watching(router) as talk:
        snapshot = len(talk.body)
        assert len(state_of(talk.body)["models"]) == 1001
        await post(router, "/admin/swap", model="b")
        await until(talk, lambda state: state["models"]["b"]["state"] == "ready")
        await trio.sleep(6)  # the facts of all are gathered again
        patches = frames(talk.body)[1:]
        assert {name for frame in patches for name in frame.data.get("models", ())} == {"b"}
        assert len(talk.body) - snapshot < 10_000


async def test_the_stream_ends_with_the_router_and_leaves_nothing() -> None:
    async with routing(process("a")) as router, watching(router) as talk:
        await router.close()
        await talk.over()
        assert talk.is_complete


async def test_a_page_that_never_reads_holds_up_nobody() -> None:
    async with routing(process("a")) as router, served(router) as url, AsyncExitStack() as stack:
        stalled = await stack.enter_async_context(RawClient.to(url))
        await stalled.request("GET", f"{PATH}?{QUERY}")
        async with watching(router) as talk:
            for number in range(3):
                router.note(f"note {number} {'x' * 5000}")
                await talk.until(lambda n=number: f"note {n} ".encode() in talk.body)  # type: ignore[misc]
        assert b"snapshot" in await stalled.until(b"event: snapshot")


async def test_five_hundred_events_a_second_are_one_patch_a_second() -> None:
    async with routing(process("a")) as router, watching(router) as talk:
        began = trio.current_time()
        for number in range(1500):
            router.hub.publish(
                RequestEnded(at=float(number), model="a", engine="a", path="/", status=200, duration_s=0.1)
            )
            await trio.sleep(0.002)
        state = await until(talk, lambda state: state["requests_ended"] == 1500)
        assert state["models"]["a"]["last_use_at"] == 1499.0
        assert len(frames(talk.body)) - 1 <= trio.current_time() - began + 2


async def test_the_last_use_is_known_after_a_new_start(tmp_path: Path) -> None:
    text = f"""
state_file = {json.dumps(str(tmp_path / "state.json"))}
[pools.default]
gauge = "none"
{process("a", models=("a", "never"))}
"""
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router:
            await ask(router.app, "POST", CHAT, body={"model": "a"})
        async with open_router(parse_config(text)) as router, watching(router) as talk:
            models = state_of(talk.body)["models"]
            assert models["a"]["last_use_at"] < router.started_at
            assert "last_use_at" not in models["never"]


async def test_the_queue_tells_whose_request_it_is() -> None:
    keys = [{"name": "boss", "key": "k1", "admin": True}, {"name": "me", "key": "k2"}]
    table = (
        "["
        + ", ".join(
            "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in key.items()) + " }"
            for key in keys
        )
        + "]"
    )
    async with routing(process("a"), process("b"), api_keys=[]) as router:
        server = parse_config(f'[server]\napi_keys = {table}\n[engines.x]\ntype = "ollama"').server
        router.snapshot = attrs.evolve(router.snapshot, config=attrs.evolve(router.config, server=server))
        body = json.dumps({"model": "a", "stream": True, "do": "head"}).encode()
        other = json.dumps({"model": "b"}).encode()
        async with AsyncExitStack() as stack:
            asked = conversation(router.app, "POST", CHAT, headers=key_headers("k2", body), body=[body])
            await (await stack.enter_async_context(asked)).begun()
            # Only now: whichever came first would have its model loaded.
            await stack.enter_async_context(
                conversation(router.app, "POST", CHAT, headers=key_headers("k2", other), body=[other])
            )
            while not sum(router.read_model.pool("default").waiting.values()):
                await trio.sleep(0.01)
            async with conversation(
                router.app, "GET", PATH, query=QUERY, headers={"x-api-key": "k1"}
            ) as talk:
                await talk.until(lambda: bool(talk.pieces))
                (entry,) = state_of(talk.body)["pools"]["default"]["queue"]
                assert entry["key"] == "me"


def key_headers(key: str, body: bytes) -> dict[str, str]:
    return {"x-api-key": key, "content-length": str(len(body))}
