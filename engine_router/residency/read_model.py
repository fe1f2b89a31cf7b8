"""The read model: what is known of each resident and pool, as frozen values that never wait for anything.

Whatever is shown (status page, lists, metrics, events of state) is rendered from it; nothing that shows state
reaches into the ledger. All times are readings of trio's clock, in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

import trio
from attrs import frozen

from engine_router.engines.base import Endpoint, ResidentId
from engine_router.errors import RouterError
from engine_router.memory import Holder, MemoryReading
from engine_router.models.availability import Availability
from engine_router.residency.availability import availability_of
from engine_router.residency.decisions import Decision
from engine_router.residency.domain import Domain
from engine_router.residency.failures import Failure
from engine_router.residency.lease import Lease
from engine_router.residency.measurements import Measurement, Measurements
from engine_router.residency.messages import Ticket
from engine_router.residency.resident_state import Phase, ResidentState
from engine_router.residency.rules import EVENLY, Profile
from engine_router.residency.scheduling import Turn
from engine_router.residency.supervisor import Supervisor
from engine_router.residency.swap_status import SwapStatus, swap_status
from engine_router.residency.swap_tracker import Swap


@frozen(kw_only=True, repr=False)
class FailureStatus:
    """The failure of a resident that has not worked since.

    Attributes:
        count: failures in a row.
        again_at: when it may be tried again.
    """

    error: RouterError
    count: int
    again_at: float


@frozen(kw_only=True, repr=False)
class ResidentStatus:
    """One resident, present or not.

    Attributes:
        pool: the pool that it belongs to; the first of them.
        pools: all the pools that it takes from.
        phase: None where it is absent.
        failure: why it does not work, since it last did.
        stop_error: why its last stop failed, while it is stuck.
        endpoint: where it answers; None where it does not.
        adopted: it was found running.
        started_at: when its start, or its takeover, began; None where it is absent.
        leases: the tickets that use it, the oldest first.
        idle_since: None while it is used, or could not serve.
        held_until: when it may make way for another, if it is held for a follow-up.
        expires_at: when it is stopped for being idle: infinity for never, None where that does not apply.
        keep_alive_s: its idle timeout by the last request that named one.
        footprint_bytes: its memory as measured, of all its pools together; None where it never was.
        footprints: the same of each pool, where it takes from several and all are known.
        most_leases: that many requests may use it at the same time; None for any number.
        lease_s: where that is limited, the seconds until the next of its places is free, about; None where unknown.
    """

    resident: ResidentId
    pool: str
    pools: tuple[str, ...] = ()
    phase: Phase | None = None
    failure: FailureStatus | None = None
    stop_error: RouterError | None = None
    endpoint: Endpoint | None = None
    adopted: bool = False
    started_at: float | None = None
    leases: tuple[Ticket, ...] = ()
    groups: tuple[str, ...] = ()
    pinned: bool = False
    idle_since: float | None = None
    held_until: float | None = None
    expires_at: float | None = None
    keep_alive_s: float | None = None
    footprint_bytes: int | None = None
    footprints: Mapping[str, int] = EVENLY
    most_leases: int | None = None
    lease_s: float | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it serves requests now."""
        return self.phase in (Phase.READY, Phase.DRAINING) and not self.is_shut

    @property
    def is_shut(self) -> bool:
        """Whether it is there, and cannot be reached."""
        return self.phase is Phase.READY and self.failure is not None

    @property
    def base_url(self) -> str | None:
        """The address at which it answers; None where it does not."""
        return None if self.endpoint is None else self.endpoint.base_url

    def footprint_in(self, pool: str) -> int | None:
        """Return its memory in one of its pools, as measured; None where it never was."""
        return self.footprints.get(pool) if len(self.pools) > 1 else self.footprint_bytes

    def held_for_s(self, now: float) -> float | None:
        """Return how many seconds more it is kept for a follow-up while idle; None where it is not."""
        if self.held_until is None or self.idle_since is None or self.held_until <= now:
            return None
        return self.held_until - now


@frozen(kw_only=True, repr=False)
class TurnStatus:
    """The plan for a resident that is waited for; see `scheduling.Turn`."""

    resident: ResidentId
    cause: str
    is_overdue: bool
    is_blocked: bool
    victims: tuple[ResidentId, ...]


@frozen(kw_only=True, repr=False)
class PoolStatus:
    """One pool.

    Attributes:
        gauge: the gauge's name.
        budget_bytes: None in an exclusive pool.
        residents: the residents that are present, in whatever phase; the first to come is first.
        settling: the residents that have gone and whose memory is waited for.
        waiting: the number of waiting tickets, by resident.
        failures: the residents that failed and have not worked since.
        is_closed: nothing is resident, and nothing will be any more.
    """

    name: str
    gauge: str
    mode: Literal["exclusive", "budget", "boundless"]
    budget_bytes: int | None
    residents: tuple[ResidentStatus, ...]
    settling: tuple[ResidentId, ...]
    waiting: Mapping[ResidentId, int]
    failures: Mapping[ResidentId, FailureStatus]
    swaps: tuple[SwapStatus, ...]
    is_closed: bool


