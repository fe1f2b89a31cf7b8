"""Units that are started for one model: instances of a template unit, drop-ins, configuration files; once with a real systemd."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.config_faults import faults_of
from support.ports import free_port
from support.scripted import ScriptedLlamaRouter, supervised
from support.user_manager import UserManager, user_manager

from engine_router import open_router
from engine_router.config import Config, SystemdConfig, parse_config
from engine_router.config.diff import compare
from engine_router.config.template import ModelArguments, TemplateModels
from engine_router.engines.base import ResidentId
from engine_router.engines.remote.drop_in import NAME, drop_in_path, drop_in_text
from engine_router.engines.remote.systemd_engine import SystemdEngine
from engine_router.errors import EngineStartFailed
from engine_router.models.config_warnings import warnings
from engine_router.upstream.control_client import control_client

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is of Linux")

FAKE = """#!{python} -S
import json, pathlib, sys
folder = pathlib.Path({folder!r})
words = [word for word in sys.argv[1:] if not word.startswith("--")]
verb, units = words[0], sys.argv[sys.argv.index("--") + 1:] if "--" in sys.argv else []
running = json.loads((folder / "running").read_text())
drop_ins = {{str(path.parent.name): path.read_text() for path in (folder / "run").rglob("*.conf")}}
with open(folder / "calls", "a") as calls:
    calls.write(json.dumps([verb, units, drop_ins]) + "\\n")
if verb in json.loads((folder / "refuse").read_text()):
    sys.exit("Access denied")
if verb == "show":
    print("\\n\\n".join(
        f"LoadState=loaded\\nActiveState={{'active' if unit in running else 'inactive'}}\\nSubState=x\\n"
        f"MainPID={{4711 if unit in running else 0}}\\nNRestarts=0\\nJob=\\nResult=success" for unit in units))
else:
    running = [unit for unit in running if unit not in units] + (units if verb != "stop" else [])
    (folder / "new").write_text(json.dumps(running))
    (folder / "new").rename(folder / "running")
"""


class Manager:
    """The fake systemctl, seen from the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run" / "systemd" / "user"
        self.set_running()
        self.refuse()
        (folder / "systemctl").write_text(FAKE.format(python=sys.executable, folder=str(folder)))
        (folder / "systemctl").chmod(0o755)

    def set_running(self, *units: str) -> None:
        (self.folder / "running").write_text(json.dumps(units))

    def refuse(self, *verbs: str) -> None:
        (self.folder / "refuse").write_text(json.dumps(verbs))

    @property
    def running(self) -> list[str]:
        return list(json.loads((self.folder / "running").read_text()))

    @property
    def calls(self) -> list[tuple[str, list[str], dict[str, str]]]:
        """The calls but for looks: the verb, its units, and the drop-ins that were there."""
        found = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        return [(verb, units, drop_ins) for verb, units, drop_ins in found if verb != "show"]

    @property
    def verbs(self) -> list[str]:
        return [verb for verb, _, _ in self.calls]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Manager(tmp_path)


def configured(more: str, base_url: str = "http://127.0.0.1:8000", unit: str = "vllm.service") -> Config:
    head = f'[engines.u]\ntype = "systemd"\nbase_url = {json.dumps(base_url)}\nunit = {json.dumps(unit)}\n'
    return parse_config(head + more)


def engine_config(config: Config) -> SystemdConfig:
    engine = config.engines["u"]
    assert isinstance(engine, SystemdConfig)
    return engine


@asynccontextmanager
async def the_engine(more: str, unit: str = "vllm.service") -> AsyncIterator[SystemdEngine]:
    with trio.fail_after(300):
        async with ScriptedLlamaRouter("a").running() as server, control_client() as client:
            config = configured(more, server.base_url, unit)
            yield SystemdEngine("u", engine_config(config), client, models=TemplateModels("u", config))


DROP_IN = """
models = ["Qwen/Qwen3-8B", "b"]
drop_in = { env = { MODEL = "{model}" } }
"""


async def test_each_model_has_an_instance_of_a_template_unit(manager: Manager) -> None:
    async with the_engine('models = ["Qwen/Qwen3-8B", "b"]', "vllm@{model}.service") as engine:
        assert await engine.find() == []
        assert await engine.list_models() is None
        async with supervised(engine, "Qwen/Qwen3-8B") as life:
            await life.ready.wait()
            assert manager.running == ["vllm@Qwen-Qwen3\\x2d8B.service"]
            assert await engine.find() == [ResidentId("u", "Qwen/Qwen3-8B")]
            assert await engine.check(ResidentId("u", "Qwen/Qwen3-8B")) is None
            assert "inactive" in str(await engine.check(ResidentId("u", "b")))
            await life.stop()
        assert manager.running == []
    assert manager.verbs == ["start", "stop"]


