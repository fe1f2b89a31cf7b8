"""The gauge of a node pool's GPUs, as a memory that engines share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import trio
from attrs import define

from engine_router.config.pools import NodesConfig
from engine_router.engines.kubernetes.access import NoAccess, find_access
from engine_router.engines.kubernetes.api import ApiError, KubernetesApi, connected
from engine_router.engines.readiness import dig
from engine_router.memory import GaugeUnreadable, MemoryReading

# Seconds between two readings: a cluster is not asked as often as a file of this machine.
_PACE_S: Final = 0.5
_GB: Final = 10**9

Json = Mapping[str, Any]


@define(eq=False, repr=False)
class NodesGauge:
    """The GPUs of some nodes that no Pod has been given, each counted as so much memory; implements `memory.Gauge`."""

    _config: NodesConfig
    _api: KubernetesApi | None = None
    _last_at: float = -math.inf

    @property
    def name(self) -> str:
        """The name for logs and messages."""
        return f"kubernetes ({self._config.resource})"

    async def read(self) -> MemoryReading:
        """Ask the cluster, half a second after the last reading at the earliest.

        Raises:
            GaugeUnreadable: the cluster cannot be asked, does not allow it, or has no such nodes.

        Cancellation closes the connection.
        """
        await trio.sleep_until(self._last_at + _PACE_S)
        self._last_at = trio.current_time()
        try:
            total, free = await self._count(await self._connected())
        except (NoAccess, ApiError) as error:
            raise GaugeUnreadable(f"the GPUs of the nodes cannot be counted: {error}") from error
        if total == 0:
            where = self._config.selector or "any label"
            raise GaugeUnreadable(f"no node with {where} has {self._config.resource}: see the pool's nodes")
        each = int(self._config.gb_each * _GB)
        return MemoryReading(free * each, total * each)

    async def _connected(self) -> KubernetesApi:
        if self._api is None:
            config = self._config
            access = await trio.to_thread.run_sync(find_access, config.kubeconfig, config.context)
            self._api = await connected(access)
        return self._api

    async def _count(self, api: KubernetesApi) -> tuple[int, int]:
        """Return how many GPUs there are, and how many of them a new Pod could be given."""
        total = free = 0
        for node in await api.nodes(self._config.selector or ""):
            has = _number(dig(node, "status.allocatable"), self._config.resource)
            total += has
            if has and dig(node, "spec.unschedulable") is not True:
                pods = await api.pods_on(str(dig(node, "metadata.name")))
                free += max(0, has - sum(_asked_for(pod, self._config.resource) for pod in pods))
        return total, free


def _asked_for(pod: Json, resource: str) -> int:
    """Return what the scheduler has set aside for a Pod: what runs at once, or the largest of what runs before."""
    return max(
        sum(_requests(pod, "containers", resource)),
        max(_requests(pod, "initContainers", resource), default=0),
    )


def _requests(pod: Json, key: str, resource: str) -> Iterator[int]:
    containers = dig(pod, f"spec.{key}")
    for container in containers if isinstance(containers, list) else ():
        yield _number(dig(container, "resources.requests"), resource)


def _number(amounts: object, resource: str) -> int:
    amount = str(amounts.get(resource, "0")) if isinstance(amounts, dict) else "0"
    if not (amount.isascii() and amount.isdigit() and len(amount) < 10):
        raise ApiError(f"{amount[:20]!r} is no number of {resource}")
    return int(amount)
