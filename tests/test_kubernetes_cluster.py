"""Engines in a real cluster, which `KUBECONFIG` names, by the account and the rights that the manifests give the router.

Nodes of kwok suffice: Pods get as far as being ready there, and nothing runs in them. What answers in place of their
Service is a server of the tests'.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.cluster import ACCOUNT, MANIFESTS, Cluster, own_namespace
from support.elected import Answered, ElectedRouter, ask
from support.scripted import supervised, until
from support.scripted.kubernetes import ScriptedCluster
from test_deploy_kubernetes import documents, granted, of_kind
from test_kubernetes import started

from engine_router.cli.leading import LOST
from engine_router.config import KubernetesConfig
from engine_router.config.pools import NodesConfig
from engine_router.engines.base import ResidentId
from engine_router.engines.kubernetes.access import find_access
from engine_router.engines.kubernetes.api import ApiError, KubernetesApi, connected
from engine_router.engines.kubernetes.kubernetes_engine import KubernetesEngine
from engine_router.engines.kubernetes.lease import LeaderElection
from engine_router.engines.kubernetes.nodes import NodesGauge
from engine_router.engines.kubernetes.pods import PodWatch
from engine_router.errors import EngineStartFailed, EngineStartTimeout
from engine_router.memory import GaugeUnreadable
from engine_router.upstream.control_client import control_client

LIMIT_S = 300.0
# httpcore leaves a connection that is cancelled within its TLS handshake to the collector of garbage.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with own_namespace(tmp_path_factory.mktemp("cluster")) as made:
        made.kubectl("apply", "--validate=strict", "-f", str(MANIFESTS / "rbac.yaml"))
        made.write_kubeconfig()
        yield made


async def api_of(cluster: Cluster) -> KubernetesApi:
    return await connected(find_access(str(cluster.kubeconfig), None))


@asynccontextmanager
async def an_engine(
    cluster: Cluster, name: str, kind: str = "deployment", **settings: Any
) -> AsyncIterator[KubernetesEngine]:
    """Make an engine; what answers at its Service's place is a server of the tests'."""
    service = ScriptedCluster(replicas=1)
    with trio.fail_after(LIMIT_S):
        async with service.running(), control_client() as client:
            config = KubernetesConfig(
                base_url=service.base_url,
                workload=f"{kind}/{name}",
                kubeconfig=str(cluster.kubeconfig),
                models=("m",),
                **{"start_timeout_s": 120.0, "stop_timeout_s": 120.0, **settings},
            )
            yield KubernetesEngine(name, config, client)


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
async def test_a_workload_is_scaled_up_and_down_until_its_pod_is_gone(kind: str, cluster: Cluster) -> None:
    name = f"round-{kind.lower()}"
    cluster.make(name, kind)
    uid = cluster.found(kind, name)["metadata"]["uid"]
    async with an_engine(cluster, name, kind.lower()) as engine:
        assert await engine.obstacle(ResidentId(name)) is None
        assert await engine.find() == []
        for _ in range(2):
            async with supervised(engine, "m") as life:
                await started(life)
                assert life.error is None
                assert len(cluster.pods(name)) == 1
                assert await engine.find() == [ResidentId(name)]
                assert await engine.check(ResidentId(name)) is None
                await life.stop()
            assert life.stopped
            assert cluster.pods(name) == []
            assert await engine.find() == []
    assert cluster.found(kind, name)["metadata"]["uid"] == uid


async def test_a_pod_that_goes_slowly_is_waited_for(cluster: Cluster) -> None:
    cluster.make("slow")

    def hold(finalizers: list[str]) -> str:
        (pod,) = cluster.pods("slow")
        patch = json.dumps({"metadata": {"finalizers": finalizers}})
        return cluster.kubectl("patch", "pod", pod["metadata"]["name"], "--type=merge", "-p", patch)

    async with an_engine(cluster, "slow") as engine, supervised(engine, "m") as life:
        await started(life)
        assert life.error is None
        hold(["engine-router.test/hold"])
        life.supervision.stop()
        while not any("deletionTimestamp" in pod["metadata"] for pod in cluster.pods("slow")):
            await trio.sleep(0.1)
        with trio.move_on_after(3):  # longer than it takes to look again
            await life.over.wait()
        assert not life.over.is_set()
        assert await engine.find() == [ResidentId("slow")]
        hold([])
        await life.over.wait()
        assert life.stopped


async def test_one_that_runs_is_taken_over_and_one_that_somebody_deletes_has_ended(cluster: Cluster) -> None:
    cluster.make("over")
    cluster.kubectl("scale", "deployment/over", "--replicas=1")
    async with an_engine(cluster, "over") as engine, supervised(engine, "m", adopt=True) as life:
        await started(life)
        assert life.error is None
        await cluster.later("delete", "deployment", "over", "--wait=false")
        life.supervision.doubt()
        await life.over.wait()
        assert life.died
        assert life.ended is not None
        assert "somebody else has deleted deployment/over" in life.ended.message
        assert cluster.pods("over") == []


# Why a start fails


async def test_one_that_no_node_takes(cluster: Cluster) -> None:
    cluster.make("large", container={"resources": {"limits": {"nvidia.com/gpu": "4096"}}})
    async with an_engine(cluster, "large", start_timeout_s=10.0) as engine, supervised(engine, "m") as life:
        await life.over.wait()
        assert isinstance(life.error, EngineStartTimeout)
        assert "Unschedulable: 0/" in life.error.message
        assert "Insufficient nvidia.com/gpu" in life.error.message
    assert cluster.pods("large") == []


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
async def test_one_that_a_quota_forbids(kind: str, cluster: Cluster) -> None:
    name = f"quota-{kind.lower()}"
    cluster.make(name, kind)
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"pods": "0"}},
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(quota))
    try:
        while "hard" not in cluster.found("resourcequota", "none").get("status", {}):
            await trio.sleep(0.2)
        async with an_engine(cluster, name, kind.lower()) as engine, supervised(engine, "m") as life:
            await life.over.wait()
            assert isinstance(life.error, EngineStartFailed)
            assert not isinstance(life.error, EngineStartTimeout)
            assert "cannot be started: FailedCreate: " in life.error.message
            assert "exceeded quota: none" in life.error.message
    finally:
        cluster.kubectl("delete", "resourcequota", "none")


KUBELET: list[tuple[str, dict[str, Any], str]] = [
    (
        "pull",
        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}}},
        'ImagePullBackOff: Back-off pulling image "x"',
    ),
    (
        "crash",
        {
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
            "restartCount": 1,
        },
        "OOMKilled: it needed more memory than its limit",
    ),
]


@pytest.mark.parametrize(("name", "state", "words"), KUBELET, ids=[case[0] for case in KUBELET])
async def test_what_a_kubelet_tells(name: str, state: dict[str, Any], words: str, cluster: Cluster) -> None:
    """No kubelet is needed for that: no scheduler looks after the Pod, and the test writes its status."""
    cluster.make(f"kubelet-{name}", schedulerName="nobody")
    async with (
        an_engine(cluster, f"kubelet-{name}") as engine,
        supervised(engine, "m") as life,
        trio.open_nursery() as nursery,
    ):

        async def tell() -> None:
            await until(lambda: any("not ready yet" in line for line in engine.log.tail(9)))
            (pod,) = cluster.pods(f"kubelet-{name}")
            status = {
                "restartCount": 0,
                "ready": False,
                "image": "x",
                "imageID": "",
                "name": "engine",
                **state,
            }
            patch = json.dumps({"status": {"containerStatuses": [status]}})
            words = (
                "patch",
                "pod",
                pod["metadata"]["name"],
                "--subresource=status",
                "--type=merge",
                "-p",
                patch,
            )
            await cluster.later(*words)

        nursery.start_soon(tell)
        await life.over.wait()
        assert isinstance(life.error, EngineStartFailed)
        assert not isinstance(life.error, EngineStartTimeout)
        assert words in life.error.message
    assert cluster.pods(f"kubelet-{name}") == []


# The GPUs of nodes


async def test_the_gpus_of_nodes_are_a_memory(cluster: Cluster) -> None:
    """That needs rights in the whole cluster, which the manifests do not give."""
    gauge = NodesGauge(NodesConfig(gb_each=80, kubeconfig=str(cluster.kubeconfig)))
    with trio.fail_after(LIMIT_S):
        with pytest.raises(GaugeUnreadable, match="cannot list resource"):
            await gauge.read()
        name = cluster.namespace
        account = f"--serviceaccount={name}:{ACCOUNT}"
        cluster.kubectl("create", "clusterrole", name, "--verb=list", "--resource=nodes,pods")
        try:
            cluster.kubectl("create", "clusterrolebinding", name, f"--clusterrole={name}", account)
            try:
                before = await gauge.read()
            except GaugeUnreadable as error:
                pytest.skip(str(error))
            cluster.make("one-gpu", container={"resources": {"limits": {"nvidia.com/gpu": "1"}}})
            async with an_engine(cluster, "one-gpu") as engine, supervised(engine, "m") as life:
                await started(life)
                assert life.error is None
                assert (await gauge.read()).available_bytes == before.available_bytes - 80 * 10**9
                await life.stop()
            assert await gauge.read() == before
        finally:
            cluster.kubectl("delete", "clusterrole", name)
            cluster.kubectl("delete", "clusterrolebinding", name, "--ignore-not-found")


# What the API server does


async def test_a_watch_from_long_ago_is_refused_and_pods_are_listed_again(cluster: Cluster) -> None:
    cluster.make("watched")
    with trio.fail_after(LIMIT_S):
        api = await api_of(cluster)
        with trio.move_on_after(20) as listening, pytest.raises(ApiError) as caught:
            await api.watch_pods(cluster.namespace, "app=watched", "1", lambda *_: None)
        if listening.cancelled_caught:
            pytest.skip("this API server remembers everything since it was made: restart it")
        assert caught.value.status == 410
        watch = PodWatch(api, cluster.namespace, "app=watched")
        watch._version = "1"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            await until(lambda: watch.pods is not None)
            await cluster.later("scale", "deployment/watched", "--replicas=1")
            await until(lambda: any(pod.is_ready for pod in (watch.pods or {}).values()))
            await cluster.later("scale", "deployment/watched", "--replicas=0")
            await until(lambda: not watch.pods)
            nursery.cancel_scope.cancel()


async def test_scaling_against_others_ends_where_the_router_wants_it(cluster: Cluster) -> None:
    """They change the object all the time: whatever the API server makes of that, the router gets through."""
    cluster.make("contested")
    async with an_engine(cluster, "contested") as engine, trio.open_nursery() as nursery:

        async def annotate() -> None:
            for number in range(10**6):
                await cluster.later("annotate", "--overwrite", "deployment", "contested", f"n={number}")

        nursery.start_soon(annotate)
        for _ in range(2):
            async with supervised(engine, "m") as life:
                await started(life)
                assert life.error is None
                await life.stop()
                assert life.stopped
        nursery.cancel_scope.cancel()


async def test_of_two_changes_of_a_lease_one_passes(cluster: Cluster) -> None:
    with trio.fail_after(LIMIT_S):
        api = await api_of(cluster)
        first, second = (
            LeaderElection(api, cluster.namespace, "contested", name, f"http://{name}:1", 15)
            for name in ("a", "b")
        )
        await first.until_leading()
        seen = await api.lease(cluster.namespace, "contested")
        assert seen is not None
        await first.release()
        with pytest.raises(ApiError) as caught:
            await api.put_lease(cluster.namespace, "contested", seen, is_new=False)
        assert caught.value.status == 409
        with pytest.raises(ApiError) as caught:
            await api.put_lease(
                cluster.namespace, "contested", {"metadata": {"name": "contested"}}, is_new=True
            )
        assert caught.value.status == 409
        await second.until_leading()
        assert not await first._try()
        first_look = await api.lease(cluster.namespace, "contested")
        assert first_look is not None
        assert first_look["spec"]["holderIdentity"] == "b"
        assert first_look["spec"]["leaseTransitions"] == 2
        await second.release()


# The whole


@pytest.mark.parametrize("way", ["manifests", "chart"])
def test_what_is_deployed_becomes_ready_and_may_do_what_the_code_needs(way: str, tmp_path: Path) -> None:
    with own_namespace(tmp_path) as cluster:
        keys = ("--from-literal=CLIENTS_KEY=a", "--from-literal=METRICS_KEY=b")
        cluster.kubectl("create", "secret", "generic", "engine-router-keys", *keys)
        if way == "chart":
            helm = shutil.which("helm")
            if helm is None:
                pytest.skip("there is no helm here")
            words = ("install", "engine-router", str(MANIFESTS / "chart"), "--namespace", cluster.namespace)
            subprocess.run([helm, *words], check=True, capture_output=True, timeout=120)
        else:
            cluster.kubectl("apply", "--validate=strict", "-k", str(MANIFESTS))
        # Nodes of kwok keep Pods away that do not tolerate them, which is no business of the manifests.
        tolerant = {"spec": {"template": {"spec": {"tolerations": [{"operator": "Exists"}]}}}}
        cluster.kubectl("patch", "deployment", "engine-router", "-p", json.dumps(tolerant))
        cluster.kubectl("rollout", "status", "deployment/engine-router", "--timeout=100s")
        budget = ("wait", "poddisruptionbudget/engine-router", "--timeout=60s")
        cluster.kubectl(*budget, "--for=jsonpath={.status.disruptionsAllowed}=1")
        cluster.write_kubeconfig()
        role = of_kind("Role", documents(MANIFESTS / "rbac.yaml"))
        assert set(granted({"rules": cluster.rights()})) == set(granted(role))


ROUNDS = int(os.environ.get("ENGINE_ROUTER_TEST_KILLS", "2"))
ENDS = [("kill", ROUNDS), ("freeze", max(1, ROUNDS // 5)), ("end", max(1, ROUNDS // 5))]


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("how", "rounds"), ENDS, ids=[how for how, _ in ENDS])
async def test_of_two_routers_one_leads_whatever_becomes_of_the_other(
    how: str, rounds: int, cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.make("vllm")
    service = ScriptedCluster(replicas=1)
    told: list[Answered] = []
    with trio.fail_after(120 + 60 * rounds):
        async with service.running(), trio.open_nursery() as nursery:
            routers = {
                name: ElectedRouter(tmp_path, name, cluster.kubeconfig, service.base_url)
                for name in ("a", "b")
            }
            try:
                for router in routers.values():
                    await router.start()
                    await ask(router.url)
                nursery.start_soon(see_that_one_leads, list(routers.values()))
                before = [pod["metadata"]["uid"] for pod in cluster.pods("vllm")]
                for _ in range(rounds):
                    lease = json.loads(await cluster.later("get", "lease", "engine-router", "-o", "json"))
                    leader = routers[lease["spec"]["holderIdentity"].partition("_")[0]]
                    (other,) = (router for router in routers.values() if router is not leader)
                    await until(functools.partial(is_standing_by, other))
                    leader.is_judged = False  # from now on it may be late to notice
                    leader.process.send_signal(SIGNALS[how])
                    told.append(await ask(other.url))
                    leader.process.send_signal(signal.SIGCONT)
                    assert await leader.process.wait() == CODES[how]
                    assert other.leads
                    assert [pod["metadata"]["uid"] for pod in cluster.pods("vllm")] == before
                    await leader.start()
                nursery.cancel_scope.cancel()
            finally:
                for router in routers.values():
                    router.process.kill()
    cluster.kubectl("delete", "deployment", "vllm")
    cluster.kubectl("delete", "lease", "engine-router")
    with capsys.disabled():
        took = sorted(each.took_s for each in told)
        refused = [len(each.refusals) for each in told]
        sys.stderr.write(
            f"\n{how}: {rounds} rounds, answered after {took[0]:.1f} to {took[-1]:.1f} s, 503s each: {refused}\n"
        )
    assert max(len(each.refusals) for each in told) <= 1
    assert sum(each.cuts for each in told) == 0


def is_standing_by(router: ElectedRouter) -> bool:
    return "standing by" in router.log


SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "end": signal.SIGTERM}
CODES = {"kill": -signal.SIGKILL, "freeze": LOST, "end": 0}


async def see_that_one_leads(routers: list[ElectedRouter]) -> None:
    while True:
        assert sum(router.leads for router in routers) <= 1
        await trio.sleep(0.05)
