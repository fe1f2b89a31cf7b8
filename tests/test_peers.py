"""Peers, over real sockets: routers in front of routers."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.asgi import Received
from support.ports import free_port
from support.scripted.cloud import ScriptedCloud
from support.scripted.server import Answer, as_json
from support.served import RawClient, ask, served

from engine_router import Router, open_router
from engine_router.config import load_config, parse_config
from engine_router.engines.base import ResidentId
from engine_router.engines.remote import peer_state
from engine_router.models import peer_watch
from engine_router.server.serve import listen, serve
from engine_router.upstream.hops import MOST_HOPS
from engine_router.web.status import status

LIMIT_S = 200.0
HELLO = [{"role": "user", "content": "hello"}]
TALKING = str(Path(__file__).parent / "programs" / "talking_engine.py")
TOP = 'state_file = "/dev/null/state.json"\n[server]\nshutdown_timeout_s = 0.1\nport = {port}\n{server}\n[pools.default]\ngauge = "none"\n'


REMOTE = '[engines.attic]\ntype = "remote"'


def engine(name: str = "local", model: str = "m", *words: str) -> str:
    argv = json.dumps([sys.executable, "-I", "-S", TALKING, "{port}", *words])
    return f'[engines.{name}]\ntype = "process"\nargv = {argv}\nmodels = ["{model}"]\ndiscover = false\n'


def peer(url: str, more: str = "", name: str = "attic") -> str:
    return f'[peers.{name}]\nbase_url = "{url}"\n{more}\n'


@asynccontextmanager
async def running(text: str, *, server: str = "", port: int = 1) -> AsyncIterator[tuple[Router, str]]:
    """Serve a router in this process."""
    config = parse_config(TOP.format(port=port, server=server) + text)
    async with open_router(config) as router, served(router) as url:
        yield router, url


@asynccontextmanager
async def a_process(folder: Path, text: str, server: str = "") -> AsyncIterator[str]:
    """Serve a router in a process of its own; yields its URL."""
    port = free_port()
    file = folder / f"{port}.toml"
    file.write_text(TOP.format(port=port, server=server) + text, "utf-8")
    command = [sys.executable, "-m", "engine_router", "serve", "--config", str(file)]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(trio.run_process, command)
        url = f"http://127.0.0.1:{port}"
        while not await answers(url):
            await trio.sleep(0.05)
        yield url
        process.terminate()
        await process.wait()


async def answers(url: str) -> bool:
    try:
        return (await ask(url, "GET", "/health")).status == 200
    except OSError:
        return False


async def chat(
    url: str, model: str = "m", path: str = "/v1/chat/completions", headers: Any = None, **more: Any
) -> Received:
    body = {"model": model, "messages": HELLO, "max_tokens": 9, **more}
    return await ask(url, "POST", path, headers=headers, body=body)


async def listed(url: str, headers: Any = None) -> list[str]:
    answer = await ask(url, "GET", "/v1/models", headers=headers)
    return sorted(entry["id"] for entry in answer.json()["data"])


@pytest.mark.parametrize("prefix", ["", "attic/"])
async def test_its_models_appear_here_and_serve_every_dialect(prefix: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(engine(), server='api_keys = ["the-far-key-of-16"]') as (_, far):
            more = (
                f'api_key = "the-far-key-of-16"\nprefix = "{prefix[:-1]}"'
                if prefix
                else 'api_key = "the-far-key-of-16"'
            )
            async with running(peer(far, more)) as (near, url):
                await near.discover()
                model = f"{prefix}m"
                assert await listed(url) == [model]
                tags = (await ask(url, "GET", "/api/tags")).json()["models"]
                assert [tag["name"] for tag in tags] == [model]
                answer = await chat(url, model)
                assert (answer.status, answer.json()["model"]) == (200, model)
                assert (
                    (await chat(url, model, "/v1/messages")).json()["content"][-1]["text"].startswith("Grü")
                )
                answer = await chat(url, model, "/api/chat", stream=False)
                assert answer.json()["message"]["content"].startswith("Grü")
                assert (await chat(url, "x")).status == 404


async def test_its_waiting_frames_pass_through_from_a_process_of_its_own(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        slow = engine("local", "m", "delay=1.5")
        async with (
            a_process(tmp_path, slow, "keepalive_interval_s = 0.2") as far,
            running(peer(far), server="keepalive_interval_s = 0") as (near, url),
        ):
            await near.discover()
            answer = await chat(url, stream=True)
            assert answer.status == 200
            assert answer.body.count(b": ") > 1  # frames that only the peer sends
            assert answer.body.endswith(b"data: [DONE]\n\n")


# Loops.


@asynccontextmanager
async def each_others_peers(table: str = "[peers.attic]") -> AsyncIterator[tuple[Router, str, Router, str]]:
    """Serve two routers that are each other's peers, or remotes; each names a model that is nowhere."""
    ports = [free_port(), free_port()]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    configs = [
        parse_config(TOP.format(port=port, server="") + f'{table}\nbase_url = "{url}"\nmodels = ["ghost"]')
        for port, url in zip(ports, reversed(urls), strict=True)
    ]
    async with (
        open_router(configs[0]) as first,
        open_router(configs[1]) as second,
        trio.open_nursery() as nursery,
    ):
        for router in (first, second):
            sockets = listen(router.config.server)
            await nursery.start(
                lambda task_status, r=router, s=sockets: serve(r, sockets=s, task_status=task_status)
            )
        yield first, urls[0], second, urls[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/chat/completions", lambda error: error["error"]["code"] == "loop_detected"),
        ("/v1/messages", lambda error: error["type"] == "error"),
        ("/api/chat", lambda error: isinstance(error["error"], str)),
    ],
)
@pytest.mark.parametrize("table", ["[peers.attic]", REMOTE])
async def test_a_request_that_comes_back_is_refused_in_its_dialect(table: str, path: str, code: Any) -> None:
    with trio.fail_after(LIMIT_S):
        async with each_others_peers(table) as (_, url, _, _):
            answer = await chat(url, "ghost", path, stream=False)
            assert answer.status == 508
            assert code(answer.json())
            assert "has passed through this router before" in answer.body.decode()


