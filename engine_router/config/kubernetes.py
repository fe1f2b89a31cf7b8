"""Options of an engine in a Kubernetes cluster, and their faults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal

from attrs import frozen

from engine_router.config.engine_tables import WarmUpConfig
from engine_router.config.engines import EngineConfig
from engine_router.config.faults import Fault
from engine_router.config.kinds import BaseUrl, Name, ReadyCheck, UrlPath
from engine_router.config.options import option, required
from engine_router.config.values import shown

WORKLOADS: Final = {
    "deployment": "apis/apps/v1/namespaces/{}/deployments",
    "statefulset": "apis/apps/v1/namespaces/{}/statefulsets",
    "leaderworkerset": "apis/leaderworkerset.x-k8s.io/v1/namespaces/{}/leaderworkersets",
}
"""The kinds of workloads that can be scaled, and where the API has those of a namespace."""

# A name as RFC 1123 has it.
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def is_kubernetes_name(text: str) -> bool:
    """Tell whether a text can be the name of an object."""
    return _NAME.fullmatch(text) is not None


@frozen(kw_only=True, repr=False)
class KubernetesConfig(EngineConfig):
    """`type = "kubernetes"`: a workload of a cluster, which is scaled to 1 and to 0; nothing is created or deleted."""

    type: Literal["kubernetes"] = option("kubernetes", "A workload of a Kubernetes cluster.")
    base_url: BaseUrl = required("Its Service, such as http://vllm.models.svc:8000.")
    workload: Name = required(
        "What is scaled to 1 and to 0: deployment/NAME, statefulset/NAME or leaderworkerset/NAME. It is never deleted."
    )
    namespace: Name | None = option(
        None, "Its namespace; the router's own in a cluster, or the context's, when absent."
    )
    kubeconfig: Name | None = option(
        None,
        "File that tells where the cluster is, and who the router is there. When absent: the service account of the router's "
        "Pod, else $KUBECONFIG, else ~/.kube/config.",
    )
    context: Name | None = option(None, "The context of that file; its current one when absent.")
    ready_path: UrlPath = option("/health", "Path that tells whether it is ready.")
    ready_check: ReadyCheck = option("status == 200", "What the answer must be; as for process engines.")
    warm_up: WarmUpConfig | None = option(
        None,
        "Request that has to succeed after a start before others are let in, as part of the start; {} for a chat of one token.",
    )

    @property
    def kind(self) -> str:
        """What the workload is, such as `deployment`."""
        return self.workload.partition("/")[0].lower()

    @property
    def workload_name(self) -> str:
        """The workload's own name."""
        return self.workload.partition("/")[2]


def kubernetes_faults(engine: KubernetesConfig, path: str) -> Iterator[Fault]:
    """Yield what is wrong with the options of an engine in a cluster.

    Args:
        path: of the engine in the file.
    """
    if engine.kind not in WORKLOADS or not is_kubernetes_name(engine.workload_name):
        kinds = ", ".join(f"{kind}/NAME" for kind in WORKLOADS)
        yield f"{path}.workload", f"expected one of {kinds}, got {shown(engine.workload)}"
    if engine.namespace is not None and not is_kubernetes_name(engine.namespace):
        yield f"{path}.namespace", f"expected the name of a namespace, got {shown(engine.namespace)}"
