"""Ledgers of which one part was broken on purpose, for state machines that have to notice."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from engine_router.residency.admission import Admission
from engine_router.residency.ledger import Ledger
from engine_router.residency.memory_budget import MemoryBudget
from engine_router.residency.planning import Planner
from engine_router.residency.queue import TicketQueue
from engine_router.residency.scheduling import Scheduler


def with_broken(part: type) -> type[Ledger]:
    """Make a type of ledger in which one part is the broken one."""
    if issubclass(part, Ledger):
        return part

    class Broken(Ledger):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            places = {
                Planner: self._planner,
                Scheduler: self._planner.scheduler,
                MemoryBudget: self.budget,
                TicketQueue: self._queue,
                Admission: self._admission,
            }
            for kind, place in places.items():
                if issubclass(part, kind):
                    place.__class__ = part

    return Broken


def assert_caught(machine: type[RuleBasedStateMachine], part: type) -> None:
    """See that a machine fails with a ledger in which one part is broken."""
    broken = type(part.__name__ + "Machine", (machine,), {"ledger_type": with_broken(part)})
    quick = settings(
        max_examples=10_000,  # far more than any of them takes
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    # Once a rule is broken, the world makes no sense any more: its end may fail as well, and hide the reason.
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(broken, settings=quick)
