"""The manifests and the chart for Kubernetes: they can be read, their configuration loads, and their rights are what the code needs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from support.scripted import supervised
from support.scripted.kubernetes import READY, ScriptedCluster, failed_to_create, waiting
from support.scripted.server import Call
from test_kubernetes import KINDS, an_engine, kubeconfig

import engine_router
from engine_router.config import parse_config
from engine_router.config.keys import KeyConfig
from engine_router.engines.kubernetes.access import find_access
from engine_router.engines.kubernetes.api import connected
from engine_router.engines.kubernetes.lease import LeaderElection

FOLDER = Path(__file__).parent.parent / "scripts/deploy/kubernetes"
CHART = FOLDER / "chart"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
# What the image sets up, and what is the same for every Pod (scripts/deploy/Dockerfile).
USER, FOLDERS = 10001, {"/config", "/data", "/tmp"}

Json = dict[str, Any]
Right = tuple[str, str, str]


def documents(*paths: Path) -> list[Json]:
    return [each for path in paths for each in yaml.safe_load_all(path.read_text("utf-8"))]


def of_kind(kind: str, found: list[Json]) -> Json:
    (only,) = [each for each in found if each["kind"] == kind]
    return only


@pytest.fixture(params=["manifests", "kustomization", "chart"])
def deployed(request: pytest.FixtureRequest) -> list[Json]:
    """Return the objects that are deployed, with the monitor."""
    if request.param == "kustomization":
        return [*output_of("kubectl", "kustomize", str(FOLDER)), *documents(FOLDER / "servicemonitor.yaml")]
    if request.param == "manifests":
        return [each for each in documents(*MANIFESTS) if each["kind"] != "Kustomization"]
    return rendered("--set", "serviceMonitor.enabled=true")


def rendered(*options: str) -> list[Json]:
    return output_of("helm", "template", "engine-router", str(CHART), "--namespace", "models", *options)


def output_of(program: str, *words: str) -> list[Json]:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"there is no {program} here")
    done = subprocess.run([found, *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def test_the_kustomization_has_every_manifest_but_the_optional_one() -> None:
    listed = set(of_kind("Kustomization", documents(*MANIFESTS))["resources"])
    assert listed == {path.name for path in MANIFESTS} - {"kustomization.yaml", "servicemonitor.yaml"}


def test_the_chart_and_the_manifests_name_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    (image,) = of_kind("Kustomization", documents(*MANIFESTS))["images"]
    assert {chart["appVersion"], image["newTag"]} == {engine_router.__version__}


def test_the_chart_has_the_configuration_of_the_manifests() -> None:
    manifest = of_kind("ConfigMap", documents(FOLDER / "configmap.yaml"))
    assert VALUES["config"] == manifest["data"]["engines.toml"]


def test_what_is_off_or_absent_is_left_out() -> None:
    assert "ServiceMonitor" not in {each["kind"] for each in rendered()}
    options = ("rbac.create=false", "podDisruptionBudget.enabled=false", "existingSecret=")
    less = rendered("--set", ",".join(options))
    assert {each["kind"] for each in less} == {"ConfigMap", "Deployment", "Service"}
    assert "envFrom" not in container_of(of_kind("Deployment", less))


# What runs


def container_of(deployment: Json) -> Json:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def test_the_configuration_loads_with_the_environment_that_a_pod_has(
    deployed: list[Json], monkeypatch: pytest.MonkeyPatch
) -> None:
    container = container_of(of_kind("Deployment", deployed))
    for each in container["env"]:
        monkeypatch.setenv(each["name"], "10.1.2.3")
    monitor = of_kind("ServiceMonitor", deployed)["spec"]["endpoints"][0]["authorization"]["credentials"]
    assert [each["secretRef"]["name"] for each in container["envFrom"]] == [monitor["name"]]
    monkeypatch.setenv("CLIENTS_KEY", "a-key-of-clients")
    monkeypatch.setenv(monitor["key"], "a-key-of-prometheus")
    config = parse_config(of_kind("ConfigMap", deployed)["data"]["engines.toml"])
    assert config.leader_election.lease == "engine-router"
    assert config.leader_election.address == f"http://10.1.2.3:{config.server.port}"
    keys = [key for key in config.server.api_keys if isinstance(key, KeyConfig)]
    assert [(key.name, key.metrics) for key in keys] == [("clients", False), ("prometheus", True)]
    grace_s = of_kind("Deployment", deployed)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > config.server.shutdown_timeout_s


def test_the_pods_are_two_and_can_do_little(deployed: list[Json]) -> None:
    deployment = of_kind("Deployment", deployed)
    pod, container = deployment["spec"]["template"]["spec"], container_of(deployment)
    assert deployment["spec"]["replicas"] == 2
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == USER
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {each["mountPath"] for each in container["volumeMounts"]} == FOLDERS
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert set(container["resources"]) == {"requests", "limits"}


def test_a_change_of_leaders_neither_restarts_a_router_nor_takes_it_out_of_the_service(
    deployed: list[Json], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nobody leads, /health of a router that stands by is 503."""
    container = container_of(of_kind("Deployment", deployed))
    for name in ("POD_IP", "CLIENTS_KEY", "METRICS_KEY"):
        monkeypatch.setenv(name, "10.1.2.3" if name == "POD_IP" else f"the-{name}")
    config = parse_config(of_kind("ConfigMap", deployed)["data"]["engines.toml"])
    probes = container["readinessProbe"], container["livenessProbe"]
    assert {probe["httpGet"]["path"] for probe in probes} == {"/health"}
    ready_s, live_s = ((probe["failureThreshold"] - 1) * probe["periodSeconds"] for probe in probes)
    duration_s = config.leader_election.duration_s
    assert ready_s > duration_s * 4 / 3
    assert live_s > duration_s * 10


