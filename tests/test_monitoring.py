"""The dashboard and the alert rules: each query asks for metrics that a running router has, and a real Prometheus agrees."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from support.served import served
from test_control import process

from engine_router import open_router
from engine_router.cli import main
from engine_router.config import parse_config
from engine_router.engines.ports import ClaimedPort
from engine_router.telemetry import sampling

DEPLOY = Path(__file__).parent.parent / "scripts/deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/engine-router.json").read_text())
ALERTS = DEPLOY / "grafana/alerts.yml"
LIMIT_S = 200.0
# The scripted engines do not tell how fast they write.
NOT_SCRIPTED = re.compile("time_per_output_token_seconds")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def queries(panel: dict[str, list[dict[str, str]]]) -> list[str]:
    return [target["expr"].replace("$__rate_interval", "20s") for target in panel["targets"]]


def alert_queries() -> list[str]:
    return re.findall(r"^ +expr: (.+)$", ALERTS.read_text(), re.MULTILINE)


def every_query() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from queries(panel)
    yield from alert_queries()


@asynccontextmanager
async def routing(folder: Path) -> AsyncIterator[str]:
    """Run a router with two models that share one memory; yields its URL."""
    text = "\n".join(
        (
            f"state_file = {json.dumps(str(folder / 'state.json'))}",
            "[server]\nshutdown_timeout_s = 0.1",
            "[scheduling]\nhold_s = 0",
            process("a"),
            process("b"),
        )
    )
    async with open_router(parse_config(text)) as router, served(router) as url:
        yield url


async def chat(client: httpx.AsyncClient, model: str, do: str) -> None:
    body = {"model": model, "do": do, "stream": do != "chat", "messages": [{"role": "user", "content": "hi"}]}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text


async def test_every_query_asks_for_metrics_that_there_are(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with routing(tmp_path) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            await chat(client, "a", "chat")
            text = (await client.get("/metrics?engines=1")).text
    there = {
        family.name + suffix
        for family in text_string_to_metric_families(text)
        for suffix in SUFFIXES[family.type]
    }
    asked = {name for query in every_query() for name in re.findall(r"\bengine_router_\w+", query)}
    assert len(asked) > 25
    assert asked - there == set()


async def test_a_running_router_tells_its_memory_and_phases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "SAMPLE_INTERVAL_S", 0.05)
    with trio.fail_after(LIMIT_S):
        async with routing(tmp_path) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            await chat(client, "a", "chat")
            await chat(client, "b", "chat")
            found: dict[str, dict[tuple[str, ...], float]] = {}
            while "engine_router_memory_free_bytes" not in found:
                await trio.sleep(0.05)
                found = {}
                for family in text_string_to_metric_families((await client.get("/metrics")).text):
                    for sample in family.samples:
                        found.setdefault(sample.name, {})[
                            tuple(value for _, value in sorted(sample.labels.items()))
                        ] = sample.value
    total = found["engine_router_memory_total_bytes"]["default",]
    assert 0 < found["engine_router_memory_free_bytes"]["default",] < total
    assert found["engine_router_residents"]["ready", "default"] == 1
    assert found["engine_router_residents"]["stuck", "default"] == 0
    assert found["engine_router_resident"] == {("default", "b"): 1}
    assert found["engine_router_starts_total"] == {("cold", "a"): 1, ("cold", "b"): 1}
    assert found["engine_router_evictions_total"] == {("request",): 1}
    assert found["engine_router_load_wait_seconds_count"]["b",] == 1
    assert list(found["engine_router_build_info"].values()) == [1]


def test_the_rules_name_commands_that_there_are() -> None:
    named = set(re.findall(r"`engine-router ([a-z]+(?: status| logs)?)", ALERTS.read_text()))
    assert len(named) > 3
    for command in named:
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--help"])
        assert ended.value.code == 0


def test_the_rules_are_valid() -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(
        [promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run a Prometheus with the configuration that is shipped; yields a client of it."""
    program = shutil.which("prometheus")
    assert program is not None
    config = (DEPLOY / "monitoring/prometheus.yml").read_text()
    assert "127.0.0.1:8077" in config
    config = config.replace("127.0.0.1:8077", urlsplit(target).netloc)
    config = re.sub(r"_interval: \d+s", "_interval: 1s", config)
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(ALERTS, folder)
    port = ClaimedPort()
    port.release()
    address = f"127.0.0.1:{port.number}"
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    ]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.run_process, command)
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=10) as client:
            yield client
        nursery.cancel_scope.cancel()


async def ask(client: httpx.AsyncClient, query: str) -> list[object]:
    """Return the result of a query; nothing where Prometheus is not there yet."""
    try:
        answer = await client.get(f"/api/v1/query?{urlencode({'query': query})}")
    except httpx.TransportError:
        return []
    if answer.status_code == 503:
        return []
    assert answer.status_code == 200, f"{query}: {answer.text}"
    result: list[object] = answer.json()["data"]["result"]
    return result


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's prometheus")
async def test_a_real_prometheus_finds_data_for_each_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "SAMPLE_INTERVAL_S", 0.5)
    with trio.fail_after(LIMIT_S):
        async with routing(tmp_path) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            await chat(client, "a", "chat")
            async with prometheus(tmp_path, url) as scraped:
                without = {
                    query
                    for panel in DASHBOARD["panels"]
                    for query in queries(panel)
                    if not NOT_SCRIPTED.search(query)
                }
                with trio.move_on_after(40):
                    while without:
                        for model in ("a", "b"):
                            await chat(client, model, "chat")
                            await chat(client, model, "stream")
                        await trio.sleep(0.5)
                        without = {query for query in without if not await ask(scraped, query)}
                assert without == set()
                for query in every_query():
                    await ask(scraped, query)
                rules = (await scraped.get("/api/v1/rules")).json()["data"]["groups"]
                assert len(rules[0]["rules"]) == len(alert_queries())
