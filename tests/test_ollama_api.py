"""Ollama's `/api/*` for every model of every engine: what is known of them, and that nobody waits for it."""

import datetime as dt
import json
import math
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
import trio
from support.asgi import ask
from support.engines import build_engines
from support.scripted import Answer, ScriptedLlamaRouter, ScriptedOllama, as_json, until
from support.served import served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.models.facts import KnownModels, ModelFacts
from engine_router.models.registry import ModelRegistry
from engine_router.upstream.control_client import control_client
from engine_router.web import ollama as surface
from engine_router.web import ollama_shapes

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"
LIMIT_S = 200.0
TEMPLATE = "{% if tools %}{{ tools }}{% endif %}{% if enable_thinking %}<think>{% endif %}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the header of a model of 7.6B weights; nothing here reads further."""
    path = tmp_path_factory.mktemp("weights") / "qwen.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_string("general.basename", "Qwen2.5")
    writer.add_license("apache-2.0")
    writer.add_file_type(15)
    writer.add_context_length(131072)
    writer.add_embedding_length(3584)
    writer.add_chat_template(TEMPLATE)
    writer.add_token_list(["a"] * 1000)
    writer.add_tensor_info("a", (7616, 1_000_000), np.dtype(np.float16), 0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def process(name: str, *options: str, **more: object) -> str:
    argv = [sys.executable, "-I", "-S", str(PROGRAM), "{port}", *options]
    table = {"type": "process", "argv": argv, "models": [name], **more}
    return "\n".join([f"[engines.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])


def daemon(of: ScriptedOllama, name: str = "ollama") -> str:
    return f'[engines.{name}]\ntype = "ollama"\nbase_url = "{of.base_url}"\n'


def llama_router(of: ScriptedLlamaRouter, *models: str) -> str:
    return "\n".join(
        [
            "[engines.llama]",
            'type = "http"',
            f'base_url = "{of.base_url}"',
            f"models = {json.dumps(models)}",
            'load = { path = "/models/load", body = { model = "{model}" } }',
            'unload = { path = "/models/unload", body = { model = "{model}" } }',
            'loaded = { path = "/models", key = "data", filter = { "status.value" = "loaded" } }',
            "",
        ]
    )


@asynccontextmanager
async def routing(*tables: str) -> AsyncIterator[Router]:
    head = 'state_file = "/dev/null/state.json"\n[pools.default]\ngauge = "none"\n'
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config("\n".join([head, *tables]))) as router:
            yield router


def facts(router: Router, model: str) -> ModelFacts:
    return router.known_models.of(router.registry.resolve(model))


async def get(router: Router, path: str) -> Any:
    talk = await ask(router.app, "GET", path)
    assert talk.status == 200
    return talk.json()


async def shown(router: Router, model: str) -> Any:
    talk = await ask(router.app, "POST", "/api/show", body={"model": model})
    assert talk.status == 200
    return talk.json()


# A model with a GGUF file.


async def test_a_model_with_a_file_is_described_by_it(weights: Path) -> None:
    tables = [process("q", f"--model={weights}"), '[aliases]\n"gpt-4o" = "q"']
    async with routing(*tables) as router:
        await until(lambda: facts(router, "q").weights)
        details = {
            "parent_model": "",
            "format": "gguf",
            "family": "qwen2",
            "families": ["qwen2"],
            "parameter_size": "7.6B",
            "quantization_level": "Q4_K_M",
        }
        first, second = (await get(router, "/api/tags"))["models"]
        assert first == {
            "name": "q",
            "model": "q",
            "modified_at": "2023-11-14T22:13:20Z",
            "size": weights.stat().st_size,
            "digest": first["digest"],
            "details": {**details, "context_length": 131072, "embedding_length": 3584},
            "capabilities": ["completion", "tools", "thinking"],
        }
        assert second == {**first, "name": "gpt-4o", "model": "gpt-4o"}
        for name in ("q", "q:latest", "gpt-4o", "gpt-4o:latest"):
            answer = await shown(router, name)
            assert answer["details"] == details
            assert answer["capabilities"] == ["completion", "tools", "thinking"]
            assert answer["template"] == TEMPLATE
            assert answer["license"] == "apache-2.0"
            assert answer["modified_at"] == "2023-11-14T22:13:20Z"
            assert answer["parameters"].split() == ["num_ctx", "131072"]
            assert answer["model_info"] == {
                "general.architecture": "qwen2",
                "general.basename": "Qwen2.5",
                "general.file_type": 15,
                "general.license": "apache-2.0",
                "general.parameter_count": 7_616_000_000,
                "qwen2.context_length": 131072,
                "qwen2.embedding_length": 3584,
                "tokenizer.ggml.tokens": None,
            }
        entries = (await get(router, "/v1/models"))["data"]
        assert [(e["id"], e["context_length"], e["max_model_len"]) for e in entries] == [
            ("q", 131072, 131072),
            ("gpt-4o", 131072, 131072),
        ]
        assert (await get(router, "/v1/models/gpt-4o"))["context_length"] == 131072
        assert router.supervisor.domains["default"].ledger.is_empty


async def test_the_context_told_is_the_one_that_is_served(weights: Path) -> None:
    tables = [process("q", f"--model={weights}", "--ctx-size=8192")]
    async with routing(*tables) as router:
        await until(lambda: facts(router, "q").weights)
        assert (await shown(router, "q"))["model_info"]["qwen2.context_length"] == 8192
        assert (await get(router, "/v1/models/q"))["max_model_len"] == 8192


async def test_what_is_configured_wins(weights: Path) -> None:
    more = '[models.q]\nengine = "q"\ncontext_length = 4096\ncapabilities = ["completion", "insert"]'
    async with routing(process("q", f"--model={weights}", "--ctx-size=8192"), more) as router:
        await until(lambda: facts(router, "q").weights)
        answer = await shown(router, "q")
        assert answer["capabilities"] == ["completion", "insert"]
        assert answer["model_info"]["qwen2.context_length"] == 4096


async def test_a_projector_makes_it_see_and_an_option_makes_it_embed(weights: Path) -> None:
    tables = [
        process("sees", f"--model={weights}", "--mmproj=p.gguf"),
        process("embeds", f"--model={weights}", "--embedding", type="process"),
    ]
    async with routing(*tables) as router:
        await until(lambda: facts(router, "sees").weights)
        assert (await shown(router, "sees"))["capabilities"] == ["completion", "tools", "thinking", "vision"]
        assert (await shown(router, "embeds"))["capabilities"] == ["embedding"]


async def test_the_digest_is_there_from_the_first_and_stays(weights: Path) -> None:
    seen = []
    for _ in range(2):
        async with routing(process("q", f"--model={weights}")) as router:
            seen += [entry["digest"] for entry in (await get(router, "/api/tags"))["models"]]
            await until(lambda: facts(router, "q").weights)
            seen += [entry["digest"] for entry in (await get(router, "/api/tags"))["models"]]
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert len(seen[0]) == 64


async def test_a_damaged_file_leaves_what_can_be_told_without(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(20))
    async with routing(process("q", f"--model={bad}")) as router:
        answer = await shown(router, "q")
        assert answer["capabilities"] == ["completion"]
        assert answer["details"]["family"] == "q"
        assert answer["model_info"] == {"general.architecture": "unknown", "general.basename": "q"}
        (entry,) = (await get(router, "/api/tags"))["models"]
        assert entry["size"] == 0
        assert dt.datetime.fromisoformat(entry["modified_at"].replace("Z", "+00:00")).year >= 2024


@pytest.mark.parametrize("date", [-(10**13), 10**13])
def test_a_file_of_any_date(date: int) -> None:
    target = ModelRegistry(config := parse_config(process("q")), build_engines(config, None)).resolve("q")
    entry = ollama_shapes.tag("q", target, ModelFacts(modified_at=date), since=0.0)
    assert entry["modified_at"] == "1970-01-01T00:00:00Z"


async def test_a_file_that_changes_is_read_again(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    config = parse_config(process("q", f"--model={path}"))
    async with control_client() as client:
        registry = ModelRegistry(config, build_engines(config, client))
        known_models, target = KnownModels(config, registry), registry.resolve("q")
        await known_models.refresh(client, {})
        assert known_models.of(target).weights is None
        path.write_bytes(weights.read_bytes())
        await known_models.refresh(client, {})
        first = known_models.of(target).weights
        await known_models.refresh(client, {})
        assert known_models.of(target).weights is first
        os.utime(path, (1, 1))
        await known_models.refresh(client, {})
        assert known_models.of(target).modified_at == 1
        path.write_bytes(b"no model")
        await known_models.refresh(client, {})
        assert known_models.of(target) == ModelFacts()
        path.unlink()
        await known_models.refresh(client, {})
        assert known_models.of(target) == ModelFacts()


# What running engines say.

LISTS: Mapping[str, tuple[dict[str, Any], int | None, int]] = {
    "vLLM": ({"max_model_len": 40960}, 40960, 0),
    "llama.cpp": ({"meta": {"n_ctx_train": 32768, "n_params": 10**9, "size": 5}}, 32768, 10**9),
    "llama.cpp, which says what it serves": ({"meta": {"n_ctx": 4096, "n_ctx_train": 32768}}, 4096, 0),
    "nothing": ({}, None, 0),
    "nonsense": ({"max_model_len": "x", "meta": [], "n_ctx": -1, "context_length": True}, None, 0),
    "endless": ({"max_model_len": 10**30}, None, 0),
}


@pytest.mark.parametrize(("entry", "context", "parameters"), LISTS.values(), ids=LISTS.keys())
@pytest.mark.parametrize("name", ["a", "/models/a.gguf"])
async def test_what_an_engine_lists(
    name: str, entry: dict[str, Any], context: int | None, parameters: int
) -> None:
    config = parse_config(process("a"))
    async with ScriptedLlamaRouter("a").running() as server, control_client() as client:
        server.script.answers["/v1/models"] = as_json({"data": [{"id": name, **entry}, 5, {}, {"id": 3}]})
        registry = ModelRegistry(config, build_engines(config, client))
        known_models = KnownModels(config, registry)
        with trio.fail_after(LIMIT_S):
            await known_models.refresh(client, {ResidentId("a"): server.base_url})
    known = known_models.of(registry.resolve("a"))
    assert (known.context_length, known.parameters) == (context, parameters)


@pytest.mark.parametrize(
    ("kinds", "sees"), [(["text", "image"], True), (["text"], False), ("image", False), (None, False)]
)
async def test_an_engine_tells_whether_its_model_sees(kinds: object, sees: bool) -> None:
    config = parse_config(process("a"))
    async with ScriptedLlamaRouter("a").running() as server, control_client() as client:
        entry = {"id": "a", "architecture": {"input_modalities": kinds}}
        server.script.answers["/v1/models"] = as_json({"data": [entry]})
        registry = ModelRegistry(config, build_engines(config, client))
        known_models = KnownModels(config, registry)
        await known_models.refresh(client, {ResidentId("a"): server.base_url})
    assert ("vision" in known_models.of(registry.resolve("a")).capabilities) is sees


@pytest.mark.parametrize(("option", "listed", "context"), [(8192, 40960, 8192), (8192, 4096, 4096)])
async def test_the_least_context_is_what_is_served(option: int, listed: int, context: int) -> None:
    config = parse_config(process("a", f"--ctx-size={option}"))
    async with ScriptedLlamaRouter("a").running() as server, control_client() as client:
        server.script.answers["/v1/models"] = as_json({"data": [{"id": "a", "max_model_len": listed}]})
        registry = ModelRegistry(config, build_engines(config, client))
        known_models = KnownModels(config, registry)
        await known_models.refresh(client, {ResidentId("a"): server.base_url})
    assert known_models.of(registry.resolve("a")).context_length == context


@pytest.mark.parametrize("answer", [as_json([]), as_json({"data": 3}), as_json({}, 500), Answer(body=b"no")])
async def test_an_engine_that_lists_nothing_of_use(answer: Answer) -> None:
    async with ScriptedLlamaRouter("a").running() as server, control_client() as client:
        config = parse_config(llama_router(server, "a"))
        registry = ModelRegistry(config, build_engines(config, client))
        known_models = KnownModels(config, registry)
        for kept in ("/v1/models", "/api/tags", "/api/show"):
            server.script.answers[kept] = answer
        with trio.fail_after(LIMIT_S):
            await known_models.refresh(client, {ResidentId("llama", "a"): server.base_url})
        assert known_models.of(registry.resolve("a")) == ModelFacts()


async def test_it_is_asked_when_it_became_ready() -> None:
    async with ScriptedLlamaRouter("a").running() as server:
        listed = {"id": "a", "meta": {"n_ctx_train": 1234}, "status": {"value": "unloaded"}}
        server.script.answers["/v1/models"] = as_json({"data": [listed]})
        async with routing(llama_router(server, "a")) as router:
            assert (await get(router, "/v1/models/a")).get("context_length") is None
            async with router.lease("a"):
                await until(lambda: facts(router, "a").context_length)
            assert (await get(router, "/v1/models/a"))["context_length"] == 1234


# Ollama's own models.

ENTRY = {
    "name": "own:1b",
    "model": "own:1b",
    "modified_at": "2026-10-20T14:12:00.123456789+02:00",
    "size": 815319791,
    "digest": "8648f39daa8fbf5b18c7b4e6a8fb4990c692751d49917417b8842ca5758e7ffc",
    "details": {"parent_model": "x", "format": "gguf", "family": "gemma3", "families": None, "odd": 1},
    "something": {"new": [1, 2.5, None]},
}
SHOWN = {
    "modelfile": "FROM own",
    "details": ENTRY["details"],
    "model_info": {"general.architecture": "gemma3", "gemma3.context_length": 32768},
    "capabilities": ["completion", "vision"],
    "something": "new",
}


@asynccontextmanager
async def with_daemon(*tables: str) -> AsyncIterator[tuple[ScriptedOllama, Router]]:
    async with ScriptedOllama("own:1b").running() as server:
        server.script.answers["/api/tags"] = as_json({"models": [ENTRY]})
        server.script.answers["/api/show"] = as_json(SHOWN)
        async with routing(daemon(server), *tables) as router:
            await until(
                lambda: "own:1b" in router.registry.listed("ollama") and facts(router, "own:1b").shown
            )
            yield server, router


async def test_ollamas_own_entry_stays_as_it_is() -> None:
    async with with_daemon(process("other"), '[aliases]\n"gpt-4o" = "own:1b"') as (_, router):
        models = {entry["name"]: entry for entry in (await get(router, "/api/tags"))["models"]}
        assert [*models] == ["other", "own:1b", "gpt-4o"]
        # Ollama before 0.33 lists no capabilities, which `ollama launch` looks for.
        entry = {**ENTRY, "capabilities": ["completion", "vision"]}
        assert models["own:1b"] == entry
        assert models["gpt-4o"] == {**entry, "name": "gpt-4o", "model": "gpt-4o"}
        assert (await get(router, "/v1/models/own:1b"))["context_length"] == 32768


@pytest.mark.parametrize("hangs", [True, False])
async def test_show_of_ollamas_own_model_does_not_wait_for_ollama(
    monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(surface, "SHOW_TIMEOUT_S", 0.05)
    async with with_daemon() as (server, router):
        if hangs:
            server.script.hang = {"/api/show", "/api/tags", "/api/ps"}
        else:
            server.crash()
        (entry,) = (await get(router, "/api/tags"))["models"]
        assert {key: entry[key] for key in ENTRY} == ENTRY
        answer = await shown(router, "own:1b")
        assert {key: answer[key] for key in SHOWN} == SHOWN
        assert answer["modified_at"] == ENTRY["modified_at"]


async def test_show_gives_what_ollama_answers_even_an_error() -> None:
    async with with_daemon() as (server, router):
        server.script.answers["/api/show"] = as_json({"error": "model 'own:1b' not found"}, 404)
        talk = await ask(router.app, "POST", "/api/show", body={"model": "own:1b"})
        assert (talk.status, talk.json()) == (404, {"error": "model 'own:1b' not found"})


async def test_a_model_of_ollama_is_asked_about_once_until_it_changes() -> None:
    async with ScriptedOllama("own:1b").running() as server, control_client() as client:
        config = parse_config(daemon(server))
        known_models = KnownModels(config, ModelRegistry(config, build_engines(config, client)))
        for _ in range(3):
            await known_models.refresh(client, {})
        assert len(server.called("POST", "/api/show")) == 1
        server.script.answers["/api/tags"] = as_json({"models": [ENTRY]})
        for _ in range(3):
            await known_models.refresh(client, {})
        assert len(server.called("POST", "/api/show")) == 2


async def test_nobody_waits_for_a_daemon_that_hangs() -> None:
    """Home Assistant gives the list 5 s."""
    async with with_daemon(process("q")) as (server, router):
        server.script.hang = {"/api/show", "/api/tags", "/api/ps"}
        with trio.fail_after(200):
            models = (await get(router, "/api/tags"))["models"]
            assert [entry["model"] for entry in models] == ["q", "own:1b"]
            assert await get(router, "/api/ps") == {"models": []}


# What is loaded.


async def test_what_is_loaded(weights: Path) -> None:
    async with ScriptedLlamaRouter("a", "b").running() as server:
        more = f'[models.a]\nengine = "llama"\npath = "{weights}"'
        async with routing(llama_router(server, "a", "b"), more) as router:
            await until(lambda: facts(router, "a").weights)
            assert await get(router, "/api/ps") == {"models": []}
            async with router.lease("a"):
                (entry,) = (await get(router, "/api/ps"))["models"]
            assert entry["model"] == entry["name"] == "a"
            assert entry["context_length"] == 131072
            assert entry["size"] == entry["size_vram"] == weights.stat().st_size
            assert "modified_at" not in entry
            assert entry["digest"] == (await get(router, "/api/tags"))["models"][0]["digest"]
            router.state.of(ResidentId("llama", "a")).footprint_bytes = 12345
            (entry,) = (await get(router, "/api/ps"))["models"]
            assert entry["size"] == entry["size_vram"] == 12345
            # "For ever" must survive a conversion to any time zone.
            expires_at = dt.datetime.fromisoformat(entry["expires_at"].replace("Z", "+00:00"))
            assert expires_at.astimezone(dt.timezone(dt.timedelta(hours=14))).year > 2300


async def test_when_it_will_be_unloaded() -> None:
    resident = ResidentId("llama", "a")
    async with ScriptedLlamaRouter("a").running() as server, routing(llama_router(server, "a")) as router:

        async def seconds_left() -> float:
            (entry,) = (await get(router, "/api/ps"))["models"]
            moment = dt.datetime.fromisoformat(entry["expires_at"].replace("Z", "+00:00"))
            return (moment - dt.datetime.now(dt.timezone.utc)).total_seconds()

        async with router.lease("a"):
            router.supervisor.keep_alive(resident, 600)
            await until(lambda: router.supervisor.domain(resident).ledger.expires_at(resident, 0) != math.inf)
            assert 590 < await seconds_left() <= 600  # in use: as if it were used now
        assert 590 < await seconds_left() <= 600
        router.supervisor.keep_alive(resident, math.inf)
        await until(lambda: router.supervisor.domain(resident).ledger.expires_at(resident, 0) == math.inf)
        assert await seconds_left() > 1e9
        router.supervisor.keep_alive(resident, 1e30)
        await until(lambda: router.supervisor.domain(resident).ledger.expires_at(resident, 0) != math.inf)
        assert await seconds_left() > 1e9


async def test_what_ollama_has_loaded_has_ollamas_own_sizes() -> None:
    async with with_daemon() as (server, router):
        loaded = {
            **ENTRY,
            "size": 7,
            "size_vram": 5,
            "context_length": 4096,
            "expires_at": "2318-01-01T00:00:00Z",
        }
        server.script.answers["/api/ps"] = as_json({"models": [loaded]})
        async with control_client() as client:
            await router.known_models.refresh(client, {})
        assert await get(router, "/api/ps") == {"models": []}  # the router holds none
        target = router.registry.resolve("own:1b")
        entry = ollama_shapes.loaded(
            "own:1b",
            target,
            router.known_models.of(target),
            size_bytes=1,
            expires_at=dt.datetime.now(dt.timezone.utc),
        )
        assert (entry["size"], entry["size_vram"], entry["context_length"]) == (7, 5, 4096)
        assert (await get(router, "/v1/models/own:1b"))["context_length"] == 4096


# What is not listed.


async def test_an_unlisted_model_is_served_but_nowhere_listed() -> None:
    more = '[models.hidden]\nengine = "llama"\nunlisted = true\naliases = ["hidden-alias"]'
    async with (
        ScriptedLlamaRouter("a", "hidden").running() as server,
        routing(llama_router(server, "a"), more) as router,
    ):
        async with router.lease("hidden-alias"):
            for path in ("/api/tags", "/api/ps", "/v1/models"):
                assert "hidden" not in json.dumps(await get(router, path)), path
        assert (await get(router, "/v1/models/hidden"))["id"] == "hidden"
        assert (await shown(router, "hidden"))["details"]["family"] == "llama"
        talk = await ask(router.app, "POST", "/api/show", body={"model": "hiddem"})
        assert talk.status == 404
        assert "hidden" not in talk.json()["error"]


# Pulls.


async def test_a_pull_of_what_is_there_succeeds() -> None:
    """Codex pulls whatever is not listed under exactly the name that it was told."""
    async with with_daemon(process("q")) as (server, router):
        for body in ({"model": "q"}, {"name": "q:latest"}, {"model": "q", "stream": True}):
            talk = await ask(router.app, "POST", "/api/pull", body=body)
            assert talk.headers["content-type"] == "application/x-ndjson"
            lines = [json.loads(line) for line in talk.body.splitlines()]
            assert lines == [{"status": "pulling manifest"}, {"status": "success"}]
        talk = await ask(router.app, "POST", "/api/pull", body={"model": "q", "stream": False})
        assert talk.json() == {"status": "success"}
        assert server.called("POST", "/api/pull") == []
        assert router.supervisor.domains["default"].ledger.is_empty


@pytest.mark.parametrize("body", [{"model": "own:1b"}, {"model": "new"}, {}])
async def test_any_other_pull_is_ollamas(body: dict[str, str]) -> None:
    async with with_daemon(process("q")) as (server, router):
        server.script.answers["/api/pull"] = as_json({"status": "from ollama"})
        talk = await ask(router.app, "POST", "/api/pull", body=body)
        assert talk.json() == {"status": "from ollama"}
        assert [call.body for call in server.called("POST", "/api/pull")] == [body]


async def test_a_pull_that_nobody_can_do() -> None:
    async with routing(process("q")) as router:
        talk = await ask(router.app, "POST", "/api/pull", body={"model": "new"})
        assert talk.status == 404
        assert "no engine of type" in talk.json()["error"]


# Methods and greetings.


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/", 200),
        ("GET", "/", 200),
        ("HEAD", "/api/tags", 200),
        ("HEAD", "/api/ps", 200),
        ("HEAD", "/api/version", 200),
        ("POST", "/api/tags", 405),
        ("POST", "/api/version", 405),
        ("GET", "/api/show", 405),
        ("GET", "/api/pull", 405),
    ],
)
async def test_methods(method: str, path: str, status: int) -> None:
    async with routing(process("q")) as router, served(router) as url:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            answer = await client.request(method, path)
        assert answer.status_code == status
        if method == "HEAD":
            assert answer.content == b""
        elif path == "/":
            assert answer.content == b"Ollama is running"
        else:
            assert isinstance(answer.json()["error"], str)


# Clients.


async def test_the_ollama_client(weights: Path) -> None:
    tables = [process("q", f"--model={weights}"), process("other")]
    async with with_daemon(*tables) as (_, router), served(router) as url:
        await until(lambda: facts(router, "q").weights)
        async with ollama.AsyncClient(url, trust_env=False, timeout=200) as client:
            listed = {model.model: model for model in (await client.list()).models}
            assert [*listed] == ["q", "other", "own:1b"]
            assert listed["q"].details is not None
            assert (listed["q"].details.parameter_size, listed["q"].details.quantization_level) == (
                "7.6B",
                "Q4_K_M",
            )
            assert listed["q"].modified_at == dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.timezone.utc)
            about = await client.show("q")
            assert about.capabilities == ["completion", "tools", "thinking"]
            assert about.modelinfo is not None
            assert about.modelinfo["qwen2.context_length"] == 131072
            assert (await client.pull("q")).status == "success"
            assert [step.status async for step in await client.pull("q", stream=True)][-1] == "success"
            async with router.lease("q"):
                (loaded,) = (await client.ps()).models
            assert (loaded.model, loaded.context_length) == ("q", 131072)
            assert loaded.expires_at is not None
            assert loaded.expires_at.year > 2300
            with pytest.raises(ollama.ResponseError, match="model 'none' not found"):
                await client.show("none")


async def test_what_vs_code_reads(weights: Path) -> None:
    async with routing(process("q", f"--model={weights}")) as router, served(router) as url:
        await until(lambda: facts(router, "q").weights)
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            version = (await client.get("/api/version")).json()["version"]
            assert tuple(map(int, version.split("."))) >= (0, 6, 4)
            (model,) = (await client.get("/api/tags")).json()["models"]
            about = (await client.post("/api/show", json={"model": model["model"]})).json()
            info = about["model_info"]
            assert info["general.basename"] == "Qwen2.5"
            assert info[f"{info['general.architecture']}.context_length"] == 131072
            assert "tools" in about["capabilities"]
