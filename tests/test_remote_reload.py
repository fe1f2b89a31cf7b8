"""Remotes of a running router: read again from the file, and another engine-router behind this one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from support.asgi import Received
from support.scripted import ScriptedOllama
from support.scripted.cloud import ScriptedCloud
from support.served import ask, served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.web.status import status

LIMIT_S = 200.0
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
TOP = 'state_file = "/dev/null/state.json"\n[server]\nshutdown_timeout_s = 0.1\n[pools.default]\ngauge = "none"\n'
LOCAL = '[engines.o]\ntype = "ollama"\nbase_url = "http://127.0.0.1:9"\ndiscover = false\nmodels = ["o"]\n'


def remote(cloud: ScriptedCloud, more: str = "", *, name: str = "cloud", model: str = "m") -> str:
    return (
        f'[engines.{name}]\ntype = "remote"\nbase_url = "{cloud.base_url}{cloud.path}"\nmodels = ["{model}"]\n'
        f"discover = false\n{more}\n"
    )


@asynccontextmanager
async def running(file: Path, text: str) -> AsyncIterator[tuple[Router, str]]:
    file.write_text(TOP + text)
    with trio.fail_after(LIMIT_S):
        async with open_router(file) as router, served(router) as url:
            yield router, url


async def chat(url: str, model: str = "m", **more: Any) -> Received:
    return await ask(url, "POST", CHAT, body={"model": model, "messages": HELLO, **more})


async def test_one_that_is_added_serves_at_once_and_one_that_is_taken_out_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "engines.toml"
    async with ScriptedCloud("m").running() as cloud, running(file, LOCAL) as (router, url):
        assert list(status(router)["pools"]) == ["default"]
        file.write_text(TOP + LOCAL + remote(cloud))
        assert (await router.reload()).added == ("cloud",)
        assert (await chat(url)).status == 200
        shown = status(router)
        assert shown["engines"]["cloud"]["state"] == "ready"
        assert shown["swaps"] == []
        file.write_text(TOP + LOCAL)
        await router.reload()
        assert (await chat(url)).status == 404
        while "remotes" in status(router)["pools"]:
            await trio.sleep(0.01)


async def test_a_key_and_a_limit_are_exchanged_while_requests_are_under_way(tmp_path: Path) -> None:
    file = tmp_path / "engines.toml"
    cloud = ScriptedCloud("m")
    cloud.gate = trio.Event()
    answers: list[int] = []
    async with cloud.running():
        before = remote(cloud, 'api_key = "the-old-key"\nmax_in_flight = 1')
        async with running(file, before) as (router, url):

            async def client() -> None:
                answers.append((await chat(url)).status)

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(client)
                while sum(router.read_model.pool("remotes").waiting.values()) != 2:
                    await trio.sleep(0.01)
                file.write_text(TOP + remote(cloud, 'api_key = "the-new-key"\nmax_in_flight = 3'))
                changes = await router.reload()
                assert changes.restarted == ()
                while cloud.active != 3:
                    await trio.sleep(0.01)
                cloud.gate.set()
            assert answers == [200, 200, 200]
            await chat(url)
            assert cloud.calls[-1].headers["authorization"] == "Bearer the-new-key"


async def test_one_at_another_address_takes_over(tmp_path: Path) -> None:
    file = tmp_path / "engines.toml"
    async with (
        ScriptedCloud("m").running() as old,
        ScriptedCloud("m").running() as new,
        running(file, remote(old)) as (router, url),
    ):
        assert (await chat(url)).status == 200
        file.write_text(TOP + remote(new))
        assert (await router.reload()).restarted == ("cloud",)
        assert (await chat(url)).status == 200
        assert (len(old.calls), len(new.calls)) == (1, 1)
        assert status(router)["engines"]["cloud"]["state"] == "ready"


async def test_behind_another_router_with_a_key_in_every_dialect(tmp_path: Path) -> None:
    key = "the-key-of-the-far-router"
    async with ScriptedCloud("m").running() as cloud:
        far = parse_config(
            TOP.replace("[server]", f'[server]\napi_keys = ["{key}"]')
            + remote(cloud, 'api_key = "the-clouds-key"')
        )
        with trio.fail_after(LIMIT_S):
            async with open_router(far) as router, served(router) as far_url:
                text = f"""
                    [engines.far]
                    type = "remote"
                    base_url = "{far_url}/v1"
                    api_key = "{key}"
                    dialects = ["openai", "anthropic"]
                    endpoints = ["/v1/messages", "/v1/messages/count_tokens", "/v1/responses"]
                    """
                async with running(tmp_path / "engines.toml", text) as (near, url):
                    await near.discover()
                    assert {target.model for target in near.registry.targets()} == {"m"}
                    assert (await chat(url)).json()["choices"][0]["message"]["content"] == "m word1 word2"
                    streamed = await chat(url, stream=True)
                    assert streamed.body.endswith(b"data: [DONE]\n\n")
                    message = {"model": "m", "messages": HELLO, "max_tokens": 5}
                    answer = await ask(url, "POST", "/v1/messages", body=message)
                    assert answer.json()["content"][0]["text"] == "m word1 word2"
                    answer = await ask(url, "POST", "/v1/responses", body={"model": "m", "input": "hello"})
                    assert answer.json()["output"][-1]["content"][0]["text"] == "m word1 word2"
                    answer = await ask(
                        url, "POST", "/api/chat", body={"model": "m", "messages": HELLO, "stream": False}
                    )
                    assert answer.json()["message"]["content"] == "m word1 word2"
        assert key not in str([call.headers for call in cloud.calls])
        assert {
            call.headers["authorization"] for call in cloud.called("POST", "/api/v1/chat/completions")
        } == {"Bearer the-clouds-key"}


async def test_behind_an_ollama_elsewhere_nothing_is_said_of_how_long_its_models_stay(tmp_path: Path) -> None:
    async with ScriptedOllama("qwen3:4b").running() as far:
        text = f'[engines.far]\ntype = "remote"\nbase_url = "{far.base_url}"\ndialects = ["ollama"]\n'
        async with running(tmp_path / "engines.toml", text) as (router, url):
            await router.discover()
            body = {"model": "qwen3:4b", "messages": HELLO, "stream": False}
            answer = await ask(url, "POST", "/api/chat", body=body)
            assert answer.status == 200
            (call,) = far.called("POST", "/api/chat")
            assert "keep_alive" not in call.body
            await ask(url, "POST", "/api/chat", body={**body, "keep_alive": "7m"})
            assert far.called("POST", "/api/chat")[-1].body["keep_alive"] == "7m"
