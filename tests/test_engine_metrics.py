"""`/metrics?engines=1`: the metrics of engines that run, whatever these answer, and however they end."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from support.asgi import ask, conversation
from support.scripted import ScriptedLMStudio, ScriptedOllama
from support.scripted.server import Answer
from test_exposition import SGLANG, VLLM

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.events import RouterNotice
from engine_router.telemetry import engine_metrics

PROGRAM = Path(__file__).parent / "programs" / "metrics_engine.py"
LIMIT_S = 200.0
UP = "engine_router_engine_scrape_up"

Values = Mapping[tuple[str, str, str], float]


def engine(folder: Path, name: str, said: Mapping[str, object], **more: object) -> str:
    """Write the table of an engine that says something when it is asked for its metrics."""
    say(folder, name, said)
    argv = [sys.executable, "-I", "-S", str(PROGRAM), "{port}", str(folder / f"{name}.json")]
    table = {"type": "process", "argv": argv, "models": [f"{name}-model"], "discover": False, **more}
    return "\n".join([f"[engines.{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())])


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {json.dumps(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def say(folder: Path, name: str, said: Mapping[str, object]) -> None:
    path = folder / f"{name}.json"
    path.with_suffix(".new").write_text(json.dumps(said))
    path.with_suffix(".new").replace(path)


@asynccontextmanager
async def routing(*engines: str, load: tuple[str, ...] = (), top: str = "") -> AsyncIterator[Router]:
    """Run a router whose engines fit together, and load the models of some."""
    text = "\n".join(
        [
            'state_file = "/dev/null/state.json"',
            "[server]\nshutdown_timeout_s = 0.1",
            top,
            '[pools.default]\ngauge = "none"\nmode = "budget"\nbudget_gb = 100',
            *engines,
        ]
    )
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router:
            for name in load:
                async with router.lease(name):
                    pass
            yield router


async def scrape(router: Router, query: str = "engines=1") -> Values:
    """Return the samples of one scrape, by name, engine and model; none are there twice."""
    talk = await ask(router.app, "GET", "/metrics", query=query)
    assert talk.status == 200, talk.body
    assert talk.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(talk.body.decode()))
    names = [family.name for family in families]
    assert sorted(names) == sorted(set(names))
    return {
        (sample.name, sample.labels.get("engine", ""), sample.labels.get("model", "")): sample.value
        for family in families
        for sample in family.samples
    }


def notices(router: Router) -> list[str]:
    return [
        event.message
        for event in router.hub.recent
        if isinstance(event, RouterNotice) and "metrics of engine" in event.message
    ]


def lines(router: Router, name: str) -> list[str]:
    return [*router.engines[name].logs.engine.tail(1000)]


def asked(router: Router, name: str) -> list[str]:
    return [line for line in lines(router, name) if line.startswith("request") and "metrics" in line]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.005)


async def test_one_scrape_has_the_metrics_of_all_engines_that_run(tmp_path: Path) -> None:
    engines = [
        engine(tmp_path, "vllm", {"body": VLLM}, memory_gb=1, headers={"Authorization": "Bearer its-own"}),
        engine(tmp_path, "sg", {"body": SGLANG}, memory_gb=1, metrics_path="/own/metrics?model={model}"),
        engine(tmp_path, "cold", {"body": VLLM}, memory_gb=1),
        engine(tmp_path, "none", {"body": VLLM}, memory_gb=1, metrics_path=""),
    ]
    loaded = ("vllm-model", "sg-model", "none-model")
    async with routing(*engines, load=loaded) as router:
        found = await scrape(router)
        assert found["vllm:num_requests_running", "vllm", "vllm-model"] == 8
        assert found["vllm:time_to_first_token_seconds_count", "vllm", "vllm-model"] == 140
        assert found["sglang:num_running_reqs", "sg", "sg-model"] == 162
        assert {key: value for key, value in found.items() if key[0] == UP} == {
            (UP, "vllm", "vllm-model"): 1,
            (UP, "sg", "sg-model"): 1,
        }
        assert "engine_router_start_time_seconds" in {name for name, _, _ in found}
        # With their own keys.
        with_key = f"request GET /metrics {len('Bearer its-own')}"
        assert asked(router, "vllm") == [with_key]
        assert asked(router, "sg") == ["request GET /own/metrics?model=sg-model"]
        # Nobody was started for it.
        assert lines(router, "cold") == []
        assert asked(router, "none") == []
        assert notices(router) == []
        # Whoever does not ask for them does not get them.
        for query in ("", "engines=0", "engines=false"):
            assert not {name for name, _, _ in await scrape(router, query)} & {UP, "python_info"}
        assert asked(router, "vllm") == [with_key]


BAD = {
    "404": {"status": 404, "body": VLLM},
    "501": {"status": 501, "body": '{"error": {}}', "type": "application/json"},
    "a page": {"body": "<html>hello</html>", "type": "text/html"},
    "a page that does not say so": {"body": "<html>hello</html>"},
    "json": {"body": "{}", "type": "application/json"},
    "gzip": {"body": VLLM, "encoding": "gzip"},
    "zstd": {"body": VLLM, "encoding": "zstd"},
    "no UTF-8": {"latin": 'x{a="\xff"} 1\n'},
    "zero bytes": {"body": 'x{a="\0"} 1\n'},
    "too many samples": {"body": "x 1\n", "repeat": 20_000},
    "too many lines": {"body": "\n", "repeat": 50_000},
    "100 MB": {"body": "#" + "x" * 99_999 + "\n", "repeat": 1000},
    "a lie among truths": {"body": f"{VLLM}\nthis is none\n{VLLM}"},
    "a promise": {"body": VLLM, "rest": "break"},
    "silence": {"body": VLLM, "rest": "hang"},
    "a redirect": {"status": 302, "body": ""},
}


@pytest.mark.parametrize("said", BAD.values(), ids=BAD.keys())
async def test_a_bad_answer_costs_the_engines_own_samples(
    said: Mapping[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_metrics, "ENGINE_METRICS_S", 0.5 if "rest" in said else 100.0)
    monkeypatch.setattr(engine_metrics, "ENGINE_METRICS_PAUSE_S", 0.0)
    engines = [
        engine(tmp_path, "bad", said, memory_gb=1),
        engine(tmp_path, "good", {"body": SGLANG}, memory_gb=1),
    ]
    async with routing(*engines, load=("bad-model", "good-model")) as router:
        for _ in range(3):
            found = await scrape(router)
            # On a loaded machine the good one may take longer than the bound of this test.
            assert found[UP, "bad", "bad-model"] == 0
            assert {engine for name, engine, _ in found if not name.startswith("engine_router_")} <= {"good"}
        (notice,) = [text for text in notices(router) if "'bad'" in text]
        assert "metrics_path" in notice
        assert not router.engine_metrics._scopes
        monkeypatch.setattr(engine_metrics, "ENGINE_METRICS_S", 100.0)
        say(tmp_path, "bad", {"body": SGLANG})
        found = await scrape(router)
        assert found[UP, "bad", "bad-model"] == found[UP, "good", "good-model"] == 1
        assert found["sglang:num_running_reqs", "bad", "bad-model"] == 162


async def test_an_engine_that_does_not_answer_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_metrics, "ENGINE_METRICS_S", 0.5)
    slow = engine(tmp_path, "slow", {"body": VLLM, "rest": "hang"}, memory_gb=1)
    async with routing(slow, load=("slow-model",)) as router:
        assert (await scrape(router))[UP, "slow", "slow-model"] == 0
        # Were it asked again, this scrape would take 1,000 seconds.
        monkeypatch.setattr(engine_metrics, "ENGINE_METRICS_S", 1000.0)
        for _ in range(3):
            assert (await scrape(router))[UP, "slow", "slow-model"] == 0
        assert len(asked(router, "slow")) == 1
        # What is started anew is asked anew.
        say(tmp_path, "slow", {"body": VLLM})
        router.supervisor.unload(ResidentId("slow"))
        await until(lambda: not router.read_model.present())
        async with router.lease("slow-model"):
            pass
        assert (await scrape(router))[UP, "slow", "slow-model"] == 1


def test_pauses_grow_and_end() -> None:
    pauses, now, lengths = engine_metrics._Pauses(), 1000.0, []
    hung, other = (engine_metrics._Source(name, "m", f"http://{name}", "/metrics") for name in ("a", "b"))
    for _ in range(6):
        began = now
        pauses.begin(hung, now)
        assert not pauses.is_paused(other, now)
        while pauses.is_paused(hung, now):
            now += 5.0
        lengths.append(now - began)
    assert lengths == [30, 60, 120, 240, 480, 480]
    pauses.begin(hung, now)
    for forget in (
        lambda: pauses.end(hung),
        lambda: pauses.end_all("http://a"),
        lambda: pauses.keep([other]),
    ):
        pauses.begin(hung, now)
        pauses.begin(other, now)
        pauses.end_all("http://c")
        assert pauses.is_paused(hung, now)
        forget()
        assert not pauses.is_paused(hung, now)
        assert pauses.is_paused(other, now)


async def test_an_engine_that_does_not_answer_keeps_nobody_from_its_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This engine ends once its connections are closed. Were the scrape's not, it would take 1,000 seconds.
    monkeypatch.setattr(engine_metrics, "ENGINE_METRICS_S", 1000.0)
    engines = [
        engine(
            tmp_path, "slow", {"body": VLLM, "rest": "hang"}, memory_gb=60, grace_s=500, stop_timeout_s=1000
        ),
        engine(tmp_path, "next", {"body": SGLANG}, memory_gb=60),
    ]
    async with routing(*engines, load=("slow-model",)) as router:
        found: list[Values] = []

        async def scraping() -> None:
            found.append(await scrape(router))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(scraping)
            await until(lambda: bool(asked(router, "slow")))
            # It is used by nobody: what it answers holds no lease.
            assert router.read_model.resident(ResidentId("slow")).leases == ()
            async with router.lease("next-model"):
                pass
        # It went away meanwhile: it is neither up nor down, and nothing is told of it.
        assert [key for key in found[0] if key[0] == UP or "vllm" in key] == []
        assert notices(router) == []
        assert lines(router, "slow")[-1] in ("gone", "term")


async def test_a_scrape_that_is_given_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_metrics, "ENGINE_METRICS_S", 1000.0)
    slow = engine(tmp_path, "slow", {"body": VLLM, "rest": "hang"}, memory_gb=1)
    async with routing(slow, load=("slow-model",)) as router:
        async with conversation(router.app, "GET", "/metrics", query="engines=1") as talk:
            await until(lambda: bool(router.engine_metrics._scopes))
            talk.disconnect()
            await talk.over()
        assert not router.engine_metrics._scopes
        await until(lambda: "gone" in lines(router, "slow"))


async def test_an_engine_that_is_not_there_any_more(tmp_path: Path) -> None:
    async with ScriptedLMStudio("a", "b").running() as server:
        server.script.answers["/metrics"] = Answer(200, b"x 1\n", "text/plain")
        table = f"""
            [engines.studio]
            type = "http"
            base_url = "{server.base_url}"
            models = ["a", "b"]
            metrics_path = "/metrics"
            load = {{ path = "/api/v1/models/load", body = {{ model = "{{model}}" }} }}
            unload = {{ path = "/api/v1/models/unload", body = {{ instance_id = "{{instance}}" }} }}
            loaded = {{ path = "/api/v1/models", key = "models", id = "key", instances = "loaded_instances" }}
            memory_gb = 1
            """
        async with routing(table, load=("a", "b")) as router:
            # One server for two models is asked once, and tells of both together.
            found = await scrape(router)
            assert {key: value for key, value in found.items() if key[1] == "studio"} == {
                (UP, "studio", ""): 1,
                ("x", "studio", ""): 1,
            }
            assert len(server.called("GET", "/metrics")) == 1
            server.crash()
            found = await scrape(router)
            assert found.get((UP, "studio", ""), 0) == 0


async def test_ollama_is_not_asked(tmp_path: Path) -> None:
    async with ScriptedOllama("m").running() as server:
        table = f'[engines.ollama]\ntype = "ollama"\nbase_url = "{server.base_url}"\nmemory_gb = 1\nmodels = ["m"]'
        async with routing(table, load=("m",)) as router:
            assert not [key for key in await scrape(router) if key[0] == UP]
            assert server.called("GET", "/metrics") == []


async def test_the_right_to_metrics_is_the_right_to_these(tmp_path: Path) -> None:
    keys = """api_keys = [{ name = "prometheus", key = "for-metrics", metrics = true, models = [] },
        { name = "user", key = "for-models" }]"""
    one = engine(tmp_path, "vllm", {"body": VLLM}, memory_gb=1)
    async with routing(one, load=("vllm-model",), top=keys) as router:
        for key, status in (("for-metrics", 200), ("for-models", 403), ("other", 401)):
            headers = {"authorization": f"Bearer {key}"}
            talk = await ask(router.app, "GET", "/metrics", query="engines=1", headers=headers)
            assert talk.status == status
        # No key of the router's reaches an engine.
        assert asked(router, "vllm") == ["request GET /metrics"]


async def test_all_engines_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_metrics, "ALL_ENGINE_METRICS_SERIES", 3)
    engines = [engine(tmp_path, name, {"body": SGLANG}, memory_gb=1) for name in ("a", "b")]
    async with routing(*engines, load=("a-model", "b-model")) as router:
        found = await scrape(router)
        assert sorted(value for key, value in found.items() if key[0] == UP) == [0, 1]
        assert len([key for key in found if key[0] == "python_info"]) == 1
