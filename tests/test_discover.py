"""Discovery in a running router: what is known of stopped engines, what is remembered, and `POST /admin/discover`."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from support.asgi import Received, ask
from support.simulated_engine import SimulatedEngine
from support.simulated_memory import SimulatedMemory
from support.small_engine import command
from test_discovery import registry

from engine_router import Router, open_router
from engine_router.cli import main
from engine_router.config import Config, parse_config
from engine_router.engines.base import Engine
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.errors import EngineUnreachable, UnknownModel
from engine_router.events import EventHub, RouterNotice
from engine_router.models.discovery import Discovery
from engine_router.models.last_seen import FORGET_AFTER_S
from engine_router.models.learned import Learned
from engine_router.models.lister import ModelLister
from engine_router.models.registry import ModelRegistry
from engine_router.residency.measurements import Measurements, read_state

LIMIT_S = 200.0
DAY_S = 24 * 3600.0


def process(name: str, *words: str, **more: object) -> str:
    """Write the table of an engine whose program does as its words say."""
    table = {"type": "process", "argv": command("port={port}", *words), **more}
    return "\n".join([f"[engines.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])


@asynccontextmanager
async def routing(*tables: str, state: Path | str = "/dev/null/state.json") -> AsyncIterator[Router]:
    text = "\n".join([f"state_file = {json.dumps(str(state))}", '[pools.default]\ngauge = "none"', *tables])
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router:
            yield router


async def discover(router: Router, **body: object) -> dict[str, Any]:
    talk = await ask(router.app, "POST", "/admin/discover", body=body)
    assert talk.status == 200, talk.body
    engines: dict[str, Any] = talk.json()["engines"]
    return engines


def known(engine: Mapping[str, Any]) -> dict[str, str]:
    return {model["id"]: " ".join(model["learned_from"]) for model in engine["models"]}


def notices(router: Router, words: str) -> list[str]:
    return [
        event.message
        for event in router.hub.recent
        if isinstance(event, RouterNotice) and words in event.message
    ]


# The report


async def test_every_engine_is_asked_and_a_silent_one_costs_itself_only() -> None:
    async with trio.open_nursery() as nursery:
        (deaf,) = await trio.open_tcp_listeners(0, host="127.0.0.1")  # accepts, and never answers
        port = deaf.socket.getsockname()[1]
        tables = (
            process("first", "models=m,extra", models=["m"], discover=False),
            process("argv", "--model=/w/x.gguf"),
            process("live", "models=a,b"),
            f'[engines.deaf]\ntype = "ollama"\nbase_url = "http://127.0.0.1:{port}"',
        )
        async with routing(*tables) as router:
            async with router.lease("x"):
                pass
            await ask(router.app, "POST", "/admin/load", body={"engine": "live", "wait": True})
            told = await discover(router)
            assert list(told) == ["first", "argv", "live", "deaf"]
            assert known(told["first"]) == {"m": "configured"}
            assert (told["first"]["asked"], told["first"]["answered"]) == (False, False)
            assert known(told["live"]) == {"a": "live", "b": "live"}
            assert told["live"]["answered"]
            assert told["live"]["models"][0] == {
                "id": "a",
                "learned_from": ["live"],
                "served": True,
                "shadowed_by": None,
                "upstream": "a",
                "aliases": [],
                "last_seen": told["live"]["models"][0]["last_seen"],
            }
            assert known(told["deaf"]) == {}
            assert told["deaf"]["error"] == "did not say within 3 s which models it has"
            assert not told["deaf"]["answered"]
            listed = (await ask(router.app, "GET", "/v1/models")).json()["data"]
            assert {entry["id"]: entry["origin"] for entry in listed} == {
                "m": "configured", "x": "argv", "a": "live", "b": "live",
            }  # fmt: skip
            status = (await ask(router.app, "GET", "/status")).json()["models"]
            assert {entry["id"]: entry["origin"] for entry in status}["x"] == "argv"
        nursery.cancel_scope.cancel()
        await deaf.aclose()


async def test_one_engine_can_be_asked_alone_and_what_it_says_is_learned() -> None:
    async with routing(process("one", "models=a"), process("other", "--model=/w/x.gguf")) as router:
        await ask(router.app, "POST", "/admin/load", body={"engine": "one", "wait": True})
        told = await discover(router, engine="one")
        assert list(told) == ["one"]
        assert router.registry.resolve("a").engine == "one"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"engine": "nope"}, 404, "no engine is called 'nope'; there are: one"),
        ({"engine": 7}, 400, '"engine" must be the name of an engine'),
        ({"engin": "one"}, 400, '"engin" means nothing here'),
        ([], 400, "object"),
    ],
)
async def test_what_cannot_be_asked_is_refused(body: object, status: int, words: str) -> None:
    async with routing(process("one", models=["m"])) as router:
        talk: Received = await ask(router.app, "POST", "/admin/discover", body=body)
        assert talk.status == status
        assert words in talk.json()["error"]["message"]


async def test_it_needs_a_key_as_other_admin_routes_do() -> None:
    async with routing('[server]\napi_keys = ["k"]', process("one", models=["m"])) as router:
        assert (await ask(router.app, "POST", "/admin/discover", body={})).status == 401
        headers = {"authorization": "Bearer k"}
        assert (await ask(router.app, "POST", "/admin/discover", body={}, headers=headers)).status == 200


async def test_two_engines_with_one_id_are_told_of_once_and_shown() -> None:
    tables = (process("one", "--model=/w/x.gguf"), process("two", "--model=/v/x.gguf"))
    async with routing(*tables) as router:
        for _ in range(3):
            told = await discover(router)
        (message,) = notices(router, "both serve")
        assert message.startswith("engines 'one' and 'two' both serve 'x': requests go to 'one' ")
        assert told["one"]["models"][0]["served"]
        (shadowed,) = told["two"]["models"]
        assert (shadowed["id"], shadowed["served"], shadowed["shadowed_by"]) == ("x", False, "one")
        assert router.registry.resolve("x").engine == "one"


# llama.cpp's router mode: models in files


async def test_models_in_files_are_known_before_a_start_and_followed(tmp_path: Path) -> None:
    presets = tmp_path / "p.ini"
    argv = ["/nowhere/llama-server", "--models-preset", str(presets), "--port", "{port}"]
    table = f'[engines.many]\ntype = "process"\nargv = {json.dumps(argv)}'
    async with routing(table) as router:
        told = await discover(router)
        assert told["many"]["files_error"] == f"{presets}: No such file or directory"
        await router.discover()
        assert len(notices(router, "its models are not known before it runs")) == 1
        presets.write_text("[*]\nc = 1\n[qwen]\nmodel = /w/Qwen3-8B.gguf\nalias = code\n")
        told = await discover(router)
        assert told["many"]["files_error"] is None
        assert known(told["many"]) == {"qwen": "argv"}
        assert router.registry.resolve("Qwen3-8B").model == router.registry.resolve("code").model == "qwen"
        # The file is not read again for another configuration in force.
        router.registry.learn_files({})
        again = ModelRegistry(router.config, router.engines)
        again.learn_files(router.learned.served)
        assert [target.model for target in again.targets()] == ["qwen"]
        presets.write_text("[gemma]\n")
        assert known((await discover(router))["many"]) == {"gemma": "argv"}


async def test_a_folder_that_hangs_holds_nobody_and_has_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release, begun = threading.Event(), []

    def hang(*_: object) -> tuple[()]:
        begun.append(1)
        release.wait(LIMIT_S)
        return ()

    monkeypatch.setattr("engine_router.models.discovery.models_in_files", hang)
    argv = ["/nowhere/llama-server", "--models-dir", "/m", "--port", "{port}"]
    tables = (f'[engines.many]\ntype = "process"\nargv = {json.dumps(argv)}', process("live", "models=a"))
    try:
        async with routing(*tables) as router:
            await ask(router.app, "POST", "/admin/load", body={"engine": "live", "wait": True})
            for _ in range(2):
                assert known((await discover(router))["live"]) == {"a": "live"}
            assert len(begun) == 1
    finally:
        release.set()


# What is remembered, under a clock of its own


class ListingEngine(SimulatedEngine):
    """An engine that lists what it is told to; `answer` is None while it does not run."""

    def __init__(self, name: str) -> None:
        super().__init__(name, SimulatedMemory())
        self.answer: Sequence[str] | Exception | None = None

    async def list_models(self) -> Sequence[str] | None:
        await trio.lowlevel.checkpoint()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@define(eq=False)
class Remembering:
    """The part of a router that remembers lists, and the configuration in force that it sees."""

    config: Config
    engines: dict[str, Engine]
    registry: ModelRegistry
    state: Measurements
    notes: list[str] = field(factory=list)


@asynccontextmanager
async def remembering(
    text: str, state: Measurements, **engines: ListingEngine
) -> AsyncIterator[tuple[Remembering, ModelLister]]:
    """Ask engines in rounds, by a clock that begins years after the epoch."""

    def now() -> float:
        return 1e9 + trio.current_time()

    found = registry(text)
    found._engines = engines  # type: ignore[assignment]
    memory = Remembering(parse_config(text), dict(engines), found, state)
    found.learn(state.models, now())
    discovery = Discovery(lambda: memory, state, Learned(), memory.notes.append, now)
    lister = ModelLister(
        EventHub(), discovery.asked, discovery.learn, discovery.read_files, discovery.round_over
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lister.run)
        await lister.ask()
        yield memory, lister
        nursery.cancel_scope.cancel()


ONE = '[engines.one]\ntype = "systemd"\nunit = "one.service"\nbase_url = "http://127.0.0.1:1"\n'


def models(memory: Remembering) -> dict[str, str]:
    return {target.model: target.origin for target in memory.registry.targets()}


async def test_a_list_is_remembered_for_thirty_days(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "engine_router.models.lister.INTERVAL_S", DAY_S / 4
    )  # two months have too many half minutes
    engine, state = ListingEngine("one"), Measurements()
    engine.answer = ["a", "b"]
    with trio.fail_after(1e9):
        async with remembering(ONE, state, one=engine) as (memory, lister):
            assert models(memory) == {"a": "live", "b": "live"}
            await trio.sleep(40 * DAY_S)  # it runs all the time
            await lister.ask()
            assert models(memory) == {"a": "live", "b": "live"}
            engine.answer = None
            await lister.ask()
            assert models(memory) == {"a": "last seen", "b": "last seen"}
            await trio.sleep(29 * DAY_S)
            await lister.ask()
            assert models(memory) == {"a": "last seen", "b": "last seen"}
            await trio.sleep(FORGET_AFTER_S - 28 * DAY_S)
            await lister.ask()
            assert models(memory) == {}
            with pytest.raises(UnknownModel):
                memory.registry.resolve("a")
            engine.answer = ["b", "c"]
            await lister.ask()
            assert models(memory) == {"b": "live", "c": "live"}
            engine.answer = EngineUnreachable("one", "answers nonsense")
            await lister.ask()
            assert models(memory) == {"b": "last seen", "c": "last seen"}
            assert lister.errors == {"one": "answers nonsense"}


async def test_a_bad_list_is_logged_once_for_each_change(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ListingEngine("one")
    answers: Sequence[tuple[Sequence[str] | Exception | None, int]] = [
        (EngineUnreachable("one", "answers nonsense"), 1),
        (EngineUnreachable("one", "answers nonsense"), 1),
        (EngineUnreachable("one", "answers other nonsense"), 2),
        (["a"], 2),
        (EngineUnreachable("one", "answers other nonsense"), 3),
        (None, 3),
        (EngineUnreachable("one", "answers other nonsense"), 4),
    ]
    with trio.fail_after(1e9), caplog.at_level(logging.INFO, "engine_router"):
        async with remembering(ONE, Measurements(), one=engine) as (_, lister):
            for answer, logged in answers:
                engine.answer = answer
                for _ in range(3):
                    await lister.ask()
                assert sum("nonsense" in line for line in caplog.messages) == logged


async def test_what_is_written_is_read_by_the_next_run(autojump_clock: trio.testing.MockClock) -> None:
    engine, state = ListingEngine("one"), Measurements()
    engine.answer = ["a"]
    with trio.fail_after(1e9):
        async with remembering(ONE, state, one=engine):
            pass
        engine.answer = None
        text = state.to_json()
        read = Measurements.from_json(text)
        async with remembering(ONE, read, one=engine) as (memory, _):
            assert models(memory) == {"a": "last seen"}
        async with remembering(ONE.replace("one.service", "two.service"), read, one=engine) as (memory, _):
            assert models(memory) == {}  # it is another server now
        await trio.sleep(31 * DAY_S)
        old = Measurements.from_json(text)
        async with remembering(ONE, old, one=engine) as (memory, _):
            assert models(memory) == {}
        assert old.models == {}


async def test_each_id_of_two_engines_is_told_of_once(autojump_clock: trio.testing.MockClock) -> None:
    one, two = ListingEngine("one"), ListingEngine("two")
    text = ONE + ONE.replace("one", "two")
    with trio.fail_after(1e9):
        async with remembering(text, Measurements(), one=one, two=two) as (memory, lister):
            for lists in (["a"], ["a", "b"], ["b"], [f"m{number}" for number in range(7)], ["a"]):
                one.answer = two.answer = lists
                await lister.ask()
            first, second, third = (note.partition(":")[0] for note in memory.notes)
            assert first == "engines 'one' and 'two' both serve 'a'"
            assert second == "engines 'one' and 'two' both serve 'b'"
            assert third == "engines 'one' and 'two' both serve 'm0', 'm1', 'm2', 'm3', 'm4' and 2 more"


async def test_a_list_that_stays_the_same_is_written_once_an_hour(
    autojump_clock: trio.testing.MockClock,
) -> None:
    engine, state = ListingEngine("one"), Measurements()
    engine.answer = ["a"]
    with trio.fail_after(1e9):
        async with remembering(ONE, state, one=engine):
            writes = 0
            for _ in range(4 * 120):
                writes += state.changed
                state.changed = False
                await trio.sleep(30)
            assert 4 <= writes <= 6


# Engines that insist on their own names

STRICT = """\
import http.server, json, sys

