"""`[leader_election]`: of several routers in a cluster one leads, and the others stand by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import frozen

from engine_router.config.faults import Fault
from engine_router.config.kinds import BaseUrl, Name, Seconds
from engine_router.config.kubernetes import is_kubernetes_name
from engine_router.config.options import option
from engine_router.config.values import shown

SHORTEST_S: Final = 3.0
"""The shortest time of a lease: its holder renews it several times in that."""
LONGEST_S: Final = 3600.0


@frozen(kw_only=True, repr=False)
class LeaderElectionConfig:
    """`[leader_election]`: of several routers one leads, by a Lease of Kubernetes, and the others pass requests on to it."""

    lease: Name | None = option(
        None, "Name of the Lease that tells who leads; without one, this router decides alone."
    )
    namespace: Name | None = option(
        None, "Its namespace; the router's own in a cluster, or the context's, when absent."
    )
    address: BaseUrl | None = option(
        None,
        "Where the others reach this router, such as http://${env:POD_IP}:8077; http://, its host name and port when absent.",
    )
    duration_s: Seconds = option(
        15.0, "Seconds after which another router takes over from one that is not heard of any more."
    )
    kubeconfig: Name | None = option(
        None, "File that tells where the cluster is; as for engines of type kubernetes."
    )
    context: Name | None = option(None, "The context of that file; its current one when absent.")


def leader_faults(config: LeaderElectionConfig) -> Iterator[Fault]:
    """Yield what is wrong with the table."""
    for key, value in (("lease", config.lease), ("namespace", config.namespace)):
        if value is not None and not is_kubernetes_name(value):
            yield f"leader_election.{key}", f"expected a name as Kubernetes has them, got {shown(value)}"
    if not SHORTEST_S <= config.duration_s <= LONGEST_S:
        yield (
            "leader_election.duration_s",
            f"expected a time from {SHORTEST_S:g} to {LONGEST_S:g} s, in which a lease is renewed several times",
        )
