"""The families of metrics: gauges, counters and histograms, and their form for Prometheus."""

from __future__ import annotations

import itertools
import os
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from attrs import define, field

from engine_router.guards.limits import MAX_COUNTED_MODELS

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_PREFIX: Final = "engine_router_"

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

    def collect(self, reading: Reading) -> Metric:
        """Return it for Prometheus."""
        from prometheus_client.metrics_core import GaugeMetricFamily  # noqa: PLC0415 - see `Metrics.exposition`

        family = GaugeMetricFamily(_PREFIX + self.name, self.text, labels=self.labels)
        for labels, value in reading.items():
            family.add_metric(labels, value)
        return family


@define(eq=False, repr=False)
class _Count:
    """A count, and since when there is one."""

    value: int = 0
    created_at: float = field(factory=time.time)


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

    def collect(self) -> Metric:
        """Return them for Prometheus."""
        from prometheus_client.metrics_core import CounterMetricFamily  # noqa: PLC0415 - see `Metrics.exposition`

        family = CounterMetricFamily(_PREFIX + self.name, self.text, labels=self.labels)
        for labels, count in self.counts.items():
            family.add_metric(labels, count.value, created=count.created_at if _shows_created() else None)
        return family


@define(eq=False, repr=False)
class _Durations:
    """Durations of one kind: how many there were up to each bound, and their sum."""

    counts: list[int]
    sum_s: float = 0.0
    created_at: float = field(factory=time.time)


@define(eq=False, repr=False)
class Histogram:
    """Durations, by labels.

    Attributes:
        bounds: the upper bounds of the buckets, in seconds; one without bound comes behind them.
    """

    name: str
    text: str
    bounds: Sequence[float]
    labels: Labels = ()
    durations: dict[Labels, _Durations] = field(factory=dict)

    def observe(self, seconds: float, *labels: str) -> None:
        """Take in a duration."""
        if (found := self.durations.get(labels)) is None:
            found = self.begin(*labels)
        found.counts[bisect_left(self.bounds, seconds)] += 1
        found.sum_s += seconds

    def begin(self, *labels: str) -> _Durations:
        """Have a series without a duration in it."""
        begun = self.durations[labels] = _Durations([0] * (len(self.bounds) + 1))
        return begun

    def collect(self) -> Metric:
        """Return them for Prometheus."""
        from prometheus_client.metrics_core import HistogramMetricFamily  # noqa: PLC0415 - see `Metrics.exposition`

        family = HistogramMetricFamily(_PREFIX + self.name, self.text, labels=self.labels)
        bounds = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        for labels, found in self.durations.items():
            family.add_metric(
                labels, list(zip(bounds, itertools.accumulate(found.counts), strict=True)), found.sum_s
            )
            if _shows_created():
                created = dict(zip(self.labels, labels, strict=True))
                family.add_sample(f"{family.name}_created", created, found.created_at)
        return family


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