words = sys.argv[1:]  # as vLLM has it: serve MODEL ... [--served-model-name NAME ...]
names = [words[1]]
if "--served-model-name" in words:
    given = words[words.index("--served-model-name") + 1 : words.index("--port")]
    names = [word for word in given if not word.startswith("-")]


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, data):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
        error = {"error": {"message": f"The model `{asked}` does not exist.", "code": 404}}
        self.answer(200 if asked in names else 404, {"choices": [], "model": asked} if asked in names else error)

    def log_message(self, *_):
        pass


http.server.HTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.mark.parametrize(
    ("words", "configured", "names"),
    [
        (["/w/qwen"], [], ["qwen", "/w/qwen"]),
        (["Qwen/Qwen3-8B"], [], ["Qwen/Qwen3-8B", "Qwen3-8B", "hf.co/Qwen/Qwen3-8B"]),
        (["/w/qwen", "--served-model-name", "a", "b"], [], ["a", "b", "qwen"]),
        (["/w/qwen"], ["q"], ["q", "qwen", "/w/qwen"]),
        (["/w/qwen", "--served-model-name", "a", "b"], ["b"], ["b", "a"]),
        (["/w/qwen", "--served-model-name", "a"], ["q"], ["q", "a"]),
    ],
)
async def test_the_first_request_that_starts_an_engine_names_a_model_that_it_knows(
    tmp_path: Path, words: list[str], configured: list[str], names: list[str]
) -> None:
    """Before it ever ran, and right after its start, when nobody has asked it for its list yet."""
    program = tmp_path / "vllm"
    program.write_text(STRICT)
    argv = [sys.executable, "-I", "-S", str(program), "serve", *words, "--port", "{port}"]
    table = f'[engines.vllm]\ntype = "process"\nargv = {json.dumps(argv)}\nmodels = {json.dumps(configured)}'
    for name in names:
        async with routing(table) as router:
            first = names[0]
            for asked in (name, first):
                body = {"model": asked, "messages": [{"role": "user", "content": "hi"}]}
                talk = await ask(router.app, "POST", "/v1/chat/completions", body=body)
                assert talk.status == 200, talk.body
            told = (await discover(router))["vllm"]["models"]
            assert [model["id"] for model in told] == [first]
            assert told[0]["learned_from"][-1] == "live"


