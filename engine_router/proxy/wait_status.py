"""The progress of a waiting request, in words for its client."""

from __future__ import annotations

import trio

from engine_router.residency.lease import Lease
from engine_router.residency.read_model import ReadModel
from engine_router.residency.swap_status import SwapStatus

_STEPS = {
    "drain": "waiting for {source} to finish what it is doing",
    "stop": "stopping {source}",
    "settle": "waiting for the memory of {source}",
    "start": "loading {target}",
}


def progress_of(read_model: ReadModel, lease: Lease) -> str:
    """Return what a request waits for: its place in the queue, or the step of its swap, with times."""
    now = trio.current_time()
    resident = lease.resident
    if lease.endpoint is not None:
        return f"{resident} is thinking ({_seconds(now - lease.granted_at)})"
    if read_model.is_adopting:
        return f"asking the engines what they have in memory ({_seconds(now - lease.requested_at)})"
    wait = read_model.wait(lease)
    if wait.swap is not None:
        return step_of(wait.swap, now)
    place = wait.place
    ahead = f"{place} request{'' if place == 1 else 's'} ahead" if place else "next in the queue"
    is_behind = wait.ready and resident not in wait.ready
    behind = f"; {', '.join(map(str, wait.ready))} is in use" if is_behind else ""
    return f"{ahead}{behind} ({_seconds(now - lease.requested_at)})"


def step_of(swap: SwapStatus, now: float) -> str:
    """Return the step of a swap, for how long it has taken, and how long it takes."""
    step = step_words(swap)
    spent = _seconds(now - swap.phase_began_at)
    expected_s = swap.start_s if swap.phase == "start" else None
    return f"{step} ({spent})" if expected_s is None else f"{step} ({spent} of about {_seconds(expected_s)})"


def step_words(swap: SwapStatus) -> str:
    """Return the step of a swap, without its times."""
    return _STEPS[swap.phase or "start"].format(source=swap.source or "another model", target=swap.target)


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
