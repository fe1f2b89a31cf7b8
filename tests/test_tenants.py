"""Tenants: programs that share the memory, and are asked to free it before a start fails for it."""

from __future__ import annotations

import itertools
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio
from support.budget_world import A, B, World, running
from support.simulated_memory import GIB, SimulatedMemory
from trio.testing import MockClock

from engine_router import open_router
from engine_router.config import TenantConfig, parse_config
from engine_router.errors import ConfigError, NotEnoughMemory
from engine_router.events import TenantAsked
from engine_router.memory import Holder, MemoryHolders, Own
from engine_router.proxy.wait_status import progress_of
from engine_router.residency.ledger import Capacity, Phase
from engine_router.residency.read_model import ReadModel
from engine_router.residency.rules import Traits
from engine_router.residency.start_memory import SHORT_INTERVAL_S

COMFY = TenantConfig(name="ComfyUI", command=("free",))
NOTEBOOK = TenantConfig(name="notebook", command=("free",))


@attrs.define(eq=False)
class Asked:
    """Tenants that do as they are told, as far as they are told to.

    Attributes:
        memory: what they share.
        frees: what each frees when it is asked, in bytes.
        fault: what it says instead.
        answer_s: seconds that it takes to answer.
    """

    memory: SimulatedMemory
    frees: dict[str, int] = attrs.field(factory=dict)
    fault: str | None = None
    answer_s: float = 1.0
    story: list[tuple[float, str]] = attrs.field(factory=list)

    async def __call__(self, tenant: TenantConfig) -> str | None:
        self.story.append((trio.current_time(), tenant.name))
        await trio.sleep(self.answer_s)
        self.memory.others_bytes -= self.frees.get(tenant.name, 0)
        return self.fault

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.story]


def shared(others_gib: int) -> SimulatedMemory:
    """Return a memory of 128 GiB, of which the residents may have 100; each needs 40."""
    return SimulatedMemory(shared=True, others_bytes=others_gib * GIB)


async def test_idle_residents_go_first_and_then_a_tenant_is_asked(autojump_clock: MockClock) -> None:
    memory = shared(20)
    asked = Asked(memory, {"ComfyUI": 70 * GIB})
    async with running(memory=memory, tenants=[COMFY, NOTEBOOK], ask=asked) as world:
        await world.use(A)
        memory.others_bytes = 70 * GIB
        await world.use(B)
        assert asked.names == []  # to stop what is idle was enough
        assert world.present() == {"b": Phase.READY}
        memory.others_bytes = 88 * GIB
        await world.use(A, 0.0)
        assert asked.names == []
        memory.others_bytes = 120 * GIB
        await world.use(B, 0.0)
        assert asked.names == ["ComfyUI"]
        # What came back is enough: nobody else is asked, and nobody waits longer than that takes.
        assert "tenant 'ComfyUI' of pool 'default' was asked to free" in world.notices()[-1]
        assert world.notices()[-1].endswith("GiB came back")
        assert "only" not in world.notices()[-1]
        (told,) = asks(world)
        assert (told.outcome, told.freed_bytes) == ("freed", 70 * GIB)


def asks(world: World) -> list[TenantAsked]:
    return [event for event in world.events if isinstance(event, TenantAsked)]


async def test_a_tenant_that_takes_memory_in_the_middle_of_a_start_delays_it(
    autojump_clock: MockClock,
) -> None:
    """Nothing is overcommitted, whoever waits is told why, and the start comes when there is room."""
    memory = shared(120)
    asked = Asked(memory, {"ComfyUI": 0})
    async with running(memory=memory, tenants=[COMFY], ask=asked) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.use, A)
        await trio.sleep(1.0)
        assert waits(world) == "a: asking ComfyUI to free 30.0 GiB of memory (1 s)"
        asked.frees["ComfyUI"] = 60 * GIB
        memory.others_bytes += 40 * GIB  # another takes most of what comes back
        await trio.sleep(9.0)
        assert waits(world).startswith("a: waiting for 10.0 GiB of memory that other programs hold (")
        assert world.engines["a"].actions == []
        assert asked.names == ["ComfyUI"]
        memory.others_bytes = 80 * GIB
        await trio.sleep(SHORT_INTERVAL_S + 0.01)
        assert [str(action) for action in world.engines["a"].actions] == ["start a"]
        assert waits(world).startswith("loading a (")


def waits(world: World) -> str:
    """Return what a request for the first engine is told while it waits."""
    lease = world.supervisor.request(A)
    try:
        return progress_of(ReadModel(world.supervisor, world.state), lease)
    finally:
        lease.release()