# A real engine

WHEELS = ("gguf", "numpy", "xllamacpp")
MISSING = [name for name in WHEELS if importlib.util.find_spec(name) is None]


@pytest.mark.real
@pytest.mark.skipif(bool(MISSING), reason=f"needs the extra llamacpp (missing: {', '.join(MISSING)})")
async def test_a_stopped_llama_server_is_started_by_any_name_of_its_file(tmp_path: Path) -> None:
    """It is listed before it has ever run, and no name of it ends in a 404, then or later."""
    path = write_tiny_gguf(tmp_path / "Tiny-Chat-Q4_K_M.gguf")
    state = tmp_path / "state.json"
    server = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(path), "--port", "{port}", "-lv", "0"]
    table = f'[engines.llama]\ntype = "process"\nargv = {json.dumps(server)}'
    names = (
        "Tiny-Chat-Q4_K_M",
        "Tiny-Chat-Q4_K_M.gguf",
        "tiny-chat:q4_k_m",
        str(path),
        "Tiny-Chat-Q4_K_M:latest",
    )

    async def chat(router: Router, name: str) -> None:
        body = {
            "model": name,
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 2,
            "ignore_eos": True,
        }
        talk = await ask(router.app, "POST", "/v1/chat/completions", body=body)
        assert talk.status == 200, talk.body
        assert talk.json()["usage"]["completion_tokens"] == 2

    async def listed(router: Router) -> dict[str, str]:
        data = (await ask(router.app, "GET", "/v1/models")).json()["data"]
        return {entry["id"]: entry["origin"] for entry in data}

    for origins in ("argv", "argv last seen"):
        async with routing(table, state=state) as router:
            assert await listed(router) == {names[0]: "argv"}
            assert known((await discover(router))["llama"]) == {names[0]: origins}
            for name in names:
                await chat(router, name)
            assert known((await discover(router))["llama"]) == {names[0]: "argv live"}
            assert await listed(router) == {names[0]: "argv"}
            for name in names:
                await chat(router, name)
            await ask(router.app, "POST", "/admin/unload", body={"all": True})
            assert known((await discover(router))["llama"]) == {names[0]: "argv last seen"}
            await chat(router, names[1])
    assert list(read_state(state).models["llama"].names) == [str(path)]


