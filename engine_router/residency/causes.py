"""The causes of starts and stops: in words for people, and by kinds that can be counted."""

from __future__ import annotations

from typing import Final

REQUESTED: Final = "requested"
FOUND_RUNNING: Final = "found running"
MEANT_TO_BE_THERE: Final = "nobody waits, and it is meant to be there"
NOT_WAITED_FOR: Final = "nobody waits for it any more"
SHUTTING_DOWN: Final = "shutting down"
UNLOAD_ASKED: Final = "unload asked for"
NO_ANSWER: Final = "it does not answer any more"
MORE_MEMORY: Final = "more memory is needed than was believed"
PRESSURE: Final = "other programs need the memory"
STOPPED_AGAIN: Final = "stopping it again, since it could not be stopped before"
_IDLE: Final = "idle for "
_WANTED: Final = " is wanted"

_KINDS: Final = {
    REQUESTED: "request",
    FOUND_RUNNING: "adopted",
    MEANT_TO_BE_THERE: "preload",
    NOT_WAITED_FOR: "abandoned",
    SHUTTING_DOWN: "shutdown",
    UNLOAD_ASKED: "unload",
    NO_ANSWER: "unhealthy",
    MORE_MEMORY: "memory",
    PRESSURE: "pressure",
    STOPPED_AGAIN: "retry",
}


def idle_for(seconds: float) -> str:
    """Return the cause of the stop of what was idle for so long."""
    return f"{_IDLE}{seconds:.4g} s"


def wanted(resident: object, overdue_after_s: float | None) -> str:
    """Return the cause of a stop for the sake of another resident.

    Args:
        overdue_after_s: the longest fair wait, where that is over.
    """
    return (
        f"{resident}{_WANTED}" if overdue_after_s is None else f"{resident} has waited {overdue_after_s:g} s"
    )


def cause_kind(cause: str) -> str:
    """Return one of a few words for a cause.

    >>> cause_kind(idle_for(300.0)), cause_kind(wanted("qwen", None)), cause_kind(wanted("qwen", 60.0))
    ('idle', 'request', 'overdue')
    """
    if (kind := _KINDS.get(cause)) is not None:
        return kind
    if cause.startswith(_IDLE):
        return "idle"
    if cause.endswith(_WANTED):
        return "request"
    return "overdue" if " has waited " in cause else "other"
