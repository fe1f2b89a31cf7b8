"""Numbers and their table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """What a sample of one measurement comes to. All in the sample's unit."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, sample: Sequence[float]) -> Summary | None:
        """Summarize; None where nothing was measured."""
        if not sample:
            return None
        return cls(statistics.median(sample), min(sample), max(sample), len(sample))

    def as_json(self) -> dict[str, float]:
        return {
            "median": round(self.median, 6),
            "min": round(self.low, 6),
            "max": round(self.high, 6),
            "count": self.count,
        }


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        ours: as text, like `theirs`.
        ratio: ours by theirs; None where there is nothing to compare.
        required: the requirement in words; empty where there is none.
        met: None where there is none.
    """

    measure: str
    ours: str = ""
    theirs: str = ""
    ratio: float | None = None
    required: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        ratio = "" if self.ratio is None else f"{self.ratio:.3f}"
        verdict = "" if self.met is None else "met" if self.met else "MISSED"
        return (self.measure, self.ours, self.theirs, ratio, self.required, verdict)


def milliseconds(summary: Summary | None) -> str:
    """Show seconds as milliseconds: the median, and from least to most where there is more than one."""
    if summary is None:
        return "-"
    middle = f"{summary.median * 1e3:.1f} ms"
    if summary.count == 1:
        return middle
    return f"{middle} ({summary.low * 1e3:.1f} to {summary.high * 1e3:.1f})"


def ratio(ours: Summary | None, theirs: Summary | None) -> float | None:
    """Return ours by theirs."""
    if ours is None or theirs is None or theirs.median <= 0:
        return None
    return ours.median / theirs.median


def table(heads: Sequence[str], rows: Sequence[Row]) -> str:
    """Lay rows out in columns. A row with a measure only is a heading of its own."""
    lines = [tuple(heads), *(row.cells() for row in rows)]
    full = [cells for cells in lines if any(cells[1:])]
    widths = [max(len(cells[column]) for cells in full) for column in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        return "  ".join(padded).rstrip() if any(cells[1:]) else f"\n{cells[0]}"

    return "\n".join([line(lines[0]), "  ".join("-" * width for width in widths), *map(line, lines[1:])])