# The commands


def test_check_names_the_models_of_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "engines.toml"
    config.write_text(process("one", "--model=/w/x.gguf") + "\n" + process("two"))
    assert main(["check", "--config", str(config)]) == 0
    told = capsys.readouterr().out
    assert "x (by argv)" in told
    assert "found when it runs" in told
    assert "engines.one.models" not in told
    assert "engines.two.models: empty: no request can start it before it has run once" in told


def test_the_command_shows_a_table(tmp_path: Path) -> None:
    from support.ports import free_port  # noqa: PLC0415
    from test_cli import run, serving  # noqa: PLC0415 - its fixtures are not wanted here

    config = tmp_path / "engines.toml"
    config.write_text(
        f'state_file = "{tmp_path / "state.json"}"\n[server]\nport = {free_port()}\n'
        + process("one", "--model=/w/x.gguf")
        + "\n"
        + process("two", "--model=/v/x.gguf", models=["m"])
        + "\n"
        + process("three")
    )
    with serving(config) as router:

        def told(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
            done = run(*arguments, "--url", router.url)
            assert done.returncode == code, done.stderr
            return done

        lines = told("discover").stdout.splitlines()
        assert lines[0].split() == ["MODEL", "ENGINE", "KNOWN", "FROM", "LAST", "SEEN", "SERVED"]
        assert [line.split() for line in lines[1:3]] == [
            ["x", "one", "argv", "-", "yes"],
            ["m", "two", "configured,", "argv", "-", "yes"],
        ]
        assert lines[-1].startswith("three: no model is known; name some in engines.toml")
        assert list(json.loads(told("discover", "two", "--json").stdout)["engines"]) == ["two"]
        assert "there are: one, two, three" in told("discover", "nope", code=1).stderr
        assert told("models").stdout.splitlines()[1].split() == ["m", "two", "off", "configured", "-"]
