"""What a waiting client waits for, in words."""

from __future__ import annotations

import trio

from engine_router.residency.lease import Lease
from engine_router.residency.ledger import Phase
from engine_router.residency.supervisor import Supervisor
from engine_router.residency.swap_tracker import Swap

_DOING = {
    "drain": "waiting for {source} to finish what it is doing",
    "stop": "stopping {source}",
    "settle": "waiting for the memory of {source}",
    "start": "loading {target}",
}


def progress_of(supervisor: Supervisor, lease: Lease) -> str:
    """Say what a request waits for: its place in the queue, what is being done, for how long, and how long it takes."""
    now = trio.current_time()
    resident = lease.resident
    pool = supervisor.pool(resident)
    if lease.endpoint is not None:
        return f"{resident} is thinking ({_seconds(now - lease.granted_at)})"
    swap = next((swap for swap in pool.journal.swaps if swap.concerns(resident)), None)
    if swap is not None and swap.target == resident:
        return step_of(supervisor, swap, now)
    place = pool.ledger.place(lease.ticket)
    ahead = f"{place} request{'' if place == 1 else 's'} ahead" if place else "next in the queue"
    busy = [str(other.resident) for other in pool.ledger.residences if other.phase is Phase.READY]
    behind = f"; {', '.join(busy)} is in use" if busy and str(resident) not in busy else ""
    return f"{ahead}{behind} ({_seconds(now - lease.requested_at)})"


def step_of(supervisor: Supervisor, swap: Swap, now: float) -> str:
    """Say what is being done in a swap, for how long, and how long it takes."""
    return f"{_doing(swap)} ({_times(supervisor, swap, now)})"


def _doing(swap: Swap) -> str:
    return _DOING[swap.phase or "start"].format(source=swap.source or "another model", target=swap.target)


def _times(supervisor: Supervisor, swap: Swap, now: float) -> str:
    spent = _seconds(now - swap.phase_began_at)
    subject = swap.target if swap.phase == "start" else None
    expected = supervisor.expected_s(subject, "start") if subject is not None else None
    return spent if expected is None else f"{spent} of about {_seconds(expected)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
