"""The state that the page shows, as one object: what is in memory, what is under way, who waits, and the models.

It is rendered again and again while somebody looks, and what has changed is sent. So a time that runs by itself stands
in it as the moment at which it began or ends (`..._at`, seconds since the epoch). Beside it is the time in seconds, as
it was when its object was sent (`PASSING`). What is not known is left out.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs
import trio
from attrs import define, field

from engine_router import __version__
from engine_router.engines.base import ResidentId
from engine_router.events import ResidentDied, RouterNotice
from engine_router.memory import MemoryReading
from engine_router.proxy.wait_status import step_words
from engine_router.residency.memory_status import memory_status
from engine_router.residency.read_model import PoolStatus, ResidentStatus
from engine_router.residency.swap_status import SwapStatus
from engine_router.router import Router
from engine_router.telemetry.last_uses import last_uses
from engine_router.telemetry.records import HistoryTooSlow
from engine_router.web.admin_lists import reasons, waiting_entries
from engine_router.web.merge_patch import Json, known
from engine_router.web.model_entries import ModelEntries
from engine_router.web.recent_use import REMEMBERED, RecentUse
from engine_router.web.status import (
    RECENT_NOTICES,
    engine_entry,
    failure_entry,
    other_programs,
    resident_entry,
    route_status,
    swap_entry,
    turn_entry,
)

PASSING: Final = frozenset(
    {
        *("uptime_s", "for_s", "idle_s", "expires_in_s", "elapsed_s", "phase_elapsed_s"),
        *("waited_s", "overdue_in_s", "estimate_s", "again_in_s"),
    }
)
"""The members whose values run by themselves."""

LISTED_WAITING: Final = 100
"""The requests that are listed of a pool's queue, the first ones; `queue_length` counts all."""

# Seconds between two looks at a gauge: while memory comes and goes, as a rule, and where it could not be read.
_READ_SOON_S: Final = 1.0
_READ_S: Final = 10.0
_READ_AGAIN_S: Final = 60.0

# Less than this part of the memory comes and goes all the time.
_FLICKER: Final = 1 / 256
_ROUND_BYTES: Final = 2**28

# Seconds by which the two clocks may drift apart until what was told is told again.
_DRIFT_S: Final = 1.0


@define(eq=False, repr=False)
class _GaugeLook:
    """The last look at a pool's gauge."""

    reading: MemoryReading | None = None
    others: list[dict[str, Any]] | None = None
    at: float = -math.inf
    was_moving: bool = False


