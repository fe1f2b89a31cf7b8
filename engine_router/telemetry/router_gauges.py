"""The values of the router's gauges at one moment: from the read model and the last samples, without a wait."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping

import trio

from engine_router import __version__
from engine_router.engines.base import ResidentId
from engine_router.engines.context.figures import ContextStatus
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
        sleepers[read_model.resident(resident).pool].append(resident)
    for pool in pools.values():
        for name, labels, value in (
            *_residents(pool, len(sleepers[pool.name])),
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


def _residents(pool: PoolStatus, asleep: int) -> Iterator[_Value]:
    phases = Counter(resident.phase for resident in pool.residents)
    for phase in Phase:
        yield "residents", (pool.name, phase.value), phases[phase]
    yield "residents", (pool.name, "settling"), len(pool.settling)
    yield "residents", (pool.name, "asleep"), asleep
    for resident in pool.residents:
        labels = (pool.name, str(resident.resident))
        yield "in_flight", labels, len(resident.leases)
        if resident.phase is Phase.READY:
            yield "resident", labels, 1.0
        if (held_bytes := resident.footprint_in(pool.name)) is not None:
            yield "resident_memory_bytes", labels, held_bytes
    for failed in pool.failures:
        yield "failed_resident", (pool.name, str(failed)), 1.0


def _queue(read_model: ReadModel, pool: PoolStatus) -> Iterator[_Value]:
    for resident, count in pool.waiting.items():
        yield "waiting", (pool.name, str(resident)), count
    now = trio.current_time()
    oldest_s = (now - read_model.queue(pool.name)[0].arrived_at) if pool.waiting else 0.0
    yield "oldest_wait_seconds", (pool.name,), oldest_s
    yield "swaps_in_progress", (pool.name,), len(pool.swaps)


def _memory(
    read_model: ReadModel, sampler: Sampler, pool: PoolStatus, asleep: list[ResidentId]
) -> Iterator[_Value]:
    memory = memory_status(
        sampler.readings.get(pool.name),
        [resident.footprint_in(pool.name) for resident in pool.residents],
        [read_model.measured(resident).asleep_bytes for resident in asleep],
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
