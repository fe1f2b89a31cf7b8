"""What Ollama 0.33 answers, case by case, and so the router, on both tiers.

The answers were read from a daemon of that release and stand in its `server/routes.go` and `types/model/name.go`.
Where the router answers otherwise, the case says so. `oa` and `ob:1b` are the models of an Ollama daemon, `q` is
one of another engine, in front of which the router speaks Ollama's dialect.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from attrs import frozen
from support.asgi import ask
from support.engines import build_engines
from support.scripted import ScriptedLlamaRouter, ScriptedOllama, until
from support.served import served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.engines.remote.ollama_models import normal_name
from engine_router.errors import UnknownModel
from engine_router.models.registry import ModelRegistry
from engine_router.upstream.control_client import ControlClient, control_client

LIMIT_S = 200.0
# What an empty member means to Ollama's client in Go: it sends all of them.
GO_SHOW = {"model": "", "system": "", "template": "", "verbose": False, "options": None}
GO_PULL = {"model": "", "username": "", "password": ""}
# All of these are one model to Ollama.
SPELLINGS = (
    "oa",
    "OA",
    "oa:latest",
    "OA:Latest",
    "library/oa",
    "Library/OA:latest",
    "registry.ollama.ai/library/oa",
    "https://registry.ollama.ai/library/oa",
    "oa:local",
    " oa ",
)
# And these are others, or none.
OTHERS = (
    "ob",
    "ob:latest",
    "other/oa",
    "hf.co/library/oa",
    "library/x/oa",
    "oa:1b",
    "oa:cloud",
    "missing",
    "o",
)


@frozen
class Routed:
    """A router that serves Ollama's models and another one, and a client of it."""

    router: Router
    client: httpx.AsyncClient
    daemon: ScriptedOllama

    async def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        return await self.client.request(method, path, content=None if body is None else json.dumps(body))


@asynccontextmanager
async def routing(*, fast: bool) -> AsyncIterator[Routed]:
    async with (
        ScriptedOllama("oa", "ob:1b", embedders=("embeds",)).running() as daemon,
        ScriptedLlamaRouter("q").running() as llama,
    ):
        text = f"""
state_file = "/dev/null/state.json"
[pools.default]
gauge = "none"
[server]
fast_path = {json.dumps(fast)}
[engines.ollama]
type = "ollama"
base_url = "{daemon.base_url}"
[engines.llama]
type = "http"
base_url = "{llama.base_url}"
models = ["q"]
load = {{ path = "/models/load", body = {{ model = "{{model}}" }} }}
unload = {{ path = "/models/unload", body = {{ model = "{{model}}" }} }}
loaded = {{ path = "/models", key = "data", filter = {{ "status.value" = "loaded" }} }}
[aliases]
"gpt-4o" = "oa"
"""
        with trio.fail_after(LIMIT_S):
            async with (
                open_router(parse_config(text)) as router,
                served(router) as url,
                httpx.AsyncClient(base_url=url, trust_env=False, timeout=None) as client,
            ):
                await until(lambda: router.registry.listed("ollama"))
                yield Routed(router, client, daemon)


@frozen
class Case:
    """A request, and what Ollama answers.

    Attributes:
        has: members of the answer; the others may be anything.
        error: words in the answer's error.
    """

    line: str
    body: Any = None
    status: int = 200
    has: Mapping[str, Any] | None = None
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.line} {'' if self.body is None else json.dumps(self.body)}".strip()


