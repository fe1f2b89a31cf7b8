"""The choice of what to give up for memory that a start lacks: residents that sleep, or idle ones that do not.

A sleeper holds little memory, and may be worth much: it wakes faster than it starts, and what its cache holds need not be
read again. Pure, as all decisions are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from attrs import frozen

from engine_router.engines.base import ResidentId
from engine_router.models.availability import UNKNOWN_START_S
from engine_router.residency.eviction import HALF_LIFE_S, Lack, Shortage, cheapest
from engine_router.residency.measurements import Measurement


@frozen(eq=False)
class Candidate:
    """A resident that may be given up for memory: one that sleeps, or an idle one.

    Attributes:
        needs: the bytes of each pool that its end would bring.
        cost_s: what it costs to stop it really, in seconds.
    """

    resident: ResidentId
    needs: Mapping[str, float]
    cost_s: float
    is_asleep: bool


@frozen
class Relief:
    """What is given up.

    Attributes:
        sleepers: the sleepers that are stopped really.
        short: the bytes of each pool that idle residents have to bring.
        cost_s: seconds.
    """

    sleepers: tuple[ResidentId, ...]
    short: Mapping[str, int]
    cost_s: float


def sleeper_cost_s(measured: Measurement, cache_s: float, slept_s: float) -> float:
    """Return what it costs to stop a sleeper really, in seconds, by how soon it may be wanted again.

    Args:
        cache_s: seconds of reading that its cache has saved lately, where it would be lost.
        slept_s: seconds since it fell asleep.
    """
    start_s = UNKNOWN_START_S if measured.start_s is None else measured.start_s
    gained_s = max(0.0, start_s - (measured.wake_s or 0.0)) + cache_s
    return gained_s * HALF_LIFE_S / (HALF_LIFE_S + max(0.0, slept_s))


def cheapest_relief(missing: Mapping[str, float], candidates: Iterable[Candidate]) -> Relief | None:
    """Return the cheapest that brings what is missing of each pool, in bytes; None where all together do not."""
    wanted = {pool: size_bytes for pool, size_bytes in missing.items() if size_bytes > 0}
    shortage = Shortage(tuple(Lack(pool, size_bytes, 0) for pool, size_bytes in wanted.items()))
    chosen = cheapest(list(candidates), shortage, lambda candidate: candidate.cost_s)
    if chosen is None:
        return None
    asleep = [candidate for candidate in chosen if candidate.is_asleep]
    short: dict[str, int] = {}
    if len(asleep) < len(chosen):
        left = {pool: size - sum(one.needs.get(pool, 0) for one in asleep) for pool, size in wanted.items()}
        short = {pool: math.ceil(size) for pool, size in left.items() if size > 0}
    return Relief(tuple(one.resident for one in asleep), short, sum(one.cost_s for one in chosen))
