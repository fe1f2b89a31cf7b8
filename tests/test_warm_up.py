"""The warm-up: a request that has to succeed before an engine that was started serves."""

from __future__ import annotations

import pytest
import trio
from support.scripted import ScriptedLMStudio, supervised, until
from support.scripted.server import Answer, Call, as_json
from support.small_engine import the_engine

from engine_router.config import HttpConfig, parse_config
from engine_router.config.engine_tables import CallConfig, LoadedConfig, WarmUpConfig
from engine_router.engines.remote.http_engine import HttpEngine
from engine_router.errors import EngineStartTimeout
from engine_router.upstream.control_client import control_client


async def test_it_comes_before_anybody_is_let_in() -> None:
    async with (
        the_engine("models=x", warm_up=WarmUpConfig(path="/say/warm")) as engine,
        supervised(engine, "x") as life,
    ):
        await life.ready.wait()
        await until(lambda: "warm" in engine.log.tail(9))
        await life.stop()


async def test_one_that_never_succeeds_is_a_start_that_failed(jumping_clock: trio.testing.MockClock) -> None:
    warm_up = WarmUpConfig(path="/broken/aloud", body={"model": "{model}"})
    async with (
        the_engine("models=x", start_timeout_s=300.0, warm_up=warm_up) as engine,
        supervised(engine, "x") as life,
    ):
        with trio.fail_after(1000):
            # The second time it is asked, the first answer is known.
            await until(lambda: engine.log.tail(99).count("broken") >= 2)
            jumping_clock.jump(300)
            await life.over.wait()
        assert isinstance(life.error, EngineStartTimeout)
        assert "its warm-up last: POST /broken/aloud answered 500: broken" in life.error.summary
        assert not life.ready.is_set()


class Hesitant(ScriptedLMStudio):
    """LM Studio whose first answers after a load are errors."""

    asked: list[str]

    async def answer(self, call: Call) -> Answer:
        self.asked = [*getattr(self, "asked", []), call.model]
        return as_json({"error": "too early"}, 503) if len(self.asked) < 3 else as_json({"choices": []})


@pytest.mark.parametrize("model", ["m"])
async def test_a_server_that_loads_models(model: str) -> None:
    server = Hesitant(model)
    routes = server.routes
    server.routes = lambda: {**routes(), "POST /v1/chat/completions": server.answer}  # type: ignore[method-assign]
    async with server.running() as running, control_client() as client:
        config = HttpConfig(
            base_url=running.base_url,
            load=CallConfig(path="/api/v1/models/load", body={"model": "{model}"}),
            unload=CallConfig(path="/api/v1/models/unload", body={"instance_id": "{instance}"}),
            loaded=LoadedConfig(path="/api/v1/models", key="models", id="key", instances="loaded_instances"),
            warm_up=WarmUpConfig(),
        )
        with trio.fail_after(60):
            async with supervised(HttpEngine("studio", config, client), model) as life:
                await life.ready.wait()
                assert server.asked == [model] * 3
                await life.stop()


def test_an_empty_table_is_a_chat_of_one_token() -> None:
    engine = parse_config('[engines.a]\ntype = "process"\nargv = "srv {port}"\nwarm_up = {}').engines["a"]
    assert engine.warm_up == WarmUpConfig(path="/v1/chat/completions", body=None)  # type: ignore[union-attr]
