"""A client may leave at any moment, in any way: nothing of its request stays behind, and at once.

The first half does it to a router on a real port, in front of engines that are real processes; the second
half at every single step of a request, under a virtual clock.
"""

import functools
import itertools
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import attrs
import psutil
import pytest
import trio
import trio.testing
from support.asgi import Conversation, ask, conversation
from support.cancel_at import CancelAt
from support.served import RawClient, served
from support.simulated_engine import SimulatedEngine
from support.simulated_memory import GIB, SimulatedMemory
from trio.testing import MockClock

from engine_router import Router, open_router
from engine_router.config import Config, parse_config
from engine_router.engines.first_of import first_of
from engine_router.events import EventHub
from engine_router.memory import MemoryReading
from engine_router.models.learned import Learned
from engine_router.proxy.sessions import Sessions
from engine_router.proxy.snapshot import make_snapshot
from engine_router.residency.ledger import Rules
from engine_router.residency.measurements import Measurements
from engine_router.residency.supervisor import Supervisor
from engine_router.telemetry.metrics import Metrics
from engine_router.upstream.http1 import ResponseHead, UpstreamRequest
from engine_router.web.app import create_app

PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"
CHAT = "/v1/chat/completions"
LIMIT_S = 200.0
PROMISE_S = 5.0  # a few milliseconds, but not on a machine that is busy with something else
TRIES = 3  # of which one has to keep the promise, on a machine that does other things too
GRACE_S = 0.05


