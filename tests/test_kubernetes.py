"""Engines in a Kubernetes cluster, in front of a scripted API server that follows its documentation."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from support.scripted import SupervisedResident, supervised, until
from support.scripted.kubernetes import (
    READY,
    ScriptedCluster,
    failed_to_create,
    status_of,
    unschedulable,
    waiting,
)
from support.scripted.server import Answer, Json
from trio.testing import MockClock

from engine_router.config import KubernetesConfig, parse_config
from engine_router.engines.base import ResidentId
from engine_router.engines.kubernetes.access import NoAccess, find_access
from engine_router.engines.kubernetes.kubernetes_engine import KubernetesEngine
from engine_router.errors import (
    ConfigError,
    EngineStartFailed,
    EngineStartTimeout,
    EngineStopFailed,
    EngineUnreachable,
)
from engine_router.upstream.control_client import control_client

KINDS = ("deployment", "statefulset", "leaderworkerset")


def kubeconfig(folder: Path, server: str, user: Mapping[str, Any] | None = None, **cluster: Any) -> Path:
    """Write a kubeconfig; it is YAML, of which JSON is a part."""
    path = folder / "config"
    data = {
        "current-context": "home",
        "contexts": [{"name": "home", "context": {"cluster": "c", "user": "u", "namespace": "models"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "u", "user": user or {"token": "its-token"}}],
    }
    path.write_text(json.dumps(data))
    return path


@asynccontextmanager
async def an_engine(
    cluster: ScriptedCluster, folder: Path, *, kind: str = "deployment", **settings: Any
) -> AsyncIterator[KubernetesEngine]:
    with trio.fail_after(300):
        async with cluster.running(), control_client() as client:
            config = KubernetesConfig(
                base_url=cluster.base_url,
                workload=f"{kind}/vllm",
                kubeconfig=str(kubeconfig(folder, cluster.base_url)),
                models=("m",),
                **{"start_timeout_s": 250.0, "stop_timeout_s": 250.0, **settings},
            )
            yield KubernetesEngine("vllm", config, client)


async def started(life: SupervisedResident) -> None:
    """Wait until it is ready, or has failed."""
    async with trio.open_nursery() as nursery:

        async def failed() -> None:
            await life.over.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(failed)
        await life.ready.wait()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_workload_is_scaled_up_serves_and_is_scaled_down(kind: str, tmp_path: Path) -> None:
    cluster = ScriptedCluster(kind)
    cluster.become = [unschedulable("0/1 nodes are available"), waiting("ContainerCreating"), READY]
    async with an_engine(cluster, tmp_path, kind=kind) as engine:
        assert await engine.find() == []
        assert await engine.obstacle(ResidentId("vllm")) is None
        async with supervised(engine, "m") as life:
            await life.ready.wait()
            assert cluster.replicas == 1
            assert await engine.find() == [ResidentId("vllm")]
            assert await engine.check(ResidentId("vllm")) is None
            assert {
                call.headers["authorization"] for call in cluster.calls if call.path.startswith("/api")
            } == {"Bearer its-token"}
            await life.stop()
        assert life.stopped
        assert cluster.replicas == 0
        assert cluster.pods == {}
        assert await engine.find() == []
        assert await engine.check(ResidentId("vllm")) == "is down: deployment/vllm is scaled to 0".replace(
            "deployment", kind
        )


async def test_one_that_runs_is_found_and_taken_over(tmp_path: Path) -> None:
    cluster = ScriptedCluster(replicas=1)
    async with an_engine(cluster, tmp_path) as engine:
        assert await engine.find() == [ResidentId("vllm")]
        async with supervised(engine, "m", adopt=True) as life:
            await life.ready.wait()
            assert not cluster.called("PATCH", f"{cluster.path}/scale")
            await life.stop()
            assert life.stopped


async def test_pods_that_are_still_going_are_waited_for(tmp_path: Path) -> None:
    cluster = ScriptedCluster(replicas=1)
    cluster.is_stuck = True
    async with an_engine(cluster, tmp_path) as engine:
        cluster.wanted(0)
        assert await engine.find() == [ResidentId("vllm")]
        async with supervised(engine, "m", adopt=True) as life:
            await until(lambda: cluster.called("GET", "/api/v1/namespaces/models/pods"))
            cluster.vanish("vllm-1")
            await life.over.wait()
            assert life.died


# What goes wrong during a start

OOM = {"reason": "OOMKilled", "exitCode": 137}
FAILED: Json = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}


@pytest.mark.parametrize(
    ("become", "words"),
    [
        (waiting("ImagePullBackOff", "manifest unknown"), "ImagePullBackOff: manifest unknown"),
        (waiting("InvalidImageName", "couldn't parse"), "InvalidImageName: couldn't parse"),
        (waiting("ErrImageNeverPull"), "ErrImageNeverPull"),
        (waiting("CreateContainerConfigError", 'secret "hf" not found'), 'secret "hf" not found'),
        (waiting("CrashLoopBackOff", restarts=3, ended={"exitCode": 1}), "exit code 1"),
        (
            waiting("CrashLoopBackOff", restarts=1, ended=OOM),
            "OOMKilled: it needed more memory than its limit",
        ),
        (FAILED, "Evicted: The node was low on resource: memory."),
    ],
    ids=["pull", "image-name", "never-pulled", "configuration", "crash", "oom", "evicted"],
)
async def test_a_start_in_vain_ends_at_once_with_its_reason(become: Json, words: str, tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    cluster.become = [waiting("ContainerCreating"), become]
    cluster.lines = ["loading weights", "CUDA error: out of memory"]
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:
        await life.over.wait()
        assert isinstance(life.error, EngineStartFailed)
        assert not isinstance(life.error, EngineStartTimeout)
        assert "Pod vllm-1: " in life.error.message
        assert words in life.error.message
        if become.get("containerStatuses", [{}])[0].get("lastState"):
            assert life.error.log_tail == ("loading weights", "CUDA error: out of memory")
        assert cluster.replicas == 0
        assert cluster.pods == {}


@pytest.mark.parametrize(
    ("kind", "creator"),
    [
        ("deployment", "ReplicaSet/vllm-5d9c7b9f4"),
        ("statefulset", "StatefulSet/vllm"),
        ("leaderworkerset", "StatefulSet/vllm"),
        ("leaderworkerset", "StatefulSet/vllm-0"),
    ],
    ids=["deployment", "statefulset", "leaders", "workers"],
)
async def test_a_quota_is_told(kind: str, creator: str, tmp_path: Path) -> None:
    cluster = ScriptedCluster(kind)
    cluster.creates = False
    quota = 'pods "vllm-1" is forbidden: exceeded quota: gpus'
    cluster.events = [
        failed_to_create(creator, quota),
        failed_to_create(creator, "an older one", "2998-01-01T00:00:00Z"),
        failed_to_create(creator, "an old story", "2020-01-01T00:00:00Z"),
        failed_to_create("ReplicaSet/vllm-large-5d9c7b9f4", "another's"),
        failed_to_create("StatefulSet/vllm-large", "another's"),
    ]
    async with an_engine(cluster, tmp_path, kind=kind) as engine, supervised(engine, "m") as life:
        await life.over.wait()
        assert life.error is not None
        assert f"cannot be started: FailedCreate: {quota}" in life.error.message
        assert cluster.replicas == 0


async def test_one_that_no_node_takes_is_given_up_in_the_end(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    cluster = ScriptedCluster()
    cluster.become = [unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")]
    async with an_engine(cluster, tmp_path, start_timeout_s=200.0) as engine, supervised(engine, "m") as life:
        await until(lambda: any("Insufficient" in line for line in engine.log.tail(9)))
        jumping_clock.jump(200.0)
        await life.over.wait()
        assert isinstance(life.error, EngineStartTimeout)
        assert "Insufficient nvidia.com/gpu" in life.error.message
        assert cluster.replicas == 0


async def test_a_service_that_leads_nowhere_is_named(tmp_path: Path, jumping_clock: MockClock) -> None:
    cluster = ScriptedCluster()
    settings = {"start_timeout_s": 200.0, "ready_path": "/nowhere"}
    async with an_engine(cluster, tmp_path, **settings) as engine, supervised(engine, "m") as life:
        await until(lambda: any("its probe" in line for line in engine.log.tail(9)))
        jumping_clock.jump(200.0)
        await life.over.wait()
        assert life.error is not None
        assert "its probe: " in life.error.message
        assert cluster.replicas == 0


# What the API server does

BUSY = status_of(429, "too many requests", **{"retry-after": "0"})


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("patch", [status_of(409, "the object has been modified")]),
        ("patch", [BUSY, BUSY]),
        ("patch", [status_of(503, "etcdserver: leader changed")]),
        ("pods", [status_of(500, "etcdserver: request timed out")]),
        ("watch", [status_of(410, "too old resource version")]),
        ("watch", [status_of(504, "gateway timeout")]),
    ],
    ids=["conflict", "busy", "leader", "list", "gone", "watch"],
)
async def test_what_passes_is_waited_for(kind: str, answers: list[Any], tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    cluster.become = [waiting("ContainerCreating")]
    cluster.refusals[kind] = list(answers)
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:
        await until(lambda: not cluster.refusals[kind] and cluster.pods)
        cluster.change("vllm-1", READY)
        await started(life)
        assert life.error is None
        await life.stop()
        assert life.stopped
        assert cluster.replicas == 0


async def test_a_watch_goes_on_from_its_bookmark_and_lists_again_where_that_is_gone(tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    cluster.become = [waiting("ContainerCreating")]
    cluster.ends_watches = 1
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:

        def watches() -> list[str]:
            return [call.query for call in cluster.calls if "watch=1" in call.query]

        await until(watches)
        lists = len(cluster.called("GET", "/api/v1/namespaces/models/pods")) - len(watches())
        cluster.bookmark()
        before = len(watches())
        await until(lambda: len(watches()) > before)
        assert len(cluster.called("GET", "/api/v1/namespaces/models/pods")) - len(watches()) == lists
        cluster.compacted = 10**6
        cluster.bookmark()
        await until(
            lambda: len(cluster.called("GET", "/api/v1/namespaces/models/pods")) - len(watches()) > lists
        )
        cluster.compacted = 0
        cluster.change("vllm-1", READY)
        await life.ready.wait()
        await life.stop()


async def test_watches_that_end_at_once_are_begun_again_at_leisure(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster = ScriptedCluster()
    cluster.become = [waiting(["x"])]  # type: ignore[arg-type]  # a reason that is none
    cluster.refusals["watch"] = [Answer(200, b"x\n") for _ in range(20)]
    autojump_clock.autojump_threshold = 0.1  # real sockets take a moment
    began = trio.current_time()
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:
        await until(lambda: not cluster.refusals["watch"])
        assert trio.current_time() - began > 0.15
        cluster.change("vllm-1", READY)
        await started(life)
        assert life.error is None
        await life.stop()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status_of(404, 'deployments.apps "vllm" not found'), 'deployments.apps "vllm" not found'),
        (
            status_of(403, "cannot get scale"),
            "cannot get scale; give it the rights of scripts/deploy/kubernetes",
        ),
        (status_of(401, "Unauthorized"), "the router's token or certificate is not accepted"),
    ],
    ids=["missing", "forbidden", "unauthorized"],
)
async def test_what_no_try_can_mend_is_an_obstacle(answer: Any, words: str, tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    cluster.refusals["scale"] = [answer] * 3
    async with an_engine(cluster, tmp_path) as engine:
        assert words in str(await engine.obstacle(ResidentId("vllm")))
        with pytest.raises(EngineUnreachable):
            await engine.find()
        async with supervised(engine, "m") as life:
            await life.over.wait()
            assert isinstance(life.error, EngineStartFailed)
            assert words in life.error.message
    assert not cluster.called("PATCH", f"{cluster.path}/scale")


# While it serves, and when it has to go


async def test_a_workload_that_somebody_else_scales_down_has_ended(tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:
        await life.ready.wait()
        looked = len(cluster.called("GET", f"{cluster.path}/scale"))
        life.supervision.doubt()
        await until(lambda: len(cluster.called("GET", f"{cluster.path}/scale")) > looked)
        assert not life.over.is_set()
        cluster.wanted(0)
        life.supervision.doubt()
        await life.over.wait()
        assert life.died
        assert life.ended is not None
        assert "somebody else has scaled deployment/vllm to 0" in life.ended.message


async def test_a_pod_that_crashes_while_it_serves_has_ended(tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:
        await life.ready.wait()
        cluster.change("vllm-1", waiting("CrashLoopBackOff", restarts=1, ended=OOM))
        life.supervision.doubt()
        await life.over.wait()
        assert life.died
        assert life.ended is not None
        assert "OOMKilled" in life.ended.message
        assert cluster.replicas == 0


async def test_an_autoscaler_that_scales_up_again_is_overruled_and_named(tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:
        await life.ready.wait()
        cluster.is_stuck = True
        life.supervision.stop()
        await until(lambda: cluster.replicas == 0)
        cluster.wanted(1)
        await until(lambda: cluster.replicas == 0)
        for name in list(cluster.pods):
            cluster.vanish(name)
        await life.over.wait()
        assert life.stopped
        assert any("see whether an autoscaler looks after it" in line for line in engine.log.tail(9))


@pytest.mark.parametrize(
    "fault",
    [
        status_of(503, "etcdserver: leader changed", **{"retry-after": "0"}),
        status_of(429, "too many requests", **{"retry-after": "0"}),
        status_of(409, "the object has been modified"),
        Answer(500, b"?", headers=(("retry-after", "0"),)),
    ],
    ids=["leader", "busy", "conflict", "defect"],
)
@pytest.mark.parametrize("kind", ["scale", "patch", "pods", "watch"])
async def test_a_fault_in_the_middle_of_a_stop_is_waited_for(
    kind: str, fault: Answer, tmp_path: Path
) -> None:
    cluster = ScriptedCluster()
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:
        await life.ready.wait()
        cluster.refusals[kind] = [fault, fault]
        life.supervision.stop()
        await life.over.wait()
        assert life.stopped
        assert cluster.pods == {}


async def test_a_stop_that_is_not_allowed_ends_at_once(tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:
        await life.ready.wait()
        cluster.refusals["patch"] = [status_of(403, "cannot patch scale")]
        life.supervision.stop()
        await life.over.wait()
        assert isinstance(life.error, EngineStopFailed)
        assert "cannot be stopped: it cannot be scaled: cannot patch scale; give it" in life.error.message


async def test_a_silent_cluster_is_named_when_a_stop_takes_too_long(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    cluster = ScriptedCluster()
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:
        await life.ready.wait()
        cluster.refusals["scale"] = [status_of(503, "etcdserver: no leader") for _ in range(1000)]
        life.supervision.stop()
        await until(lambda: any("no leader" in line for line in engine.log.tail(9)))
        jumping_clock.jump(250.0)
        await life.over.wait()
        assert isinstance(life.error, EngineStopFailed)
        assert "it cannot be looked at: etcdserver: no leader" in life.error.message


async def test_the_workers_of_a_group_are_waited_for(tmp_path: Path) -> None:
    cluster = ScriptedCluster("leaderworkerset")
    async with an_engine(cluster, tmp_path, kind="leaderworkerset") as engine:
        cluster.told = ""  # before its controller has seen it for the first time
        assert await engine.find() == []
        async with supervised(engine, "m") as life:
            await life.ready.wait()
            worker = {"metadata": {"name": "vllm-1-1", "uid": "worker"}, "status": READY}
            cluster.pods["vllm-1-1"] = worker
            cluster.is_stuck = True
            life.supervision.stop()
            await until(lambda: cluster.replicas == 0)
            cluster.vanish("vllm-1")
            await until(lambda: "watch=1" in cluster.calls[-1].query or "/scale" in str(cluster.calls[-1]))
            assert not life.over.is_set()
            cluster.vanish("vllm-1-1")
            await life.over.wait()
            assert life.stopped


@pytest.mark.parametrize("is_doubted", [False, True], ids=["stop", "doubt"])
async def test_a_workload_that_somebody_else_deletes_has_ended_when_its_pods_are_gone(
    is_doubted: bool, tmp_path: Path
) -> None:
    cluster = ScriptedCluster()
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:
        await life.ready.wait()
        cluster.is_deleted = True
        assert "not found" in str(await engine.check(ResidentId("vllm")))
        life.supervision.doubt() if is_doubted else life.supervision.stop()
        looked = len(cluster.calls)
        await until(lambda: len(cluster.calls) > looked + 1)
        assert not life.over.is_set()
        cluster.vanish("vllm-1")
        await life.over.wait()
        assert life.ended is not None
        if is_doubted:
            assert life.died
            assert "somebody else has deleted deployment/vllm" in life.ended.message


async def test_pods_that_do_not_go_are_told(tmp_path: Path, jumping_clock: MockClock) -> None:
    cluster = ScriptedCluster()
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:
        await life.ready.wait()
        cluster.is_stuck = True
        life.supervision.stop()
        # It has been scaled down, and looked at once more since.
        await until(lambda: cluster.replicas == 0 and cluster.calls[-1].method == "GET")
        await until(lambda: str(cluster.calls[-1]) == f"GET {cluster.path}/scale")
        await trio.testing.wait_all_tasks_blocked(0.05)
        jumping_clock.jump(250.0)
        await life.over.wait()
        assert isinstance(life.error, EngineStopFailed)
        assert "of its Pods are left" in life.error.message
        assert "terminationGracePeriodSeconds" in life.error.message


async def test_nothing_is_ever_created_or_deleted(tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    async with an_engine(cluster, tmp_path) as engine, supervised(engine, "m") as life:
        await life.ready.wait()
        await life.stop()
    changing = {str(call) for call in cluster.calls if call.method != "GET"}
    assert changing == {f"PATCH {cluster.path}/scale"}


# Where the cluster is


def of_pod(folder: Path) -> None:
    for name, text in (("token", "t"), ("namespace", "models\n"), ("ca.crt", "")):
        (folder / name).write_text(text)


def test_a_pods_service_account_comes_first(tmp_path: Path) -> None:
    of_pod(tmp_path)
    environ = {
        "KUBERNETES_SERVICE_HOST": "fd00::1",
        "KUBERNETES_SERVICE_PORT": "6443",
        "KUBECONFIG": "/nowhere",
    }
    access = find_access(None, None, environ=environ, account=tmp_path)
    assert (access.server, access.namespace, access.token_file) == (
        "https://[fd00::1]:6443",
        "models",
        tmp_path / "token",
    )


def test_certificates_of_a_kubeconfig(tmp_path: Path) -> None:
    ca = trustme.CA()
    mine = ca.issue_cert("router")
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem.bytes())
    key = base64.b64encode(mine.private_key_pem.bytes()).decode()
    chain = base64.b64encode(b"".join(blob.bytes() for blob in mine.cert_chain_pems)).decode()
    user = {"client-certificate-data": chain, "client-key-data": key}
    path = kubeconfig(tmp_path, "https://127.0.0.1:6443/", user, **{"certificate-authority": "ca.pem"})
    access = find_access(None, "home", environ={"KUBECONFIG": f"/nowhere:{path}"})
    assert access.server == "https://127.0.0.1:6443"
    assert len(access.tls().get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda data: data.update({"current-context": None}),
            "has no current-context: name one with context",
        ),
        (lambda data: data.update({"clusters": []}), "has no cluster 'c'"),
        (
            lambda data: data["users"][0].update(user={"exec": {"command": "aws"}}),
            "logs in by a program (exec)",
        ),
        (lambda data: data["clusters"][0].update(cluster={"server": 3}), "has no server"),
        (
            lambda data: data["users"][0].update(user={"client-key-data": "?"}),
            "its client-key cannot be used",
        ),
        (lambda data: data["contexts"].clear(), "has no context 'home'"),
    ],
    ids=["context", "cluster", "exec", "server", "key", "contexts"],
)
def test_what_is_wrong_with_a_kubeconfig(
    change: Callable[[dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    path = kubeconfig(tmp_path, "https://127.0.0.1:6443")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(NoAccess) as caught:
        find_access(str(path), None, environ={})
    assert words in str(caught.value)


def test_without_any_cluster_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoAccess, match="name a file with kubeconfig"):
        find_access(None, None, environ={}, account=tmp_path, home=tmp_path)


CONFIG = """
[engines.big]
type = "kubernetes"
base_url = "http://vllm.models.svc:8000"
models = ["m"]
"""


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        ('workload = "pod/x"', "engines.big.workload", "expected one of deployment/NAME, statefulset/NAME"),
        ('workload = "deployment/"', "engines.big.workload", "expected one of"),
        ('workload = "deployment/X y"', "engines.big.workload", "expected one of"),
        (
            'workload = "deployment/x"\nnamespace = "A"',
            "engines.big.namespace",
            "expected the name of a namespace",
        ),
        ("", "engines.big.workload", "missing"),
    ],
    ids=["kind", "no-name", "name", "namespace", "missing"],
)
def test_faults_of_the_configuration(line: str, place: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(CONFIG + line)
    assert place in str(caught.value)
    assert words in str(caught.value)
    good = parse_config(CONFIG + 'workload = "StatefulSet/x"').engines["big"]
    assert isinstance(good, KubernetesConfig)
    assert (good.kind, good.workload_name) == ("statefulset", "x")
