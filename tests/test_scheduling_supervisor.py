"""The supervisor with several residents at once, under a virtual clock, with memory that is simulated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
import trio
from support.budget_world import RULES, A, B, C, running
from support.simulated_engine import Script, SimulatedEngine
from support.simulated_memory import GIB, Reclaim, SimulatedMemory
from trio.testing import MockClock, wait_all_tasks_blocked

from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.errors import (
    EngineDied,
    EngineStartFailed,
    EngineStopFailed,
    NeverFits,
    NotEnoughMemory,
    QueueFull,
    RouterError,
)
from engine_router.events import ResidentDied, RouterNotice, SwapBegan, SwapEnded
from engine_router.models.estimate import Estimate, context_of, estimate
from engine_router.models.gguf import GGUFHeader
from engine_router.models.header_memory import HeaderMemory
from engine_router.models.kv_cache import cache_bytes
from engine_router.models.registry import ModelRegistry
from engine_router.residency.ledger import Capacity, Phase
from engine_router.residency.rules import Traits
from engine_router.residency.settings import make_rules, make_settings


async def test_two_stay_together_and_start_at_the_same_time(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.use, A, 0.0)
        nursery.start_soon(world.use, B, 0.0)
        await trio.sleep(10.5)
        assert world.present() == {"a": Phase.READY, "b": Phase.READY}


async def test_a_request_for_what_is_ready_is_granted_before_it_returns(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(A)
        lease = world.supervisor.request(A)
        assert lease.endpoint is not None
        lease.release()


async def test_a_start_waits_until_the_memory_of_all_who_left_is_back(autojump_clock: MockClock) -> None:
    def prepare(engines: dict[str, SimulatedEngine]) -> None:
        engines["c"].size_bytes = 90 * GIB

    memory = SimulatedMemory(shared=True, total_bytes=100 * GIB, reclaim=Reclaim(1.5, 20 * GIB))
    async with running(prepare=prepare, memory=memory) as world:
        await world.use(A)
        await world.use(B)
        began = trio.current_time()
        await world.use(C, 0.0)
        assert world.present() == {"c": Phase.READY}
        assert trio.current_time() - began > 1 + 1.5 + 40 / 20 * 0.5 + 10
        swap = world.of(SwapEnded)[-1]
        assert isinstance(swap, SwapEnded)
        assert (swap.source, swap.target, swap.result) == ("a, b", "c", "ok")
        assert list(swap.phases) == ["stop", "settle", "start"]


async def test_a_budget_that_was_promised_but_is_not_there_is_told(autojump_clock: MockClock) -> None:
    memory = SimulatedMemory(shared=True, others_bytes=100 * GIB)
    async with running(memory=memory) as world:
        began = trio.current_time()
        error = await world.refusal(A)
        assert isinstance(error, NotEnoughMemory)
        assert trio.current_time() - began == pytest.approx(20, abs=0.1)
        assert (error.need_bytes, error.free_bytes) == (40 * GIB, 28 * GIB)
        assert world.engines["a"].actions == []


async def test_what_is_missing_is_taken_from_the_idle_first(autojump_clock: MockClock) -> None:
    memory = SimulatedMemory(shared=True)
    async with running(memory=memory) as world:
        await world.use(A)
        memory.others_bytes = 60 * GIB  # of 128
        await world.use(B)
        assert world.present() == {"b": Phase.READY}


async def test_what_is_being_stopped_is_not_asked_for_its_health(autojump_clock: MockClock) -> None:
    async with running(health_interval_s=5.0) as world:
        world.engines["a"].stop_s = 100.0
        await world.use(A)
        world.supervisor.unload(A)
        world.engines["a"].check_error = "does not answer while it ends"
        await trio.sleep(200)
        assert world.of(ResidentDied) == []
        assert world.present() == {}


async def test_nobody_is_stopped_for_a_start_that_is_known_to_be_in_vain(autojump_clock: MockClock) -> None:
    async with running(budget_gib=60) as world:
        await world.use(A)
        world.engines["b"].start_obstacle = "cannot be started: llama-server was not found"
        world.engines["b"].check_s = 0.5
        began = trio.current_time()
        refusals = [await world.refusal(B), await world.refusal(B)]
        for refusal in refusals:
            assert isinstance(refusal, EngineStartFailed)
            assert "llama-server was not found" in str(refusal)
        assert trio.current_time() - began == pytest.approx(1.0)
        assert world.present() == {"a": Phase.READY}
        assert world.engines["b"].actions == []
        assert world.of(SwapBegan)[1:] == []
        world.engines["b"].start_obstacle = None
        await world.use(B)
        assert world.present() == {"b": Phase.READY}


async def test_a_look_before_a_stop_is_bounded_and_shared(autojump_clock: MockClock) -> None:
    async with running(budget_gib=60) as world:
        await world.use(A)
        world.engines["b"].check_s = 1000.0
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(world.use, B, 0.0)
        assert trio.current_time() - began == pytest.approx(2 + 1 + 10, abs=0.2)
        assert world.engines["b"].looks == 1


async def test_a_request_that_leaves_during_the_look_leaves_nothing(autojump_clock: MockClock) -> None:
    async with running(budget_gib=60) as world:
        await world.use(A)
        world.engines["b"].check_s = 1.0
        with trio.move_on_after(0.5):
            await world.use(B)
        await wait_all_tasks_blocked()
        ledger = world.supervisor.domains["default"].ledger
        assert (list(ledger.waiting()), dict(ledger.waiting_counts())) == ([], {})
        await trio.sleep(100)
        assert world.present() == {"a": Phase.READY}


async def test_what_is_there_already_needs_no_look(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(A)
        await world.use(A)
        await world.use(B)  # fits beside it
        assert (world.engines["a"].looks, world.engines["b"].looks) == (0, 0)


async def test_a_daemon_that_is_up_again_is_tried_at_once(autojump_clock: MockClock) -> None:
    rules = attrs.evolve(RULES, failed_start_memory_s=60.0)
    async with running(rules=rules) as world:
        engine = world.engines["a"]
        engine.start_obstacle = "does not accept connections"
        for _ in range(30):
            engine.scripts.append(Script("fail"))
            assert isinstance(await world.refusal(A), EngineStartFailed)
            await trio.sleep(3)
        starts = engine.count("start")
        assert starts <= 2
        refusal = await world.refusal(A)
        assert "remembered" in str(refusal)
        assert refusal.retry_after_s is not None
        engine.start_obstacle = None
        engine.scripts.clear()
        began = trio.current_time()
        await world.use(A)
        assert trio.current_time() - began == pytest.approx(11)


async def test_a_failure_that_no_look_shows_is_remembered(autojump_clock: MockClock) -> None:
    rules = attrs.evolve(RULES, failed_start_memory_s=60.0)
    async with running(rules=rules) as world:
        world.engines["a"].scripts.append(Script("fail"))
        await world.refusal(A)
        for _ in range(5):
            await trio.sleep(3)
            assert "remembered" in str(await world.refusal(A))
        assert world.engines["a"].count("start") == 1


async def test_what_is_stuck_can_be_cleared_by_hand(autojump_clock: MockClock) -> None:
    def prepare(engines: dict[str, SimulatedEngine]) -> None:
        engines["a"].scripts.append(Script(stop_failures=100))

    async with running(budget_gib=60, prepare=prepare) as world:
        await world.use(A)
        refusal = await world.refusal(B)
        assert isinstance(refusal, EngineStopFailed)
        assert "`engine-router reset`" in str(refusal)
        with pytest.raises(EngineStopFailed):
            await world.supervisor.until_unloaded(A)
        world.engines["a"].kill(A)
        world.supervisor.reset(A)
        await world.use(B)
        assert world.present() == {"b": Phase.READY}
        assert world.supervisor.domains["default"].stuck == {}


async def test_what_can_never_fit_is_refused_at_once(autojump_clock: MockClock) -> None:
    async with running(budget_gib=30) as world:
        assert isinstance(await world.refusal(A), NeverFits)


async def test_a_budget_can_be_what_is_free_at_the_start(autojump_clock: MockClock) -> None:
    memory = SimulatedMemory(shared=True, others_bytes=20 * GIB)
    capacity = Capacity(is_auto=True, reserve_bytes=8 * GIB)
    async with running(
        memory=memory, capacity=capacity, prepare=lambda engines: engines["b"].run_already()
    ) as world:
        assert world.supervisor.capacity("default").budget_bytes == 100 * GIB
        assert world.present() == {"b": Phase.READY} or world.present() == {"b": Phase.STARTING}


async def test_without_a_gauge_one_at_a_time_has_the_memory(autojump_clock: MockClock) -> None:
    memory = SimulatedMemory(readable=False)
    async with running(memory=memory, capacity=Capacity(is_auto=True)) as world:
        await world.use(A)
        await world.use(B)
        assert world.present() == {"b": Phase.READY}
        [notice] = world.of(RouterNotice)
        assert isinstance(notice, RouterNotice)
        assert "one engine at a time" in notice.message


async def test_all_that_fit_are_taken_over(autojump_clock: MockClock) -> None:
    async with running(prepare=lambda e: [e[name].run_already() for name in "abc"]) as world:
        await wait_all_tasks_blocked()
        assert world.present() == {"a": Phase.READY, "b": Phase.READY}
        assert not world.engines["c"].is_running(C)


async def test_what_is_loaded_ahead_is_there_when_it_is_wanted(autojump_clock: MockClock) -> None:
    async with running(preload=(A, B, C)) as world:
        await trio.sleep(30)
        assert world.present() == {"a": Phase.READY, "b": Phase.READY}
        began = trio.current_time()
        await world.use(B, 0.0)
        assert trio.current_time() == began


@pytest.mark.parametrize("fate", ["stopped", "dead"])
@pytest.mark.parametrize("sooner_s", [0.3, 0.1, 0.01, -0.1, -0.3])
async def test_what_a_start_took_is_not_mistaken_for_less_because_another_goes(
    autojump_clock: MockClock, sooner_s: float, fate: str
) -> None:
    # B is ready after 10.2 s, and what it took is known 0.2 s later. Around then A goes.
    def prepare(engines: dict[str, SimulatedEngine]) -> None:
        engines["a"].stop_s = 0.05
        if fate == "dead":
            engines["a"].scripts.append(Script(die_after_s=10.2 - sooner_s))

    memory = SimulatedMemory(shared=True, read_s=0.2)
    async with (
        running(budget_gib=150, memory=memory, prepare=prepare) as world,
        trio.open_nursery() as nursery,
    ):
        await world.use(A, 0.0)
        nursery.start_soon(world.use, B)
        if fate == "stopped":
            await trio.sleep(10.2 - sooner_s)
            world.supervisor.unload(A)
        await trio.sleep(20)
        assert "a" not in world.present()
        assert world.state.of(B).footprint_bytes in (world.engines["b"].size_bytes, None)


async def test_of_residents_that_are_loaded_one_after_another_each_is_measured(
    autojump_clock: MockClock,
) -> None:
    memory = SimulatedMemory(shared=True, read_s=0.2)
    async with running(budget_gib=150, memory=memory, preload=(A, B, C)) as world:
        await trio.sleep(60)
        assert {name: world.state.of(ResidentId(name)).footprint_bytes for name in "abc"} == {
            name: engine.size_bytes for name, engine in world.engines.items()
        }


async def test_keep_alive_reaches_the_clock(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(A, keep_alive_s=30.0)
        assert world.expires_at(A) == pytest.approx(trio.current_time() + 30)
        await trio.sleep(29)
        assert world.present() == {"a": Phase.READY}
        await trio.sleep(1.1)
        assert world.present() == {"a": Phase.STOPPING}
        await world.use(B, keep_alive_s=math.inf)
        assert world.expires_at(B) == math.inf
        world.supervisor.keep_alive(B, 0)
        await trio.sleep(5)
        assert world.present() == {}
        assert world.expires_at(B) is None


async def test_pins_can_be_set_and_taken_away(autojump_clock: MockClock) -> None:
    async with running(budget_gib=60) as world:
        await world.use(A)
        world.supervisor.pin(A)
        assert isinstance(await world.refusal(B), NeverFits)
        world.supervisor.unpin(A)
        await world.use(B)
        assert world.present() == {"b": Phase.READY}


async def test_a_resident_that_fails_three_checks_is_stopped_and_started_again_when_it_is_wanted(
    autojump_clock: MockClock,
) -> None:
    async with running(health_interval_s=30.0) as world:
        await world.use(A)
        world.engines["a"].check_error = "answered 500"
        lease = world.supervisor.request(A)
        await trio.sleep(95)
        assert isinstance(lease.error, EngineDied)
        lease.release()
        [died] = world.of(ResidentDied)
        assert isinstance(died, ResidentDied)
        assert died.message == "failed 3 health checks in a row: answered 500"
        assert world.present() == {}
        assert list(world.supervisor.domains["default"].ledger.failures()) == [A]
        world.engines["a"].check_error = None
        await world.use(A)
        assert world.engines["a"].count("start") == 2


async def test_a_check_without_an_answer_says_nothing_while_it_is_used(autojump_clock: MockClock) -> None:
    async with running(health_interval_s=30.0) as world:
        world.engines["a"].check_s = math.inf
        await world.use(A, 1000.0)
        assert world.present() == {"a": Phase.READY}
        await trio.sleep(3 * 35 + 1)
        assert world.present() in ({}, {"a": Phase.STOPPING})


async def test_failures_can_be_reset_by_hand(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engines["a"].scripts.append(Script("fail"))
        await world.refusal(A)
        world.supervisor.reset(A)
        await world.use(A)


async def test_a_swap_says_what_it_should_take_and_what_it_took(autojump_clock: MockClock) -> None:
    async with running(budget_gib=60) as world:
        for resident in (A, B, A, B):
            await world.use(resident)
        began, ended = world.of(SwapBegan)[-1], world.of(SwapEnded)[-1]
        assert isinstance(began, SwapBegan)
        assert isinstance(ended, SwapEnded)
        assert (began.cause, began.waiting) == ("b is wanted", 1)
        assert began.expected_s == ended.expected_s == pytest.approx(11)
        assert ended.duration_s == pytest.approx(11)


async def test_a_full_queue_says_when_to_come_back(autojump_clock: MockClock) -> None:
    async with running(budget_gib=60, rules=attrs.evolve(RULES, max_queue=1)) as world:
        await world.use(A)
        await world.use(B)
        lease, waiting = world.supervisor.request(B), world.supervisor.request(A)
        await wait_all_tasks_blocked()
        error = await world.refusal(A)
        assert isinstance(error, QueueFull)
        assert error.retry_after_s == pytest.approx(60 + 11, abs=1)
        waiting.release()
        lease.release()


async def test_a_defect_in_the_ledger_ends_the_supervisor_and_not_the_request(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Defect(Exception):
        pass

    def fail(*_: object) -> None:
        raise Defect

    with pytest.RaisesGroup(Defect, flatten_subgroups=True):
        async with running() as world:
            monkeypatch.setattr(world.supervisor.domains["default"].ledger, "apply", fail)
            lease = world.supervisor.request(A)
            with pytest.raises(RouterError):
                await lease.granted()
            await trio.sleep_forever()


# From configuration.

CONFIG = """
[scheduling]
hold_s = 3
idle_timeout_s = 600
preload = ["small", "nothing", "small"]
[pools.default]
mode = "budget"
budget_gb = 24
max_resident = 3
default_model = "small"
[engines.e]
type = "process"
argv = "serve -m {path} --port {port}"
memory_gb = 9
group = "work"
models = []
discover = false
[engines.o]
type = "ollama"
[models.small]
engine = "e"
path = "/nonexistent/small.gguf"
memory_gb = 2.5
pinned = true
[models.large]
engine = "e"
path = "/nonexistent/large.gguf"
group = "play"
"""


async def test_the_configuration_says_how_residents_share_the_memory() -> None:
    config = parse_config(CONFIG)
    engines = {name: SimulatedEngine(name, SimulatedMemory(), by_model=True) for name in "eo"}
    layout = await make_settings(config, engines, ModelRegistry(config, engines), HeaderMemory())
    small, large = ResidentId("e", "small"), ResidentId("e", "large")
    assert layout.capacities["default"] == Capacity(
        budget_bytes=24 * 10**9,
        max_resident=3,
        default_model=small,
        reserve_bytes=2 * 10**9,
        yields_under_pressure=True,
    )
    assert layout.preload == (small,)
    assert layout.traits(small) == Traits(
        pools=("default",), declared_bytes=2_500_000_000, groups=("work",), pinned=True, idle_timeout_s=600
    )
    assert layout.traits(large) == Traits(
        pools=("default",), declared_bytes=9_000_000_000, groups=("play",), idle_timeout_s=600
    )
    assert make_rules(config).hold_s == 3
    assert make_rules(parse_config('[engines.a]\ntype = "process"\nargv = "x {port}"\n')).hold_s is None


async def test_a_model_that_turns_out_to_be_of_another_pool_is_no_default() -> None:
    text = CONFIG + '[pools.card]\ndefault_model = "llama3"\n'
    config = parse_config(text)
    engines = {name: SimulatedEngine(name, SimulatedMemory(), by_model=True) for name in "eo"}
    registry = ModelRegistry(config, engines)
    registry.set_listed("o", ["llama3:latest"])
    layout = await make_settings(config, engines, registry, HeaderMemory())
    assert layout.capacities["card"] == Capacity(reserve_bytes=2 * 10**9, yields_under_pressure=True)
    assert layout.capacities["default"].default_model == ResidentId("e", "small")


# Estimates.


def header(**metadata: int) -> GGUFHeader:
    values = {"general.architecture": "llama", **{f"llama.{key}": value for key, value in metadata.items()}}
    return GGUFHeader(
        metadata=values,
        arrays={},
        array_lengths={"tokenizer.ggml.tokens": 128_256},
        tensor_bytes=4_900_000_000,
        parameters=8_030_000_000,
        file_bytes=4_920_000_000,
        modified_at=0.0,
    )


LLAMA_8B = header(
    block_count=32,
    embedding_length=4096,
    context_length=131_072,
    **{"attention.head_count": 32, "attention.head_count_kv": 8},
)


def kv_cache_bytes(header: GGUFHeader, argv: Sequence[str]) -> int:
    return cache_bytes(header, context_of(header, argv))


@pytest.mark.parametrize(
    ("options", "mib"),
    [
        # What llama.cpp prints for this model: "KV self size = 1024.00 MiB" for 8192 cells of f16.
        (["-c", "8192"], 1024),
        (["--ctx-size=8192", "-np", "4"], 1024),
        (["-c", "8192", "-ctk", "q8_0", "-ctv", "q8_0"], 544),
        (["-c", "8192", "--cache-type-k", "q4_0"], 512 * (18 / 32 / 2) + 512),
        (["-c", "1"], 32),
        ([], 16_384),
    ],
)
def test_the_cache_is_as_large_as_llama_cpp_says(options: list[str], mib: float) -> None:
    assert kv_cache_bytes(LLAMA_8B, ["llama-server", *options]) == mib * 2**20


def test_layers_may_have_different_numbers_of_heads() -> None:
    mixed = attrs.evolve(LLAMA_8B, arrays={"llama.attention.head_count_kv": (8, 0, 4, 0)})
    assert kv_cache_bytes(mixed, ["-c", "256"]) == 256 * 12 * 128 * 2 * 2


def model_of(
    architecture: str, arrays: dict[str, tuple[int | bool, ...]] | None = None, **metadata: int
) -> GGUFHeader:
    """Make the header of a model of some architecture."""
    values: dict[str, int | str] = {f"{architecture}.{key}": value for key, value in metadata.items()}
    values["general.architecture"] = architecture
    named = {f"{architecture}.{key}": value for key, value in (arrays or {}).items()}
    return attrs.evolve(LLAMA_8B, metadata=values, arrays=named)


GEMMA_27B = model_of(
    "gemma3",
    block_count=62,
    embedding_length=5376,
    context_length=131_072,
    **{
        "attention.head_count": 32,
        "attention.head_count_kv": 16,
        "attention.key_length": 128,
        "attention.value_length": 128,
        "attention.sliding_window": 1024,
    },
)


def test_layers_with_a_sliding_window_have_cells_for_it_alone(tmp_path: Path) -> None:
    cell = 16 * 2 * 128 * 2  # bytes
    # Each sixth layer attends to everything, as llama.cpp's `llama_kv_cache_iswa` says when it is made.
    assert kv_cache_bytes(GEMMA_27B, []) == cell * (10 * 131_072 + 52 * (1024 + 512))
    assert kv_cache_bytes(GEMMA_27B, ["--swa-full"]) == cell * 62 * 131_072
    assert kv_cache_bytes(GEMMA_27B, ["-c", "512"]) == cell * 62 * 512
    two = ["-c", "131072", "-np", "2", "-ub", "256"]
    assert kv_cache_bytes(GEMMA_27B, two) == cell * (10 * 131_072 + 52 * 2 * (1024 + 256))
    file = attrs.evolve(GEMMA_27B, tensor_bytes=16_600_000_000)
    found = estimate(["llama-server", "-m", "model.gguf"], tmp_path, lambda _: file)
    assert found is not None
    assert 28e9 < found.need_bytes < 30e9


def test_a_header_may_say_which_layers_have_the_window() -> None:
    sizes = {"embedding_length": 64, "attention.head_count": 1, "attention.head_count_kv": 1}
    sizes |= {"block_count": 4, "context_length": 65_536, "attention.sliding_window": 256}
    windows = {"attention.sliding_window_pattern": (True, False, True, True)}
    cell = 2 * 64 * 2
    assert kv_cache_bytes(model_of("gemma4", windows, **sizes), []) == cell * (65_536 + 3 * 768)
    period = {**sizes, "attention.sliding_window_pattern": 2}
    assert kv_cache_bytes(model_of("new", **period), []) == cell * (2 * 65_536 + 2 * 768)
    # Nothing is known of a window in this architecture: rather too much.
    assert kv_cache_bytes(model_of("new", **sizes), []) == cell * 4 * 65_536
    shared = {**sizes, "attention.shared_kv_layers": 1}
    assert kv_cache_bytes(model_of("gemma4", windows, **shared), []) == cell * (65_536 + 2 * 768)


def test_layers_with_linear_attention_have_a_state_instead_of_cells() -> None:
    sizes = {"embedding_length": 2048, "attention.head_count": 16, "attention.head_count_kv": 2}
    sizes |= {"attention.key_length": 256, "attention.value_length": 256, "context_length": 262_144}
    state = {"ssm.inner_size": 4096, "ssm.state_size": 128, "ssm.conv_kernel": 4, "ssm.group_count": 16}
    model = model_of("qwen3next", block_count=48, **sizes, **state)
    cells = 12 * 2 * 2 * 256 * 2 * 262_144
    states = 36 * (128 * 4096 + 3 * (4096 + 2 * 16 * 128)) * 4
    assert kv_cache_bytes(model, []) == cells + states
    # Four slots have four states, but share the cells.
    assert kv_cache_bytes(model, ["-np", "4"]) == cells + 4 * states
    hybrid = model_of("jamba", {"attention.head_count_kv": (0, 0, 0, 8)}, block_count=4, **sizes)
    assert kv_cache_bytes(hybrid, ["-c", "256"]) == 256 * 8 * 2 * 256 * 2


def test_mla_has_one_compressed_head() -> None:
    model = model_of(
        "deepseek2",
        block_count=61,
        embedding_length=7168,
        context_length=163_840,
        **{
            "attention.head_count": 128,
            "attention.head_count_kv": 1,
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "attention.kv_lora_rank": 512,
        },
    )
    assert kv_cache_bytes(model, ["-c", "4096"]) == 4096 * 61 * (576 + 512) * 2


def test_an_encoder_keeps_nothing() -> None:
    model = model_of("bert", block_count=12, embedding_length=768, **{"attention.head_count": 12})
    model = attrs.evolve(model, metadata={**model.metadata, "bert.attention.causal": False})
    assert kv_cache_bytes(model, ["-c", "512"]) == 0


async def test_an_estimate_above_the_budget_refuses_nobody(autojump_clock: MockClock) -> None:
    guess = Traits(estimated_bytes=84 * GIB, weights_bytes=17 * GIB)
    memory = SimulatedMemory(shared=True, total_bytes=36 * GIB)

    def prepare(engines: dict[str, SimulatedEngine]) -> None:
        engines["a"].size_bytes = 29 * GIB

    async with running(budget_gib=32, memory=memory, prepare=prepare, a=guess) as world:
        began = trio.current_time()
        await world.use(A)
        assert trio.current_time() - began == pytest.approx(11)
        assert world.supervisor.profile(A).need_bytes == 29 * GIB  # it was measured


async def test_an_estimate_waits_for_free_memory_but_is_tried_in_the_end(autojump_clock: MockClock) -> None:
    guess = Traits(estimated_bytes=84 * GIB, weights_bytes=17 * GIB)
    memory = SimulatedMemory(shared=True, total_bytes=36 * GIB, others_bytes=10 * GIB)

    def prepare(engines: dict[str, SimulatedEngine]) -> None:
        engines["a"].size_bytes = 25 * GIB

    async with running(budget_gib=32, memory=memory, prepare=prepare, a=guess) as world:
        await world.use(A)
        memory.others_bytes = 0
        await world.supervisor.until_unloaded(A)
        memory.others_bytes = 20 * GIB
        world.state.residents.clear()
        assert isinstance(await world.refusal(A), NotEnoughMemory)  # not even its weights


def test_an_estimate_adds_up_what_is_loaded(tmp_path: Path) -> None:
    projector = tmp_path / "mmproj.gguf"
    projector.write_bytes(b"x" * 1000)

    def of(argv: list[str]) -> Estimate | None:
        return estimate(argv, tmp_path, lambda _: LLAMA_8B)

    plain = of(["llama-server", "-m", "model.gguf", "-c", "8192"])
    assert plain is not None
    assert plain.weights_bytes == 4_900_000_000
    assert 4_900_000_000 + 2**30 < plain.need_bytes < 4_900_000_000 + 2 * 2**30
    seeing = ["llama-server", "-m", "model.gguf", "-c", "8192", "--mmproj", "mmproj.gguf"]
    more = [of(argv) for argv in (seeing, [*seeing, "-md", "draft.gguf"])]
    for added, found in zip((1000, 1000 + 4_900_000_000), more, strict=True):
        assert found == Estimate(plain.need_bytes + added, plain.weights_bytes + added)
    assert of(["vllm", "serve", "model"]) is None
