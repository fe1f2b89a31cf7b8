"""Options of the memories that engines share."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from engine_router.config.kinds import Argv, BoolOrAuto, Count, Gigabytes, GigabytesOrAuto, Name, Seconds
from engine_router.config.options import option


@frozen(kw_only=True, repr=False)
class PoolConfig:
    """`[pools.NAME]`: one memory that engines share. The pool `default` exists without being declared."""

    gauge: Literal["auto", "memavailable", "memfree", "psutil", "nvml", "command", "none"] = option(
        "auto",
        "How free memory is read: auto (MemAvailable on Linux, psutil elsewhere), memfree (DGX Spark's CUDA view), "
        "nvml (a discrete NVIDIA GPU), command, or none (a remote machine).",
    )
    gpu: Count = option(0, "Index of the GPU that the nvml gauge reads.")
    mode: Literal["exclusive", "budget"] = option(
        "exclusive",
        "exclusive: one engine (or one group) has the memory at a time. budget: several, while they fit budget_gb.",
    )
    budget_gb: GigabytesOrAuto = option(
        "auto",
        "Memory that engines may use together in budget mode, in GB; auto is what is free at the start, less reserve_gb.",
    )
    reserve_gb: Gigabytes = option(
        2.0,
        "Memory for everything else, in GB: a budget_gb of auto leaves it, and idle models make way for it where other "
        "programs take it.",
    )
    evict_under_pressure: bool = option(
        True,
        "Stop idle models where other programs, such as a game, leave less than reserve_gb of memory; pinned ones stay.",
    )
    max_resident: Count = option(0, "Engines that may be running at once; 0: as many as fit.")
    default_model: Name | None = option(
        None, "Model to return to when nobody wants another; it is loaded at the start, too."
    )
    return_after_s: Seconds = option(
        60.0, "Seconds that other models must be idle before they make way for default_model."
    )
    command: Argv | None = option(
        None, "Command whose last number on standard output is the free memory in bytes."
    )
    unified: BoolOrAuto = option(
        "auto",
        "Whether the GPU uses this machine's main memory, so that what an engine parks there is not freed: true, false, "
        "or auto (Apple silicon, GB10, Jetson, and wherever the gauge is memfree).",
    )