async def test_tenants_are_asked_one_after_the_other_and_none_too_often(autojump_clock: MockClock) -> None:
    memory = shared(125)
    asked = Asked(memory, {"ComfyUI": 10 * GIB, "notebook": 10 * GIB})
    async with running(memory=memory, tenants=[COMFY, NOTEBOOK], ask=asked) as world:
        error = await world.refusal(A)
        assert isinstance(error, NotEnoughMemory)
        assert asked.names == ["ComfyUI", "notebook"]
        assert "only 10.0 GiB came back" in world.notices()[0]
        asked.frees = {}
        for _ in range(5):  # as many requests as come until then
            await trio.sleep(6.0)
            await world.refusal(A)
        times = [at for at, name in asked.story if name == "ComfyUI"]
        assert all(later - sooner >= COMFY.ask_every_s for sooner, later in itertools.pairwise(times))
        assert 2 <= len(times) <= 4


@pytest.mark.parametrize(
    ("answer_s", "fault", "notice", "outcome"),
    [
        (1.0, "answered 500: out of order", "35.0 GiB: answered 500: out of order", ("refused", None)),
        (math.inf, None, "35.0 GiB: did not answer within 30 s", ("no_answer", None)),
        (1.0, None, "35.0 GiB: only 0.0 GiB came back", ("partly", 0)),
    ],
    ids=["refuses", "hangs", "agrees and frees nothing"],
)
async def test_a_tenant_that_frees_nothing_costs_a_bounded_wait_and_is_named(
    answer_s: float,
    fault: str | None,
    notice: str,
    outcome: tuple[str, int | None],
    autojump_clock: MockClock,
) -> None:
    memory = shared(125)
    asked = Asked(memory, fault=fault, answer_s=answer_s)
    async with running(memory=memory, tenants=[COMFY], ask=asked) as world:
        began = trio.current_time()
        error = await world.refusal(A)
        assert isinstance(error, NotEnoughMemory)
        assert trio.current_time() - began < 20 + 2 * COMFY.timeout_s + 1
        assert f"was asked to free {notice}" in world.notices()[0]
        told = asks(world)[0]
        assert (told.tenant, told.pool, told.asked_bytes) == ("ComfyUI", "default", 35 * GIB)
        assert (told.outcome, told.freed_bytes) == outcome
        assert told.duration_s >= min(answer_s, COMFY.timeout_s)
        assert world.engines["a"].actions == []
        memory.others_bytes = 0
        await trio.sleep(6.0)  # a failed start is remembered for a moment
        await world.use(A)


async def test_a_start_that_nobody_waits_for_any_more_ends_though_a_tenant_hangs(
    autojump_clock: MockClock,
) -> None:
    memory = shared(125)
    asked = Asked(memory, answer_s=math.inf)
    async with running(memory=memory, tenants=[COMFY], ask=asked) as world:
        with trio.move_on_after(5.0):
            await world.use(A)
        await trio.sleep(3.0)  # the grace for a client that tries again
        assert world.present() == {}
        memory.others_bytes = 0
        await world.use(B)


async def test_in_an_exclusive_pool_with_tenants_the_memory_is_looked_at_too(
    autojump_clock: MockClock,
) -> None:
    memory = shared(100)
    asked = Asked(memory, {"ComfyUI": 90 * GIB})
    exclusive = Capacity()
    async with running(memory=memory, capacity=exclusive, tenants=[COMFY], ask=asked) as world:
        await world.use(A)
        assert asked.names == ["ComfyUI"]
        await world.use(B)
        assert world.present() == {"b": Phase.READY}
    # Without a tenant nobody looks, as before; nor where nobody knows what is needed.
    memory = SimulatedMemory(shared=True, others_bytes=60 * GIB)
    async with running(memory=memory, capacity=exclusive, a=Traits(), tenants=[COMFY]) as world:
        began = trio.current_time()
        await world.use(A, 0.0)
        assert trio.current_time() - began == pytest.approx(world.engines["a"].start_s)


class Programs(MemoryHolders):
    """Other programs that are there."""

    found: tuple[Holder, ...] | None = ()

    @property
    def can_tell(self) -> bool:
        return True

    async def read(self, own: Own) -> tuple[Holder, ...] | None:
        return self.found


