"""Real engines, real clients: llama.cpp on tiny models behind a served router, asked by the official clients."""

import functools
import importlib.util
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import attrs
import httpx
import ollama
import openai
import psutil
import pytest
import trio
from support.served import served

import engine_router
from engine_router.config import HistoryConfig, parse_config
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.errors import EngineStartFailed, UnknownModel
from engine_router.events import ResidentDied, SwapEnded

WHEELS = ("gguf", "numpy", "xllamacpp")
MISSING = [name for name in WHEELS if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extra llamacpp (missing: {', '.join(MISSING)})"),
]

T = TypeVar("T")
LIMIT_S = 200.0
HELLO = [{"role": "user", "content": "Good morning"}]
KEY = "the key"
# Of 70 answers drawn by lot, one ends before its eighth token.
SHORT = {"max_tokens": 8, "temperature": 0}
SHORT_BY_OLLAMA = {"num_predict": 8, "temperature": 0}
# Long enough to be interrupted: some seconds of text.
ENDLESS = {"max_tokens": 8000, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", context_length=16384)


def engine(name: str, path: Path, *flags: str) -> str:
    server = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(path), "--port", "{port}"]
    argv = [*server, "--alias", f"{name}-raw", "-lv", "0", "-c", "16384", "-np", "2", "-t", "1", *flags]
    return f'[engines.{name}]\ntype = "process"\nargv = {json.dumps(argv)}'


def configuration(path: Path) -> engine_router.Config:
    """Configure two engines that work, one that does not start, and one that is not listed."""
    text = f"""
        state_file = "/dev/null/state.json"
        server = {{api_keys = ["{KEY}"], keepalive_interval_s = 0.05, shutdown_timeout_s = 0.5}}
        scheduling.failed_start_memory_s = 0.0
        {engine("alpha", path)}
        {engine("beta", path, "--embeddings", "--pooling", "mean")}
        {engine("broken", path, "--no-such-flag")}
        {engine("other", path)}
        [models."team/alpha"]
        engine = "alpha"
        upstream = "alpha-raw"
        aliases = ["gpt-4o"]
        [models."beta:1b"]
        engine = "beta"
        upstream = "beta-raw"
        [models.broken]
        engine = "broken"
        [models.other]
        engine = "other"
        upstream = "other-raw"
        unlisted = true
    """
    return parse_config(text)


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[tuple[engine_router.Router, str]]:
    with trio.fail_after(LIMIT_S):
        async with engine_router.open_router(configuration(path)) as router, served(router) as url:
            yield router, url


async def in_thread(function: Callable[..., T], *args: object, **kwargs: object) -> T:
    """Call a client that blocks; it has time limits of its own."""
    return await trio.to_thread.run_sync(functools.partial(function, *args, **kwargs), abandon_on_cancel=True)


@contextmanager
def openai_client(url: str, **options: object) -> Iterator[openai.OpenAI]:
    with httpx.Client(trust_env=False, timeout=200) as http:
        settings = {"api_key": KEY, "base_url": f"{url}/v1", "max_retries": 0, **options}
        yield openai.OpenAI(http_client=http, **settings)


@contextmanager
def ollama_client(url: str) -> Iterator[ollama.Client]:
    client = ollama.Client(url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, timeout=200)
    try:
        yield client
    finally:
        client._client.close()


def swaps(router: engine_router.Router) -> list[SwapEnded]:
    return [event for event in router.hub.recent if isinstance(event, SwapEnded)]


def pid_of(router: engine_router.Router) -> int:
    (life,) = router.supervisor.domains["default"].tasks.values()
    assert life.endpoint is not None
    assert life.endpoint.pid is not None
    return life.endpoint.pid


def assert_nothing_left(router: engine_router.Router) -> None:
    pool = router.supervisor.domains["default"]
    assert pool.leases == {}
    assert list(pool.ledger.waiting()) == []


async def test_the_openai_client(model_file: Path) -> None:
    def talk(url: str) -> None:
        with openai_client(url) as client:
            assert [model.id for model in client.models.list()] == [
                "team/alpha",
                "gpt-4o",
                "beta:1b",
                "broken",
            ]
            assert client.models.retrieve("team/alpha").owned_by == "alpha"
            assert client.models.retrieve("gpt-4o").id == "gpt-4o"

            for model in ("team/alpha", "beta:1b", "gpt-4o"):
                whole = client.chat.completions.create(model=model, messages=HELLO, **SHORT)
                assert whole.choices[0].message.content
                assert whole.usage is not None
                assert whole.usage.completion_tokens == 8

                with client.chat.completions.create(
                    model=model, messages=HELLO, stream=True, **SHORT
                ) as stream:
                    chunks = list(stream)
                assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
                assert chunks[-1].choices[0].finish_reason == "length"

            text = client.completions.create(model="team/alpha", prompt="Good", **SHORT)
            assert text.choices[0].text
            vectors = client.embeddings.create(model="beta:1b", input=["Good", "morning"])
            assert [len(entry.embedding) for entry in vectors.data] == [64, 64]

    async with running(model_file) as (router, url):
        await in_thread(talk, url)
        # alpha, beta, alpha, and beta for its vectors
        assert [(s.source, s.target, s.result) for s in swaps(router)] == [
            (None, "alpha", "ok"),
            ("alpha", "beta", "ok"),
            ("beta", "alpha", "ok"),
            ("alpha", "beta", "ok"),
        ]
        assert_nothing_left(router)
        pid = pid_of(router)
    assert not psutil.pid_exists(pid)


