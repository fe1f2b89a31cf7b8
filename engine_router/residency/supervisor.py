"""The supervisor: the one task that decides about residency.

It receives acquire requests and all other events on a memory channel, in the order in which they happened, lets the
ledger of their memory decide, and begins what was decided in child tasks of its nursery: its loop never waits for
a swap. Sending an event is synchronous, so a request that is cancelled needs no further step to leave nothing behind.

The short cut: a lease of a ready resident is taken, and given back, in the caller's step where that decides nothing.
Nothing overtakes: a ledger with events on their way takes no short cuts.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NoReturn

import attrs
import trio

from engine_router.config import Priority
from engine_router.config.memories import planned_together
from engine_router.engines.base import Engine, ResidentId
from engine_router.errors import RouterClosing
from engine_router.events import EventHub, SwapStep, place_of
from engine_router.memory import Gauge
from engine_router.residency import messages
from engine_router.residency.adoption import Adoption
from engine_router.residency.decisions import Decision, explained
from engine_router.residency.domain import Domain, own_of
from engine_router.residency.effects import Effects
from engine_router.residency.health import HealthChecks
from engine_router.residency.lease import Lease
from engine_router.residency.ledger import Capacity, Ledger, Phase, Profile, Rules
from engine_router.residency.measurements import Measurements
from engine_router.residency.messages import Ticket
from engine_router.residency.other_programs import OtherPrograms
from engine_router.residency.pool import Pool
from engine_router.residency.pool_memory import PoolMemory
from engine_router.residency.resident_runner import ResidentRunner
from engine_router.residency.rules import ResidencySettings
from engine_router.residency.swap_tracker import SwapTracker
from engine_router.residency.tenants import Ask

_EXCLUSIVE = Capacity()

# Decisions that are kept in words, of all pools together.
REMEMBERED_DECISIONS = 20


class Supervisor:
    """Owns the residents of all pools.

    Args:
        engines: by name.
        gauges: each pool's gauge, by the pool's name.
        pools_of: the pools of each engine and its models, by the engine's name: all of them are planned together.
        settle_timeout_s: longest wait for memory to come back, in seconds.
        settings: how residents share the memories.
        health_interval_s: seconds between two health checks of a ready resident; 0 for none.

    Attributes:
        decisions: the last ones, in words.
        pools: every memory, by name.
        domains: by the name of each of its pools, the memories that are planned together with it.
    """

    def __init__(
        self,
        *,
        engines: Mapping[str, Engine],
        gauges: Mapping[str, Gauge],
        pools_of: Mapping[str, tuple[str, ...]],
        rules: Rules,
        settle_timeout_s: float,
        hub: EventHub,
        measurements: Measurements,
        settings: ResidencySettings = ResidencySettings(),  # noqa: B008 - frozen
        health_interval_s: float = 0.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._engines = dict(engines)
        self._pools_of = dict(pools_of)
        self._hub = hub
        self._measurements = measurements
        self._wall_clock = wall_clock
        self._over = False
        self._closing_at = math.inf
        self.decisions: deque[Decision] = deque(maxlen=REMEMBERED_DECISIONS)
        self._adopting = trio.CancelScope()
        self._adopted = trio.Event()
        self._nursery: trio.Nursery | None = None
        # Unbounded, so that sending is synchronous; a request has at most two events on their way.
        self._outbox, self._inbox = trio.open_memory_channel[tuple[Domain, messages.LedgerEvent]](math.inf)
        self.pools = {name: self._new_pool(name, gauge) for name, gauge in gauges.items()}
        self._domains = [
            self._new_domain(names, rules, settings) for names in planned_together(gauges, pools_of.values())
        ]
        self.domains = {name: domain for domain in self._domains for name in domain.pools}
        self._runner = ResidentRunner(
            engines=self._engines,
            hub=hub,
            measurements=measurements,
            health=HealthChecks(
                engines=self._engines, hub=hub, wall_clock=wall_clock, interval_s=health_interval_s
            ),
            settings=settings,
            settle_timeout_s=settle_timeout_s,
            wall_clock=wall_clock,
        )
        self._effects = Effects(self._runner)

    def _new_pool(self, name: str, gauge: Gauge) -> Pool:
        memory = PoolMemory(name, gauge)
        return Pool(name, memory, OtherPrograms(memory, lambda: own_of(self._domains)))

    def _new_domain(self, names: tuple[str, ...], rules: Rules, settings: ResidencySettings) -> Domain:
        capacities = {name: settings.capacities.get(name, _EXCLUSIVE) for name in names}
        ledger = Ledger(
            rules.within(capacities[names[0]]), capacities, self.profile, self._measurements.held_context.of
        )
        swap_tracker = SwapTracker(self._hub, self._wall_clock, self.expected_s, ledger)
        return Domain({name: self.pools[name] for name in names}, ledger, swap_tracker, self._outbox)

    def on_stop(self, callback: Callable[[str], object]) -> None:
        """Call `callback` with a resident's address just before it is asked to end."""
        self._runner.on_stop = callback

    def ask_tenants(self, ask: Ask) -> None:
        """Have tenants asked to free memory by `ask`."""
        self._runner.tenants.ask = ask

    @property
    def is_adopting(self) -> bool:
        """True until every engine was asked what it has running; whatever is wanted waits for that."""
        return not self._adopted.is_set()

    async def until_adopted(self) -> None:
        """Wait until every engine was asked what it has running."""
        await self._adopted.wait()

    # What others call: synchronous, from any task.

    def request(
        self,
        resident: ResidentId,
        *,
        priority: Priority = "normal",
        keep_alive_s: float | None = None,
        client: str = "",
        is_control: bool = False,
        on_revoke: Callable[[], object] | None = None,
    ) -> Lease:
        """Enter a request for a resident; wait for it with `Lease.granted`, end it with `Lease.release`.

        Args:
            resident: what is wanted.
            priority: how much it matters.
            keep_alive_s: seconds that the resident shall stay once it is idle after this request: infinity
                or less than zero for ever, 0 not at all; None leaves that as it is.
            client, is_control: as a ticket's.
            on_revoke: called if the lease is taken away, as `Lease.on_revoke` does.
        """
        domain = self.domains[self._pools_of[resident.engine][0]]
        # It goes back to the ledger that it came from, whatever the configuration says by then.
        give_back = functools.partial(self._give_back, domain)
        ticket = Ticket(resident, priority, keep_alive_s, client, is_control)
        on_revokes = [] if on_revoke is None else [on_revoke]
        lease = Lease(ticket, trio.current_time(), give_back, on_revoke=on_revokes)
        if self._over:
            lease.refuse(RouterClosing("the router is not running any more"))
            return lease
        domain.leases[ticket] = lease
        if domain.behind or not domain.ledger.lend(ticket, lease.requested_at):
            domain.tell(messages.Acquire(ticket))
        elif (task := domain.tasks.get(resident)) is not None and task.endpoint is not None:
            lease.grant(task.endpoint, lease.requested_at)
        return lease

    def unload(self, resident: ResidentId) -> None:
        """Ask for a resident to be drained and stopped, or let go where it runs by itself."""
        self.domain(resident).tell(messages.Unload(resident))

    async def until_unloaded(self, resident: ResidentId) -> None:
        """Have a resident drained and stopped, and wait until it is gone.

        Raises:
            RouterClosing: the router ended before.
            RouterError: it could not be stopped.

        Cancellation ends only the wait.
        """
        domain = self.domain(resident)
        self.unload(resident)
        await domain.caught_up()
        state = domain.ledger.state(resident)
        while state is not None and domain.ledger.state(resident) is state:
            if self._over:
                raise RouterClosing("the router has ended")
            if state.phase is Phase.STUCK and state.failure is not None:
                raise state.failure
            await domain.change()

    def keep_alive(self, resident: ResidentId, seconds: float) -> None:
        """Say how long a present resident shall stay once it is idle; as `keep_alive_s` of `request`."""
        self.domain(resident).tell(messages.KeepAlive(resident, seconds))

    def pin(self, resident: ResidentId) -> None:
        """Let a resident never be stopped for somebody else's sake, nor for being idle."""
        self.domain(resident).tell(messages.Pin(resident, pinned=True))

    def unpin(self, resident: ResidentId) -> None:
        """Take a resident's pin away."""
        self.domain(resident).tell(messages.Pin(resident, pinned=False))

    def reset(self, resident: ResidentId) -> None:
        """Forget a resident's failures, so that the next request starts it.

        One that could not be stopped is taken to be gone: whoever asks for this has seen to it.
        """
        self.domain(resident).tell(messages.Reset(resident))
        self.doubt(resident)  # one that cannot be reached is looked at now

    def doubt(self, resident: ResidentId) -> None:
        """Tell that a resident could not be reached, so that its engine looks whether it is still there."""
        if (task := self.domain(resident).tasks.get(resident)) is not None:
            task.supervision.doubt()

    def domain(self, resident: ResidentId) -> Domain:
        """Return the memories that are planned together with those of a resident."""
        return self.domains[self._pools_of[resident.engine][0]]

    def capacity(self, pool: str) -> Capacity:
        """Return what a memory can hold."""
        return self.domains[pool].ledger.budget.capacities[pool]

    def is_shown(self, pool: str) -> bool:
        """Tell whether a pool is a memory, or there are remotes, those on their way out included."""
        has_memory = not self.capacity(pool).is_boundless
        is_empty = self.domains[pool].ledger.is_empty
        return has_memory or self._runner.settings.has_remotes or not is_empty

    def expected_s(self, resident: ResidentId, step: SwapStep) -> float | None:
        """Return what a phase took the last time for this resident, in seconds; None where unknown."""
        measured = self._measurements.of(resident)
        return {"start": measured.start_s, "stop": measured.stop_s, "settle": measured.settle_s}.get(step)

    def profile(self, resident: ResidentId) -> Profile:
        """Return what is known of a resident: as configured, as measured, or as estimated."""
        profile = self._runner.profile(resident)
        return profile if profile.pools else attrs.evolve(profile, pools=self._pools_of[resident.engine][:1])

    def residents(self) -> list[ResidentId]:
        """Return the residents that are present in any pool, in whatever phase."""
        return [state.resident for domain in self._domains for state in domain.ledger.states]

    def misplaced(self) -> list[ResidentId]:
        """Return the residents that lie in other pools than the configuration says now."""
        present = (
            (state.resident, tuple(state.needs)) for domain in self._domains for state in domain.ledger.states
        )
        traits = self._runner.settings.traits
        return [resident for resident, lies_in in present if traits(resident).pools not in ((), lies_in)]

    def places(self) -> dict[str, Domain]:
        """Return where each engine is that has something in memory, or is waited for."""
        return {engine: domain for domain in self._domains for engine in domain.engines()}

    def reconfigure(
        self,
        *,
        engines: Mapping[str, Engine],
        pools_of: Mapping[str, tuple[str, ...]],
        rules: Rules,
        settings: ResidencySettings,
        settle_timeout_s: float,
        health_interval_s: float,
    ) -> None:
        """Go by another configuration from now on, in the same pools; the arguments are those of the constructor.

        What is present stays, and is ended by the engine that began it, be it exchanged or gone.
        """
        self._engines.update(engines)
        self._pools_of.update(pools_of)
        self._runner.settle_timeout_s = settle_timeout_s
        preloaded, self._runner.settings = set(self._runner.settings.preload), settings
        self._runner.health.interval_s = health_interval_s
        self._take_up()
        for domain in self._domains:
            capacities = {name: self._renewed(name, settings) for name in domain.pools}
            within = rules.within(next(iter(capacities.values())))
            domain.tell(messages.Reconfigured(within, capacities))
            if ahead := tuple(resident for resident in self._preload_of(domain) if resident not in preloaded):
                domain.tell(messages.Preload(ahead))

    def _renewed(self, pool: str, settings: ResidencySettings) -> Capacity:
        capacity = settings.capacities.get(pool, _EXCLUSIVE)
        if capacity.is_auto:  # what is free was measured when the router started
            capacity = attrs.evolve(capacity, budget_bytes=self.capacity(pool).budget_bytes)
        return capacity

    async def close(self, grace_s: float) -> None:
        """Refuse new requests, let leases end for `grace_s`, stop what the router started, and return.

        Cancellation leaves the rest to the cancellation of `run`, which kills without waiting.
        """
        self._runner.is_closing = True
        self._adopting.cancel()
        self._closing_at = trio.current_time() + grace_s
        for domain in self._domains:
            domain.tell(messages.Close(self._closing_at))
            for task in domain.gone.values():
                task.settle_scope.cancel()  # nothing will be started into that memory
        for domain in self._domains:
            while not (domain.is_closed or self._over):
                await domain.change()

    # The task.

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Reports started once every engine was asked what it has running already."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = self._runner.nursery = nursery
                self._take_up()
                await self._adopt()
                for domain in self._domains:
                    domain.tell(messages.Preload(self._preload_of(domain)))
                task_status.started()
                await self._decide()
        finally:
            self._end()

    def _take_up(self) -> None:
        """Take over what runs by itself, and need not be asked for."""
        for resident in self._runner.settings.always_there:
            self.domain(resident).tell(messages.Adopt(resident))

    async def _adopt(self) -> None:
        """Take over what runs already. A router that is closed meanwhile starts nothing of what was asked for."""
        adoption = Adoption(self._domains, self.domain, self._runner, self._apply)
        with self._adopting:
            await adoption.take_over(self._engines)
        self._adopted.set()
        if self._adopting.cancelled_caught:
            for domain in self._domains:
                self._apply(domain, messages.Close(self._closing_at))

    def _preload_of(self, domain: Domain) -> tuple[ResidentId, ...]:
        return tuple(
            resident for resident in self._runner.settings.preload if self.domain(resident) is domain
        )

    async def _decide(self) -> NoReturn:
        """Take in one event after another, and look at the clock for the ledgers."""
        while True:
            alarm_at = min(domain.ledger.wake_at() for domain in self._domains)
            with trio.move_on_at(alarm_at) as alarm:
                domain, event = await self._inbox.receive()
                self._apply(domain, event)
                domain.note_taken()
            if alarm.cancelled_caught:
                for domain in self._domains:
                    if domain.ledger.wake_at() <= trio.current_time():
                        self._apply(domain, messages.Tick())

    def _end(self) -> None:
        """Tell everybody who waits or holds a lease that nobody is there any more to decide anything."""
        self._over = True
        self._adopted.set()
        self._inbox.close()
        for domain in self._domains:
            for lease in tuple(domain.leases.values()):
                lease.refuse(RouterClosing("the router has ended"))
            domain.note_end()

    def _apply(self, domain: Domain, event: messages.LedgerEvent) -> None:
        now = trio.current_time()
        effects = domain.ledger.apply(event, now)
        for resident, text in explained(effects, domain.ledger.budget, now):
            pool = place_of(domain.places(resident))
            self.decisions.append(Decision(at=self._wall_clock(), pool=pool, text=text))
        for effect in effects:
            self._effects.perform(domain, effect, now)
        if domain.swap_tracker.swaps:
            domain.swap_tracker.tidy(now)
        domain.note_change()

    def _give_back(self, domain: Domain, lease: Lease) -> None:
        domain.leases.pop(lease.ticket, None)
        if (event := domain.ledger.give_back(lease.ticket, trio.current_time())) is not None:
            domain.tell(event)
