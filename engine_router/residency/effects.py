"""The performance of what a ledger decided: each effect is done at once or handed to a child task."""

from __future__ import annotations

from attrs import frozen

from engine_router.residency import messages
from engine_router.residency.domain import Domain
from engine_router.residency.messages import Ticket
from engine_router.residency.resident_runner import ResidentRunner


@frozen(eq=False, repr=False)
class Effects:
    """Performs the effects of all ledgers."""

    runner: ResidentRunner

    def perform(self, domain: Domain, effect: messages.Effect, now: float) -> None:
        """Perform one effect of those that a ledger returned; whatever waits is handed to a child task."""
        match effect:
            case messages.Grant(ticket):
                self._grant(domain, ticket, now)
            case messages.Refuse(ticket, error) | messages.Revoke(ticket, error):
                if (lease := domain.leases.get(ticket)) is not None:
                    lease.refuse(error)
            case messages.CheckStart(resident):
                self.runner.spawn(self.runner.health.check_start, domain, resident)
            case _:
                self._conduct(domain, effect, now)

    def _conduct(self, domain: Domain, effect: messages.Effect, now: float) -> None:
        """Perform a step of a swap."""
        match effect:
            case messages.Start(resident, cause, adopt):
                if not adopt:
                    self.runner.prepare(domain, resident)
                    domain.swap_tracker.phase("start", now, target=resident, cause=cause)
                self.runner.begin(domain, resident, found=adopt)
            case messages.Drain(resident, cause, wanted):
                self.runner.prepare(domain, wanted)
                domain.swap_tracker.phase("drain", now, source=resident, target=wanted, cause=cause)
            case messages.Resume(resident):
                domain.swap_tracker.end(resident, "abandoned", now)
            case messages.Stop(resident, cause, wanted):
                domain.swap_tracker.give_up(resident, now)
                domain.swap_tracker.phase("stop", now, source=resident, target=wanted, cause=cause)
                self.runner.end(domain, resident, wanted)
            case messages.Settle(resident):
                self.runner.settle(domain, resident)
            case messages.Forget(resident):
                domain.stuck.pop(resident, None)

    def _grant(self, domain: Domain, ticket: Ticket, now: float) -> None:
        lease, task = domain.leases.get(ticket), domain.tasks.get(ticket.resident)
        if lease is not None and task is not None and task.endpoint is not None:
            lease.load_wait_s = task.start_s_between(lease.requested_at, now)
            lease.grant(task.endpoint, now)