async def test_lists_of_each_others_peers_do_not_grow() -> None:
    with trio.fail_after(LIMIT_S):
        async with each_others_peers() as (first, url, second, _):
            for _ in range(3):
                await first.discover()
                await second.discover()
            assert await listed(url) == ["ghost"]
            assert await listed(url, {"x-engine-router-hops": "ab"}) == []


@pytest.mark.parametrize(
    ("hops", "words"),
    [
        (", ".join(["ab"] * MOST_HOPS), f"has passed through {MOST_HOPS} routers"),
        ("ab" * 9999, "cannot be read"),
        ("not an id", "cannot be read"),
    ],
)
@pytest.mark.parametrize("header", ["x-engine-router-hops", "x-engine-router-via"])
@pytest.mark.parametrize("fast", ["true", "false"])
async def test_what_is_no_short_list_of_hops_is_refused(
    hops: str, words: str, fast: str, header: str
) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(engine(), server=f"fast_path = {fast}") as (_, url):
            answer = await chat(url, headers={header: hops})
            assert (answer.status, words in answer.json()["error"]["message"]) == (508, True)
            assert (await chat(url, headers={header: "ab, cd"})).status == 200


async def test_a_remote_that_is_a_router_asks_its_own_peers() -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            running(engine()) as (_, last),
            running(peer(last, 'models = ["m"]')) as (_, middle),
            running(f'{REMOTE}\nbase_url = "{middle}"\nmodels = ["m"]') as (_, first),
        ):
            assert (await chat(first)).status == 200


# Wake-on-LAN.

MAC = "aa:bb:cc:dd:ee:ff"


