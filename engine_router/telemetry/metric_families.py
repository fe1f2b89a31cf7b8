"""The families of metrics: gauges, counters and histograms, and their form for Prometheus.

The form is the text format of Prometheus, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats). A router
with hundreds of models has tens of thousands of lines, most of which are as they were the last time: each series keeps
its lines until it changes.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from attrs import define, field

from engine_router.guards.limits import MAX_COUNTED_MODELS

PREFIX: Final = "engine_router_"
"""The beginning of every name."""

# Stands in the lines that all series of a histogram share where the labels of one belong; no label is so.
_LABELS: Final = "\0labels\0"

Labels = tuple[str, ...]

OTHERS: Final = "(others)"

Reading = Mapping[Labels, float]
"""The values of a gauge, by their labels."""


@define(eq=False, repr=False)
class Gauge:
    """A gauge, whose values are read when they are asked for."""

    name: str
    text: str
    labels: Labels

    def lines(self, reading: Reading) -> Iterator[str]:
        """Yield its lines for Prometheus."""
        name = PREFIX + self.name
        yield _head(name, self.text, "gauge")
        for labels, value in reading.items():
            yield _line(name, labelled(self.labels, labels), value)


@define(eq=False, repr=False)
class _Series:
    """What is counted under the same labels, and since when.

    Attributes:
        lines: its lines for Prometheus; None after a change.
        labels: its labels as they stand between the braces, and
        created_line: the line that says since when, once they were asked for.
    """

    created_at: float = field(factory=time.time, kw_only=True)
    lines: str | None = field(default=None, kw_only=True)
    labels: str | None = field(default=None, kw_only=True)
    created_line: str | None = field(default=None, kw_only=True)

    def labelled(self, names: Labels, values: Labels) -> str:
        """Return its labels as they stand between the braces."""
        if self.labels is None:
            self.labels = labelled(names, values)
        return self.labels


@define(eq=False, repr=False)
class _Count(_Series):
    """A count.

    Attributes:
        head: its line as far as the number, once it was asked for.
    """

    value: int = 0
    head: str = ""


@define(eq=False, repr=False)
class Counter:
    """Counts, by labels."""

    name: str
    text: str
    labels: Labels
    counts: dict[Labels, _Count] = field(factory=dict)

    def inc(self, *labels: str, by: int = 1) -> None:
        """Count one more, or so many."""
        if (count := self.counts.get(labels)) is None:
            count = self.counts[labels] = _Count()
        count.value += by
        count.lines = None

    def lines(self) -> Iterator[str]:
        """Yield its lines for Prometheus."""
        name = f"{PREFIX}{self.name}_total"
        yield _head(name, self.text, "counter")
        for labels, count in self.counts.items():
            if count.lines is None:
                if not count.head:
                    count.head = f"{name}{{{count.labelled(self.labels, labels)}}} "
                count.lines = f"{count.head}{_number(count.value)}\n"
            yield count.lines
        yield from _created(self.name, self.text, self.labels, self.counts)


@define(eq=False, repr=False)
class _Durations(_Series):
    """Durations of one kind: how many there were up to each bound, and their sum.

    Attributes:
        pattern: its lines with places for the numbers, once they were asked for.
    """

    counts: list[int]
    sum_s: float = 0.0
    pattern: str = ""


@define(eq=False, repr=False)
class Histogram:
    """Durations, or numbers of something, by labels.

    Attributes:
        bounds: the upper bounds of the buckets, durations in seconds; one without bound comes behind them.
    """

    name: str
    text: str
    bounds: Sequence[float]
    labels: Labels = ()
    durations: dict[Labels, _Durations] = field(factory=dict)
    _pattern: str = field(init=False)

    @_pattern.default
    def _pattern_of_all(self) -> str:
        """Return the lines of a series with places for its labels, the counts up to each bound, for all, and the sum."""
        bounds = (*(str(float(bound)) for bound in self.bounds), "+Inf")
        name = PREFIX + self.name
        more, whole = (f"{_LABELS},", f"{{{_LABELS}}}") if self.labels else ("", "")
        buckets = [f'{name}_bucket{{{more}le="{bound}"}} %d.0\n' for bound in bounds]
        return "".join((*buckets, f"{name}_count{whole} %d.0\n{name}_sum{whole} %s\n"))

    def observe(self, seconds: float, *labels: str) -> None:
        """Take in a duration."""
        if (found := self.durations.get(labels)) is None:
            found = self.begin(*labels)
        found.counts[bisect_left(self.bounds, seconds)] += 1
        found.sum_s += seconds
        found.lines = None

    def begin(self, *labels: str) -> _Durations:
        """Have a series without a duration in it."""
        begun = self.durations[labels] = _Durations([0] * (len(self.bounds) + 1))
        return begun

    def lines(self) -> Iterator[str]:
        """Yield its lines for Prometheus."""
        yield _head(PREFIX + self.name, self.text, "histogram")
        for labels, found in self.durations.items():
            if found.lines is None:
                found.lines = self._lines_of(labels, found)
            yield found.lines
        yield from _created(self.name, self.text, self.labels, self.durations)

    def _lines_of(self, labels: Labels, found: _Durations) -> str:
        if not found.pattern:
            own = found.labelled(self.labels, labels).replace("%", "%%")
            found.pattern = self._pattern.replace(_LABELS, own)
        sums = (*itertools.accumulate(found.counts),)
        return found.pattern % (*sums, sums[-1], _number(found.sum_s))


def _head(name: str, text: str, kind: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def labelled(names: Labels, values: Labels) -> str:
    """Return labels as they stand between the braces."""
    if len(names) == 1:  # most have one
        return f'{names[0]}="{_escaped(values[0])}"'
    pairs = sorted(zip(names, values, strict=True))
    return ",".join([f'{name}="{_escaped(value)}"' for name, value in pairs])


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _line(name: str, labels: str, value: float) -> str:
    number = _number(value)
    return f"{name}{{{labels}}} {number}\n" if labels else f"{name} {number}\n"


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _created(name: str, text: str, names: Labels, series: Mapping[Labels, _Series]) -> Iterator[str]:
    """Yield since when there is each series; its own family in this format, as Prometheus' library has it."""
    if series and _shows_created():
        full = f"{PREFIX}{name}_created"
        yield _head(full, text, "gauge")
        for labels, one in series.items():
            if one.created_line is None:
                one.created_line = _line(full, one.labelled(names, labels), one.created_at)
            yield one.created_line


class BoundedLabels:
    """Labels that are kept apart, up to a bound; all that come later share one name."""

    def __init__(self) -> None:
        self._known: set[Labels] = set()

    def of(self, *labels: str) -> Labels:
        """Return the labels to count something under."""
        if labels not in self._known:
            if len(self._known) >= MAX_COUNTED_MODELS:
                return (OTHERS,) * len(labels)
            self._known.add(labels)
        return labels


def _shows_created() -> bool:
    """Tell whether series say since when they are: as Prometheus' library does, by its environment variable."""
    return os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "false").lower() not in ("true", "1", "t")
