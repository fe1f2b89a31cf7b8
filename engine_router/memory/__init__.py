"""Memory: how much is free, whether a stopped engine's has come back, and the page cache around a swap.

Other rooms import the gauges, `settle` and the page cache from this package. It knows
no engine and no configuration.
"""

from __future__ import annotations

from engine_router.memory.command import CommandGauge
from engine_router.memory.gauges import GAUGE_KINDS, NullGauge, make_gauge
from engine_router.memory.gpu_activity import GpuActivity, GpuReading
from engine_router.memory.holders import Holder, MemoryHolders, Own
from engine_router.memory.host import MeminfoGauge, PsutilGauge
from engine_router.memory.nvml import NvmlGauge
from engine_router.memory.page_cache import drop, read_ahead
from engine_router.memory.process_memory import most_held_by, most_taken
from engine_router.memory.reading import Gauge, GaugeUnreadable, MemoryReading, footprint
from engine_router.memory.settle import MemoryNotReturned, SettleOutcome, SettleResult, settle

__all__ = [
    "GAUGE_KINDS",
    "CommandGauge",
    "Gauge",
    "GaugeUnreadable",
    "GpuActivity",
    "GpuReading",
    "Holder",
    "MeminfoGauge",
    "MemoryHolders",
    "MemoryNotReturned",
    "MemoryReading",
    "NullGauge",
    "NvmlGauge",
    "Own",
    "PsutilGauge",
    "SettleOutcome",
    "SettleResult",
    "drop",
    "footprint",
    "make_gauge",
    "most_held_by",
    "most_taken",
    "read_ahead",
    "settle",
]
