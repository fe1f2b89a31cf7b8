"""The configuration file of an engine, in which a model's values are set before each start."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import hypothesis
import pytest
import tomli
import trio
import yaml
from hypothesis import strategies as st
from support.config_faults import faults_of
from support.scripted import supervised

from engine_router import open_router
from engine_router.config import ConfigFileConfig, ProcessConfig, parse_config
from engine_router.config.diff import compare
from engine_router.config.filled import escaped, filled_settings
from engine_router.config.template import TemplateModels
from engine_router.engines.base import ResidentId
from engine_router.engines.process.process_engine import ProcessEngine
from engine_router.engines.settings_file import SettingsFileError, set_in_json, set_in_toml, write_settings
from engine_router.engines.yaml_edit import set_in_yaml
from engine_router.errors import EngineStartFailed
from engine_router.setup.presets import PresetValues, filled, find_preset
from engine_router.upstream.control_client import control_client

TABBY = """\
# TabbyAPI's settings
network:
  host: 127.0.0.1   # only this machine
  port: 5000

# The model
model:
  # folder of all
  model_dir: models
  model_name:       # empty: none
  max_seq_len: 4096 # tokens
  gpu_split:
    - 20 # first
    # second
    - 24
  draft: {use: false, "n": [1, 2]}
  note: |
    two
    lines
  # the end of the model