async def test_the_errors_of_the_openai_client(model_file: Path) -> None:
    def talk(url: str) -> None:
        with openai_client(url) as client:
            chat = functools.partial(client.chat.completions.create, messages=HELLO, **SHORT)
            with pytest.raises(
                openai.NotFoundError, match="'team/alpa' not found; did you mean 'team/alpha'"
            ):
                chat(model="team/alpa")
            with pytest.raises(openai.NotFoundError, match="not found") as unknown:
                client.models.retrieve("nothing")
            assert unknown.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError, match="is empty"):
                chat(model=" ")
            with pytest.raises(openai.InternalServerError, match="no-such-flag") as failed:
                chat(model="broken")
            assert failed.value.status_code == 503
            # By then the stream had been kept open by a frame.
            with (
                pytest.raises(openai.APIError, match="no-such-flag"),
                chat(model="broken", stream=True) as stream,
            ):
                list(stream)
            with pytest.raises(openai.BadRequestError):  # llama.cpp's own
                chat(model="team/alpha", extra_body={"response_format": {"type": "nonsense"}})
        with openai_client(url, api_key="another") as stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()

    async with running(model_file) as (router, url):
        await in_thread(talk, url)
        assert_nothing_left(router)


async def test_a_client_that_retries_does_not_retry_what_cannot_work(model_file: Path) -> None:
    def talk(url: str) -> None:
        with openai_client(url, max_retries=2) as client, pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="broken", messages=HELLO)

    async with running(model_file) as (router, url):
        await in_thread(talk, url)
        assert len([line for line in router.engines["broken"].log.tail(99) if "started pid" in line]) == 1


async def test_the_ollama_client(model_file: Path) -> None:
    def talk(url: str) -> None:
        with ollama_client(url) as client:
            assert [entry.model for entry in client.list().models] == [
                "team/alpha",
                "gpt-4o",
                "beta:1b",
                "broken",
            ]
            assert client.ps().models == []
            assert client.show("gpt-4o").capabilities == ["completion"]

            for model in ("team/alpha", "beta:1b", "gpt-4o:latest"):
                whole = client.chat(model=model, messages=HELLO, options=SHORT_BY_OLLAMA)
                assert whole.message.content
                assert whole.done
                assert whole.eval_count == 8
                parts = list(client.chat(model=model, messages=HELLO, options=SHORT_BY_OLLAMA, stream=True))
                assert "".join(part.message.content or "" for part in parts)
                assert parts[-1].done
                assert parts[-1].done_reason == "length"
            assert [entry.model for entry in client.ps().models] == ["team/alpha", "gpt-4o"]
            text = client.generate(model="team/alpha", prompt="Good", options=SHORT_BY_OLLAMA)
            assert text.response
            vectors = client.embed(model="beta:1b", input=["Good", "morning"])
            assert [len(vector) for vector in vectors.embeddings] == [64, 64]

            with pytest.raises(ollama.ResponseError, match="model 'alpa' not found") as unknown:
                client.chat(model="alpa", messages=HELLO)
            assert unknown.value.status_code == 404
            with pytest.raises(ollama.ResponseError, match="no-such-flag") as failed:
                client.chat(model="broken", messages=HELLO)
            assert failed.value.status_code == 503
            with pytest.raises(ollama.ResponseError, match="no-such-flag"):
                list(client.chat(model="broken", messages=HELLO, stream=True))
            with pytest.raises(ollama.ResponseError, match="not allowed") as forbidden:
                client.delete("team/alpha")
            assert forbidden.value.status_code == 403

    async with running(model_file) as (router, url):
        await in_thread(talk, url)
        assert_nothing_left(router)


async def test_a_cold_start_longer_than_the_interval_of_the_frames(model_file: Path) -> None:
    def by_openai(url: str) -> str:
        with (
            openai_client(url) as client,
            client.chat.completions.create(
                model="team/alpha", messages=HELLO, stream=True, **SHORT
            ) as stream,
        ):
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    def by_ollama(url: str) -> str:
        with ollama_client(url) as client:
            parts = client.chat(model="beta:1b", messages=HELLO, stream=True, options=SHORT_BY_OLLAMA)
            return "".join(part.message.content or "" for part in parts)

    async def raw(url: str, path: str, model: str) -> bytes:
        headers = {"Authorization": f"Bearer {KEY}"}
        body = {"model": model, "messages": HELLO, "stream": True, **SHORT}
        async with httpx.AsyncClient(trust_env=False, timeout=200) as client:
            return (await client.post(url + path, json=body, headers=headers)).content

    async with running(model_file) as (_, url):
        assert await in_thread(by_openai, url)
        assert await in_thread(by_ollama, url)
        # What those clients had to pass over.
        assert (await raw(url, "/v1/chat/completions", "team/alpha")).startswith(b": keepalive\n\n")
        assert (await raw(url, "/api/chat", "beta:1b")).startswith(b" ")


