"""What the history holds: the rows that are written, and why a file may not hold them."""

from __future__ import annotations

from typing import Final, Literal

from attrs import frozen

from engine_router.errors import RouterError
from engine_router.guards.limits import HISTORY_TEXT_CHARS

SampleKind = Literal["capacity", "used", "resident", "queue", "serving", "gpu_use", "gpu_temperature"]
"""What a sample measures: bytes of a pool and of a resident, waiting requests, seconds in which a model served, and a
GPU's use in percent and its temperature in degrees Celsius."""

SUMMED: Final = frozenset(("serving",))
"""The kinds of samples that add up over time; of the others the mean counts."""


@frozen
class Series:
    """What a row of samples measures.

    Attributes:
        pool: the pool; empty for what belongs to none.
        name: the resident, or the GPU's index; empty for the pool itself.
    """

    kind: SampleKind
    pool: str = ""
    name: str = ""


@frozen
class Sample:
    """One minute's value of one series, beginning at a time in seconds since the epoch."""

    at: int
    series: Series
    value: float


def as_text(text: str) -> str:
    """Return a text as it is kept: bounded, and without what UTF-8 has no bytes for."""
    return text[:HISTORY_TEXT_CHARS].encode("utf-8", "replace").decode("utf-8")


def text_or_none(text: str | None) -> str | None:
    """Return the same of a text that may not be there."""
    return None if text is None else as_text(text)


class HistoryRefused(Exception):
    """The file is no history that this version can read or write; it is left as it is."""


class HistoryDamaged(Exception):
    """The file is damaged."""


class HistoryUnwritable(Exception):
    """Nothing can be written now: the disk is full, or another program holds the file. A later try may succeed."""


class HistoryTooSlow(RouterError):
    """A question to the history took too long, or nothing could be read."""

    status = 503
    code = "history_unavailable"
    kind = "overloaded_error"
    anthropic_kind = "overloaded_error"