sampling:
developer: {}
"""


def in_yaml(text: str, settings: Mapping[str, object]) -> str:
    return set_in_yaml(text, {tuple(key.split(".")): value for key, value in settings.items()})


# YAML


@pytest.mark.parametrize(
    ("key", "value", "before", "after"),
    [
        ("model.model_name", "Q: #3", "model_name:       #", 'model_name: "Q: #3"       #'),
        ("model.max_seq_len", 8192, "max_seq_len: 4096 #", "max_seq_len: 8192 #"),
        ("model.max_seq_len", None, "max_seq_len: 4096 #", "max_seq_len: null #"),
        (
            "model.gpu_split",
            [24],
            "gpu_split:\n    - 20 # first\n    # second\n    - 24\n",
            "gpu_split: [24]\n",
        ),
        ("model.draft.use", True, "{use: false,", "{use: true,"),
        ("model.draft.size", 3, '"n": [1, 2]}', '"n": [1, 2], "size": 3}'),
        ("model.note", "one", "note: |\n    two\n    lines\n", 'note: "one"\n'),
        ("model.new", "ü", "    lines\n", '    lines\n  new: "ü"\n'),
        ("sampling.a.b", 1, "sampling:\n", "sampling:\n  a:\n    b: 1\n"),
        ("developer.x", 1, "developer: {}", 'developer: {"x": 1}'),
        ("top.on", "x", "developer: {}\n", 'developer: {}\ntop:\n  "on": "x"\n'),
        ("network.port", 5001, "port: 5000", "port: 5001"),
        ("model.model_dir", "models", "", ""),
    ],
)
def test_a_value_is_exchanged_where_it_stands(key: str, value: object, before: str, after: str) -> None:
    assert in_yaml(TABBY, {key: value}) == TABBY.replace(before, after, 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'a: "V"\n'),
        ("# only words\n", '# only words\na: "V"\n'),
        ("b: 1", 'b: 1\na: "V"\n'),
        ("{}", '{"a": "V"}'),
        ("{b: 1,}", '{b: 1, "a": "V"}'),
        ("a:\n- 1\nb: 3", 'a: "V"\nb: 3'),
        ("a: 1\r\nb: 2\r\n", 'a: "V"\r\nb: 2\r\n'),
        ("\ufeffa: 1\n", '\ufeffa: "V"\n'),
        ("? a\n: 1\n", '? a\n: "V"\n'),
        ("'a' : 1 # why\n", "'a' : \"V\" # why\n"),
        ("a: V\n", "a: V\n"),
    ],
)
def test_files_of_all_shapes(before: str, after: str) -> None:
    assert in_yaml(before, {"a": "V"}) == after


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is no YAML: line 1"),
        ("a: 1\n---\nb: 2", "is no YAML: line 2"),
        ("- 1", "is no mapping of keys to values"),
        ("a: text", '"a" in it is no mapping of keys to values'),
        ("x: &x {b: 1}\na: *x\n", "cannot be changed in place"),
    ],
)
def test_what_cannot_be_changed_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        in_yaml(text, {"a.b": 2})
    assert words in str(caught.value)


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 99), st.text("ab:#'\"\\\n -üß{}[]&*!|>%@`,?", max_size=8)
)
NAMES = st.text("abc", min_size=1, max_size=2)
DATA = st.recursive(
    PLAIN,
    lambda inner: st.one_of(st.dictionaries(NAMES, inner, max_size=4), st.lists(inner, max_size=3)),
    max_leaves=12,
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    st.dictionaries(NAMES, DATA, max_size=4),
    st.lists(NAMES, min_size=1, max_size=3),
    DATA,
    st.sampled_from([None, False, True]),
    st.integers(2, 6),
)
def test_what_is_set_is_read_and_nothing_else_changes(
    data: dict[str, object], keys: list[str], value: object, flow: bool | None, indent: int
) -> None:
    text = yaml.safe_dump(data, default_flow_style=flow, sort_keys=False, indent=indent, allow_unicode=True)
    inner: object = data
    for key in keys[:-1]:
        inner = inner.get(key) if isinstance(inner, dict) else inner
    if inner is not None and not isinstance(inner, dict):
        with pytest.raises(ValueError, match="no mapping"):
            set_in_yaml(text, {tuple(keys): value})
        return
    new = set_in_yaml(text, {tuple(keys): value})
    wanted = table = dict(yaml.safe_load(text))
    for key in keys[:-1]:
        table[key] = dict(table.get(key) or {})
        table = table[key]
    table[keys[-1]] = value
    assert yaml.safe_load(new) == wanted


# TOML and JSON


def test_toml_keeps_its_comments() -> None:
    text = '# head\n[model]\nname = "a" # which\nctx = 1\n\n[other]\n'
    new = set_in_toml(text, {("model", "name"): "b", ("model", "ctx"): None, ("new", "x"): True})
    assert new.startswith('# head\n[model]\nname = "b" # which\n')
    assert tomli.loads(new) == {"model": {"name": "b"}, "other": {}, "new": {"x": True}}
    assert set_in_toml(text, {("model", "name"): "a"}) == text


@pytest.mark.parametrize("text", ["a = ", 'a = "x"\n'])
def test_toml_that_cannot_be_changed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no TOML|no mapping"):
        set_in_toml(text, {("a", "b"): 1})


def test_json_keeps_its_order_and_indentation() -> None:
    text = '{\n    "b": {"x": 1},\n    "a": "ü"\n}\n'
    new = set_in_json(text, {("b", "x"): 2, ("b", "y"): None})
    assert new == '{\n    "b": {\n        "x": 2,\n        "y": null\n    },\n    "a": "ü"\n}\n'
    assert set_in_json(text, {("a",): "ü"}) == text
    with pytest.raises(ValueError, match="is no JSON"):
        set_in_json("{", {("a",): 1})


# The file


def config_of(path: Path, values: Mapping[str, object]) -> ConfigFileConfig:
    return ConfigFileConfig(path=str(path), set=values)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_the_first_text_is_kept_once_and_permissions_and_links_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yml", tmp_path / "config.yml"
    real.write_text(TABBY, "utf-8")
    real.chmod(0o640)
    link.symlink_to(real)
    config = config_of(link, {"model.model_name": "{model}", "model.max_seq_len": "{ctx}"})
    backup = tmp_path / "real.yml.engine-router.bak"
    assert write_settings(config, filled_settings(config, {"model": "one", "ctx": "8192"}))
    assert not write_settings(config, filled_settings(config, {"model": "one", "ctx": "8192"}))
    assert write_settings(config, filled_settings(config, {"model": "two"}))
    assert link.is_symlink()
    assert backup.read_text("utf-8") == TABBY
    assert stat.S_IMODE(real.stat().st_mode) == stat.S_IMODE(backup.stat().st_mode) == 0o640
    data = yaml.safe_load(real.read_text("utf-8"))["model"]
    assert (data["model_name"], data["max_seq_len"], data["model_dir"]) == ("two", None, "models")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yml", "real.yml", backup.name]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"\xff", "is not UTF-8 text"),
        (b"#" * (1 << 20) + b"#", "is larger than"),
        (b"- a", "is no mapping"),
    ],
)
def test_a_file_that_cannot_be_used_stays_as_it_is(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "c.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsFileError) as caught:
        write_settings(config_of(path, {"a": 1}), {("a",): 1})
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == ([] if content is None else [content])


WRITER = """
import sys
from engine_router.config import ConfigFileConfig
from engine_router.engines.settings_file import write_settings
config = ConfigFileConfig(path=sys.argv[1], set={"a": "x"})
while True:
    for name in "ab":
        write_settings(config, {("model", "model_name"): name * 3000})
    print("go", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(TABBY, "utf-8")
    whole = {TABBY, *(in_yaml(TABBY, {"model.model_name": name * 3000}) for name in "ab")}
    seen = set()
    for turn in range(8):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(4):
                writer.stdout.readline()
                for _ in range(50 + 211 * turn):  # at any moment, too
                    text = path.read_text("utf-8")
                    assert text in whole
                    seen.add(text)
            os.kill(writer.pid, signal.SIGKILL)
        assert path.read_text("utf-8") in whole
    assert len(seen) > 1


# The engine

TABBY_LIKE = """
import json, sys, yaml
from http.server import BaseHTTPRequestHandler, HTTPServer
with open(sys.argv[1]) as file:
    settings = yaml.safe_load(file)
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words): pass
    def do_GET(self):
        body = json.dumps({"data": [{"id": settings["model"]["model_name"]}], "status": "ok"}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
HTTPServer(("127.0.0.1", settings["network"]["port"]), Handler).serve_forever()
"""


def tabby(folder: Path, *, argv: str = "", more: str = "") -> str:
    (folder / "main.py").write_text(TABBY_LIKE)
    words = argv or json.dumps([sys.executable, "main.py", str(folder / "config.yml")])
    return f"""
[engines.tabby]
type = "process"
argv = {words}
cwd = {json.dumps(str(folder))}
models = ["one", "two"]
ready_path = "/v1/models"
ready_check = "model:{{model}}"
{more}
"""


def engine_of(text: str) -> tuple[ProcessConfig, TemplateModels]:
    config = parse_config(text)
    engine = config.engines["tabby"]
    assert isinstance(engine, ProcessConfig)
    return engine, TemplateModels("tabby", config)


async def test_each_model_is_started_with_the_file_rewritten_for_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(TABBY, "utf-8")
    setting = '{ "model.model_name" = "{model}", "network.port" = "{port}" }'
    text = tabby(tmp_path, more=f"config_file = {{ path = {json.dumps(str(path))}, set = {setting} }}")
    config, models = engine_of(text)
    with trio.fail_after(200):
        async with control_client() as client:
            engine = ProcessEngine("tabby", config, client, models=models)
            for name in ("one", "two"):
                assert engine.resident_of(name) == ResidentId("tabby", name)
                assert await engine.obstacle(ResidentId("tabby", name)) is None
                async with supervised(engine, name) as life:
                    await life.ready.wait()
                    data = yaml.safe_load(path.read_text("utf-8"))
                    assert data["model"]["model_name"] == name
                    assert life.endpoint is not None
                    assert life.endpoint.base_url == f"http://127.0.0.1:{data['network']['port']}"
                    await life.stop()
    assert "# The model\n" in path.read_text("utf-8")


async def test_a_file_for_each_model_needs_no_rewriting(tmp_path: Path) -> None:
    """TabbyAPI as `main.py --config {path}`."""
    argv = json.dumps([sys.executable, "main.py", "{path}", "--port", "{port}"])
    text = tabby(tmp_path, argv=argv).replace('settings["network"]["port"]', "int(sys.argv[3])")
    (tmp_path / "main.py").write_text(TABBY_LIKE.replace('settings["network"]["port"]', "int(sys.argv[3])"))
    for name in ("one", "two"):
        (tmp_path / f"{name}.yml").write_text(in_yaml(TABBY, {"model.model_name": name}), "utf-8")
        text += f'[models.{name}]\nengine = "tabby"\npath = {json.dumps(str(tmp_path / name))[:-1]}.yml"\n'
    config, models = engine_of(text)
    with trio.fail_after(200):
        async with control_client() as client:
            engine = ProcessEngine("tabby", config, client, models=models)
            async with supervised(engine, "one") as one, supervised(engine, "two") as two:
                await one.ready.wait()
                await two.ready.wait()  # each on a port of its own
                await one.stop()
                await two.stop()


async def test_a_missing_file_is_told_before_and_at_the_start(tmp_path: Path) -> None:
    setting = '{ "model.model_name" = "{model}" }'
    path = json.dumps(str(tmp_path / "none.yml"))
    more = f'base_url = "http://127.0.0.1:9"\nconfig_file = {{ path = {path}, set = {setting} }}'
    config, models = engine_of(tabby(tmp_path, more=more))
    with trio.fail_after(200):
        async with control_client() as client:
            engine = ProcessEngine("tabby", config, client, models=models)
            assert "none.yml does not exist" in str(await engine.obstacle(ResidentId("tabby", "one")))
            async with supervised(engine, "one") as life:
                await life.over.wait()
                assert isinstance(life.error, EngineStartFailed)
                assert "its config_file" in str(life.error)


MAIN = """
import argparse, json, yaml
from http.server import BaseHTTPRequestHandler, HTTPServer
parser = argparse.ArgumentParser()
for option, default in (("--config", "config.yml"), ("--host", ""), ("--port", ""), ("--disable-auth", "")):
    parser.add_argument(option, default=default)
options = parser.parse_args()
with open(options.config) as file:
    name = yaml.safe_load(file)["model"]["model_name"]
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words): pass
    def do_GET(self):
        body = json.dumps({"id": name, "status": "healthy"}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()
HTTPServer((options.host, int(options.port)), Handler).serve_forever()
"""


@pytest.mark.parametrize("kind", ["tabbyapi-process", "tabbyapi-file"])
async def test_the_presets_start_a_tabby_for_each_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways: a file for each model, and the one file rewritten."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "main.py").write_text(MAIN)
    file = tmp_path / "config.yml"
    file.write_text(in_yaml(TABBY, {"model.model_name": "one"}), "utf-8")
    block = filled(find_preset(kind), PresetValues(path=str(file), model="one"))
    text = block.text.replace('models = ["one"]', 'models = ["one", "two"]')
    if kind == "tabbyapi-process":
        (tmp_path / "two.yml").write_text(in_yaml(TABBY, {"model.model_name": "two"}), "utf-8")
        text += f'[models.two]\nengine = "tabby"\npath = "{tmp_path}/two.yml"\n'
    config = parse_config('state_file = "/dev/null/state.json"\n[pools.default]\ngauge = "none"\n' + text)
    with trio.fail_after(300):
        async with open_router(config) as router, httpx.AsyncClient(trust_env=False) as client:
            for name in ("one", "two", "one"):
                async with router.lease(name) as lease:
                    assert (await client.get(f"{lease.base_url}/v1/model")).json()["id"] == name


# The configuration

FILE = '[engines.t]\ntype = "process"\nargv = "main.py"\nbase_url = "http://127.0.0.1:5000"\n'
GOOD = FILE + 'config_file = { path = "c.yml", set = { "model.name" = "{model}" } }\n'


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        (FILE + 'config_file = { path = "c.yml" }', "engines.t.config_file.set", "missing"),
        (FILE + 'config_file = { path = "c.yml", set = {} }', "engines.t.config_file.set", "empty; name"),
        (FILE + 'config_file = { path = "c.conf", set = { a = 1 } }', "engines.t.config_file.format", "missing"),
        (FILE + 'config_file = { path = "{model}.yml", set = { a = 1 } }', "engines.t.config_file.path", "one file"),
        (FILE + 'config_file = { path = "c.yml", set = { "a." = 1 } }', 'engines.t.config_file.set."a."', "names"),
        (FILE + 'config_file = { path = "c.yml", set = { "a.b" = 1, a = 2 } }', "engines.t.config_file.set", "twice"),
        (FILE + 'config_file = { path = "c.yml", set = { a = "{model} {args}" } }', "engines.t.config_file.set", "{args}"),
        (FILE + 'config_file = { path = "c.yml", set = { a = "{ctx}" } }', "engines.t.argv", "only beside {path}"),
        (FILE + 'config_file = { path = "c.yml", set = { a = "{path}" } }\nmodels = ["m"]', "engines.t.models", "no path"),
        (GOOD.replace("base_url", "#"), "engines.t.argv", "so it needs {port} too"),
        (GOOD + 'group = "g"', "engines.t.group", "take turns"),
        (GOOD + '[models.m]\nengine = "t"\ngroup = "g"', "models.m.group", "take turns"),
        (GOOD + '[pools.default]\nmode = "budget"', "engines.t.pool", "exclusive"),
        (
            GOOD + 'sleep = { kind = "custom", path = "/s", wake = [{ path = "/w" }] }',
            "engines.t.sleep",
            "not allowed: its models share",
        ),
        ('[engines.o]\ntype = "ollama"\nconfig_file = { path = "a" }', "engines.o.config_file", "belongs to"),
    ],
)  # fmt: skip
def test_each_mistake_is_told(text: str, path: str, words: str) -> None:
    faults = faults_of(text)
    assert [each for each, _ in faults] == [path]
    assert words in faults[0][1]