def process(name: str, *options: str, **more: object) -> str:
    argv = [sys.executable, "-I", "-S", str(PROGRAM), "{port}", *options]
    table = {"type": "process", "argv": argv, "models": [name], "discover": False, **more}
    return "\n".join([f"[engines.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])


TIER = {"fast": True}


@pytest.fixture(params=["fast", "ordinary"])
def each_tier(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Runs a test on the fast tier and on the ordinary one."""
    TIER["fast"] = request.param == "fast"
    yield TIER["fast"]
    TIER["fast"] = True


def configuration(*engines: str, **scheduling: object) -> Config:
    sections: dict[str, Mapping[str, object]] = {
        "pools.default": {"gauge": "none"},
        "server": {"shutdown_timeout_s": 0.1, "keepalive_interval_s": 0.05, "fast_path": TIER["fast"]},
        "scheduling": {"abandon_grace_s": GRACE_S, **scheduling},
    }
    tables = [
        "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())])
        for name, section in sections.items()
    ]
    return parse_config("\n".join(['state_file = "/dev/null/state.json"', *tables, *engines]))


class SlowMemory:
    """Memory that comes back in small steps, until it is told to be there."""

    name = "slow"

    def __init__(self) -> None:
        self.is_back = True
        self._available = 100 * GIB

    async def read(self) -> MemoryReading:
        await trio.sleep(0.001 if self.is_back else 0.02)  # the second so that somebody sees it
        self._available += 2**20
        return MemoryReading(self._available + (50 * GIB if self.is_back else 0), 200 * GIB)


# Real sockets.


@attrs.define(eq=False)
class Scene:
    """A router at work, and what can be seen of it."""

    router: Router
    url: str
    memory: SlowMemory

    @property
    def held(self) -> int:
        """How many leases are held or waited for."""
        pool = self.router.supervisor.domains["default"]
        return len(pool.leases)

    @property
    def waiting(self) -> int:
        pool = self.router.supervisor.domains["default"]
        return len(list(pool.ledger.waiting()))

    @property
    def phase(self) -> str:
        pool = self.router.supervisor.domains["default"]
        if pool.ledger.settling:
            return "settling"
        return next((state.phase.value for state in pool.ledger.states), "empty")

    def said(self, engine: str, line: str) -> int:
        """How often an engine said something."""
        return self.router.engines[engine].log.tail(2000).count(line)

    def pids(self, engine: str) -> list[int]:
        """The processes that were started for an engine."""
        found = [re.match(r"\[engine-router\] started pid (\d+)", line) for line in self.log(engine)]
        return [int(match[1]) for match in found if match]

    def log(self, engine: str) -> tuple[str, ...]:
        return self.router.engines[engine].log.tail(2000)

    async def wait(self, condition: Callable[[], object], limit_s: float = LIMIT_S) -> float:
        """Wait for a condition; returns how long it took, in seconds."""
        began = trio.current_time()
        with trio.fail_after(limit_s):
            while not condition():
                await trio.sleep(0.001)
        return trio.current_time() - began

    async def use(self, model: str) -> None:
        """Be an ordinary client."""
        async with RawClient.to(self.url) as client:
            body = json.dumps({"model": model, "do": "echo"}).encode()
            await client.request("POST", CHAT, body, headers=["Connection: close"])
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 200"), answer

    @asynccontextmanager
    async def asking(
        self, model: str, do: str, *, stream: bool, extra: bytes = b"", buffer: int | None = None
    ) -> AsyncIterator[RawClient]:
        """Be a client that has sent a request and reads no answer."""
        async with RawClient.to(self.url, receive_buffer_bytes=buffer) as client:
            wish = {"model": model, "do": do, "stream": stream, "every": 0.02, "count": 100_000}
            await client.request("POST", CHAT, json.dumps(wish).encode(), extra=extra)
            yield client


@asynccontextmanager
async def scene(
    monkeypatch: pytest.MonkeyPatch, *, slow_memory: bool = False, **scheduling: object
) -> AsyncIterator[Scene]:
    memory = SlowMemory()
    if slow_memory:
        monkeypatch.setattr("engine_router.residency.settings.make_gauge", lambda *_, **__: memory)
    engines = [process("a", memory_gb=40), process("b"), process("late", "delay=30")]
    with trio.fail_after(LIMIT_S):
        async with open_router(configuration(*engines, **scheduling)) as router, served(router) as url:
            yield Scene(router, url, memory)


Phase = Callable[[Scene, AsyncExitStack, bool], Awaitable[RawClient]]
"""Brings a client to where it shall leave; the stack holds what has to be there meanwhile."""


async def queued(scene: Scene, stack: AsyncExitStack, stream: bool) -> RawClient:
    await stack.enter_async_context(scene.asking("a", "hang", stream=False))
    await scene.wait(lambda: scene.held == 1 and scene.phase == "ready")
    client = await stack.enter_async_context(scene.asking("b", "hang", stream=stream))
    await scene.wait(lambda: scene.waiting == 1)
    assert scene.phase == "ready"
    return client


async def drain(scene: Scene, stack: AsyncExitStack, stream: bool) -> RawClient:
    await stack.enter_async_context(scene.asking("a", "hang", stream=False))
    await scene.wait(lambda: scene.held == 1 and scene.waiting == 0 and scene.phase == "ready")
    client = await stack.enter_async_context(scene.asking("b", "hang", stream=stream))
    await scene.wait(lambda: scene.phase == "draining")
    return client


async def settle(scene: Scene, stack: AsyncExitStack, stream: bool) -> RawClient:
    await scene.use("a")
    await scene.wait(lambda: scene.phase == "ready" and scene.held == 0)
    scene.memory.is_back = False
    stack.callback(setattr, scene.memory, "is_back", True)
    client = await stack.enter_async_context(scene.asking("b", "hang", stream=stream))
    await scene.wait(lambda: scene.phase == "settling")
    return client


async def start(scene: Scene, stack: AsyncExitStack, stream: bool) -> RawClient:
    before = len(scene.pids("late"))
    client = await stack.enter_async_context(scene.asking("late", "hang", stream=stream))
    await scene.wait(lambda: scene.phase == "starting" and len(scene.pids("late")) > before)
    return client


async def before_the_head(scene: Scene, stack: AsyncExitStack, stream: bool) -> RawClient:
    before = scene.said("a", f"request POST {CHAT}")
    client = await stack.enter_async_context(scene.asking("a", "hang", stream=stream))
    await scene.wait(lambda: scene.said("a", f"request POST {CHAT}") > before)
    return client


async def before_the_body(scene: Scene, stack: AsyncExitStack, stream: bool) -> RawClient:
    before = scene.said("a", f"request POST {CHAT}")
    client = await stack.enter_async_context(scene.asking("a", "head", stream=stream))
    await scene.wait(lambda: scene.said("a", f"request POST {CHAT}") > before)
    await client.until(b"\r\n\r\n")
    return client


async def in_the_stream(scene: Scene, stack: AsyncExitStack, stream: bool) -> RawClient:
    client = await stack.enter_async_context(scene.asking("a", "stream", stream=stream))
    await client.until(b"word3")
    return client


async def stalled(scene: Scene, stack: AsyncExitStack, stream: bool) -> RawClient:
    asking = scene.asking("a", "flood", stream=stream, buffer=4096)
    client = await stack.enter_async_context(asking)
    await scene.wait(lambda: scene.held == 1 and scene.phase == "ready")
    await trio.sleep(0.15)  # until every buffer on the way is full
    return client


LEAVE: dict[str, Callable[[RawClient], None]] = {
    "close": RawClient.close,
    "half_close": RawClient.half_close,
    "reset": RawClient.reset,
}


async def assert_gives_back(scene: Scene, phase: Phase, stream: bool, how: str, left: str | None) -> None:
    """Let a client leave, and see that nothing is left of it within the time that is promised."""
    took: list[float] = []
    for _ in range(TRIES):
        async with AsyncExitStack() as stack:
            held = scene.held
            noticed = 0 if left is None else scene.said("a", left)
            client = await phase(scene, stack, stream)
            with_holder = scene.held - 1
            assert with_holder >= held
            LEAVE[how](client)
            began = trio.current_time()
            await scene.wait(lambda: scene.held == with_holder and scene.waiting == 0)  # noqa: B023
            if left is not None:
                await scene.wait(lambda: scene.said("a", left) > noticed)  # noqa: B023
            took.append(trio.current_time() - began)
        await scene.wait(lambda: scene.held == 0)
        if took[-1] < PROMISE_S:
            break
    assert min(took) < PROMISE_S


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("phase", "scheduling", "left"),
    [
        (queued, {}, None),
        (drain, {"max_wait_s": 0.0}, None),
        (settle, {}, None),
        (before_the_head, {}, "left hang"),
        (before_the_body, {}, "left head"),
        (in_the_stream, {}, "left stream"),
        (stalled, {}, "left flood"),
    ],
)
async def test_a_client_that_leaves_gives_everything_back_at_once(
    each_tier: bool,
    phase: Phase,
    scheduling: dict[str, object],
    left: str | None,
    stream: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scene(monkeypatch, slow_memory=phase is settle, **scheduling) as world:
        for how in LEAVE:
            await assert_gives_back(world, phase, stream, how, left)
            await world.use("a")
        await world.use("b")
        assert world.pids("b")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("how", LEAVE)
async def test_a_start_that_nobody_waits_for_is_given_up(
    each_tier: bool, how: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(monkeypatch) as world:
        await assert_gives_back(world, start, stream, how, None)
        took = await world.wait(lambda: world.phase == "empty")
        assert took < GRACE_S + 30.0
        assert not any(psutil.pid_exists(pid) for pid in world.pids("late"))
        await world.use("a")


async def test_a_client_that_comes_back_in_time_finds_its_start_going_on(
    each_tier: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scene(monkeypatch, abandon_grace_s=10.0) as world:
        async with AsyncExitStack() as stack:
            (await start(world, stack, True)).close()
            await world.wait(lambda: world.held == 0)
        async with world.asking("late", "hang", stream=True):
            await world.wait(lambda: world.waiting == 1)
            assert world.phase == "starting"
        assert len(world.pids("late")) == 1


async def test_the_others_go_on_when_one_leaves(each_tier: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(monkeypatch) as world, world.asking("a", "stream", stream=True) as stays:
        await stays.until(b"word1 ")
        async with AsyncExitStack() as stack:
            leaves = await in_the_stream(world, stack, True)
            leaves.reset()
            await world.wait(lambda: world.said("a", "left stream") == 1)
        seen = len(stays.received)
        await world.wait(lambda: world.held == 1)
        await stays.until(b"word20 ")
        assert len(stays.received) > seen


async def test_a_client_that_leaves_within_its_upload_was_never_there(
    each_tier: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scene(monkeypatch) as world:
        for leave in LEAVE.values():
            async with RawClient.to(world.url) as client:
                await client.request("POST", CHAT, headers=["Content-Length: 1000"])
                await client.send(b'{"model": "a"')
                leave(client)
        await trio.sleep(0.05)
        assert world.held == 0
        assert world.pids("a") == []
        await world.use("a")


async def test_a_hundred_clients_that_leave_together_leave_nothing(
    each_tier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(monkeypatch) as world:
        await world.use("a")
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(world.asking("ab"[number % 2], "stream", stream=True))
                for number in range(100)
            ]
            await world.wait(lambda: world.held == 100)
            for number, client in enumerate(clients):
                [RawClient.close, RawClient.half_close, RawClient.reset][number % 3](client)
            await world.wait(lambda: world.held == 0, 10.0)
        await world.use("b")


# In the ordinary tier h11 pauses at such bytes, and Hypercorn stops reading.
async def test_bytes_behind_a_request_do_not_hide_that_its_client_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scene(monkeypatch) as world:
        await world.use("a")
        async with world.asking("a", "hang", stream=False, extra=b"\r\n") as client:
            await world.wait(lambda: world.said("a", f"request POST {CHAT}") == 2)
            client.close()
            try:
                with trio.fail_after(60.0):
                    await world.wait(lambda: world.held == 0)
            finally:
                # What still hangs is ended from the other side.
                await trio.to_thread.run_sync(psutil.Process(world.pids("a")[-1]).kill)


async def test_a_client_that_does_not_read_does_not_hold_up_the_end_of_serving(
    each_tier: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = trio.Event()

    async def serve(*, task_status: trio.TaskStatus[Scene]) -> None:
        async with scene(monkeypatch) as world:
            task_status.started(world)
            await trio.sleep_forever()

    async def run(*, task_status: trio.TaskStatus[tuple[Scene, trio.CancelScope]]) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                task_status.started((await inner.start(serve), scope))
        ended.set()

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            world, scope = await nursery.start(run)
            async with AsyncExitStack() as stack:
                await stalled(world, stack, True)
                scope.cancel()
                with trio.fail_after(60.0):
                    await ended.wait()


# Every step, under a virtual clock.


@attrs.define(eq=False)
class FakeExchange:
    """An engine's answer, in four pieces."""

    open: set["FakeExchange"]
    pieces: int = 4
    target: str = CHAT
    watch: object = None

    @property
    def has_chunk(self) -> bool:
        return False

    def take_whole(self) -> None:
        """It has never come whole."""

    async def head_by(self, until: float) -> ResponseHead | None:
        with trio.move_on_at(until):
            await trio.sleep(0.7)
            return ResponseHead(200, [(b"content-type", b"text/event-stream")])
        return None

    async def chunk(self) -> bytes:
        await trio.sleep(0.7)
        if self.pieces == 0:
            self.close()
            return b""
        self.pieces -= 1
        return b"data: {}\n\n"

    def close(self) -> None:
        self.open.discard(self)


@attrs.define(eq=False)
class FakeUpstream:
    """Connections that exist only in the program."""

    has_idle: bool = False
    open: set[FakeExchange] = attrs.field(factory=set)
    sent: int = 0

    async def send(self, request: UpstreamRequest) -> FakeExchange:
        await trio.sleep(0.3)
        return self._begun()

    def send_at_once(self, request: UpstreamRequest) -> FakeExchange | None:
        return self._begun() if self.has_idle else None

    def _begun(self) -> FakeExchange:
        self.sent += 1
        exchange = FakeExchange(self.open)
        self.open.add(exchange)
        return exchange


@attrs.define(eq=False)
class World:
    router: Router
    engines: dict[str, SimulatedEngine]
    upstream: FakeUpstream
    memory: SimulatedMemory
    nursery: trio.Nursery

    async def ask(self, model: str, **more: object) -> Conversation:
        with trio.fail_after(1000):
            return await ask(self.router.app, "POST", CHAT, body={"model": model, **more})

    def assert_nothing_left(self) -> None:
        pool = self.router.supervisor.domains["default"]
        assert pool.leases == {}
        assert list(pool.ledger.waiting()) == []
        assert self.upstream.open == set()


@asynccontextmanager
async def simulated(keepalive_s: float = 4.0, *, has_idle: bool = False) -> AsyncIterator[World]:
    """Run a router whose engines, memory and connections are simulated. `a` is resident in the beginning.

    Args:
        has_idle: there is an idle connection to every engine.
    """
    tables = [process(name) for name in "abc"]
    config = configuration(*tables)
    config = attrs.evolve(config, server=attrs.evolve(config.server, keepalive_interval_s=keepalive_s))
    memory = SimulatedMemory()
    engines = {name: SimulatedEngine(name, memory) for name in "abc"}
    engines["a"].run_already()
    hub, state, upstream = EventHub(), Measurements(), FakeUpstream(has_idle)
    supervisor = Supervisor(
        engines=engines,
        gauges={"default": memory},
        pools_of=dict.fromkeys(engines, ("default",)),
        rules=Rules(abandon_grace_s=2.0),
        settle_timeout_s=60.0,
        hub=hub,
        measurements=state,
    )
    metrics = Metrics()
    hub.listen(metrics.observe)
    learned = Learned()
    snapshot = await make_snapshot(config, engines, upstream, state, learned, Sessions())
    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            router = Router(
                snapshot, hub, supervisor, upstream, state, learned, metrics, None, 0.0, create_app
            )
            yield World(router, engines, upstream, memory, nursery)
            nursery.cancel_scope.cancel()
    assert memory.faults == []


@attrs.define(eq=False)
class Leaving:
    """What a sweep does at its step instead of cancelling: the client goes, or stops reading and then goes."""

    stalls: bool
    talk: Conversation | None = None
    fired: trio.Event = attrs.field(factory=trio.Event)

    def cancel(self) -> None:
        self.fired.set()
        if self.talk is not None:
            self.leave(self.talk)

    def leave(self, talk: Conversation) -> None:
        if self.stalls:
            talk.stall()
        talk.disconnect()


async def leave_at(world: World, step: int, *, stream: bool, after: bool, stalls: bool) -> bool:
    """Ask for `b`, and leave at a step of the request. Returns whether the step came."""
    body = [json.dumps({"model": "b", "stream": stream}).encode()]
    leaving = Leaving(stalls)
    # Its own steps and those of the tasks below it count: the request's, not the router's.
    with CancelAt(step, leaving, after=after) as sweep:  # type: ignore[arg-type]
        async with conversation(world.router.app, "POST", CHAT, body=body) as talk:
            leaving.talk = talk
            if sweep.fired:
                leaving.leave(talk)
            await first_of(left=leaving.fired.wait, over=talk.over)
            if leaving.fired.is_set():
                await trio.testing.wait_all_tasks_blocked()
                world.assert_nothing_left()  # though the app may be stuck in a send
            talk.resume()
            await talk.over()
    assert talk.error is None
    return sweep.fired


async def sweep(
    leave: Callable[[World, int], Awaitable[bool]], least_steps: int, *, has_idle: bool = False
) -> None:
    """Do something to a request at every step in turn. Each time nothing is left, and others are served."""
    for step in itertools.count(1):
        fired = False
        async with simulated(has_idle=has_idle) as world:

            async def client(step: int = step, world: World = world) -> None:
                nonlocal fired
                fired = await leave(world, step)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(client)
            await trio.testing.wait_all_tasks_blocked()
            world.assert_nothing_left()
            assert (await world.ask("c")).status == 200
            assert (await world.ask("a", stream=True)).is_complete
            world.assert_nothing_left()
        if not fired:
            break
    assert step > least_steps


@pytest.mark.parametrize("stalls", [False, True], ids=["leaves", "stalls"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_may_leave_at_every_step(
    stream: bool, after: bool, stalls: bool, autojump_clock: MockClock
) -> None:
    await sweep(functools.partial(leave_at, stream=stream, after=after, stalls=stalls), 20)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_may_leave_at_every_step_where_a_connection_is_idle(
    stream: bool, autojump_clock: MockClock
) -> None:
    leave = functools.partial(leave_at, stream=stream, after=False, stalls=False)
    await sweep(leave, 20, has_idle=True)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_request_may_be_cancelled_at_every_step(
    stream: bool, after: bool, autojump_clock: MockClock
) -> None:
    """As a server does to its requests when it goes down."""
    body = [json.dumps({"model": "b", "stream": stream}).encode()]

    async def cancel(world: World, step: int) -> bool:
        with CancelAt(step, after=after) as cancelling, cancelling.scope:
            async with conversation(world.router.app, "POST", CHAT, body=body) as talk:
                await talk.over()
        return cancelling.fired

    await sweep(cancel, 20)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_lease_of_the_library_may_be_cancelled_at_every_step(
    after: bool, autojump_clock: MockClock
) -> None:
    async def cancel(world: World, step: int) -> bool:
        with CancelAt(step, after=after) as cancelling, cancelling.scope:
            async with world.router.lease("b"):
                await trio.sleep(1)
        return cancelling.fired

    await sweep(cancel, 2)


async def test_what_the_simulated_world_shows_without_a_departure(
    each_tier: bool, autojump_clock: MockClock
) -> None:
    """The sweep sweeps what it should: a swap, frames that keep the stream open, an answer in pieces."""
    async with simulated() as world:
        talk = await world.ask("b", stream=True)
        assert talk.pieces.count(b": keepalive\n\n") >= 2
        assert talk.pieces.count(b"data: {}\n\n") == 4
        assert world.engines["a"].count("end") == 1
        assert world.engines["b"].count("ready") == 1
        assert world.upstream.sent == 1


async def test_a_departure_is_recorded(each_tier: bool, autojump_clock: MockClock) -> None:
    async with simulated() as world:
        events = world.router.events()
        async with conversation(
            world.router.app, "POST", CHAT, body=[b'{"model": "b", "stream": true}']
        ) as talk:
            await talk.begun()
            talk.disconnect()
            await talk.over()
        with suppress(trio.EndOfChannel):
            async for event in events:
                if event.name == "request_ended":
                    assert event.as_dict()["status"] == 499
                    assert event.as_dict()["model"] == "b"
                    break
