"""All that is known of one model: its settings and where they come from, its file, its starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from support.asgi import ask
from support.gguf_files import gguf_file
from test_control import CHAT, post, process, routing

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.models.in_force import settings_in_force
from engine_router.models.target import Target


async def page(router: Router, model: str) -> Any:
    talk = await ask(router.app, "GET", f"/admin/models/{model}")
    assert talk.status == 200, talk.body
    return talk.json()


def settings_of(text: str, model: str, engine: str) -> dict[str, tuple[object, str]]:
    target = Target(model, engine, ResidentId(engine, model), model)
    return {
        setting.name: (setting.value, setting.origin)
        for setting in settings_in_force(parse_config(text), target)
    }


TEMPLATE = """
[scheduling]
idle_timeout_s = 300
[engines.llama]
type = "process"
argv = ["llama-server", "-m", "{path}", "--port", "{port}", "--api-key", "sesame-open", "{args}"]
group = "small"
pinned = true
start_timeout_s = 100
headers = { Authorization = "Bearer sesame-two" }
env = { HF_TOKEN = "sesame-three", CUDA_VISIBLE_DEVICES = "1" }
warm_up = {}
[models.qwen3-8b]
engine = "llama"
path = "/models/q.gguf"
memory_gb = 9
args = ["-ngl", "99"]
set = { temperature = 0.5, top_k = 3 }
[models.plain]
engine = "llama"
path = "/models/p.gguf"
[families.all]
match = "*"
context_length = 4096
disable_thinking_below_max_tokens = 20
set = { top_k = 1, top_p = 0.9 }
[families.qwen]
match = "qwen*"
args = ["--jinja"]
context_length = 8192
memory_gb = 20
"""


def test_each_setting_tells_where_it_comes_from() -> None:
    found = settings_of(TEMPLATE, "qwen3-8b", "llama")
    assert found["memory_gb"] == (9, "model")
    assert found["context_length"] == (8192, "family qwen")
    assert found["disable_thinking_below_max_tokens"] == (20, "family all")
    assert found["args"] == (["--jinja", "-ngl", "99"], "family qwen, model")
    assert found["path"] == ("/models/q.gguf", "model")
    assert found["set.temperature"] == (0.5, "model")
    assert found["set.top_k"] == (3, "model")
    assert found["set.top_p"] == (0.9, "family all")
    assert found["group"] == (["small"], "engine")
    assert found["pinned"] == (True, "engine")
    assert found["unlisted"] == (False, "default")
    assert found["engine.start_timeout_s"] == (100, "engine")
    assert found["engine.stop_timeout_s"] == (30, "default")
    assert found["engine.idle_timeout_s"] == (300, "scheduling")


def test_a_model_without_a_table_has_its_engines_settings() -> None:
    found = settings_of('[engines.a]\ntype = "ollama"\nmodels = ["m"]', "m", "a")
    assert found["memory_gb"] == (None, "default")
    assert found["engine.base_url"] == ("http://127.0.0.1:11434", "default")
    assert found["engine.idle_timeout_s"] == (0, "default")
    assert found["engine.stop_command"] == (["ollama", "stop", "{model}"], "default")


def test_settings_tell_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDEN", "sesame-four")
    text = TEMPLATE.replace('"{args}"]', '"--alias", "${env:HIDDEN}"]')
    found = settings_of(text, "plain", "llama")
    assert "sesame" not in json.dumps(found)
    argv, origin = found["engine.argv"]
    assert (argv, origin) == (
        ["llama-server", "-m", "{path}", "--port", "{port}", "--api-key", "***", "--alias", "${env:HIDDEN}"],
        "engine",
    )
    assert found["engine.env"][0] == {"HF_TOKEN": "***", "CUDA_VISIBLE_DEVICES": "1"}
    assert found["engine.headers"][0] == {"Authorization": "***"}
    assert found["engine.warm_up"][0] == {"path": "/v1/chat/completions", "body": None}


async def test_a_model_and_its_starts(tmp_path: Path) -> None:
    file = gguf_file(tmp_path / "m.gguf")
    program = Path(__file__).parent / "programs" / "obedient_engine.py"
    argv = json.dumps([sys.executable, "-I", "-S", str(program), "{port}", "models={path}"])
    text = f"""
state_file = {json.dumps(str(tmp_path / "state.json"))}
[pools.default]
gauge = "none"
[engines.t]
type = "process"
argv = {argv}
[models."org/m"]
engine = "t"
path = {json.dumps(str(file))}
aliases = ["em"]
memory_gb = 2
"""
    with trio.fail_after(200):
        async with open_router(parse_config(text)) as router:
            await router.discover()
            before = await page(router, "org/m")
            assert (before["id"], before["engine"], before["aliases"]) == ("org/m", "t", ["em"])
            assert (before["state"], before["present"], before["starts"]) == ("off", None, [])
            assert (before["file"], before["need_bytes"]) == (str(file), 2_000_000_000)
            assert before["last_error"] is None
            assert f"models={file}" in before["command"]
            await post(router, "/admin/swap", model="em")
            after = await page(router, "em")
            assert (after["state"], after["present"]["phase"]) == ("ready", "ready")
            (start,) = after["starts"]
            assert start["result"] == "ok"
            assert start["took_s"] > 0
            assert after["load_cost_s"] == after["measured"]["start_s"] > 0
            assert {"name": "memory_gb", "value": 2.0, "from": "model"} in after["settings"]


async def test_a_start_that_fails_is_told() -> None:
    async with routing(process("a", "fail=out of luck")) as router:
        assert (await ask(router.app, "POST", CHAT, body={"model": "a"})).status >= 500
        found = await page(router, "a")
        assert "out of luck" in found["last_error"]
        assert found["failure"]["count"] == 1


async def test_an_unknown_model_is_not_found() -> None:
    async with routing(process("abc")) as router:
        talk = await ask(router.app, "GET", "/admin/models/abd")
        assert talk.status == 404
        assert "abc" in talk.json()["error"]["message"]
