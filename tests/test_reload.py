"""A running router reads its configuration again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.asgi import Received
from support.served import RawClient, ask, served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.config.diff import Changes, compare
from engine_router.errors import ConfigError

PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"
CHAT = "/v1/chat/completions"


def engine(name: str, *options: str, more: str = "", base: str | None = None) -> str:
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}", *options])
    return f'[engines.{name}]\ntype = "process"\nargv = {argv}\nmodels = ["{base or name}"]\n{more}\n'


def text(*engines: str, server: str = "", scheduling: str = "", more: str = "") -> str:
    return "\n".join(
        [
            'state_file = "/dev/null/state.json"',
            f"[server]\nshutdown_timeout_s = 0.1\n{server}",
            f"[scheduling]\nabandon_grace_s = 0.05\n{scheduling}",
            '[pools.default]\ngauge = "none"\n[pools.other]\ngauge = "none"',
            *engines,
            more,
        ]
    )


class Lab:
    """A router that serves, and the file that it is made from."""

    def __init__(self, path: Path, router: Router, url: str) -> None:
        self.path, self.router, self.url = path, router, url

    def write(self, content: str) -> None:
        self.path.write_text(content)

    async def chat(self, model: str, headers: dict[str, str] | None = None, **more: Any) -> Received:
        return await ask(self.url, "POST", CHAT, body={"model": model, **more}, headers=headers or {})

    async def pid(self, model: str) -> int:
        return int((await self.chat(model)).json()["pid"])


@asynccontextmanager
async def lab(folder: Path, content: str) -> AsyncIterator[Lab]:
    path = folder / "engines.toml"
    path.write_text(content)
    with trio.fail_after(200):
        async with open_router(path) as router, served(router) as url:
            yield Lab(path, router, url)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(200):
        while not condition():
            await trio.sleep(0.01)


async def test_an_engine_that_did_not_change_goes_on(tmp_path: Path) -> None:
    async with lab(tmp_path, text(engine("a"), engine("b", more='pool = "other"'))) as it:
        before = await it.pid("a")
        async with RawClient.to(it.url) as client:
            wish = {"model": "a", "do": "stream", "count": 40, "every": 0.01, "stream": True}
            await client.request("POST", CHAT, json.dumps(wish).encode())
            await client.until(b"word0")
            it.write(text(engine("a"), engine("b", "stop=0", more='pool = "other"'), engine("c")))
            changes = await it.router.reload()
            assert changes == Changes(added=("c",), restarted=("b",))
            await client.until(b"[DONE]")
            assert b"word39" in client.received
        assert await it.pid("a") == before
        assert (await it.chat("c")).status == 200


async def test_an_engine_that_changed_ends_what_it_does_and_starts_anew(tmp_path: Path) -> None:
    async with lab(tmp_path, text(engine("a"))) as it:
        before = await it.pid("a")
        async with RawClient.to(it.url) as client:
            wish = {"model": "a", "do": "stream", "count": 20, "every": 0.01, "stream": True}
            await client.request("POST", CHAT, json.dumps(wish).encode())
            await client.until(b"word0")
            it.write(text(engine("a", "stop=0")))
            assert (await it.router.reload()).restarted == ("a",)
            # A request that comes meanwhile waits, and is served by the new one.
            after = await it.pid("a")
            assert after != before
            await client.until(b"[DONE]")


async def test_an_engine_that_is_taken_out_goes(tmp_path: Path) -> None:
    async with lab(tmp_path, text(engine("a"), engine("b"))) as it:
        await it.pid("a")
        it.write(text(engine("b")))
        assert (await it.router.reload()).removed == ("a",)
        await until(lambda: not it.router.supervisor.residents())
        assert (await it.chat("a")).status == 404
        assert (await it.chat("b")).status == 200
        status = await ask(it.url, "GET", "/status")
        assert list(status.json()["engines"]) == ["b"]


async def test_settings_are_in_force_at_once(tmp_path: Path) -> None:
    async with lab(tmp_path, text(engine("a"))) as it:
        before = await it.pid("a")
        more = '[aliases]\nnick = "a"\n[models.deep]\nengine = "a"\nupstream = "a"\n[models.deep.set]\nx = 1'
        more += "\n[history]\nmax_days = 3\nenabled = false"
        it.write(
            text(
                engine("a", more="memory_gb = 1"),
                server='api_keys = ["secret"]\nport = 9999',
                scheduling="max_wait_s = 7",
                more=more,
            )
        )
        changes = await it.router.reload()
        assert changes.restarted == ()
        assert set(changes.settings) == {
            "server.api_keys",
            "scheduling.max_wait_s",
            "history.max_days",
            "aliases.nick",
            "models.deep",
            "engines.a",
        }
        assert set(changes.needs_restart) == {"server.port", "history.enabled"}
        assert (await it.chat("a")).status == 401
        assert (await ask(it.url, "GET", "/status")).status == 401
        key = {"authorization": "Bearer secret"}
        talk = await it.chat("nick", key)
        assert talk.json()["pid"] == before
        talk = await it.chat("deep", key)
        assert json.loads(talk.json()["body"]) == {"model": "a", "x": 1}
        assert (await it.router.reload()) == Changes()


FAULTY = {
    "no TOML": ("[engines", "TOML"),
    "an unknown key": (text(engine("a"), engine("b"), server="prot = 1"), "prot"),
    "another pool": (text(engine("a", more='pool = "other"'), engine("b")), "engines.a.pool"),
    "another gauge": (text(engine("a"), engine("b")).replace('"none"', '"psutil"', 1), "pools.default"),
    "a pool more": (text(engine("a"), engine("b"), more='[pools.third]\ngauge = "none"'), "pools.third"),
}


@pytest.mark.parametrize("fault", FAULTY)
async def test_a_file_with_a_fault_changes_nothing(tmp_path: Path, fault: str) -> None:
    content, words = FAULTY[fault]
    async with lab(tmp_path, text(engine("a"))) as it:
        before, config = await it.pid("a"), it.router.config
        it.write(content)
        with pytest.raises(ConfigError, match=words):
            await it.router.reload()
        talk = await ask(it.url, "POST", "/admin/reload", body={})
        assert talk.status == 422
        assert words in talk.json()["error"]["message"]
        assert it.router.config is config
        assert await it.pid("a") == before
        assert (await it.chat("b")).status == 404


async def test_one_that_was_not_made_from_a_file_cannot(tmp_path: Path) -> None:
    async with open_router(parse_config(text(engine("a")))) as router:
        with pytest.raises(ConfigError, match="not made from a file"):
            await router.reload()


async def test_the_file_can_be_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_router.reload.WATCH_INTERVAL_S", 0.02)
    async with lab(tmp_path, text(engine("a"), server="watch_config = true")) as it:
        await trio.sleep(0.05)
        it.write(text(engine("a"), engine("b"), server="watch_config = true"))
        await until(lambda: "b" in it.router.config.engines)
        it.write("[nonsense")
        notices = it.router.events()
        async for event in notices:
            if event.name == "router_notice" and "not taken over" in str(event.as_dict()["message"]):
                break
        assert (await it.chat("b")).status == 200


async def test_memory_rules_are_taken_over(tmp_path: Path) -> None:
    budget = text(engine("a", more="memory_gb = 1"), engine("b", more="memory_gb = 1"))
    async with lab(tmp_path, budget) as it:
        await it.pid("a")
        await it.pid("b")
        assert len(it.router.supervisor.residents()) == 1
        more = budget.replace(
            '[pools.default]\ngauge = "none"',
            '[pools.default]\ngauge = "none"\nmode = "budget"\nbudget_gb = 3',
        )
        it.write(more)
        assert (await it.router.reload()).settings == ("pools.default",)
        await it.pid("a")
        await it.pid("b")
        assert len(it.router.supervisor.residents()) == 2


def test_equal_files_are_equal() -> None:
    one, other = parse_config(text(engine("a"))), parse_config(text(engine("a")))
    assert not compare(one, other, "x")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGHUP")
def test_sighup_and_the_command(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    path.write_text(text(engine("a")))
    command = [sys.executable, "-m", "engine_router"]
    serving = subprocess.Popen(
        [*command, "serve", "--config", str(path), "--port", "0"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stderr is not None
        lines: list[str] = []
        while not any("status page" in line for line in lines):
            lines.append(serving.stderr.readline())
            assert lines[-1], lines
        url = next(line for line in lines if "status page" in line).split()[2].rstrip("/")
        path.write_text(text(engine("a"), engine("b")))
        os.kill(serving.pid, signal.SIGHUP)
        while "configuration read again" not in lines[-1]:
            lines.append(serving.stderr.readline())
            assert lines[-1], lines
        assert "added b" in lines[-1]
        path.write_text(text(engine("b"), engine("c"), server="port = 1234"))
        said = subprocess.run(
            [*command, "reload", "--url", url], capture_output=True, text=True, timeout=200, check=True
        )
        assert said.stdout.splitlines() == ["new engines: c", "engines that go: a"]
        path.write_text("[broken")
        said = subprocess.run(
            [*command, "reload", "--url", url], capture_output=True, text=True, timeout=200, check=False
        )
        assert said.returncode != 0
        assert "TOML" in said.stderr
    finally:
        serving.terminate()
        deadline = time.monotonic() + 200
        while serving.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        serving.kill()
        serving.wait()
        serving.stderr.close()