async def test_a_drop_in_is_there_for_the_start_and_gone_after_the_stop(manager: Manager) -> None:
    async with the_engine(DROP_IN) as engine:
        async with supervised(engine, "b") as life:
            await life.ready.wait()
            assert await engine.find() == [ResidentId("u", "b")]
            await life.stop()
        assert list(manager.run.iterdir()) == []
    seen = [(verb, units, [*drop_ins.values()]) for verb, units, drop_ins in manager.calls]
    text = drop_in_text(engine.config, ModelArguments(), {"model": "b"})
    assert text is not None
    assert '\nEnvironment="MODEL=b"\n' in text
    assert seen == [
        ("daemon-reload", [], [text]),
        ("start", ["vllm.service"], [text]),
        ("stop", ["vllm.service"], [text]),
        ("daemon-reload", [], []),
    ]


async def test_a_drop_in_in_the_configuration_stays_and_is_not_read_twice(manager: Manager) -> None:
    async with the_engine(DROP_IN.replace("drop_in = {", 'drop_in = { folder = "config",')) as engine:
        for name in ("b", "b", "Qwen/Qwen3-8B"):
            async with supervised(engine, name) as life:
                await life.ready.wait()
                await life.stop()
    path = manager.folder / "config" / "systemd" / "user" / "vllm.service.d" / NAME
    assert "MODEL=Qwen/Qwen3-8B" in path.read_text()
    once = ["start", "stop"]
    assert manager.verbs == ["daemon-reload", *once, *once, "daemon-reload", *once]


async def test_a_unit_that_runs_for_nobody_knows_whom_is_found_and_restarted(manager: Manager) -> None:
    manager.set_running("vllm.service")
    async with the_engine(DROP_IN) as engine:
        assert await engine.find() == [ResidentId("u")]
        async with supervised(engine, "b") as life:
            await life.ready.wait()
            assert manager.verbs == ["daemon-reload", "restart"]
            await life.stop()


async def test_a_configuration_file_is_rewritten_before_the_unit_starts(manager: Manager) -> None:
    path = manager.folder / "config.yml"
    path.write_text("model:\n  model_name: none # which\n")
    setting = f'config_file = {{ path = "{path}", set = {{ "model.model_name" = "{{model}}" }} }}\n'
    async with the_engine('models = ["a", "b"]\n' + setting, "tabbyapi.service") as engine:
        for name in ("a", "b"):
            async with supervised(engine, name) as life:
                await life.ready.wait()
                assert path.read_text() == f'model:\n  model_name: "{name}" # which\n'
                assert await engine.find() == [ResidentId("u", name)]
                await life.stop()
        path.unlink()
        assert "does not exist" in str(await engine.obstacle(ResidentId("u", "a")))
        async with supervised(engine, "a") as life:
            await life.over.wait()
            assert isinstance(life.error, EngineStartFailed)
    assert manager.verbs == ["start", "stop"] * 2


@pytest.mark.parametrize("verb", ["daemon-reload", "start"])
async def test_a_start_that_is_refused_leaves_no_drop_in(manager: Manager, verb: str) -> None:
    manager.refuse(verb)
    async with the_engine(DROP_IN) as engine, supervised(engine, "b") as life:
        await life.over.wait()
        assert isinstance(life.error, EngineStartFailed)
        assert f"systemctl {verb}" in str(life.error)
        assert list(manager.run.iterdir()) == []


async def test_a_drop_in_that_cannot_be_written_is_told(manager: Manager) -> None:
    (manager.folder / "run").write_text("a file")
    async with the_engine(DROP_IN) as engine, supervised(engine, "b") as life:
        await life.over.wait()
        assert "its drop_in" in str(life.error)
        assert "cannot be written" in str(life.error)
    assert "start" not in (
        (manager.folder / "calls").read_text() if (manager.folder / "calls").exists() else ""
    )


async def test_the_router_takes_a_unit_over_and_has_its_models_take_turns(manager: Manager) -> None:
    manager.set_running("vllm.service")  # for nobody knows whom
    async with ScriptedLlamaRouter("a").running() as server:
        text = f"""
            state_file = "/dev/null/state.json"
            [pools.default]
            gauge = "none"
            [engines.u]
            type = "systemd"
            unit = "vllm.service"
            base_url = "{server.base_url}"
            models = ["a", "b"]
            drop_in = {{ env = {{ MODEL = "{{model}}" }} }}
        """
        with trio.fail_after(300):
            async with open_router(parse_config(text)) as router:
                for name in ("a", "b", "a"):
                    async with router.lease(name) as lease:
                        assert lease.base_url == server.base_url
                        (drop_in,) = manager.run.rglob("*.conf")
                        assert f"MODEL={name}" in drop_in.read_text()
    assert manager.running == []
    assert manager.verbs[:4] == ["stop", "daemon-reload", "start", "stop"]
    assert list(manager.run.iterdir()) == []