async def test_requests_in_flight_together_make_at_most_two_swaps(model_file: Path) -> None:
    answered: list[str] = []

    def chat(url: str, model: str) -> None:
        with openai_client(url) as client:
            answer = client.chat.completions.create(model=model, messages=HELLO, **SHORT)
            assert answer.choices[0].message.content
            answered.append(model)

    async with running(model_file) as (router, url):
        pool = router.supervisor.domains["default"]
        # Ten clients need a moment to ask, and on a busy machine longer than an engine needs to start.
        async with trio.open_nursery() as nursery, router.lease("other"):
            for model in ["team/alpha", "beta:1b"] * 5:
                nursery.start_soon(in_thread, chat, url, model)
            while len(list(pool.ledger.waiting())) < 10:
                await trio.sleep(0.01)
        assert len(answered) == 10
        assert len(swaps(router)) == 1 + 2  # the first one is not theirs


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.usefixtures("patient_for_news")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_killed_engine_fails_its_requests_and_is_started_again(
    model_file: Path, stream: bool
) -> None:
    seen: list[str] = []

    def chat(url: str) -> str:
        with openai_client(url) as client:
            create = functools.partial(
                client.chat.completions.create, model="team/alpha", messages=HELLO, **ENDLESS
            )
            if stream:
                with pytest.raises(openai.APIError) as broken, create(stream=True) as answer:
                    seen.extend(str(chunk) for chunk in answer)
                return broken.value.message
            with pytest.raises(openai.InternalServerError) as failed:
                create()
            assert failed.value.code == "engine_died"
            return failed.value.message

    def chat_again(url: str) -> str | None:
        with openai_client(url) as client:
            answer = client.chat.completions.create(model="team/alpha", messages=HELLO, **SHORT)
            return answer.choices[0].message.content

    async with running(model_file) as (router, url):
        messages: list[str] = []

        async def ask() -> None:
            messages.append(await in_thread(chat, url))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            pool = router.supervisor.domains["default"]
            while not any(r.leases for r in pool.ledger.states) or (stream and not seen):
                await trio.sleep(0.01)
            await trio.sleep(0.1)
            first = pid_of(router)
            os.kill(first, signal.SIGKILL)
        assert "engine 'alpha'" in messages[0]
        assert "SIGKILL" in messages[0]
        assert [event.resident for event in router.hub.recent if isinstance(event, ResidentDied)] == ["alpha"]
        assert await in_thread(chat_again, url)
        assert pid_of(router) != first
        assert_nothing_left(router)


async def test_past_requests_have_their_tokens(model_file: Path, tmp_path: Path) -> None:
    def chat(url: str, *, stream: bool) -> None:
        with openai_client(url) as client:
            answer = client.chat.completions.create(
                model="gpt-4o", messages=HELLO, stream=stream, max_tokens=8, temperature=0
            )
            assert list(answer)

    path = tmp_path / "history.db"
    config = attrs.evolve(configuration(model_file), history=HistoryConfig(file=str(path)))
    with trio.fail_after(LIMIT_S):
        async with engine_router.open_router(config) as router, served(router) as url:
            for stream in (False, True):
                await in_thread(chat, url, stream=stream)
            async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": KEY}, trust_env=False) as client:
                requests = (await client.get("/admin/activity")).json()["requests"]
                figures = (await client.get("/admin/figures")).json()
    assert len(requests) == 2
    for request in requests:
        assert (request["model"], request["status"]) == ("team/alpha", 200)
        assert request["tokens_in"] > 0
        assert 0 < request["tokens_out"] <= 8
        assert request["tokens_per_s"] > 0
    assert requests[1]["load_wait_s"] > 0
    assert sum(filter(None, figures["models"]["team/alpha"]["tokens_out"])) == sum(
        request["tokens_out"] for request in requests
    )


async def test_the_library(model_file: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with engine_router.open_router(configuration(model_file)) as router:
            events = router.events()
            async with router.lease("gpt-4o") as lease:
                assert (lease.engine, lease.model) == ("alpha", "alpha-raw")
                async with httpx.AsyncClient(base_url=lease.base_url, trust_env=False) as client:
                    listed = (await client.get("/v1/models")).json()
                assert listed["data"][0]["id"] == "alpha-raw"
            seen = []
            async for event in events:
                seen.append(event.name)
                if event.name == "resident_ready":
                    break
            assert seen[0] == "swap_began"
            with pytest.raises(UnknownModel, match="did you mean"):
                async with router.lease("gpt-4"):
                    pytest.fail("there is no such model")
            with pytest.raises(EngineStartFailed, match="no-such-flag"):
                async with router.lease("broken"):
                    pytest.fail("it cannot start")
            async with router.lease("team/alpha"), router.lease("gpt-4o"):
                pid = pid_of(router)
            assert_nothing_left(router)
    assert not psutil.pid_exists(pid)
