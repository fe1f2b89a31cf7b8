"""The values of the router's gauges at one moment: from the read model and the last samples, without a wait."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping

import trio

from engine_router import __version__
from engine_router.engines.base import ResidentId
from engine_router.engines.context.figures import ContextStatus
from engine_router.events import place_of
from engine_router.residency.memory_status import memory_status
from engine_router.residency.read_model import PoolStatus, ReadModel
from engine_router.residency.resident_state import Phase
from engine_router.telemetry.metric_families import Labels
from engine_router.telemetry.sampling import Sampler

_Value = tuple[str, Labels, float]
_GPU = {"gpu_use": ("gpu_use_ratio", 0.01), "gpu_temperature": ("gpu_temperature_celsius", 1.0)}


def router_gauges(
    read_model: ReadModel,
    sampler: Sampler,
    asleep: Collection[ResidentId],
    started_at: float,
    context: Mapping[str, ContextStatus],
) -> Mapping[str, Mapping[Labels, float]]:
    """Return the values of the gauges, by name and labels.

    Args:
        asleep: the residents that sleep.
        started_at: when the router began, in seconds since the epoch.
        context: what is kept of the conversations with the engines that keep them.
    """
    found: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
    found["build_info"][__version__, platform.python_version()] = 1.0
    found["start_time_seconds"][()] = started_at
    pools, sleepers = read_model.pools(), defaultdict[str, list[ResidentId]](list)
    for resident in asleep:
        for place in read_model.resident(resident).pools:
            sleepers[place].append(resident)
    for name, labels, value in (*_residents(read_model, pools, asleep), *_swaps(pools)):
        found[name][labels] = value
    for pool in pools.values():
        for name, labels, value in (
            *_queue(read_model, pool),
            *_memory(read_model, sampler, pool, sleepers[pool.name]),
        ):
            found[name][labels] = value
    for engine, kept in context.items():
        found["context_saved_bytes"][(engine,)] = kept.size_bytes
        found["context_saved_conversations"][(engine,)] = kept.conversations
        found["context_kept"][(engine,)] = kept.keeps
    for series, value in sampler.ring[-1].values.items() if sampler.ring else ():
        if series.kind in _GPU:
            name, factor = _GPU[series.kind]
            found[name][(series.name,)] = value * factor
    return found


def _residents(
    read_model: ReadModel, pools: Mapping[str, PoolStatus], asleep: Collection[ResidentId]
) -> Iterator[_Value]:
    """Yield what is counted of residents: each once, under all of its pools together."""
    counts = Counter[Labels]()
    for resident in {
        status.resident: status for pool in pools.values() for status in pool.residents
    }.values():
        place = place_of(resident.pools)
        counts[place, resident.phase.value if resident.phase else ""] += 1
        yield "in_flight", (place, str(resident.resident)), len(resident.leases)
        if resident.phase is Phase.READY:
            yield "resident", (place, str(resident.resident)), 1.0
        for pool in resident.pools:
            if (held_bytes := resident.footprint_in(pool)) is not None:
                yield "resident_memory_bytes", (pool, str(resident.resident)), held_bytes
    settling = {resident for pool in pools.values() for resident in pool.settling}
    for phase, residents in (("settling", settling), ("asleep", asleep)):
        counts.update((place_of(read_model.resident(resident).pools), phase) for resident in residents)
    phases = [*(phase.value for phase in Phase), "settling", "asleep"]
    for place in dict.fromkeys((*pools, *(place for place, _ in counts))):
        yield from (("residents", (place, phase), counts[place, phase]) for phase in phases)
    for failed in dict.fromkeys(failed for pool in pools.values() for failed in pool.failures):
        yield "failed_resident", (place_of(read_model.resident(failed).pools), str(failed)), 1.0


def _swaps(pools: Mapping[str, PoolStatus]) -> Iterator[_Value]:
    """Yield how many swaps are under way: each once, under all of its pools together."""
    swaps = {swap.id: place_of(swap.pools) for pool in pools.values() for swap in pool.swaps}
    counts = Counter(swaps.values())
    yield from (("swaps_in_progress", (place,), counts[place]) for place in dict.fromkeys((*pools, *counts)))


def _queue(read_model: ReadModel, pool: PoolStatus) -> Iterator[_Value]:
    for resident, count in pool.waiting.items():
        yield "waiting", (place_of(read_model.resident(resident).pools), str(resident)), count
    now = trio.current_time()
    oldest_s = (now - read_model.queue(pool.name)[0].arrived_at) if pool.waiting else 0.0
    yield "oldest_wait_seconds", (pool.name,), oldest_s


def _memory(
    read_model: ReadModel, sampler: Sampler, pool: PoolStatus, asleep: list[ResidentId]
) -> Iterator[_Value]:
    memory = memory_status(
        sampler.readings.get(pool.name),
        [resident.footprint_in(pool.name) for resident in pool.residents],
        [read_model.measured(resident).within(pool.name).asleep_bytes for resident in asleep],
    )
    for name, value in (
        ("total", memory.total_bytes),
        ("free", memory.free_bytes),
        ("budget", pool.budget_bytes),
        ("foreign", memory.foreign_bytes),
        ("asleep", memory.asleep_bytes),
    ):
        if value is not None:
            yield f"memory_{name}_bytes", (pool.name,), value