# The text


def test_values_are_quoted_for_systemd() -> None:
    config = engine_config(
        configured(
            'drop_in = { env = { A = "{model}", B = "{ctx}" }, exec_start = ["~/bin/x", "--m", "{path}", "-c", "{ctx}"] }\n'
            '[models.m]\nengine = "u"\npath = "/p"\n'
        )
    )
    arguments = ModelArguments(path='/a b/$HOME/100%/"q"\\', args=("--one two", ";"))
    text = drop_in_text(config, arguments, {"model": "x\ny", "path": arguments.path or ""})
    assert text is not None
    assert text.splitlines()[2:] == [
        r'Environment="A=x\ny"',
        "ExecStart=",
        f'ExecStart="{Path.home()}/bin/x" "--m" "/a b/$$HOME/100%%/\\"q\\"\\\\" "--one two" ";"',
    ]


@pytest.mark.parametrize(
    ("scope", "folder", "path"),
    [
        ("user", "run", "/r/systemd/user/vllm.service.d/"),
        ("user", "config", "/c/systemd/user/vllm.service.d/"),
        ("system", "run", "/run/systemd/system/vllm.service.d/"),
    ],
)
def test_the_place_of_a_drop_in(scope: str, folder: str, path: str) -> None:
    more = f'scope = "{scope}"\ndrop_in = {{ folder = "{folder}", env = {{ A = "1" }} }}'
    environment = {"XDG_RUNTIME_DIR": "/r", "XDG_CONFIG_HOME": "/c"}
    assert str(drop_in_path(engine_config(configured(more)), "vllm.service", environment)) == path + NAME


# The configuration


def test_two_engines_that_set_values_in_one_file_are_warned_of(tmp_path: Path) -> None:
    def engine(name: str, file: str) -> str:
        table = f'[engines.{name}]\ntype = "systemd"\nunit = "{name}.service"\nbase_url = "http://127.0.0.1:5{name}"\n'
        return f'{table}config_file = {{ path = "{tmp_path}/{file}.yml", set = {{ a = "{{model}}" }} }}\n'

    config = parse_config(engine("1", "one") + engine("2", "two") + engine("3", "one"))
    (found,) = [words for place, words in warnings(config) if place.endswith("config_file")]
    assert "engine 1 sets values in" in found


def test_what_will_not_work_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "c.yml"
    config_file = f'config_file = {{ path = "{file}", set = {{ a = "{{model}}", b = "{{modle}}" }} }}'
    config = configured(f'{config_file}\ndrop_in = {{ env = {{ A = "$MODEL" }} }}')
    assert sorted(warnings(config)) == [
        ("engines.u", "$MODEL is not filled in; write {model}"),
        ("engines.u", "{modle} is not filled in; write {model}"),
        ("engines.u.config_file.path", f"there is no file {file}"),
        ("engines.u.models", "empty: no request can start it"),
    ]
    file.touch()
    assert warnings(configured(config_file.replace("{modle}", "{ctx}") + '\nmodels = ["m"]')) == []


@pytest.mark.parametrize(
    ("unit", "more", "path", "words"),
    [
        ("vllm-{model}.service", "", "engines.u.unit", "write vllm@{model}.service"),
        ("vllm@{ctx}.service", "", "engines.u.unit", "{ctx} is not filled in here"),
        ("v@{path}.service", 'models = ["m"]', "engines.u.models", "has no path"),
        ("v@{path}.service", '[models.m]\nengine = "u"', "models.m.path", "asks for {path}"),
        ("v@{model}.service", 'group = "g"', "engines.u.group", "take turns"),
        ("v@{model}.service", 'sleep = { kind = "vllm" }\n[pools.default]\nunified = false', "engines.u.sleep", "not allowed"),
        ("v@{model}.service", '[pools.default]\nmode = "budget"', "engines.u.pool", "exclusive"),
        ("v@{model}.service", '[models.m]\nengine = "u"\nargs = ["x"]', "models.m.args", "without effect"),
        ("v@{model}.service", f'models = ["{"-" * 62}"]', "engines.u.unit", "too long for systemd"),
        ("v.service", "drop_in = {}", "engines.u.drop_in", "empty"),
        ("v.service", 'drop_in = { env = { A = "{port}" } }', "engines.u", "{port} is not filled in"),
        ("v.service", 'drop_in = { env = { A = "{ctx}" } }', "engines.u", "only beside {model} or {path}"),
        ("v.service", 'drop_in = { env = { "A B" = "1" } }', 'engines.u.drop_in.env."A B"', "name of a variable"),
        ("v.service", 'drop_in = { env = { A = "{model} {args}" } }', "engines.u.drop_in.env.A", "command only"),
        ("v.service", 'drop_in = { exec_start = ["-x"] }', "engines.u.drop_in.exec_start", "expected a program"),
        (
            "v.service",
            'scope = "system"\ndrop_in = { folder = "config", env = { A = "1" } }',
            "engines.u.drop_in.folder",
            "nothing into /etc",
        ),
    ],
)  # fmt: skip
def test_each_mistake_is_told(unit: str, more: str, path: str, words: str) -> None:
    head = f'[engines.u]\ntype = "systemd"\nbase_url = "http://127.0.0.1:8000"\nunit = "{unit}"\n'
    faults = faults_of(head + more)
    assert [each for each, _ in faults] == [path]
    assert words in faults[0][1]


