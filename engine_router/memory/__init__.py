"""How much memory is free, and whether a stopped engine's memory has come back."""

from __future__ import annotations

from engine_router.memory.gauges import (
    GAUGE_KINDS,
    CommandGauge,
    Gauge,
    GaugeUnreadable,
    MeminfoGauge,
    NullGauge,
    NvmlGauge,
    PsutilGauge,
    Reading,
    footprint,
    make_gauge,
)
from engine_router.memory.page_cache import drop, read_ahead
from engine_router.memory.settle import MemoryNotReturned, Outcome, Settled, settle

__all__ = [
    "GAUGE_KINDS",
    "CommandGauge",
    "Gauge",
    "GaugeUnreadable",
    "MeminfoGauge",
    "MemoryNotReturned",
    "NullGauge",
    "NvmlGauge",
    "Outcome",
    "PsutilGauge",
    "Reading",
    "Settled",
    "drop",
    "footprint",
    "make_gauge",
    "read_ahead",
    "settle",
]
