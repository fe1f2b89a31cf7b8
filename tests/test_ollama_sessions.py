"""How long models stay in an Ollama daemon: for ever while the router answers for them, and not a day longer."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from attrs import frozen
from support.scripted import ScriptedOllama, as_json, until
from support.served import served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.dialects.ollama.load_only import kept_for_ever
from engine_router.engines.base import ResidentId
from engine_router.engines.remote.ollama_models import Session
from engine_router.residency.resident_state import Phase

LIMIT_S = 200.0
MODEL = "oa:latest"
RESIDENT = ResidentId("ollama", "oa")
CHAT = {"messages": [{"role": "user", "content": "x"}]}


@frozen
class House:
    router: Router
    client: httpx.AsyncClient
    daemon: ScriptedOllama

    @property
    def phase(self) -> Phase | None:
        state = self.router.supervisor.domain(RESIDENT).ledger.state(RESIDENT)
        return None if state is None else state.phase

    async def post(self, path: str, body: dict[str, object]) -> httpx.Response:
        answer = await self.client.post(path, content=json.dumps({"model": "oa", "stream": False, **body}))
        assert answer.status_code == 200, answer.text
        return answer


@asynccontextmanager
async def routing(daemon: ScriptedOllama, *, fast: bool = True) -> AsyncIterator[House]:
    text = f"""
