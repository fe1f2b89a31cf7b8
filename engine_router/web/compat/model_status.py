"""How a model stands: what every one of the others tells of it, in words of its own."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import trio
from attrs import frozen

from engine_router.models.registry import Target
from engine_router.residency.failures import Failure
from engine_router.residency.ledger import Phase
from engine_router.router import Router


@frozen
class ModelStatus:
    """How a model stands.

    Attributes:
        phase: of its resident; None where it is not there.
        failure: why it does not work, since it last did.
        base_url: where it answers; None where it does not.
        started_at: the clock of trio; None where it is not there.
        used_at: when it was used last, seconds since the epoch; None where that is not known.
        footprint_bytes: what it takes, as measured; None where it is not there, or was never measured.
    """

    phase: Phase | None
    failure: Failure | None = None
    base_url: str | None = None
    started_at: float | None = None
    used_at: float | None = None
    footprint_bytes: int | None = None

    @property
    def port(self) -> int | None:
        """The port at which it answers."""
        return None if self.base_url is None else urlsplit(self.base_url).port


def standing(router: Router, target: Target) -> ModelStatus:
    """Tell how a model stands, without asking anybody."""
    pool = router.supervisor.pool(target.resident)
    failure = pool.ledger.failures().get(target.resident)
    residence, life = pool.ledger.residence(target.resident), pool.lives.get(target.resident)
    if residence is None:
        return ModelStatus(None, failure)
    now = trio.current_time()
    idle_s = max(0.0, now - residence.idle_since) if residence.is_idle else 0.0
    is_used = residence.phase in (Phase.READY, Phase.DRAINING)
    return ModelStatus(
        residence.phase,
        failure,
        base_url=None if life is None or life.endpoint is None else life.endpoint.base_url,
        started_at=None if life is None else life.started_at,
        used_at=time.time() - idle_s if is_used else None,
        footprint_bytes=router.state.of(target.resident).footprint_bytes,
    )
