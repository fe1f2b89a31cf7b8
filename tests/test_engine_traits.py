"""What the router knows of an engine's kind, and what a translated request makes of it."""

from __future__ import annotations

import json

import pytest
import trio
from support.asgi import ask
from support.scripted import ScriptedLlamaRouter, as_json

from engine_router import open_router
from engine_router.config import parse_config
from engine_router.dialects.engine_options import EngineTraits
from engine_router.router import Router

HEAD = 'state_file = "/dev/null/state.json"\n[pools.default]\ngauge = "none"\n'
CHAT = "/v1/chat/completions"


def traits(router: Router, model: str) -> EngineTraits:
    return router.known_models.traits_of(router.registry.resolve(model))


@pytest.mark.parametrize(
    ("argv", "known"),
    [
        ("vllm serve /models/m --max-model-len 4096 --port {port}", EngineTraits("vLLM", 4096)),
        ("llama-server -m /models/m.gguf -c 8192 --port {port}", EngineTraits("llama.cpp", 8192)),
        ("/opt/run-it --port {port}", EngineTraits("", None)),
    ],
)
async def test_a_command_tells_the_kind(argv: str, known: EngineTraits) -> None:
    text = f'{HEAD}[engines.e]\ntype = "process"\nargv = {json.dumps(argv)}\n[models.m]\nengine = "e"\n'
    with trio.fail_after(200):
        async with open_router(parse_config(text)) as router:
            assert traits(router, "m") == known


@pytest.mark.parametrize(
    ("owner", "kind", "name"),
    [("vllm", "vLLM", "repetition_penalty"), ("llamacpp", "llama.cpp", "repeat_penalty")],
)
async def test_else_what_the_engine_lists_tells_it(owner: str, kind: str, name: str) -> None:
    with trio.fail_after(200):
        async with ScriptedLlamaRouter("m").running() as server:
            listed = {"data": [{"id": "m", "owned_by": owner, "max_model_len": 512}]}
            server.script.answers["/v1/models"] = as_json(listed)
            server.script.answers[CHAT] = as_json({"choices": [{"message": {"content": "x"}}]})
            async with open_router(parse_config(config(server))) as router:
                async with router.lease("m"):
                    while not traits(router, "m").kind:
                        await trio.sleep(0.01)
                    assert traits(router, "m") == EngineTraits(kind, 512)
                    data = {
                        "model": "m",
                        "stream": False,
                        "messages": [{"role": "user", "content": "hi"}],
                        "options": {"repeat_penalty": 1.1},
                    }
                    talk = await ask(router.app, "POST", "/api/chat", body=data)
                assert talk.json()["message"]["content"] == "x"
            body = server.called("POST", CHAT)[-1].body
            assert {key: body[key] for key in body if key.endswith("penalty")} == {name: 1.1}


def config(server: ScriptedLlamaRouter) -> str:
    return (
        f'{HEAD}[engines.e]\ntype = "http"\nbase_url = "{server.base_url}"\nmodels = ["m"]\n'
        'load = { path = "/models/load", body = { model = "{model}" } }\n'
        'unload = { path = "/models/unload", body = { model = "{model}" } }\n'
        'loaded = { path = "/models", key = "data", filter = { "status.value" = "loaded" } }\n'
    )