LOAD = {"done": True, "done_reason": "load"}
UNLOAD = {"done": True, "done_reason": "unload"}
CASES = [
    # What is asked of the daemon itself.
    Case("GET /api/version", has={"version": "0.33.0"}),
    Case("HEAD /api/version"),
    Case("HEAD /api/tags"),
    Case("GET /api/status", has={"cloud": {"disabled": True, "source": "config"}}),
    Case("GET /api/experimental/model-recommendations", has={"recommendations": []}),
    Case("GET /api/ps", has={"models": []}),
    # What does not exist, or not so.
    Case("GET /api/nonsense", status=404),
    Case("POST /api/nonsense", {"model": "oa"}, status=404),
    Case("GET /api/chat", status=405),
    Case("GET /api/show", status=405),
    Case("GET /api/pull", status=405),
    Case("POST /api/tags", {}, status=405),
    Case("POST /api/status", {}, status=405),
    Case("DELETE /api/ps", status=405),
    # What would change something, or use an account of the daemon's owner: here the router has its own answer.
    Case("DELETE /api/delete", {"model": "oa"}, status=403, error="allow_destructive_ollama_api"),
    Case("POST /api/copy", {"source": "oa", "destination": "x"}, status=403, error="is not allowed"),
    Case("POST /api/create", {"model": "x", "from": "oa"}, status=403, error="is not allowed"),
    Case("POST /api/push", {"model": "oa"}, status=403, error="is not allowed"),
    Case("POST /api/me", status=403, error="is not allowed"),
    Case("POST /api/signout", status=403, error="is not allowed"),
    Case("DELETE /api/user/keys/x", status=403, error="is not allowed"),
    Case("POST /api/experimental/web_search", {"query": "x"}, status=403, error="is not allowed"),
    Case(f"HEAD /api/blobs/sha256:{'0' * 64}", status=403),
    # Requests that name nothing.
    *(Case(f"POST /api/{what}", {}, status=400) for what in ("show", "chat", "embeddings")),
    *(Case(f"POST /api/{what}", {"model": ""}, status=400) for what in ("show", "chat")),
    *(Case(f"POST /api/{what}", {"model": 3}, status=400) for what in ("show", "chat", "generate", "embed")),
    *(Case(f"POST /api/{what}", [], status=400) for what in ("show", "chat", "generate", "embed")),
    # Names.
    *(Case("POST /api/show", {"model": name}, has={"capabilities": ["completion"]}) for name in SPELLINGS),
    *(Case("POST /api/show", {"model": name}, status=404, error="not found") for name in OTHERS),
    Case("POST /api/show", {**GO_SHOW, "name": "oa"}, has={"capabilities": ["completion"]}),
    Case("POST /api/show", {**GO_SHOW, "name": "q"}, has={"capabilities": ["completion"]}),
    Case("POST /api/show", {"model": "oa", "name": "missing"}, has={"capabilities": ["completion"]}),
    Case("POST /api/show", {"model": "OB:1B"}, has={"capabilities": ["completion"]}),
    Case("POST /api/show", {"model": "embeds"}, has={"capabilities": ["embedding"]}),
    Case("POST /api/pull", {**GO_PULL, "name": "q", "stream": False}, has={"status": "success"}),
    # Loads. The answer names the model as the client did.
    *(
        Case(f"POST /api/{what}", {"model": name, "stream": False}, has={"model": name, **LOAD})
        for what in ("generate", "chat")
        for name in (*SPELLINGS, "gpt-4o", "q", "q:latest")
    ),
    Case("POST /api/embed", {"model": "OA"}, has={"model": "OA", "embeddings": []}),
    Case("POST /api/generate", {"model": "OA", "keep_alive": 0}, has={"model": "OA", **UNLOAD}),
    Case("POST /api/generate", {"model": "oa", "keep_alive": "x"}, status=400),
    Case("POST /api/generate", {"model": "oa", "keep_alive": True}, status=400),
    *(Case("POST /api/generate", {"model": name}, status=404, error="not found") for name in OTHERS),
    # Case means something in names of other engines' models: never is another model served in silence.
    Case("POST /api/show", {"model": "Q"}, status=404, error="not found"),
    Case("POST /api/show", {"model": "library/q"}, status=404, error="not found"),
    # Answers.
    *(
        Case(
            "POST /api/generate",
            {"model": name, "prompt": "x", "stream": False},
            has={"model": name, "done": True},
        )
        for name in ("oa", "OA", "library/oa", "gpt-4o", "q", "q:latest")
    ),
    *(
        Case(
            "POST /v1/chat/completions",
            {"model": name, "messages": [{"role": "user", "content": "x"}]},
            has={"model": name, "object": "chat.completion"},
        )
        for name in ("oa", "OA", "library/oa:latest", "gpt-4o", "q")
    ),
    Case("GET /v1/models/OA", has={"id": "OA"}),
    Case("GET /v1/models/missing", status=404),
]


async def test_every_case(fast: bool) -> None:
    async with routing(fast=fast) as routed:
        wrong = []
        for case in CASES:
            answer = await routed.ask(*case.line.split(" "), case.body)
            told = answer.json() if answer.content else {}
            has = {key: told.get(key) for key in case.has or {}}
            said = str(told.get("error"))
            if answer.status_code != case.status or has != (case.has or {}) or (case.error or "") not in said:
                wrong.append(f"{case}: {answer.status_code} {answer.text[:200]}")
            if case.status >= 400 and case.line.startswith("POST /api"):
                assert isinstance(told["error"], str), str(case)
        assert wrong == []


@pytest.mark.parametrize("name", SPELLINGS)
def test_names_that_mean_the_same_to_ollama(name: str) -> None:
    assert normal_name(name) == "oa"


