"""The gauge of a node pool's GPUs, in front of a scripted API server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import trio
from support.scripted.kubernetes import status_of
from support.scripted.server import Answer, Call, Json, ScriptedServer, as_json
from test_kubernetes import kubeconfig
from trio.testing import MockClock

from engine_router.config import parse_config
from engine_router.config.pools import NodesConfig
from engine_router.engines.kubernetes.nodes import NodesGauge
from engine_router.errors import ConfigError
from engine_router.memory import GaugeUnreadable
from engine_router.residency.settings import gauges_of

GPU = "nvidia.com/gpu"
GB = 10**9


def node(name: str, gpus: object = 4, **more: Any) -> Json:
    return {"metadata": {"name": name}, "status": {"allocatable": {"cpu": "32", GPU: gpus}}, **more}


def pod(on: str, *gpus: int, before: Iterable[int] = ()) -> Json:
    """Return a Pod whose containers have asked for GPUs."""
    containers, first = (
        [{"resources": {"requests": {GPU: str(count)} if count else {}}} for count in counts]
        for counts in (gpus, before)
    )
    return {"spec": {"nodeName": on, "containers": containers, "initContainers": first}}


class Nodes(ScriptedServer):
    """An API server with nodes and Pods."""

    def __init__(self, nodes: list[Json], pods: list[Json]) -> None:
        super().__init__("m")
        self.nodes, self.pods = nodes, pods
        self.refusal: Answer | None = None

    async def _respond(self, call: Call) -> Answer:
        self.calls.append(call)
        if self.refusal is not None:
            return self.refusal
        query = parse_qs(call.query)
        if call.path == "/api/v1/nodes":
            assert query.get("labelSelector") in (None, ["pool=gpus"])
            return as_json({"items": self.nodes})
        assert call.path == "/api/v1/pods"
        (selector,) = query["fieldSelector"]
        first, *others = selector.split(",")
        assert others == ["status.phase!=Succeeded", "status.phase!=Failed"]
        return as_json({"items": [each for each in self.pods if f"spec.nodeName={_node(each)}" == first]})


def _node(found: Json) -> str:
    return str(found["spec"]["nodeName"])


@asynccontextmanager
async def a_gauge(folder: Path, server: Nodes, **settings: Any) -> AsyncIterator[NodesGauge]:
    with trio.fail_after(300):
        async with server.running():
            config = NodesConfig(gb_each=80, kubeconfig=str(kubeconfig(folder, server.base_url)), **settings)
            yield NodesGauge(config)


@pytest.mark.parametrize(
    ("nodes", "pods", "free", "total"),
    [
        ([node("a"), node("b")], [], 8, 8),
        ([node("a", "4"), node("b", "4")], [pod("a", 1, 0), pod("a", 1, 1), pod("b", 4)], 1, 8),
        ([node("a")], [pod("a", 1, before=[3, 2])], 1, 4),
        ([node("a"), node("b", spec={"unschedulable": True})], [], 4, 8),
        ([node("a"), {"metadata": {"name": "cpu"}, "status": {"allocatable": {"cpu": "8"}}}], [], 4, 4),
        ([node("a", 1)], [pod("a", 2)], 0, 1),
        ([node("a"), {"status": "?"}], [{"spec": {"nodeName": "a", "containers": "?"}}], 4, 4),
    ],
    ids=["free", "taken", "before", "cordoned", "without", "less-now", "garbage"],
)
async def test_what_is_free_is_what_no_pod_has_been_given(
    nodes: list[Json], pods: list[Json], free: int, total: int, tmp_path: Path
) -> None:
    async with a_gauge(tmp_path, Nodes(nodes, pods), selector="pool=gpus") as gauge:
        reading = await gauge.read()
        assert (reading.available_bytes, reading.total_bytes) == (free * 80 * GB, total * 80 * GB)


@pytest.mark.parametrize(
    ("nodes", "refusal", "words"),
    [
        ([], None, "no node with any label has nvidia.com/gpu"),
        ([node("a", "1k")], None, "'1k' is no number of nvidia.com/gpu"),
        ([], status_of(403, "cannot list nodes"), "cannot be counted: cannot list nodes"),
        ([], status_of(503, "etcdserver: no leader"), "cannot be counted: etcdserver: no leader"),
    ],
    ids=["none", "number", "forbidden", "busy"],
)
async def test_what_cannot_be_counted_is_told(
    nodes: list[Json], refusal: Answer | None, words: str, tmp_path: Path
) -> None:
    server = Nodes(nodes, [])
    server.refusal = refusal
    async with a_gauge(tmp_path, server) as gauge:
        with pytest.raises(GaugeUnreadable) as caught:
            await gauge.read()
        assert words in str(caught.value)


async def test_a_cluster_is_not_asked_as_often_as_a_file(tmp_path: Path, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.1  # real sockets take a moment
    server = Nodes([node("a")], [])
    async with a_gauge(tmp_path, server) as gauge:
        began = trio.current_time()
        for _ in range(4):
            await gauge.read()
        assert trio.current_time() - began >= 1.5
    assert {str(call) for call in server.calls} == {"GET /api/v1/nodes", "GET /api/v1/pods"}


CONFIG = """
[engines.a]
type = "ollama"
[pools.gpus]
gauge = "kubernetes"
"""


def test_a_pool_has_the_gauge_that_it_names() -> None:
    config = parse_config(f"{CONFIG}nodes = {{ gb_each = 80 }}")
    assert gauges_of(config)["gpus"].name == f"kubernetes ({GPU})"


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("", "pools.gpus.nodes: missing"),
        ("nodes = {}", "pools.gpus.nodes.gb_each"),
        ("nodes = { gb_each = 0 }", "pools.gpus.nodes.gb_each"),
    ],
    ids=["missing", "empty", "zero"],
)
def test_faults_of_its_table(line: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(CONFIG + line)
    assert place in str(caught.value)
