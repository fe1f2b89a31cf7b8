"""The state of a model in one word, by each of the vocabularies that clients know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from engine_router.residency.read_model import ResidentStatus
from engine_router.residency.resident_state import Phase


@frozen(kw_only=True)
class StateWords:
    """A vocabulary: one word for each phase, and for a model that is absent or has failed."""

    absent: str
    failed: str
    phases: Mapping[Phase, str]

    def of(self, status: ResidentStatus) -> str:
        """Return the word for a resident's state."""
        if status.phase is None:
            return self.absent if status.failure is None else self.failed
        if status.is_shut:
            return self.failed
        return self.phases[status.phase]


OWN: Final = StateWords(absent="off", failed="failed", phases={phase: phase.value for phase in Phase})

# `/v1/models`. There, what sleeps is "sleeping".
LISTED: Final = StateWords(
    absent="unloaded",
    failed="failed",
    phases={
        Phase.STARTING: "loading",
        Phase.READY: "loaded",
        Phase.DRAINING: "loaded",
        Phase.STOPPING: "unloaded",
        Phase.STUCK: "failed",
    },
)

LLAMA_CPP: Final = StateWords(
    absent="unloaded",
    failed="unloaded",
    phases={phase: "loading" if phase is Phase.STARTING else "loaded" for phase in Phase},
)

LLAMA_SWAP: Final = StateWords(
    absent="stopped",
    failed="stopped",
    phases={
        Phase.STARTING: "starting",
        Phase.READY: "ready",
        Phase.DRAINING: "stopping",
        Phase.STOPPING: "stopping",
        Phase.STUCK: "stopping",
    },
)

MODEL_ROUTER: Final = StateWords(
    absent="off",
    failed="failed",
    phases={
        Phase.STARTING: "loading",
        Phase.READY: "ready",
        Phase.DRAINING: "stopping",
        Phase.STOPPING: "stopping",
        Phase.STUCK: "crashed",
    },
)
