"""Routes and variants in front of a real llama.cpp, with models that are tiny."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import trio
from support.asgi import Received
from support.served import ask, served

import engine_router
from engine_router.config import parse_config
from engine_router.engines.llamacpp.tiny import write_tiny_gguf

MISSING = [name for name in ("gguf", "numpy", "xllamacpp") if importlib.util.find_spec(name) is None]
LIMIT_S = 300.0

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extra llamacpp (missing: {', '.join(MISSING)})"),
]


async def test_a_real_server_answers_for_a_route_a_variant_and_a_model_that_is_gone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiny_gguf(tmp_path / f"{name}.gguf", layers=2, width=256, seed=ord(name))
    words = ["-m", "engine_router.llamacpp", "-m", "{path}", "--port", "{port}", "-c", "512"]
    tables = "".join(
        f'[models.{name}]\nengine = "l"\npath = {json.dumps(str(tmp_path / f"{name}.gguf"))}\n'
        for name in ("a", "b", "gone")
    )
    text = f"""
        state_file = {json.dumps(str(tmp_path / "state.json"))}
        [pools.default]
        gauge = "none"
        [engines.l]
        type = "process"
        argv = {json.dumps([sys.executable, *words])}
        {tables}
        [models.a.variants.hot]
        set = {{ temperature = 2 }}
        [routes.auto]
        prefer = ["a", "b"]
        [routes.hope]
        prefer = ["gone", "a:hot"]
        strategy = "first"
        """
    with trio.fail_after(LIMIT_S):
        async with engine_router.open_router(parse_config(text)) as router, served(router) as url:

            async def chat(model: str) -> Received:
                messages = [{"role": "user", "content": "ab"}]
                body = {"model": model, "messages": messages, "max_tokens": 3}
                answer = await ask(url, "POST", "/v1/chat/completions", body=body)
                assert answer.status == 200, answer.body
                return answer

            assert "x-engine-router-model" not in (await chat("b")).headers
            loaded = await chat("auto")
            assert loaded.headers["x-engine-router-route"] == "route 'auto' leads to 'b' by resident: loaded"
            assert loaded.json()["model"] == "auto"
            fallen = await chat("hope")
            reason = "route 'hope' falls back to 'a:hot': 'gone' could not be started"
            assert fallen.headers["x-engine-router-route"] == reason
            # The variant is the model: what is loaded for the one answers for the other.
            assert (await chat("auto")).headers["x-engine-router-model"] == "a"
            assert [str(status.resident) for status in router.read_model.present()] == ["l/a"]
