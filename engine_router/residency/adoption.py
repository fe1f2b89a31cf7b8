"""The takeover of residents that run already when the router starts, as far as their memory has room for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

import attrs
import trio

from engine_router.engines.base import Engine, ResidentId
from engine_router.errors import EngineError
from engine_router.residency import messages
from engine_router.residency.domain import Domain
from engine_router.residency.pool import Pool
from engine_router.residency.resident_runner import ResidentRunner

logger = logging.getLogger(__name__)

# Seconds that one engine may take to say what it has running.
ADOPTION_TIMEOUT_S = 5.0


@attrs.frozen(eq=False, repr=False)
class Adoption:
    """The takeover of what runs when the router starts.

    Attributes:
        apply: hands an event to a ledger, at once.
    """

    domains: Collection[Domain]
    domain_of: Callable[[ResidentId], Domain]
    runner: ResidentRunner
    apply: Callable[[Domain, messages.LedgerEvent], None]

    async def take_over(self, engines: Mapping[str, Engine]) -> None:
        """Take over what is found running, as far as there is room, and stop the rest."""
        found = await find_running(engines, self.runner.notice)
        for domain in self.domains:
            residents = [r for name in engines for r in found[name] if self.domain_of(r) is domain]
            for pool in domain.pools.values():
                await self._measure_budget(domain, pool, residents)
            extras = []
            for resident in residents:
                self.apply(domain, messages.Adopt(resident))
                if domain.ledger.state(resident) is None:
                    extras.append(resident)
            await self._stop_extras(domain, extras)

    async def _measure_budget(self, domain: Domain, pool: Pool, running: Sequence[ResidentId]) -> None:
        """Set a budget that is to be taken from the gauge: what is free, and what our own hold of it."""
        capacity = domain.ledger.budget.capacities[pool.name]
        if not capacity.is_auto:
            return
        reading = await pool.memory.read_gauge()
        if reading is None or not reading.measured:
            self.runner.notice(
                f"pool '{pool.name}': free memory cannot be read, so budget_gb cannot be \"auto\"; "
                "one engine at a time has the memory"
            )
            return
        inside = [resident for resident in running if pool in domain.pools_of(resident)]
        profiles = [self.runner.profile(resident) for resident in inside]
        held = sum(p.least_in(pool.name) if p.is_guessed else p.need_in(pool.name) or 0 for p in profiles)
        free = reading.available_bytes + held
        if reading.total_bytes is not None:
            free = min(free, reading.total_bytes)
        budget_bytes = max(0, free - capacity.reserve_bytes)
        measured = attrs.evolve(capacity, budget_bytes=budget_bytes)
        domain.ledger.budget.set_capacities({pool.name: measured})

    async def _stop_extras(self, domain: Domain, extras: Sequence[ResidentId]) -> None:
        kept = ", ".join(str(state.resident) for state in domain.ledger.states)
        for resident in extras:
            self.runner.notice(f"{resident} was found running beside {kept} and is stopped: there is no room")
        for resident in extras:
            if (left := await self.runner.sleepers.clear_away(resident)) is not None:
                self.runner.notice(str(left))


async def find_running(
    engines: Mapping[str, Engine], notice: Callable[[str], None]
) -> dict[str, list[ResidentId]]:
    """Ask every engine what it has running. Returns that by the engine's name, in the order of the engines.

    Args:
        engines: by name.
        notice: told of those that could not be asked; what they have running is not taken over.
    """
    found: dict[str, list[ResidentId]] = {name: [] for name in engines}

    async def look(engine: Engine) -> None:
        found[engine.name].extend(await _find(engine, notice))

    async with trio.open_nursery() as nursery:
        for engine in engines.values():
            nursery.start_soon(look, engine)
    return found


async def _find(engine: Engine, notice: Callable[[str], None]) -> Sequence[ResidentId]:
    with trio.move_on_after(ADOPTION_TIMEOUT_S):
        try:
            return await engine.find()
        except EngineError as error:
            notice(f"{error}; whatever it has running is not taken over")
            return ()
        except Exception as error:
            logger.exception("engine %s: unexpected error", engine.name)
            notice(f"engine '{engine.name}': {error!r}; whatever it has running is not taken over")
            return ()
    notice(f"engine '{engine.name}' did not say within {ADOPTION_TIMEOUT_S:g} s what it has running")
    return ()
