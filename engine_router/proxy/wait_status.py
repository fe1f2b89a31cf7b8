"""The progress of a waiting request, in words for its client."""

from __future__ import annotations

import trio

from engine_router.engines.base import WAKING, ResidentId
from engine_router.residency.lease import Lease
from engine_router.residency.read_model import ReadModel
from engine_router.residency.swap_status import SwapStatus

_ANOTHER = "another model"
_STEPS = {
    "drain": "waiting for {source} to finish what it is doing",
    "stop": "stopping {source}",
    "settle": "waiting for the memory of {source}",
    "start": "loading {target}",
}


def progress_of(
    read_model: ReadModel, lease: Lease, *, names_others: bool = True, there: str | None = None
) -> str:
    """Return what a request waits for: its place in the queue, or the step of its swap, with times.

    Args:
        names_others: whoever waits may be told the names of models that it did not ask for.
        there: what it waits for at a peer, which has the request already.
    """
    now = trio.current_time()
    resident = lease.resident
    if lease.endpoint is not None and there is not None:
        return f"{resident}: {there}"
    if lease.endpoint is not None:
        return f"{resident} is thinking ({_seconds(now - lease.granted_at)})"
    if read_model.is_adopting:
        return f"asking the engines what they have in memory ({_seconds(now - lease.requested_at)})"
    wait = read_model.wait(lease)
    if wait.swap is not None:
        return _timed(wait.swap, step_words(wait.swap, None if names_others else resident), now)
    place = wait.place
    ahead = f"{place} request{'' if place == 1 else 's'} ahead" if place else "next in the queue"
    is_behind = wait.ready and resident not in wait.ready
    ready = ", ".join(map(str, wait.ready)) if names_others else _ANOTHER
    behind = f"; {ready} is in use" if is_behind else ""
    return f"{ahead}{behind} ({_seconds(now - lease.requested_at)})"


def step_of(swap: SwapStatus, now: float) -> str:
    """Return the step of a swap, for how long it has taken, and how long it takes."""
    return _timed(swap, step_words(swap), now)


def step_words(swap: SwapStatus, only: ResidentId | None = None) -> str:
    """Return the step of a swap, without its times.

    Args:
        only: the one resident that is named; all are where it is absent.
    """
    source, target = swap.source, swap.target
    if only is not None:
        source, target = (str(only) if swap.sources == (only,) else None), (only if target == only else None)
    if swap.step is not None:
        return f"{swap.target}: {swap.step}"
    return _STEPS[swap.phase or "start"].format(source=source or _ANOTHER, target=target or _ANOTHER)


def _timed(swap: SwapStatus, step: str, now: float) -> str:
    spent = _seconds(now - swap.phase_began_at)
    expected_s = swap.start_s if swap.phase == "start" and swap.step in (None, WAKING) else None
    return f"{step} ({spent})" if expected_s is None else f"{step} ({spent} of about {_seconds(expected_s)})"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