def test_a_pool_with_one_resident_at_a_time_will_do() -> None:
    parse_config(GOOD + '[pools.default]\nmode = "budget"\nmax_resident = 1')


def test_numbers_are_numbers_and_what_a_model_lacks_is_empty() -> None:
    config = ConfigFileConfig(
        path="c.yml",
        set={
            "a": "{ctx}",
            "b": {"c": "{port}", "d": "x {ctx}"},
            "e": ["{model}", 1],
            "f": "{mmproj}",
            "g": "{model}",
        },
    )
    assert filled_settings(config, {"ctx": "4096", "port": "80", "model": "12"}) == {
        ("a",): 4096,
        ("b", "c"): 80,
        ("b", "d"): "x 4096",
        ("e",): ["12", 1],
        ("f",): None,
        ("g",): "12",
    }


def test_a_reload_restarts_an_engine_whose_model_gets_other_values() -> None:
    text = GOOD.replace("{model}", "{path}") + '[models.m]\nengine = "t"\npath = "/a"\n'
    before, after = parse_config(text), parse_config(text.replace('"/a"', '"/b"'))
    assert list(compare(before, after, "").restarted) == ["t"]


def test_names_are_escaped_as_systemd_does() -> None:
    assert escaped("Qwen/Qwen3-8B") == "Qwen-Qwen3\\x2d8B"
    assert escaped("/models/a b.gguf") == "-models-a\\x20b.gguf"
    assert escaped(".x é:_") == "\\x2ex\\x20\\xc3\\xa9:_"