@asynccontextmanager
async def a_sleeper(tmp_path: Path, more: str = "") -> AsyncIterator[tuple[Router, str, trio.Event]]:
    """Serve a router whose peer serves once it got a magic packet; yields it with its URL, and the event of the wake."""
    port, packets = free_port(), trio.socket.socket(type=socket.SOCK_DGRAM)
    awake = trio.Event()

    async def sleep_until_woken() -> None:
        packet = await packets.recv(200)
        assert packet == b"\xff" * 6 + bytes.fromhex(MAC.replace(":", "")) * 16
        awake.set()
        await trio.sleep(1)  # a machine takes its time
        async with open_router(parse_config(TOP.format(port=port, server="") + engine())) as far:
            await serve(far, sockets=listen(far.config.server))

    with packets:
        await packets.bind(("127.0.0.1", 0))
        wake = f'mac = "{MAC}"\nbroadcast = "127.0.0.1:{packets.getsockname()[1]}"\nmodels = ["m"]\n{more}'
        text = peer(f"http://127.0.0.1:{port}", wake)
        server = "keepalive_interval_s = 0.1\nshow_progress = true"
        async with running(text, server=server) as (router, url), trio.open_nursery() as nursery:
            nursery.start_soon(sleep_until_woken)
            yield router, url, awake
            nursery.cancel_scope.cancel()