def test_names_that_mean_something_else() -> None:
    normal = [normal_name(name) for name in OTHERS]
    assert normal == [
        "ob",
        "ob",
        "other/oa",
        "hf.co/library/oa",
        "library/x/oa",
        "oa:1b",
        "oa:cloud",
        "missing",
        "o",
    ]


def test_spellings_are_not_remembered() -> None:
    """There are endless ways to write a name, and anybody may send them."""
    config = parse_config('[engines.ollama]\ntype = "ollama"\nmodels = ["oa"]\n')
    registry = ModelRegistry(config, build_engines(config, ControlClient()))
    for spaces in range(100):
        assert registry.resolve(" " * spaces + "OA").model == "oa"
    assert len(registry._resolved) <= 1
    with pytest.raises(UnknownModel):
        registry.resolve("ob")


async def test_what_is_configured_in_another_spelling_is_one_model() -> None:
    async with ScriptedOllama("hf.co/Org/Model-GGUF:Q4").running() as daemon:
        text = f'[engines.ollama]\ntype = "ollama"\nbase_url = "{daemon.base_url}"\n'
        config = parse_config(
            text + '[models.fast]\nengine = "ollama"\nupstream = "hf.co/org/model-gguf:q4"\n'
        )
        async with control_client() as client:
            engines = build_engines(config, client)
            registry = ModelRegistry(config, engines)
            registry.set_listed("ollama", await engines["ollama"].list_models() or ())
        assert [target.model for target in registry.targets()] == ["fast"]


async def test_a_model_is_asked_for_as_its_daemon_writes_it(fast: bool) -> None:
    """Older daemons look for files, whose names have a case."""
    async with routing(fast=fast) as routed:
        routed.daemon.models.append("hf.co/Org/Model-GGUF:Q4")
        await routed.router.discover()
        body = {"model": "HF.co/org/model-gguf:q4", "prompt": "x", "stream": False}
        answer = await routed.ask("POST", "/api/generate", body)
        assert answer.json()["model"] == body["model"]
        assert {call.model for call in routed.daemon.called("POST", "/api/generate")} == {
            "hf.co/Org/Model-GGUF:Q4"
        }


def test_an_alias_of_a_name_without_its_tag_is_listed() -> None:
    text = '[engines.ollama]\ntype = "ollama"\n[engines.other]\ntype = "ollama"\n[aliases]\n"gpt-4o" = "oa"\n'
    config = parse_config(text)
    registry = ModelRegistry(config, build_engines(config, ControlClient()))
    registry.set_listed("ollama", ["oa:latest"])
    assert [target.aliases for target in registry.targets()] == [("gpt-4o",)]
    registry.set_listed("other", ["oa"])
    assert {target.model: target.aliases for target in registry.targets()} == {
        "oa:latest": (),
        "oa": ("gpt-4o",),
    }


async def test_what_is_loaded_is_listed_under_every_name(fast: bool) -> None:
    """`ollama stop`, and many a client, look for the name that they use."""
    async with routing(fast=fast) as routed:
        await routed.ask("POST", "/api/generate", {"model": "gpt-4o", "keep_alive": "10m"})
        loaded = (await routed.ask("GET", "/api/ps")).json()["models"]
        listed = (await routed.ask("GET", "/api/tags")).json()["models"]
        assert [entry["name"] for entry in loaded] == ["oa:latest", "gpt-4o"]
        assert [entry["model"] for entry in loaded] == ["oa:latest", "gpt-4o"]
        assert {entry["name"] for entry in loaded} < {entry["name"] for entry in listed}
        assert all(set(entry) <= LOADED for entry in loaded)
        assert all(entry["capabilities"] for entry in listed)


LOADED = {"name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length"}


async def test_the_answer_to_a_load_names_its_charset_as_ollama_does(tmp_path: Path) -> None:
    program = Path(__file__).parent / "programs" / "obedient_engine.py"
    argv = [sys.executable, "-I", "-S", str(program), "{port}"]
    text = f'state_file = "{tmp_path / "state.json"}"\n[pools.default]\ngauge = "none"\n'
    text += f'[engines.e]\ntype = "process"\nargv = {json.dumps(argv)}\n[models.q]\nengine = "e"\n'
    with trio.fail_after(200):
        async with open_router(parse_config(text)) as router:
            for more in ({}, {"keep_alive": 0}):
                for path in ("/api/chat", "/api/generate"):
                    talk = await ask(router.app, "POST", path, body={"model": "q", **more})
                    assert (talk.status, talk.json()["done"]) == (200, True)
                    assert talk.headers["content-type"] == "application/json; charset=utf-8"