state_file = "/dev/null/state.json"
[server]
fast_path = {json.dumps(fast)}
[scheduling]
health_interval_s = 0.02
[pools.default]
gauge = "none"
[engines.ollama]
type = "ollama"
base_url = "{daemon.base_url}"
models = ["oa"]
"""
    with trio.fail_after(LIMIT_S):
        async with (
            open_router(parse_config(text)) as router,
            served(router) as url,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=None) as client,
        ):
            yield House(router, client, daemon)


# Every request says that its model stays.


@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize(
    "wish", [{}, {"keep_alive": "5m"}, {"keep_alive": None}, {"keep_alive": -1}, {"keep_alive": 0}]
)
async def test_a_request_keeps_its_model_whatever_it_says(
    wish: dict[str, object], size: int, fast: bool
) -> None:
    async with ScriptedOllama("oa").running() as daemon, routing(daemon, fast=fast) as house:
        for path, said in (
            ("/api/generate", {"prompt": "x" * size}),
            ("/api/chat", CHAT),
            ("/api/embed", {"input": "x"}),
        ):
            await house.post(path, {**said, **wish})
            sent = daemon.called("POST", path)[-1].body
            assert sent == {"model": "oa", "stream": False, **said, "keep_alive": -1}


@pytest.mark.parametrize("end", ["}", " }", "}\r\n\t ", '"}'])
def test_what_a_request_says_last_counts(end: str) -> None:
    body = f'{{"keep_alive":0,"x":"{end}'.encode() if end == '"}' else f'{{"keep_alive":0{end}'.encode()
    assert json.loads(kept_for_ever(body))["keep_alive"] == -1
    assert json.loads(kept_for_ever(bytearray(body)))["keep_alive"] == -1


async def test_a_model_that_was_loaded_anew_stays(fast: bool) -> None:
    async with ScriptedOllama("oa").running() as daemon, routing(daemon, fast=fast) as house:
        await house.post("/api/generate", {"prompt": "x"})
        await house.post("/api/generate", {"prompt": "x", "options": {"num_ctx": 512}})
        assert daemon.loads == 2
        assert daemon.kept_s == {MODEL: math.inf}
        # A request to /v1 wants the context that goes without saying, and cannot say how long its model stays.
        await house.post("/v1/chat/completions", CHAT)
        assert daemon.loads == 3
        await until(lambda: daemon.kept_s == {MODEL: math.inf})
        assert daemon.loads == 3
        assert house.phase is Phase.READY


async def test_a_daemon_that_keeps_nothing_is_told_all_the_same(fast: bool) -> None:
    async with ScriptedOllama("oa").running() as daemon, routing(daemon, fast=fast) as house:
        daemon.default_keep_s = 0
        await house.post("/api/generate", {"prompt": "x", "options": {"num_ctx": 512}})
        await house.post("/v1/chat/completions", CHAT)
        await until(lambda: daemon.loaded and daemon.kept_s == {MODEL: math.inf})
        assert house.phase is Phase.READY


async def test_nothing_is_loaded_again_only_to_be_kept() -> None:
    """The daemon is asked first how the model is there: another context would make it load the model again."""
    async with ScriptedOllama("oa").running() as daemon, routing(daemon) as house:
        await house.post("/v1/chat/completions", CHAT)
        daemon.contexts[MODEL], daemon.kept_s[MODEL] = 512, 300.0
        daemon.script.answers["/v1/embeddings"] = as_json({"data": []})
        await house.post("/v1/embeddings", {"input": "x"})
        await until(lambda: daemon.kept_s == {MODEL: math.inf})
        assert (daemon.loads, daemon.contexts) == (1, {MODEL: 512})


# Absence while a request is served.


async def test_a_model_that_is_loaded_again_for_a_request_is_not_dead(fast: bool) -> None:
    """For that long it is not in /api/ps, however many checks look for it."""
    async with ScriptedOllama("oa").running() as daemon, routing(daemon, fast=fast) as house:
        await house.post("/api/generate", {"prompt": "x"})
        daemon.script.load_s = 0.5
        await house.post("/api/generate", {"prompt": "x", "options": {"num_ctx": 512}})
        assert len(daemon.called("GET", "/api/ps")) > 5
        assert house.phase is Phase.READY
        assert daemon.loads == 2


async def test_a_model_that_is_gone_while_nobody_uses_it_is_dead() -> None:
    async with ScriptedOllama("oa").running() as daemon, routing(daemon) as house:
        await house.post("/api/generate", {"prompt": "x"})
        daemon.loaded.clear()
        await until(lambda: house.phase is None)
        await house.post("/api/generate", {"prompt": "x"})
        assert daemon.loads == 2


async def test_a_doubt_while_it_is_loaded_again_is_no_death() -> None:
    async with ScriptedOllama("oa").running() as daemon, routing(daemon) as house:
        await house.post("/api/generate", {"prompt": "x"})
        daemon.script.load_s = 0.5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.post, "/api/generate", {"prompt": "x", "options": {"num_ctx": 512}})
            await until(lambda: daemon.loads == 2)
            house.router.supervisor.doubt(RESIDENT)
        assert house.phase is Phase.READY


async def test_a_client_that_leaves_while_its_model_is_loaded_again() -> None:
    """The daemon gives that load up, so the model is gone, and nobody says that it is ready."""
    async with ScriptedOllama("oa").running() as daemon, routing(daemon) as house:
        await house.post("/api/generate", {"prompt": "x"})
        daemon.script.load_s = 60
        with trio.move_on_after(0.2):
            await house.post("/api/generate", {"prompt": "x", "options": {"num_ctx": 512}})
        await until(lambda: house.phase is None)
        daemon.script.load_s = 0
        await house.post("/api/generate", {"prompt": "x"})


# Models that run elsewhere.


async def test_a_model_that_runs_elsewhere_is_ready_though_it_is_never_listed(fast: bool) -> None:
    async with ScriptedOllama("oa").running() as daemon, routing(daemon, fast=fast) as house:
        daemon.remote = {MODEL}
        for path, said in (("/api/generate", {"prompt": "x"}), ("/v1/chat/completions", CHAT)):
            await house.post(path, said)
        checked = len(daemon.called("GET", "/api/ps"))
        await until(lambda: len(daemon.called("GET", "/api/ps")) > checked + 5)
        assert house.phase is Phase.READY
        await house.post("/api/generate", {"keep_alive": 0})
        await until(lambda: house.phase is None)
        assert daemon.loads == 0
        await house.post("/api/generate", {"prompt": "x"})


# What was found is left as it was.


@pytest.mark.parametrize(
    ("before_s", "after_s"),
    [(300.0, 300.0), (1234.0, 1234.0), (-5.0, 300.0), (math.inf, math.inf)],
)
async def test_a_model_that_was_found_gets_back_what_it_had(before_s: float, after_s: float) -> None:
    async with ScriptedOllama("oa").running() as daemon:
        daemon.loaded, daemon.kept_s, daemon.contexts = {MODEL: MODEL}, {MODEL: before_s}, {MODEL: 512}
        async with routing(daemon) as house:
            await until(lambda: house.phase is Phase.READY)
            assert daemon.kept_s == {MODEL: math.inf}
        assert daemon.kept_s[MODEL] == pytest.approx(after_s, abs=100)
        # It was loaded with a context that somebody had asked for.
        assert (list(daemon.loaded), daemon.loads, daemon.contexts) == ([MODEL], 0, {MODEL: 512})


async def test_a_daemon_that_hangs_does_not_hold_the_end_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_router.residency.resident_runner.LET_GO_S", 0.05)
    async with ScriptedOllama("oa").running() as daemon:
        daemon.loaded, daemon.kept_s = {MODEL: MODEL}, {MODEL: 300.0}
        async with routing(daemon) as house:
            await until(lambda: house.phase is Phase.READY)
            daemon.script.hang = {"/api/ps", "/api/generate"}
        assert daemon.loaded == {MODEL: MODEL}


async def test_a_model_that_only_embeds_is_kept_too() -> None:
    async with ScriptedOllama(embedders=("oa",)).running() as daemon:
        daemon.loaded, daemon.kept_s = {MODEL: MODEL}, {MODEL: 300.0}
        async with routing(daemon) as house:
            await until(lambda: house.phase is Phase.READY)
            assert daemon.kept_s == {MODEL: math.inf}
        assert daemon.kept_s[MODEL] == pytest.approx(300.0, abs=100)


MOMENTS = {
    "2999-01-01T00:00:00Z": None,
    "2318-01-01T00:00:00.123456789+14:00": None,
    "": None,
    "soon": None,
    "2000-01-01T00:00:00.5-07:00": -1.0,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_end_of_a_session(moment: str) -> None:
    session = Session.read({"expires_at": moment, "context_length": 512})
    assert session.context == 512
    wanted = MOMENTS[moment]
    assert session.left_s is None if wanted is None else (session.left_s or 0) < wanted


def test_a_session_of_which_nothing_is_told() -> None:
    assert Session.read({"context_length": "x"}) == Session.read(None) == Session(None, 0)