@frozen(kw_only=True, repr=False)
class Outlook:
    """What has to happen before a resident that is waited for can serve: a swap under way, or its turn.

    Attributes:
        swap: the swap that brings it.
        present: the resident itself, where it is present and no swap brings it.
        turn: its turn, where it is absent and was planned for.
        estimate_s: the seconds that swaps take until then, and what is read again. How long others take is unknown.
    """

    swap: SwapStatus | None = None
    present: ResidentStatus | None = None
    turn: TurnStatus | None = None
    estimate_s: float | None = None


@frozen(kw_only=True, repr=False)
class WaitStatus:
    """The wait of one request.

    Attributes:
        swap: the swap that brings what it waits for; None where none is under way.
        place: the number of tickets that arrived before and still wait.
        ready: the residents that serve others meanwhile.
    """

    swap: SwapStatus | None
    place: int
    ready: tuple[ResidentId, ...]


UNMEASURED: Final = Measurement()


class ReadModel:
    """Publishes what a supervisor knows."""

    def __init__(self, supervisor: Supervisor, measurements: Measurements) -> None:
        self._supervisor = supervisor
        self._measurements = measurements

    def pools(self) -> dict[str, PoolStatus]:
        """Return every pool, by name; that of remotes only where there are some."""
        return {name: self.pool(name) for name in self.pool_names()}

    def pool(self, name: str) -> PoolStatus:
        """Return the pool of that name."""
        now, domain = trio.current_time(), self._supervisor.domains[name]
        budget = domain.ledger.budget

        def lies_here(resident: ResidentId) -> bool:
            return name in budget.places(resident)

        capacity = self._supervisor.capacity(name)
        return PoolStatus(
            name=name,
            gauge=domain.pools[name].memory.gauge.name,
            mode=capacity.mode,
            budget_bytes=capacity.budget_bytes,
            residents=tuple(self._present(domain, s, now) for s in domain.ledger.states if name in s.needs),
            settling=tuple(resident for resident, needs in budget.settling.items() if name in needs),
            waiting={r: count for r, count in domain.ledger.waiting_counts().items() if lies_here(r)},
            failures={
                r: _failure(failure) for r, failure in domain.ledger.failures().items() if lies_here(r)
            },
            swaps=tuple(
                status
                for swap in domain.swap_tracker.swaps
                if name in (status := self._swap(domain, swap)).pools
            ),
            is_closed=domain.is_closed,
        )

    def pool_names(self) -> list[str]:
        """Return the names of all pools; that of remotes only where there are some."""
        return [name for name in self._supervisor.pools if self._supervisor.is_shown(name)]

    def present(self) -> list[ResidentStatus]:
        """Return the residents that are present in any pool, in whatever phase."""
        now = trio.current_time()
        return [
            self._present(domain, state, now)
            for domain in dict.fromkeys(self._supervisor.domains.values())
            for state in domain.ledger.states
        ]

    def resident(self, resident: ResidentId) -> ResidentStatus:
        """Return a resident of a configured engine, present or not."""
        domain = self._supervisor.domain(resident)
        state = domain.ledger.state(resident)
        if state is not None:
            return self._present(domain, state, trio.current_time())
        failure, pools = domain.ledger.failures().get(resident), domain.ledger.budget.places(resident)
        shown = None if failure is None else _failure(failure)
        return ResidentStatus(resident=resident, pool=pools[0], pools=pools, failure=shown)

    def availability(self, resident: ResidentId) -> Availability:
        """Return when a resident of a configured engine could take up one more request."""
        domain = self._supervisor.domain(resident)
        swaps = [self._swap(domain, swap) for swap in domain.swap_tracker.swaps]
        return availability_of(domain, resident, swaps, trio.current_time())

    def profile(self, resident: ResidentId) -> Profile:
        """Return what is known of a resident beforehand: its need of memory, its times."""
        return self._supervisor.profile(resident)

    def measured(self, resident: ResidentId) -> Measurement:
        """Return what was measured of a resident when it last ran; it must not be changed."""
        return self._measurements.residents.get(str(resident), UNMEASURED)

    def decisions(self) -> list[Decision]:
        """Return the last decisions of all pools, the oldest first."""
        return list(self._supervisor.decisions)

    @property
    def is_adopting(self) -> bool:
        """Whether engines are still asked what they have running: so far it is not known what is in memory."""
        return self._supervisor.is_adopting

    @property
    def is_over(self) -> bool:
        """Whether the router has gone down."""
        return all(domain.is_closed for domain in self._supervisor.domains.values())

    async def memory(self, pool: str) -> MemoryReading | None:
        """Read a pool's gauge; None where it cannot be read, or not within a second. All else here never waits."""
        return await self._supervisor.pools[pool].memory.read_gauge()

    def last_reading(self, pool: str) -> MemoryReading | None:
        """Return what a pool's gauge showed the last time; None where it could not be read."""
        return self._supervisor.pools[pool].memory.last

    async def look_at_memory(self, *pools: str) -> None:
        """Look what is free, and which other programs hold memory, where nobody has for some seconds.

        Takes a second at most, whatever the gauges do.

        Args:
            pools: where to look; in all pools when absent.
        """
        async with trio.open_nursery() as nursery:
            for pool in pools or self.pool_names():
                nursery.start_soon(self._supervisor.pools[pool].others.look)

    def other_programs(self, pool: str) -> tuple[Holder, ...] | None:
        """Return the programs that hold most of a pool's memory, by the last look; None where that is not known."""
        return self._supervisor.pools[pool].others.listed

    # Waiting.

    def queue(self, pool: str) -> list[Ticket]:
        """Return the tickets that wait in a pool, in the order of their arrival."""
        ledger = self._supervisor.domains[pool].ledger
        waiting = (ticket for ticket in ledger.waiting() if pool in ledger.budget.places(ticket.resident))
        return sorted(waiting, key=lambda ticket: ticket.arrived_at)

    def turns(self, pool: str) -> list[TurnStatus]:
        """Return the plan for each resident that is waited for, the next one first."""
        ledger = self._supervisor.domains[pool].ledger
        turns = ledger.turns(trio.current_time())
        return [_turn(turn) for turn in turns if pool in ledger.budget.places(turn.resident)]

    def outlooks(self, pool: PoolStatus) -> dict[ResidentId, Outlook]:
        """Return what has to happen before each resident can serve that is waited for in a pool."""
        turns = {turn.resident: turn for turn in self.turns(pool.name)}
        return {resident: self._outlook(pool, resident, turns.get(resident)) for resident in pool.waiting}

    def wait(self, lease: Lease) -> WaitStatus:
        """Return what the holder of a lease waits for that is not granted yet."""
        domain = self._supervisor.domain(lease.resident)
        swap = next((swap for swap in domain.swap_tracker.swaps if swap.target == lease.resident), None)
        return WaitStatus(
            swap=None if swap is None else self._swap(domain, swap),
            place=domain.ledger.place(lease.ticket),
            ready=tuple(s.resident for s in domain.ledger.states if s.phase is Phase.READY),
        )

    # The parts.

    def _present(self, domain: Domain, state: ResidentState, now: float) -> ResidentStatus:
        resident = state.resident
        task, failure = domain.tasks.get(resident), domain.ledger.failures().get(resident)
        pools, measured = tuple(state.needs), self._measurements.of(resident)
        return ResidentStatus(
            resident=resident,
            pool=pools[0],
            pools=pools,
            phase=state.phase,
            failure=None if failure is None else _failure(failure),
            stop_error=state.failure,
            endpoint=None if task is None else task.endpoint,
            adopted=task is not None and task.adopted,
            started_at=None if task is None else task.started_at,
            leases=tuple(state.leases),
            groups=state.groups,
            pinned=state.pinned,
            idle_since=state.idle_since if state.is_idle else None,
            held_until=state.held_until,
            expires_at=domain.ledger.expires_at(resident, now),
            keep_alive_s=state.keep_alive_s,
            footprint_bytes=measured.footprint_bytes,
            footprints=measured.needs(pools) or EVENLY if len(pools) > 1 else EVENLY,
            most_leases=None if (most := self.profile(resident).max_leases) == math.inf else int(most),
            lease_s=None if state.lease_s is None else state.lease_s / max(1, len(state.leases)),
        )

    def _swap(self, domain: Domain, swap: Swap) -> SwapStatus:
        start_s = None if swap.target is None else self.profile(swap.target).start_s
        task = None if swap.target is None else domain.tasks.get(swap.target)
        step = None if task is None or swap.phase != "start" else task.supervision.step
        return swap_status(
            swap, domain.swap_tracker.pools_of(swap), self._supervisor.expected_s, start_s, step
        )

    def _outlook(self, pool: PoolStatus, resident: ResidentId, turn: TurnStatus | None) -> Outlook:
        start_s, costs = self.profile(resident).start_s, self._supervisor.domains[pool.name].ledger.costs
        read_s = costs.reading(resident).one_s
        for swap in pool.swaps:
            if swap.target == resident:
                left_s = swap.left_s(trio.current_time())
                return Outlook(swap=swap, estimate_s=None if left_s is None else left_s + read_s)
        for present in pool.residents:
            if present.resident == resident:
                lease_s = present.lease_s
                return Outlook(present=present, estimate_s=start_s if lease_s is None else lease_s)
        if turn is None or start_s is None:
            return Outlook(turn=turn)
        stop_s = max((self.profile(victim).stop_s or 0.0 for victim in turn.victims), default=0.0)
        return Outlook(turn=turn, estimate_s=stop_s + start_s + read_s)


def _failure(failure: Failure) -> FailureStatus:
    return FailureStatus(error=failure.error, count=failure.count, again_at=failure.until)


def _turn(turn: Turn) -> TurnStatus:
    return TurnStatus(
        resident=turn.resident,
        cause=turn.cause,
        is_overdue=turn.is_overdue,
        is_blocked=turn.is_blocked,
        victims=tuple(victim.resident for victim in turn.victims),
    )