async def test_a_peer_that_sleeps_is_woken_and_its_wake_is_shown_and_learned(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with a_sleeper(tmp_path) as (router, url, awake):
            assert status(router)["engines"]["attic"]["state"] == "off"
            answer = await chat(url, stream=True)
            assert awake.is_set()
            assert answer.body.endswith(b"data: [DONE]\n\n")
            assert b"attic: waking it up" in answer.body, answer.body[:600]
            assert status(router)["engines"]["attic"]["state"] == "ready"
            assert (router.read_model.profile(ResidentId("attic")).start_s or 0) > 0


async def test_a_peer_that_does_not_wake_is_told_with_what_was_tried(tmp_path: Path) -> None:
    wake = f'mac = "{MAC}"\nbroadcast = "127.0.0.1:{free_port()}"\nwake_timeout_s = 0.7\nmodels = ["m"]'
    with trio.fail_after(LIMIT_S):
        async with running(peer(f"http://127.0.0.1:{free_port()}", wake)) as (_, url):
            answer = await chat(url)
            assert answer.status >= 500
            assert "did not answer within 0.7 s after it was woken (wake_timeout_s)" in answer.body.decode()


async def test_an_idle_peer_is_suspended_unless_others_use_it(tmp_path: Path) -> None:
    mark = tmp_path / "suspended"
    command = json.dumps([sys.executable, "-c", f"open({str(mark)!r}, 'w')"])
    more = f"suspend_after_s = 0.6\nsuspend_command = {command}"
    with trio.fail_after(LIMIT_S):
        async with a_sleeper(tmp_path, more) as (router, url, _):
            assert (await chat(url)).status == 200
            async with router.lease("m"):  # here: somebody could use it any moment
                await trio.sleep(2)
            far = router.config.engines["attic"].base_url or ""
            hub = router.engines["attic"].logs.engine
            async with RawClient.to(far) as other:  # there: the answer takes some seconds
                told = {"role": "user", "content": "slowly report " + "at length " * 400}
                body = {"model": "m", "messages": [told], "stream": True}
                await other.request("POST", "/v1/chat/completions", json.dumps(body).encode())
                await trio.sleep(0.1)
                while (await ask(far, "GET", "/status")).json()["pools"]["default"]["residents"][0][
                    "in_flight"
                ]:
                    assert not mark.exists(), hub.tail(9)
                    await trio.sleep(0.05)
            while status(router)["engines"]["attic"]["state"] != "off":
                await trio.sleep(0.05)
            assert mark.exists(), hub.tail(9)


# What it tells of itself.


async def test_a_peers_state_queue_and_estimate_are_shown(tmp_path: Path, capsys: Any) -> None:
    slow = engine("local", "m", "delay=2") + engine("other", "n")
    with trio.fail_after(LIMIT_S):
        async with a_process(tmp_path, slow) as far, a_process(tmp_path, peer(far, 'prefix = "a"')) as near:
            while "a/m" not in await listed(near):
                await trio.sleep(0.05)

            async def shown() -> tuple[dict[str, str], dict[str, Any]]:
                told = (await ask(near, "GET", "/status")).json()
                states = {model["id"]: model["state"] for model in told["models"]}
                return states, told["engines"]["attic"]["peer"]

            while (await shown())[1]["program"] != "engine-router":
                await trio.sleep(0.05)
            assert (await shown())[0] == {"a/m": "off", "a/n": "off"}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(chat, near, "a/m")
                while (await shown())[0]["a/m"] != "starting":
                    await trio.sleep(0.05)
                told = (await shown())[1]
                assert (told["waiting"], told["swaps"][0]["target"]) == (1, "local")
                command = [sys.executable, "-m", "engine_router", "status", "--url", near]
                said = await trio.run_process(command, capture_stdout=True)
                assert b"engine-router" in said.stdout.partition(b"PROGRAM")[2], said.stdout
                assert b"start local" in said.stdout
            while (await shown())[0]["a/m"] != "ready":
                await trio.sleep(0.05)
            assert (await shown())[1]["ready"] == ["m"]


@pytest.mark.parametrize(
    ("path", "answer", "program", "states"),
    [
        ("/running", {"running": [{"model": "m", "state": "starting"}]}, "llama-swap", ("starting", "off")),
        ("/running", {"running": [{"model": "m", "state": ["ready"]}]}, "llama-swap", ("off", "off")),
        ("/api/ps", {"models": [{"name": "m:latest"}]}, "ollama", ("ready", "off")),
        (
            "/api/v0/models",
            {"data": [{"id": "m", "state": "loaded"}, {"id": "n", "state": "not-loaded"}]},
            "lmstudio",
            ("ready", "off"),
        ),
        ("/none", {}, "other", ("ready", "ready")),
        ("/status", {"pools": {"p": {"residents": [7, {"in_flight": "x"}], "swaps": {}}}, "version": "1"}, "engine-router", ("ready", "ready")),
        ("/status", [1, 2], "other", ("ready", "ready")),
    ],
)  # fmt: skip
async def test_other_routers_tell_it_in_their_own_words(
    path: str, answer: Any, program: str, states: tuple[str, str]
) -> None:
    class Other(ScriptedCloud):
        def routes(self) -> Any:
            return {**super().routes(), f"GET {path}": self.tell}

        async def tell(self, _call: Any) -> Any:
            return as_json(answer)

    far = Other("m", "n", path="/v1")
    with trio.fail_after(LIMIT_S):
        async with far.running(), running(peer(far.base_url + "/v1")) as (router, url):
            await router.discover()
            while (told := status(router)["engines"]["attic"]["peer"])["program"] is None:
                assert told["fault"] is None, told
                await trio.sleep(0.05)
            assert told["program"] == program
            found = (await ask(url, "GET", "/v1/models")).json()["data"]
            assert tuple(entry["state"] for entry in found) == states


@pytest.fixture
def asks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have peers looked after without a pause; returns which of them were asked for their state."""
    asked: list[str] = []

    async def ask_state(server: Any, *more: Any) -> Any:
        asked.append(server.name)
        return await peer_state.ask_state(server, *more)

    monkeypatch.setattr(peer_watch, "ask_state", ask_state)
    for name in ("BUSY_S", "IDLE_S", "SILENT_S", "FOLLOW_AGAIN_S"):
        monkeypatch.setattr(peer_watch, name, 0.05)
    return asked


async def test_a_router_tells_by_itself_what_changes_and_is_asked_again_once_it_does_not(
    asks: list[str],
) -> None:
    leaves = trio.Event()

    async def run_far(task_status: trio.TaskStatus[str]) -> None:
        async with running(engine()) as (_, url):
            task_status.started(url)
            await leaves.wait()

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            far = await nursery.start(run_far)
            async with running(peer(far)) as (near, _):

                def told() -> Any:
                    return near.peers.status("attic").model("m", trio.current_time())

                while not near.peers._followed:
                    await trio.sleep(0.02)
                count = len(asks)
                assert told().state == "off"
                assert (await chat(far)).status == 200
                while told().state != "ready":
                    await trio.sleep(0.02)
                assert len(asks) == count
                leaves.set()
                while near.peers.status("attic").fault is None:
                    await trio.sleep(0.02)
                assert len(asks) > count


@pytest.mark.parametrize(
    "events",
    [
        as_json({"error": "not for this key"}, 403),
        as_json({"no": "events"}),
        Answer(200, b"event: status\ndata: nonsense\n\n", headers=(("content-type", "text/event-stream"),)),
        Answer(200, b"data: " + b"x" * 9_000_000, headers=(("content-type", "text/event-stream"),)),
    ],
    ids=["forbidden", "no events", "ends", "endless"],
)
async def test_a_router_whose_events_cannot_be_followed_is_asked(events: Answer, asks: list[str]) -> None:
    class Other(ScriptedCloud):
        def routes(self) -> Any:
            return {**super().routes(), "GET /status": self.tell, "GET /admin/events": self.tell_events}

        async def tell(self, _call: Any) -> Any:
            return as_json({"version": "1", "pools": {}, "models": [{"id": "m", "state": "ready"}]})

        async def tell_events(self, _call: Any) -> Any:
            return events

    far = Other("m", path="/v1")
    with trio.fail_after(LIMIT_S):
        async with far.running(), running(peer(far.base_url + "/v1")) as (router, _):
            while len(asks) < 4 or not any("/admin/events" in call.path for call in far.calls):
                await trio.sleep(0.02)
            assert router.peers.status("attic").fault is None
            assert router.peers.status("attic").model("m", trio.current_time()) is not None


async def test_add_finds_that_a_url_is_a_routers(tmp_path: Path) -> None:
    file = tmp_path / "engines.toml"
    file.write_text(TOP.format(port=1, server=""), "utf-8")
    other = ScriptedCloud("m", path="/v1")
    with trio.fail_after(LIMIT_S):
        async with running(engine(), server='api_keys = ["0123456789abcdef"]') as (_, far), other.running():
            for url in (far, f"{other.base_url}/v1"):
                name = ["--name", "far" if url == far else "plain"]
                command = [sys.executable, "-m", "engine_router", "add", url, *name, "--config", str(file)]
                await trio.run_process(command, capture_stdout=True)
    config = load_config(file)
    assert {name: engine.type for name, engine in config.engines.items()} == {
        "plain": "remote",
        "far": "peer",
    }
    assert config.peers["far"].base_url == far


@pytest.mark.parametrize(
    "lie",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b"\0\1\2"],
    ids=["hangs", "lies", "nonsense"],
)
async def test_a_peer_that_hangs_or_lies_costs_nobody_else_anything(lie: bytes) -> None:
    async def accept(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(lie or b"")
        if lie:
            await stream.aclose()
        await trio.sleep_forever()

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, accept, [listener])
            bad = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            async with (
                running(engine("far", "n")) as (_, far),
                running(engine() + peer(bad, 'models = ["h"]', "bad") + peer(far, name="good")) as (
                    router,
                    url,
                ),
            ):
                await router.discover()
                assert await listed(url) == ["h", "m", "n"]
                async with trio.open_nursery() as asking:
                    if not lie:
                        asking.start_soon(chat, url, "h")  # it waits, and nobody else does
                    assert [(await chat(url, model)).status for model in ("m", "n")] == [200, 200]
                    asking.cancel_scope.cancel()
                if lie:
                    answer = await chat(url, "h")
                    assert answer.status >= 500 or not answer.is_complete
                while (entry := status(router)["engines"])["good"]["peer"]["program"] != "engine-router":
                    await trio.sleep(0.05)
                while entry["bad"]["peer"]["fault"] is None:
                    await trio.sleep(0.05)
                    entry = status(router)["engines"]
            nursery.cancel_scope.cancel()
