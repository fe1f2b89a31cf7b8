"""What engines answer to the router's own calls is bounded in bytes, in parts, in time and in entries."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from support.asgi import ask
from support.scripted import Answer, ScriptedOllama, ScriptedServer, as_json

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.engines.readiness import Check, look
from engine_router.engines.remote.client import BadAnswer, EngineClient
from engine_router.errors import EngineError, EngineUnreachable
from engine_router.guards.limits import CONTROL_ANSWER_BYTES, LISTED_MODELS, MODEL_NAME_CHARS, SHOWN_BYTES
from engine_router.upstream.control_answers import UnreadableAnswer, read_answer
from engine_router.upstream.control_client import ControlClient, control_client

pytestmark = pytest.mark.timeout(120)

PIECE = b" " * 65_536
BOMB = gzip.compress(b" " * (64 * CONTROL_ANSWER_BYTES))


class Endless(AsyncGenerator[bytes, None]):
    """Pieces for ever, as fast as they are read; to several readers, of which each may leave."""

    def __init__(self, sent: list[int], piece: bytes) -> None:
        self.sent, self.piece = sent, piece

    async def asend(self, _value: None) -> bytes:
        self.sent.append(len(self.piece))
        return self.piece

    async def athrow(self, *_error: Any) -> bytes:
        raise GeneratorExit


def endless(sent: list[int], piece: bytes = PIECE) -> Endless:
    return Endless(sent, piece)


async def behind_its_end() -> AsyncGenerator[bytes, None]:
    yield gzip.compress(b"{}")
    while True:
        yield PIECE


def encoded(body: bytes, encoding: str) -> Answer:
    return Answer(body=body, headers=(("content-encoding", encoding),))


UNREADABLE: dict[str, tuple[Callable[[], Answer], str]] = {
    "endless": (lambda: Answer(pieces=endless([])), "more than 8.4 MB"),
    "endless events": (
        lambda: Answer(content_type="text/event-stream", pieces=endless([])),
        "more than 8.4 MB",
    ),
    "too large": (lambda: Answer(body=b"[" + b"1" * CONTROL_ANSWER_BYTES + b"]"), "more than 8.4 MB"),
    "gzip bomb": (lambda: encoded(BOMB, "gzip"), "more than 8.4 MB"),
    "deflate bomb": (
        lambda: encoded(zlib.compress(b" " * 2 * CONTROL_ANSWER_BYTES), "deflate"),
        "more than 8.4 MB",
    ),
    "behind the end of gzip": (
        lambda: Answer(pieces=behind_its_end(), headers=(("content-encoding", "gzip"),)),
        "more than 8.4 MB",
    ),
    "dense": (lambda: Answer(body=b"[" + b"[]," * 600_000 + b"1]"), "500,000 parts"),
    "no gzip": (lambda: encoded(b"{}", "gzip"), "not encoded as it says"),
    "not asked for": (lambda: encoded(b"{}", "br"), "'br', which it was not asked for"),
}
each_of_them = pytest.mark.parametrize(("made", "words"), UNREADABLE.values(), ids=UNREADABLE)


@asynccontextmanager
async def asked(made: Callable[[], Answer]) -> AsyncIterator[tuple[EngineClient, ControlClient]]:
    """A server that answers everything so, and what asks it."""
    scripted = ScriptedServer("m")
    for path in ("/v1/models", "/health"):
        scripted.script.answers[path] = made()
    with trio.fail_after(200):
        async with scripted.running(), control_client() as client:
            table = f'[engines.e]\ntype = "http"\nbase_url = "{scripted.base_url}"\nunload = {{ path = "/u" }}\nloaded = {{ path = "/v1/models" }}'
            config = parse_config(table).engines["e"]
            yield EngineClient("e", config, scripted.base_url, client), client


@each_of_them
async def test_an_answer_beyond_the_bounds_is_unreadable(made: Callable[[], Answer], words: str) -> None:
    async with asked(made) as (server, _):
        with pytest.raises(BadAnswer) as raised:
            await server.models()
        assert words in str(raised.value)
        assert server.base_url in str(raised.value)
        assert raised.value.answer_status == 200


@each_of_them
async def test_a_probe_says_so(made: Callable[[], Answer], words: str) -> None:
    async with asked(made) as (server, client):
        seen = await look(client, f"{server.base_url}/health", Check("status==200"), headers={})
        assert seen is not None
        assert words in seen


async def test_what_comes_is_read_no_further_than_the_bound() -> None:
    sent: list[int] = []
    async with asked(lambda: Answer(pieces=endless(sent))) as (server, _):
        with pytest.raises(BadAnswer):
            await server.call("GET", "/health")
        # What the sockets between them hold comes on top.
        assert sum(sent) < 4 * CONTROL_ANSWER_BYTES


async def test_an_answer_that_never_comes_to_its_end_is_given_up() -> None:
    async def dripping() -> AsyncGenerator[bytes, None]:
        while True:
            yield b" "
            await trio.sleep(0.01)

    async with asked(lambda: Answer(pieces=dripping())) as (server, _):
        with pytest.raises(EngineUnreachable, match=r"within 0\.2 s"):
            await server.call("GET", "/v1/models", timeout_s=0.2)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "identity"])
async def test_an_answer_within_the_bounds_is_read_whatever_it_is_encoded_in(encoding: str) -> None:
    body = json.dumps({"data": [{"id": "a" * 500}]}).encode()
    coded = {"deflate": zlib.compress, "identity": bytes}.get(encoding, gzip.compress)(body)
    async with asked(lambda: encoded(coded, encoding)) as (server, client):
        assert await server.models() == ("a" * 500,)
        async with client.stream("GET", f"{server.base_url}/v1/models", headers={}) as response:
            assert await read_answer(response, len(body)) == body
        async with client.stream("GET", f"{server.base_url}/v1/models", headers={}) as response:
            with pytest.raises(UnreadableAnswer):
                await read_answer(response, len(body) - 1)


async def test_json_of_any_depth_is_no_defect() -> None:
    async with asked(lambda: Answer(body=b"[" * 400_000)) as (server, _):
        with pytest.raises(BadAnswer, match="without a list"):
            await server.models()


async def test_a_list_of_what_is_in_memory_is_bounded() -> None:
    data = [{"id": f"model-{number}"} for number in range(LISTED_MODELS + 1)]
    async with asked(lambda: as_json({"data": data})) as (server, _):
        with pytest.raises(BadAnswer, match="more than 2,000 models in memory"):
            await server.listing(loaded_config())
    async with asked(lambda: as_json({"data": data[1:]})) as (server, _):
        assert len(await server.listing(loaded_config())) == LISTED_MODELS


def loaded_config() -> Any:
    table = '[engines.e]\ntype = "http"\nbase_url = "http://127.0.0.1:1"\nunload = { path = "/u" }\nloaded = { path = "/v1/models", key = "data" }'
    return parse_config(table).engines["e"].loaded  # type: ignore[attr-defined]


# Lists of models.


@asynccontextmanager
async def routing(table: str) -> AsyncIterator[Router]:
    text = 'state_file = "/dev/null/state.json"\n[pools.default]\ngauge = "none"\n' + table
    with trio.fail_after(200):
        async with open_router(parse_config(text)) as router:
            await router.discover()
            yield router


def engine(base_url: str, kind: str = "http") -> str:
    more = (
        ""
        if kind == "ollama"
        else 'unload = { path = "/u" }\nloaded = { path = "/v1/models", key = "data", filter = { state = "loaded" } }'
    )
    return f'[engines.e]\ntype = "{kind}"\nbase_url = "{base_url}"\n{more}\n[models.mine]\nengine = "e"\nupstream = "model-199999"\n'


async def test_an_engine_that_lists_200000_models(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"model-{number}" for number in range(200_000)]
    scripted = ScriptedServer()
    # Smaller than what is read, with as few members as a list may have.
    scripted.script.answers["/v1/models"] = as_json({"data": names})
    async with scripted.running(), routing(engine(scripted.base_url)) as router:
        await router.discover()
        told = [record.message for record in caplog.records if "lists 200000 models" in record.message]
        assert len(told) == 1
        assert "first 2000" in told[0]
        assert len(router.registry.targets()) == LISTED_MODELS + 1
        assert router.registry.resolve("model-1999").upstream == "model-1999"
        assert router.registry.resolve("mine").upstream == "model-199999"
        for path, key in (("/v1/models", "data"), ("/api/tags", "models"), ("/status", "models")):
            talk = await ask(router.app, "GET", path)
            assert len(talk.json()[key]) == LISTED_MODELS + 1
        # Told again where it was right in the meantime.
        scripted.script.answers["/v1/models"] = as_json({"data": names[:2]})
        await router.discover()
        scripted.script.answers["/v1/models"] = as_json({"data": names})
        await router.discover()
        told = [record.message for record in caplog.records if "lists 200000 models" in record.message]
        assert len(told) == 2


async def test_names_that_nobody_can_ask_for_are_not_listed() -> None:
    scripted = ScriptedServer("a", "x" * MODEL_NAME_CHARS, "y" * (MODEL_NAME_CHARS + 1))
    async with scripted.running(), routing(engine(scripted.base_url)) as router:
        assert {target.model for target in router.registry.targets()} == {
            "mine",
            "a",
            "x" * MODEL_NAME_CHARS,
        }


async def test_a_list_that_is_too_large_leaves_what_was_known() -> None:
    scripted = ScriptedServer("a")
    async with scripted.running(), routing(engine(scripted.base_url)) as router:
        scripted.script.answers["/v1/models"] = Answer(pieces=endless([]))
        await router.discover()
        assert router.registry.resolve("a").model == "a"


async def test_what_a_daemon_shows_of_its_models_is_kept_up_to_a_bound() -> None:
    scripted = ScriptedOllama(*(f"m{number}" for number in range(8)))
    scripted.script.answers["/api/show"] = as_json({"license": "x" * (SHOWN_BYTES // 5)})
    async with scripted.running(), routing(engine(scripted.base_url, "ollama")) as router:
        async with control_client() as client:
            await router.known_models.refresh(client, {})
        shown = [router.known_models.of(target).shown for target in router.registry.targets()]
        assert sum(map(bool, shown)) == 4


async def test_what_a_daemon_shows_to_a_client_is_read_up_to_a_bound() -> None:
    scripted = ScriptedOllama("m")
    async with scripted.running(), routing(engine(scripted.base_url, "ollama")) as router:
        sent: list[int] = []
        scripted.script.answers["/api/show"] = Answer(pieces=endless(sent))
        talk = await ask(router.app, "POST", "/api/show", body={"model": "m"})
        assert talk.status == 200
        assert "capabilities" in talk.json()
        assert sum(sent) < 4 * CONTROL_ANSWER_BYTES


async def test_a_load_whose_answer_has_no_end_fails_and_says_why() -> None:
    scripted = ScriptedServer("m")
    scripted.script.answers["/load"] = Answer(pieces=endless([]))
    scripted.script.answers["/v1/models"] = as_json({"data": []})
    load = 'load = { path = "/load" }\nunload ='
    async with scripted.running(), routing(engine(scripted.base_url).replace("unload =", load)) as router:
        with pytest.raises(EngineError, match="POST /load with more than"):
            async with router.lease("mine"):
                pass
