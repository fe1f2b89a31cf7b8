"""A real cluster, which `KUBECONFIG` names: a namespace of the tests' own in it, and what `kubectl` makes there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen

Json = dict[str, Any]

MANIFESTS = Path(__file__).parents[2] / "scripts/deploy/kubernetes"
ACCOUNT = "engine-router"
# Tests change things in a cluster only where somebody has said so: `nox -s kubernetes` does.
ASKED_BY = "ENGINE_ROUTER_TEST_CLUSTER"
_LIMIT_S = 120.0


@frozen
class Cluster:
    """A namespace, and the kubeconfig of the account that the manifests give the router.

    Attributes:
        kubeconfig: names the account, by a token.
    """

    namespace: str
    kubeconfig: Path

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace, as whoever `KUBECONFIG` names; return what it said."""
        return kubectl("--namespace", self.namespace, *words, stdin=stdin)

    async def later(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl while other tasks go on."""
        return await trio.to_thread.run_sync(lambda: self.kubectl(*words, stdin=stdin))

    def write_kubeconfig(self) -> None:
        """Write the kubeconfig, once the account is there."""
        token = self.kubectl("create", "token", ACCOUNT, "--duration", "2h").strip()
        self.kubeconfig.write_text(json.dumps(_config_of(token, self.namespace)), "utf-8")

    def rights(self) -> list[Json]:
        """Return the rules of what the account may do in the namespace, without what everybody may."""
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": self.namespace},
        }
        words = ("create", "--validate=false", "-f", "-", "-o", "json", "--kubeconfig", str(self.kubeconfig))
        rules = json.loads(self.kubectl(*words, stdin=json.dumps(review)))["status"]["resourceRules"]
        # Everybody may ask about itself, in the groups of authentication and authorization.
        return [rule for rule in rules if not rule["apiGroups"][0].startswith("auth")]

    def found(self, *words: str) -> Json:
        """Return objects as the API has them."""
        found: Json = json.loads(self.kubectl("get", *words, "-o", "json"))
        return found

    def pods(self, name: str) -> list[Json]:
        """Return the Pods of a workload."""
        found: list[Json] = self.found("pods", "-l", f"app={name}")["items"]
        return found

    def make(self, name: str, kind: str = "Deployment", **pod: Any) -> None:
        """Make a workload that is scaled to 0, as somebody who uses the router would."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps(workload(name, kind, **pod)))


def workload(name: str, kind: str = "Deployment", **pod: Any) -> Json:
    """Return a workload that is scaled to 0.

    Args:
        pod: of the specification of its Pods.
    """
    container = {"name": "engine", "image": "registry.k8s.io/pause:3.10", **pod.pop("container", {})}
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            **({"serviceName": name} if kind == "StatefulSet" else {}),
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "containers": [container],
                    "terminationGracePeriodSeconds": 1,
                    "tolerations": [{"operator": "Exists"}],  # kwok's nodes keep other Pods away
                    **pod,
                },
            },
        },
    }


def kubectl(*words: str, stdin: str | None = None) -> str:
    """Run kubectl; return what it printed."""
    done = subprocess.run(
        ["kubectl", *words],
        check=False,
        capture_output=True,
        text=True,
        input=stdin,
        timeout=_LIMIT_S,
    )
    assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
    return done.stdout


@contextmanager
def own_namespace(folder: Path) -> Iterator[Cluster]:
    """Have a namespace that is deleted in the end; the test is skipped where there is no cluster."""
    if ASKED_BY not in os.environ or not os.environ.get("KUBECONFIG"):
        pytest.skip("nox -s kubernetes runs this, where KUBECONFIG names a cluster")
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl here")
    namespace = f"engine-router-test-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", namespace)
    try:
        yield Cluster(namespace, folder / f"{namespace}.json")
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false")


def _config_of(token: str, namespace: str) -> Json:
    """Return the kubeconfig of the router's account: the cluster of KUBECONFIG, and a token."""
    mine: Json = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    cluster = mine["clusters"][0]
    context = {"cluster": cluster["name"], "user": ACCOUNT, "namespace": namespace}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": context}],
        "clusters": [cluster],
        "users": [{"name": ACCOUNT, "user": {"token": token}}],
    }