def test_what_belongs_together_names_each_other(deployed: list[Json]) -> None:
    deployment, service = of_kind("Deployment", deployed), of_kind("Service", deployed)
    pod, container = deployment["spec"]["template"], container_of(deployment)
    labels = pod["metadata"]["labels"].items()
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        of_kind("PodDisruptionBudget", deployed)["spec"]["selector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in pod["spec"]["topologySpreadConstraints"]),
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    monitor = of_kind("ServiceMonitor", deployed)["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    assert monitor["endpoints"][0]["port"] == port["name"]
    assert port["targetPort"] == container["ports"][0]["name"]
    assert container["ports"][0]["containerPort"] == 8077
    binding, account = of_kind("RoleBinding", deployed), of_kind("ServiceAccount", deployed)
    assert binding["roleRef"]["name"] == of_kind("Role", deployed)["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == [account["metadata"]["name"]]
    assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    assert volumes["config"]["configMap"]["name"] == of_kind("ConfigMap", deployed)["metadata"]["name"]


# What the router may do


def right_of(call: Call) -> Right:
    """Return the right that a call needs, as the API server asks its authorizers."""
    words = call.path.strip("/").split("/")
    group, rest = ("", words[2:]) if words[0] == "api" else (words[1], words[3:])
    assert rest[0] == "namespaces"
    resource, *name = rest[2:]
    if len(name) > 1:
        resource = f"{resource}/{name[1]}"
    if call.method == "GET":
        verb = "get" if name else "watch" if "watch=1" in call.query else "list"
    else:
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[call.method]
    return group, resource, verb


def granted(role: Json) -> Iterator[Right]:
    for rule in role["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                yield from ((group, resource, verb) for verb in rule["verbs"])


async def start_and_stop(kind: str, folder: Path, calls: list[Call]) -> None:
    cluster = ScriptedCluster(kind)
    cluster.become = [waiting("ContainerCreating"), READY]
    async with an_engine(cluster, folder, kind=kind) as engine:
        await engine.find()
        async with supervised(engine, "m") as life:
            await life.ready.wait()
            await life.stop()
    calls += cluster.calls


async def fail(cluster: ScriptedCluster, folder: Path, calls: list[Call]) -> None:
    async with an_engine(cluster, folder) as engine, supervised(engine, "m") as life:
        await life.over.wait()
    calls += cluster.calls


async def lead(folder: Path, calls: list[Call]) -> None:
    cluster = ScriptedCluster()
    async with cluster.running():
        access = find_access(str(kubeconfig(folder, cluster.base_url)), None)
        api = await connected(access)
        election = LeaderElection(api, "models", "engine-router", "one", "http://one:1", 15)
        with trio.fail_after(200):
            await election.until_leading()
            await election.release()
    calls += cluster.calls


async def test_the_rights_are_those_that_the_code_needs_and_no_more(
    tmp_path: Path, deployed: list[Json]
) -> None:
    calls: list[Call] = []
    for kind in KINDS:
        await start_and_stop(kind, tmp_path, calls)
    crashing, forbidden = ScriptedCluster(), ScriptedCluster()
    crashing.become = [waiting("CrashLoopBackOff", restarts=3, ended={"exitCode": 1})]
    forbidden.creates = False
    forbidden.events = [failed_to_create("ReplicaSet/vllm-5d9c7b9f4", "quota")]
    for cluster in (crashing, forbidden):
        await fail(cluster, tmp_path, calls)
    await lead(tmp_path, calls)
    needed = {right_of(call) for call in calls if call.path.startswith("/api")}
    rights = list(granted(of_kind("Role", deployed)))
    assert set(rights) == needed
    assert len(rights) == len(needed)