@define(eq=False, repr=False)
class PageState:
    """Renders the state of one router.

    Attributes:
        wall_clock: seconds since the epoch.
    """

    _router: Router
    _recent_use: RecentUse
    wall_clock: Callable[[], float] = time.time
    _models: ModelEntries = field(init=False)
    _looks: dict[str, _GaugeLook] = field(factory=dict, init=False)
    _offset_s: float = field(default=math.nan, init=False)
    _has_history: bool = field(default=False, init=False)

    @_models.default
    def _model_entries(self) -> ModelEntries:
        return ModelEntries(self._router, self._recent_use)

    async def render(self) -> Json:
        """Return the state. Cancellation loses nothing."""
        router = self._router
        if not self._has_history:
            self._has_history = True
            with contextlib.suppress(HistoryTooSlow):
                self._recent_use.remember(await last_uses(router.history, REMEMBERED))
        offset_s = self.wall_clock() - trio.current_time()
        if not abs(offset_s - self._offset_s) < _DRIFT_S:
            self._offset_s = offset_s
        await self._read_gauges()
        pools = router.read_model.pools()
        asleep = router.sleeping()
        notices = [event for event in router.hub.recent if isinstance(event, (RouterNotice, ResidentDied))]
        state = {
            "version": __version__,
            "started_at": round(router.started_at, 3),
            "uptime_s": round(self.wall_clock() - router.started_at, 3),
            "adopting": router.read_model.is_adopting,
            "pools": {
                name: self._pool(pool, [r for r in asleep if name in router.read_model.resident(r).pools])
                for name, pool in pools.items()
            },
            "engines": {name: engine_entry(router, name, pools) for name in router.engines},
            "routes": {name: self._route(name) for name in router.config.routes},
            "decisions": [attrs.asdict(decision) for decision in router.read_model.decisions()],
            "notices": [event.as_dict() for event in notices[-RECENT_NOTICES:]],
            "jobs": {job.id: job.as_dict() for job in router.jobs.listed() if job.state == "running"},
            "in_flight": sum(len(resident.leases) for resident in router.read_model.present()),
            "waiting": sum(
                {r: count for pool in pools.values() for r, count in pool.waiting.items()}.values()
            ),
            "requests_ended": self._recent_use.ended,
        }
        return {**known(state), "models": await self._models.entries(pools.values(), asleep)}

    def _route(self, name: str) -> dict[str, Any]:
        """Return what a route would choose now; without the reason, which has seconds in it that run."""
        entry = route_status(self._router, name)
        del entry["reason"]
        return entry

    def _at(self, moment: float | None) -> float | None:
        """Return a reading of trio's clock as seconds since the epoch."""
        return None if moment is None or not math.isfinite(moment) else round(moment + self._offset_s, 3)

    async def _read_gauges(self) -> None:
        """Look at the gauges where it is time for it, at all together."""
        async with trio.open_nursery() as nursery:
            for name, pool in self._router.read_model.pools().items():
                look = self._looks.setdefault(name, _GaugeLook())
                is_moving = bool(pool.swaps or pool.settling)
                pause_s = _READ_SOON_S if is_moving or look.was_moving else _READ_S
                if look.reading is None:
                    pause_s = _READ_AGAIN_S
                if trio.current_time() - look.at >= pause_s:
                    look.was_moving = is_moving
                    nursery.start_soon(self._read_gauge, name, look)

    async def _read_gauge(self, pool: str, look: _GaugeLook) -> None:
        look.at = trio.current_time()
        reading, last = await self._router.read_model.memory(pool), look.reading
        await self._router.read_model.look_at_memory(pool)
        look.others = [
            {**one, "held_bytes": _rounded(one["held_bytes"])}
            for one in other_programs(self._router, pool) or ()
        ] or None
        if reading is not None and last is not None and reading.total_bytes == last.total_bytes:
            flicker = (reading.total_bytes or reading.available_bytes) * _FLICKER
            if abs(reading.available_bytes - last.available_bytes) < flicker:
                return
        look.reading = reading

    def _pool(self, pool: PoolStatus, asleep: list[ResidentId]) -> dict[str, Any]:
        read_model, now = self._router.read_model, trio.current_time()
        look = self._looks.get(pool.name, _GaugeLook())
        held = [resident.footprint_in(pool.name) for resident in pool.residents]
        slept = [read_model.measured(resident).within(pool.name).asleep_bytes for resident in asleep]
        return {
            "gauge": pool.gauge,
            "mode": pool.mode,
            "budget_bytes": pool.budget_bytes,
            "memory": attrs.asdict(memory_status(look.reading, held, slept)),
            "other_programs": look.others,
            "residents": [self._resident(pool, resident, now) for resident in pool.residents],
            "asleep": [str(resident) for resident in asleep],
            "settling": [str(resident) for resident in pool.settling],
            "queue": list(self._queue(pool)),
            "queue_length": sum(pool.waiting.values()),
            "swaps": [self._swap(swap, now) for swap in pool.swaps],
            "next": [turn_entry(turn) for turn in read_model.turns(pool.name)[:LISTED_WAITING]],
            "failed": {
                str(resident): {**failure_entry(failure, now), "again_at": self._at(failure.again_at)}
                for resident, failure in pool.failures.items()
            },
            "waiting": {str(resident): count for resident, count in pool.waiting.items()},
        }

    def _resident(self, pool: PoolStatus, resident: ResidentStatus, now: float) -> dict[str, Any]:
        read_model = self._router.read_model
        measured, profile = read_model.measured(resident.resident), read_model.profile(resident.resident)
        # What is in use has no end that could be told: that runs away with the clock.
        is_idle = resident.idle_since is not None
        entry = resident_entry(resident, now)
        return {
            **entry,
            "max_in_flight": resident.most_leases,
            "expires_in_s": entry["expires_in_s"] if is_idle else None,
            "started_at": self._at(resident.started_at),
            "idle_since_at": self._at(resident.idle_since),
            "held_until_at": self._at(resident.held_until) if is_idle else None,
            "expires_at": self._at(resident.expires_at) if is_idle else None,
            "need_bytes": profile.need_bytes,
            "waiting": pool.waiting.get(resident.resident, 0),
            "usual": {
                "start_s": measured.start_s,
                "stop_s": measured.stop_s,
                "settle_s": measured.settle_s,
                "wake_s": measured.wake_s,
            },
            "load_cost_s": profile.start_s,
            "unload_cost_s": profile.stop_s,
        }

    def _swap(self, swap: SwapStatus, now: float) -> dict[str, Any]:
        return {
            **swap_entry(swap, now),
            "began_at": self._at(swap.began_at),
            "phase_began_at": self._at(swap.phase_began_at),
        }

    def _queue(self, pool: PoolStatus) -> Iterator[dict[str, Any]]:
        """Yield the entries of the queue's first requests."""
        if not pool.waiting:
            return
        read_model, now = self._router.read_model, trio.current_time()
        tickets = read_model.queue(pool.name)[:LISTED_WAITING]
        outlooks = read_model.outlooks(pool)
        words = reasons(pool, outlooks, lambda swap, _: step_words(swap))
        entries = waiting_entries(self._router, pool, tickets, outlooks, words)
        for ticket, entry in zip(tickets, entries, strict=True):
            outlook = outlooks[ticket.resident]
            left_s = None if outlook.swap is None else outlook.swap.left_s(now)
            yield {
                **entry,
                "reason": entry.pop("waits_for"),
                "arrived_at": self._at(ticket.arrived_at),
                "overdue_at": self._at(ticket.deadline),
                # What has begun ends at a moment; what has not begun takes a while.
                "expected_at": None if left_s is None or not left_s else self._at(round(now + left_s, 1)),
            }


def _rounded(size_bytes: int | None) -> int | None:
    """Return about what another program holds: that goes up and down a little all the time."""
    return None if size_bytes is None else max(1, round(size_bytes / _ROUND_BYTES)) * _ROUND_BYTES
