"""The watch over pools in which something is resident: other programs that take the memory make idle residents go."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, Literal, Protocol

import trio
from attrs import define, field

from engine_router.memory import MemoryReading
from engine_router.memory.stalls import Stalls, stalls_of
from engine_router.residency import messages
from engine_router.residency.domain import Domain
from engine_router.residency.other_programs import in_words
from engine_router.residency.pool import Pool
from engine_router.residency.pressure import PressureJudge
from engine_router.residency.resident_state import Phase

# Seconds between two looks: while little is free, as a rule, and where each runs a command.
NEAR_S: Final = 1.0
CALM_S: Final = 2.0
COMMAND_S: Final = 10.0


class Notice(Protocol):
    """Tells the person who runs the router something."""

    def __call__(self, message: str, severity: Literal["info", "warning"] = "warning") -> None:
        """Tell it."""


@define(eq=False, kw_only=True, repr=False)
class PressureWatch:
    """Looks at the memory of pools while something is resident there that could go, or had to.

    Attributes:
        notice: tells the person who runs the router that others take the memory, and that it is over.
        stalls: returns what tells the stalls of a pool.
    """

    spawn: Callable[..., None]
    notice: Notice
    stalls: Callable[[Pool], Stalls] = lambda pool: stalls_of(pool.memory.gauge, sys.platform)
    _watched: dict[str, PressureJudge] = field(factory=dict)

    def begin(self, domain: Domain, pool: Pool) -> None:
        """Watch a pool from now on, until nothing is left there that could go."""
        if domain.capacity(pool.name).yields_under_pressure and pool.name not in self._watched:
            self._watched[pool.name] = PressureJudge()
            self.spawn(self._watch, domain, pool)

    async def _watch(self, domain: Domain, pool: Pool) -> None:
        judge, stalls = self._watched[pool.name], self.stalls(pool)
        try:
            while domain.capacity(pool.name).yields_under_pressure and _is_worth_watching(
                domain, pool, judge
            ):
                await trio.sleep(await self._look(domain, pool, judge, stalls))
        finally:
            del self._watched[pool.name]
        if judge.is_pressed:
            domain.tell(messages.Relieved(pool.name))

    async def _look(self, domain: Domain, pool: Pool, judge: PressureJudge, stalls: Stalls) -> float:
        """Look once. Returns the seconds until the next look."""
        pause_s = COMMAND_S if pool.memory.gauge.name.startswith("command") else CALM_S
        loaded = _loaded(domain, pool)
        is_wanted = judge.is_pressed or _is_anybody_idle(domain, pool) or not judge.has_seen(loaded)
        if _is_on_the_move(domain, pool) or not is_wanted:
            return pause_s
        reading = await pool.memory.read_gauge()
        if reading is None or not reading.measured:
            return COMMAND_S
        if _is_on_the_move(domain, pool) or _loaded(domain, pool) != loaded:  # meanwhile
            return pause_s
        reserve_bytes, was_pressed = domain.capacity(pool.name).reserve_bytes, judge.is_pressed
        verdict = judge.look(
            reading, stalls(), reserve_bytes=reserve_bytes, loaded=loaded, now=trio.current_time()
        )
        if verdict == "pressed":
            domain.tell(messages.Pressed(pool.name, judge.missing_bytes))
            if not was_pressed:
                await self._tell(pool, reading)
        elif verdict == "relieved":
            domain.tell(messages.Relieved(pool.name))
            self.notice(f"pool '{pool.name}': other programs have given memory back", "info")
        if not loaded:
            return COMMAND_S  # only what is to come back waits for it
        return NEAR_S if pause_s == CALM_S and judge.is_near(reading, reserve_bytes) else pause_s

    async def _tell(self, pool: Pool, reading: MemoryReading) -> None:
        others = in_words(await pool.others.look())
        self.notice(
            f"pool '{pool.name}': other programs leave only {reading.available_bytes / 2**30:.1f} GiB free"
            f"{f' ({others})' if others else ''}; idle models are stopped for them, and nothing is loaded ahead of requests"
        )


def _is_worth_watching(domain: Domain, pool: Pool, judge: PressureJudge) -> bool:
    """Tell whether a resident could go, or one that went is to come back by itself."""
    return _may_anybody_go(domain, pool) or (judge.is_pressed and _is_anybody_to_come_back(domain, pool))


def _may_anybody_go(domain: Domain, pool: Pool) -> bool:
    return any(
        not (state.pinned or state.is_always_there)
        for state in domain.ledger.states
        if _is_in(pool, state.needs)
    )


def _is_anybody_to_come_back(domain: Domain, pool: Pool) -> bool:
    """Tell whether a default model lies in a pool, be it that of another pool, too."""
    budget = domain.ledger.budget
    defaults = (capacity.default_model for capacity in budget.defaults.values())
    return any(resident is not None and pool.name in budget.places(resident) for resident in defaults)


def _is_anybody_idle(domain: Domain, pool: Pool) -> bool:
    return any(state.is_idle for state in domain.ledger.states if _is_in(pool, state.needs))


def _is_on_the_move(domain: Domain, pool: Pool) -> bool:
    """Tell whether residents come or go, so that what is free says nothing about others."""
    moving = (Phase.STARTING, Phase.STOPPING)
    budget = domain.ledger.budget
    is_settling = any(_is_in(pool, needs) for needs in budget.settling.values())
    return bool(domain.behind or is_settling) or any(
        state.phase in moving for state in domain.ledger.states if _is_in(pool, state.needs)
    )


def _loaded(domain: Domain, pool: Pool) -> object:
    return {state.resident: state.ready_at for state in domain.ledger.states if _is_in(pool, state.needs)}


def _is_in(pool: Pool, needs: dict[str, float]) -> bool:
    return pool.name in needs