def test_a_reload_restarts_a_unit_whose_model_has_another_path() -> None:
    more = '[models.m]\nengine = "u"\npath = "/a"\n'
    before = configured(more, unit="v@{path}.service")
    after = configured(more.replace("/a", "/b"), unit="v@{path}.service")
    assert list(compare(before, after, "").restarted) == ["u"]


# A real systemd

SERVER = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words): pass
    def do_GET(self):
        body = json.dumps({"argv": sys.argv[2:], "MODEL": os.environ.get("MODEL", "")}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

DRIVER = """
import json, sys, trio, httpx
from engine_router import open_router
async def main():
    async with open_router(sys.argv[1]) as router:
        for name in json.loads(sys.argv[2]):
            async with router.lease(name) as lease:
                async with httpx.AsyncClient() as client:
                    print((await client.get(lease.base_url)).text, flush=True)
trio.run(main)
"""


@pytest.fixture
def real(tmp_path: Path) -> Iterator[UserManager]:
    """Start a systemd user manager."""
    with user_manager(tmp_path) as started:
        yield started


def answers(real: UserManager, folder: Path, text: str, names: list[str]) -> list[dict[str, object]]:
    """Lease models one after the other, and return what their servers say of how they were started."""
    (folder / "driver.py").write_text(DRIVER)
    head = 'state_file = "/dev/null/state.json"\n[pools.default]\ngauge = "none"\n'
    (folder / "engines.toml").write_text(head + text)
    done = real.run(
        sys.executable, str(folder / "driver.py"), str(folder / "engines.toml"), json.dumps(names)
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


NASTY = 'Qwen/Qwen3-8B v1.5 100% "$HOME" \\x é'


def put_unit(real: UserManager, folder: Path, name: str, command: str) -> str:
    (folder / "server.py").write_text(SERVER)
    units = real.home / ".config" / "systemd" / "user"
    units.mkdir(parents=True)
    text = f"[Service]\nExecStart={sys.executable} {folder}/server.py {command}\nRestart=always\n"
    (units / name).write_text(text)
    assert real.run("systemctl", "--user", "daemon-reload").returncode == 0
    return text


def test_a_real_systemd_starts_an_instance_for_each_model(real: UserManager, tmp_path: Path) -> None:
    port = free_port()
    put_unit(real, tmp_path, "vllm@.service", f"{port} %I")
    text = f"""
[engines.u]
type = "systemd"
unit = "vllm@{{model}}.service"
base_url = "http://127.0.0.1:{port}"
models = ["b", {json.dumps(NASTY, ensure_ascii=False)}]
"""
    assert answers(real, tmp_path, text, ["b", NASTY]) == [
        {"argv": ["b"], "MODEL": ""},
        {"argv": [NASTY], "MODEL": ""},
    ]


def test_a_real_systemd_reads_the_drop_in(real: UserManager, tmp_path: Path) -> None:
    port = free_port()
    unit = put_unit(real, tmp_path, "vllm.service", "1")
    command = [sys.executable, str(tmp_path / "server.py"), str(port), "{model}", "$HOME", "100%", "a;b", ";"]
    text = f"""
[engines.u]
type = "systemd"
unit = "vllm.service"
base_url = "http://127.0.0.1:{port}"
models = ["b", {json.dumps(NASTY, ensure_ascii=False)}]
[engines.u.drop_in]
env = {{ MODEL = "{{model}}" }}
exec_start = {json.dumps(command)}
"""
    rest = ["$HOME", "100%", "a;b", ";"]
    assert answers(real, tmp_path, text, ["b", NASTY]) == [
        {"argv": ["b", *rest], "MODEL": "b"},
        {"argv": [NASTY, *rest], "MODEL": NASTY},
    ]
    assert (real.home / ".config" / "systemd" / "user" / "vllm.service").read_text() == unit
    left = real.run("find", "/run/user/systemd/user", "-name", "*.conf")
    assert left.stdout == ""
    assert str(port) not in real.run("systemctl", "--user", "show", "-p", "ExecStart", "vllm.service").stdout