@pytest.mark.parametrize(
    ("found", "asked_names"),
    [
        (
            (Holder(pid=7, name="python3", command="python3 /opt/ComfyUI/main.py", held_bytes=GIB),),
            ["ComfyUI"],
        ),
        ((Holder(pid=7, name="game", command="/usr/games/game", held_bytes=GIB),), []),
        ((), []),
        (None, ["ComfyUI"]),
    ],
    ids=["there", "another", "nobody", "not known"],
)
async def test_a_tenant_that_is_known_by_its_process_is_asked_while_that_holds_memory(
    found: tuple[Holder, ...] | None, asked_names: list[str], autojump_clock: MockClock
) -> None:
    memory = shared(125)
    asked = Asked(memory)
    tenant = attrs.evolve(COMFY, process=("*comfyui/main.py*",))
    async with running(memory=memory, tenants=[tenant], ask=asked) as world:
        others = world.supervisor.pools["default"].others
        others.holders = Programs(memory)
        others.holders.found = found
        error = await world.refusal(A)
        assert asked.names == asked_names
        for one in found or ():
            assert f"{one.name} (pid 7) holds 1.0 GiB" in str(error)


# A program with 700 MB that frees them when it is asked, by a request or a signal.
TENANT = """
import http.server, json, os, signal, sys
held = [bytearray(b"x") * (700 * 1000 * 1000)]
def free(*_):
    held.clear()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        wanted = json.loads(self.rfile.read(int(self.headers["content-length"])))
        is_right = self.path == "/free" and wanted == {"unload_models": True, "free_memory": True}
        if is_right:
            free()
        self.send_response(200 if is_right else 400)
        self.end_headers()
    def log_message(self, *_):
        pass
signal.signal(signal.SIGUSR1, free)
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""

PIDS_GAUGE = Path(__file__).parent / "programs" / "pids_gauge.py"
SMALL_ENGINE = Path(__file__).parent / "programs" / "small_engine.py"

Way = Callable[[int, int], str]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "way",
    [
        lambda port, _: (
            f'url = "http://127.0.0.1:{port}/free"\nbody = {{ unload_models = true, free_memory = true }}'
        ),
        lambda _, pid: f'command = ["kill", "-USR1", "{pid}"]',
    ],
    ids=["url", "command"],
)
async def test_a_real_tenant_frees_real_memory_and_the_engine_starts(way: Way, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    python = [sys.executable, "-I", "-S"]
    with subprocess.Popen([*python, "-c", TENANT], stdout=subprocess.PIPE) as tenant:  # noqa: ASYNC220 - it is started at once
        assert tenant.stdout is not None
        port = int(await trio.to_thread.run_sync(tenant.stdout.readline))
        pids.write_text(f"{tenant.pid}\n")
        config = parse_config(f"""
            state_file = {json.dumps(str(tmp_path / "state.json"))}
            [pools.default]
            mode = "budget"
            budget_gb = 0.9
            gauge = "command"
            command = {json.dumps([*python, str(PIDS_GAUGE), str(pids)])}
            [engines.small]
            type = "process"
            argv = {json.dumps([*python, str(SMALL_ENGINE), "port={port}", "mb=350", f"pids={pids}"])}
            memory_gb = 0.45
            models = ["x"]
            [[tenants]]
            name = "ComfyUI"
            {way(port, tenant.pid)}
            """)
        try:
            with trio.fail_after(200):
                async with open_router(config) as router, router.lease("x"):
                    reading = await router.read_model.memory("default")
                    assert reading is not None
                    assert 400_000_000 < reading.available_bytes < 650_000_000
                    notices = [event for event in router.hub.recent if "ComfyUI" in str(event.as_dict())]
                    assert len(notices) == 1
                    assert "GiB came back" in str(notices[0].as_dict())
        finally:
            tenant.send_signal(signal.SIGKILL)


ENGINE = '[engines.a]\ntype = "ollama"\nbase_url = "http://127.0.0.1:1"\n'


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('tenants = "ComfyUI"\n', "tenants", "expected a list of tables, [[tenants]]"),
        ('[[tenants]]\nurl = "http://x/free"', "tenants[0].name", "required"),
        ('[[tenants]]\nname = "x"', "tenants[0]", "give url or command"),
        (
            '[[tenants]]\nname = "x"\nurl = "http://x"\ncommand = "y"',
            "tenants[0].command",
            "together with url",
        ),
        ('[[tenants]]\nname = "x"\ncommand = "y"\nbody = { a = 1 }', "tenants[0].body", "with url only"),
        (
            '[[tenants]]\nname = "x"\ncommand = "y"\n[[tenants]]\nname = "x"\ncommand = "y"',
            "tenants[1].name",
            "an earlier tenant",
        ),
        (
            '[[tenants]]\nname = "x"\ncommand = "y"\npool = "gpu1"',
            "tenants[0].pool",
            "declare it as [pools.NAME]",
        ),
        ('[[tenants]]\nname = "x"\nurl = "free"', "tenants[0].url", "http"),
    ],
)
def test_a_fault_names_its_place_and_the_remedy(text: str, place: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text + ENGINE if text.startswith("tenants") else ENGINE + text)
    assert place in str(caught.value)
    assert words in str(caught.value)
