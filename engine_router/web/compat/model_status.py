"""The status of models in the terms that other routers share: port, time of last use."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import trio

from engine_router.models.key_rights import MayUse
from engine_router.residency.read_model import ResidentStatus
from engine_router.router import Router


def model_statuses(router: Router, may_use: MayUse) -> dict[str, ResidentStatus]:
    """Return the status of every model's resident, by the model's id.

    Args:
        may_use: tells whether whoever asks may see a model.
    """
    targets = filter(may_use, router.registry.targets())
    return {target.model: router.read_model.resident(target.resident) for target in targets}


def port_of(status: ResidentStatus) -> int | None:
    """Return the port at which a resident answers."""
    return None if status.base_url is None else urlsplit(status.base_url).port


def used_at(status: ResidentStatus) -> float | None:
    """Return when a resident was last in use, in seconds since the epoch; None where that is not known."""
    if not status.is_usable:
        return None
    idle_s = 0.0 if status.idle_since is None else max(0.0, trio.current_time() - status.idle_since)
    return time.time() - idle_s
