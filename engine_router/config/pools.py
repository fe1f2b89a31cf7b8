"""Options of the memories that engines share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from attrs import frozen

from engine_router.config.faults import Fault
from engine_router.config.kinds import Argv, BoolOrAuto, Count, Gigabytes, GigabytesOrAuto, Name, Seconds
from engine_router.config.options import option, required


@frozen(kw_only=True, repr=False)
class NodesConfig:
    """The nodes of a cluster whose GPUs are a pool's memory."""

    gb_each: Gigabytes = required(
        "Memory of each GPU, in GB. A model takes whole GPUs: its memory_gb is a multiple."
    )
    selector: Name | None = option(
        None, "Labels of the nodes, such as cloud.google.com/gke-nodepool=gpus; all nodes when absent."
    )
    resource: Name = option("nvidia.com/gpu", "What nodes have and Pods ask for, such as amd.com/gpu.")
    kubeconfig: Name | None = option(
        None, "File that tells where the cluster is; as for engines of type kubernetes."
    )
    context: Name | None = option(None, "The context of that file; its current one when absent.")


@frozen(kw_only=True, repr=False)
class PoolConfig:
    """`[pools.NAME]`: one memory that engines share. The pool `default` exists without being declared."""

    gauge: Literal["auto", "memavailable", "memfree", "psutil", "nvml", "kubernetes", "command", "none"] = (
        option(
            "auto",
            "How free memory is read: auto (MemAvailable on Linux, psutil elsewhere), memfree (DGX Spark's CUDA view), "
            "nvml (a discrete NVIDIA GPU), kubernetes (the GPUs of nodes), command, or none (a remote machine).",
        )
    )
    gpu: Count = option(0, "Index of the GPU that the nvml gauge reads.")
    nodes: NodesConfig | None = option(
        None, "The nodes whose GPUs the kubernetes gauge counts; it needs the right to list nodes and Pods."
    )
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


def pool_faults(path: str, pool: PoolConfig) -> Iterator[Fault]:
    """Yield what is wrong with a pool's gauge.

    Args:
        path: of the pool in the file.
    """
    if pool.gauge == "command" and pool.command is None:
        yield f"{path}.command", 'missing; gauge = "command" needs the command to run'
    if pool.gauge == "kubernetes" and pool.nodes is None:
        yield f"{path}.nodes", 'missing; gauge = "kubernetes" needs nodes, such as { gb_each = 80 }'
    if pool.nodes is not None and pool.nodes.gb_each <= 0:
        yield f"{path}.nodes.gb_each", "expected more than 0 GB"
