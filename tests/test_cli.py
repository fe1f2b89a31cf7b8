"""The command line: real processes where it matters, a real router in front of tiny engines."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import psutil
import pytest
import tomli
from support.gguf_files import gguf_file
from support.ports import free_port

from engine_router import __version__
from engine_router.cli import main
from engine_router.cli.address import locate
from engine_router.cli.exit_codes import FAILED, CommandFailed
from engine_router.cli.parser import build_parser
from engine_router.cli.progress import describe

COMMANDS = ("serve", "demo", "check", "schema", "status", "models", "use", "unload", "logs")
SOON_S = 200.0  # on a machine that is busy with something else
posix = pytest.mark.skipif(os.name != "posix", reason="signals and terminals as POSIX has them")

# An engine: streams words for as long as it is asked to, says what it does, starts as slowly as it is told.
ENGINE = """
import http.server, json, sys, time
port, name, delay = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
print(name, "is loading", flush=True)
time.sleep(delay)

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def answer(self, kind, body):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body or b"")
    def do_GET(self):
        self.answer("application/json", json.dumps({"data": [{"id": name}]}).encode())
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print("asked", flush=True)
        self.answer("text/event-stream", None)
        for index in range(asked.get("words", 3)):
            frame = {"choices": [{"delta": {"content": f"w{index} " + "x" * asked.get("size", 0)}}]}
            self.wfile.write(b"data: " + json.dumps(frame).encode() + b"\\n\\n")
            time.sleep(asked.get("pause", 0.0))
        self.wfile.write(b"data: [DONE]\\n\\n")

http.server.ThreadingHTTPServer.daemon_threads = True
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

CONFIG = """
state_file = {state}
[server]
port = {port}
{server}
[engines.alpha]
type = "process"
argv = [{python}, "-I", "-S", {engine}, "{{port}}", "red", "0"]
models = ["red"]
[engines.beta]
type = "process"
argv = [{python}, "-I", "-S", {engine}, "{{port}}", "blue", "0.5"]
models = ["blue"]
[engines.slow]
type = "process"
argv = [{python}, "-I", "-S", {engine}, "{{port}}", "grey", "60"]
models = ["grey"]
[engines.broken]
type = "process"
argv = [{python}, "-c", "raise SystemExit('no weights')", "{{port}}"]
models = ["lost"]
[models.red]
engine = "alpha"
aliases = ["scarlet"]
{more}
"""


def write_config(folder: Path, *, server: str = "", more: str = "", port: int | None = None) -> Path:
    engine = folder / "engine.py"
    engine.write_text(ENGINE)
    path = folder / "engines.toml"
    text = CONFIG.format(
        state=json.dumps(str(folder / "state.json")),
        port=port or free_port(),
        server=server,
        more=more,
        python=json.dumps(sys.executable),
        engine=json.dumps(str(engine)),
    )
    path.write_text(text, "utf-8")
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "engine_router", *map(str, arguments)]


def run(*arguments: str | Path, timeout: float = SOON_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, check=False)


class Served:
    """A router in a process of its own."""

    def __init__(self, config: Path, *arguments: str) -> None:
        self.config = config
        port = tomli.loads(config.read_text("utf-8"))["server"]["port"]
        self.url = f"http://127.0.0.1:{port}"
        self.log = config.parent / "stderr.txt"
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(command("serve", "--config", config, *arguments), stderr=stderr)

    def until_up(self) -> Served:
        until(self.is_up)
        return self

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.stderr
        try:
            return self.get("/health") == {"status": "ok"}
        except OSError:
            return False

    @property
    def stderr(self) -> str:
        return self.log.read_text()

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=SOON_S)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())

    def stream(self, **body: object) -> socket.socket:
        """Ask for a stream, and return the connection once the first word has come."""
        payload = json.dumps({"model": "red", "stream": True, "messages": [], **body}).encode()
        parts = urlsplit(self.url)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(SOON_S)
        sock.connect((parts.hostname, parts.port))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}\r\n\r\n"
        sock.sendall(head.encode() + payload)
        assert sock.recv(12) == b"HTTP/1.1 200"
        return sock

    def engine_pid(self) -> int:
        return int(self.get("/status")["pools"]["default"]["resident"]["pid"])

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(SOON_S)


def until(condition: Any, timeout: float = SOON_S) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def rest_of(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


@contextlib.contextmanager
def serving(config: Path, *arguments: str) -> Iterator[Served]:
    served = Served(config, *arguments)
    try:
        yield served.until_up()
    finally:
        served.end()


@pytest.fixture(autouse=True, scope="module")
def _quiet_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run in an empty folder, so that nobody's own configuration is found."""
    folder, before = tmp_path_factory.mktemp("home"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("ENGINE_ROUTER_"):
                patch.delenv(name)
        for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "APPDATA", "LOCALAPPDATA"):
            patch.setenv(name, str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.chdir(folder)
        yield
    os.chdir(before)


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory, _quiet_place: None) -> Iterator[Served]:
    """Return a router for all tests that only ask it something."""
    with serving(write_config(tmp_path_factory.mktemp("router"))) as served:
        yield served


# Help and usage.


def test_help_lists_the_commands_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"    {name} " in shown for name in COMMANDS)
    assert "3    router not reachable" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert re.search(rf"examples?:\n  engine-router {name}", capsys.readouterr().out)


def test_version_and_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"engine-router {__version__}\n"
    for wrong in (
        [],
        ["fly"],
        ["use"],
        ["serve", "--port", "70000"],
        ["logs", "x", "-n", "-1"],
        ["use", "a", "--ur", "b"],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)


# check and schema.


def test_check_shows_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path)
    assert main(["check", "--config", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{path} is fine: 4 engines, 4 models, 1 pool; listens on 127.0.0.1:")
    assert re.search(r"^alpha +process +default +a free port +red$", shown, re.MULTILINE)
    assert "aliases: scarlet = red" in shown
    assert "warning" not in shown


def test_check_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path)
    assert main(["check", "--json", "--config", str(path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"]
    assert told["file"] == str(path)
    assert told["models"] == {"red": "alpha", "blue": "beta", "grey": "slow", "lost": "broken"}
    assert told["pools"] == ["default"]
    assert told["warnings"] == []


@pytest.mark.parametrize("name", ["check", "serve"])
def test_all_faults_are_listed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engines.toml"
    path.write_text('[server]\nport = "x"\n[engines.a]\ntype = "proces"\n')
    assert main([name, "--config", str(path)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"{path}: 2 faults\n")
    assert "server.port" in told.err
    assert "engines.a.type" in told.err


def test_faults_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engines.toml"
    path.write_text("engines = 1\n")
    assert main(["check", "--json", "--config", str(path)]) == 2
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"]
    assert [fault["path"] for fault in told["faults"]] == ["engines"]


def test_no_configuration_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 2
    assert "not found; looked for" in capsys.readouterr().err
    assert main(["check", "--config", "absent.toml"]) == 2
    assert "absent.toml" in capsys.readouterr().err


WARNED = """
[server]
host = "0.0.0.0"
port = 8077
[pools.gpu]
[pools.idle]
gauge = "command"
command = "no-such-gauge"
[engines.a]
type = "process"
argv = "no-such-program --port {port}"
[engines.b]
type = "process"
argv = ["sh", "-m", "absent.gguf"]
base_url = "http://127.0.0.1:8077"
models = ["b"]
[engines.c]
type = "process"
argv = "sh x"
base_url = "http://127.0.0.1:8077"
pool = "gpu"
models = ["c"]
[engines.d]
type = "process"
argv = "sh {path} {port}"
keep_context = true
[engines.e]
type = "process"
argv = "./x"
base_url = "http://127.0.0.1:9"
models = ["e"]
cwd = "absent-folder"
[models.f]
engine = "d"
path = "absent-weights"
"""


def test_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engines.toml"
    path.write_text(WARNED)
    assert main(["check", "--json", "--config", str(path)]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {(warning["path"], warning["message"]) for warning in told["warnings"]}
    for place, words in (
        ("server.api_keys", "0.0.0.0 is reachable"),
        ("pools.idle", "no engine uses it"),
        ("pools.idle.command", "no-such-gauge was not found on PATH"),
        ("engines.a.argv", "no-such-program was not found on PATH"),
        ("engines.a.models", "engine-router use a"),
        ("engines.b.argv", "there is no file absent.gguf"),
        ("engines.b.base_url", "the router's own"),
        ("engines.c.base_url", "also where engine b listens"),
        ("engines.d.keep_context", "does not look like llama.cpp's llama-server"),
        ("engines.e.cwd", "there is no folder absent-folder"),
        ("models.f.path", "there is no file or folder absent-weights"),
    ):
        assert any(place == path and words in message for path, message in found), place
    assert len(found) == 12


SUSPECT = """
state_file = "{here}/absent/state.json"
[log]
file = "{here}/absent/log"
[history]
file = "{here}"
[server]
host = "::1"
[pools.default]
budget_gb = 10
[pools.big]
mode = "budget"
budget_gb = 10
[engines.a]
type = "process"
argv = "sh -m file:///absent/a.gguf --port 8001 && x $HOME"
base_url = "http://127.0.0.1:8000"
models = ["alpha"]
log_file = "{here}"
[engines.b]
type = "process"
argv = "sh x"
base_url = "http://localhost:8000"
models = ["b"]
[engines.c]
type = "process"
argv = "sh {{Model}} ollama://x.gguf {{port}} --api-key s3cret-1"
models = ["c"]
pool = "big"
memory_gb = 11
[engines.d]
type = "systemd"
unit = "d.service"
base_url = "http://127.0.0.1:8000"
models = ["d"]
discover = false
[engines.e]
type = "process"
argv = "docker run -p 9000:8000 image --port 8000"
base_url = "http://127.0.0.1:9000"
models = ["e"]
pool = "big"
[models.f]
engine = "c"
memory_gb = 12
[aliases]
near = "alhpa"
far = "nothing-like-it"
"""


def test_what_will_hardly_work_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engines.toml"
    path.write_text(SUSPECT.format(here=tmp_path))
    assert main(["check", "--json", "--config", str(path)]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {(warning["path"], warning["message"]) for warning in told["warnings"]}
    wanted = [
        ("log.file", f"there is no folder {tmp_path}/absent"),
        ("history.file", "is a folder"),
        ("pools.default.budget_gb", 'without effect in mode "exclusive"; write mode = "budget"'),
        ("engines.a.argv", "there is no file /absent/a.gguf"),
        ("engines.a.argv", "no shell runs: && is one more argument"),
        ("engines.a.log_file", "is a folder"),
        ("engines.a.base_url", "its port is 8000, but argv has 8001"),
        ("engines.b.base_url", "also where engine a listens: that works only while one is gone"),
        ("engines.d.base_url", "also where engine a listens"),
        ("engines.c.argv", "{Model} is not filled in; write {model}"),
        ("engines.c.memory_gb", "11 is more than the 10 of pools.big.budget_gb"),
        ("models.f.memory_gb", "12 is more than the 10"),
        ("aliases.near", 'no model is called "alhpa"; did you mean "alpha"?'),
        ("aliases.far", 'no model is called "nothing-like-it", and no engine may list it'),
    ]
    if shutil.which("docker") is None:
        wanted.append(("engines.e.argv", "the program docker was not found on PATH"))
    for place, words in wanted:
        assert any(place == path and words in message for path, message in found), (place, found)
    assert len(found) == len(wanted), found
    assert told["engines"]["c"]["argv"][-2:] == ["--api-key", "***"]


def test_names_of_keys_and_models_that_nobody_has_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "engines.toml"
    path.write_text(f"""
[server]
api_keys = ["a-key-of-sixteen", {{ name = "team", key = "a-key-of-sixteen2", models = ["fast", "qwne3", "q*", "z*"] }}]
key_priorities = {{ "a-key-of-sixteen" = "high", "another-of-sixteen" = "low" }}
[history]
captures = ["*", "gone*"]
[context]
shared_by = ["team", "taem", "key 1"]
[engines.a]
type = "process"
argv = "{sys.executable} --port {{port}}"
models = ["qwen3"]
discover = false
[routes.fast]
prefer = ["qwen3"]
[[routes.fast.rules]]
prefer = ["qwen3"]
keys = ["TEAM", "nobody*"]
""")
    assert main(["check", "--json", "--config", str(path)]) == 0
    told = json.loads(capsys.readouterr().out)["warnings"]
    assert [(each["path"], each["message"]) for each in told] == [
        ("context.shared_by", 'no key is called "taem"; did you mean "team"?'),
        ("routes.fast.rules[0].keys", 'no key is called "nobody*"; known: "key 1", "team"'),
        ("server.key_priorities", "1 of its keys is none of api_keys, so no request has that priority"),
        ("history.captures", 'no model is called "gone*"'),
        ("server.api_keys[1].models", 'no model is called "qwne3"; did you mean "qwen3"?'),
        ("server.api_keys[1].models", 'no model is called "z*"'),
    ]


def test_names_that_lead_nowhere_are_told_once_the_folders_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf_file(tmp_path / "models" / "Qwen3-8B-Q4_K_M.gguf")
    path = tmp_path / "engines.toml"
    path.write_text(f"""
[server]
default_model = "of-the-page"
[scheduling]
preload = ["ahead"]
[pools.default]
default_model = "to-return-to"
[engines.a]
type = "process"
argv = "{sys.executable} -m {{path}} --port {{port}}"
scan = ["{tmp_path}/models"]
[aliases]
good = "qwen3-8b:q4_k_m"
typo = "qwen3-8b:q4_k_n"
far = "nothing-like-it"
""")
    assert main(["check", "--json", "--config", str(path)]) == 0
    told = {each["path"]: each["message"] for each in json.loads(capsys.readouterr().out)["warnings"]}
    assert set(told) == {
        "server.default_model",
        "scheduling.preload",
        "pools.default.default_model",
        "aliases.typo",
        "aliases.far",
    }
    assert all(words.startswith("no model is called") for words in told.values())
    assert main(["doctor", "--json", "--config", str(path)]) == FAILED
    named = {each["subject"] for each in json.loads(capsys.readouterr().out)["findings"]}
    assert set(told) <= named


def test_a_variable_of_a_shell_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, more='[engines.x]\ntype = "process"\nargv = "env $HOME/run {port}"\n')
    assert main(["check", "--config", str(path)]) == 0
    assert "no shell runs: $HOME stays as it is; write ${env:HOME}" in capsys.readouterr().out


def test_warnings_are_no_failure_unless_they_are_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_MODEL", "/somewhere/else")
    path = tmp_path / "engines.toml"
    argv = "no-such-program \\\n  -m ${env:MY_MODEL} # the model\n --port {port}\n"
    path.write_text(f"[engines.a]\ntype = 'process'\nmodels = ['m']\nargv = '''\n{argv}'''\n")
    assert main(["check", "--config", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{path} has no faults, but 1 warning: 1 engine")
    assert "\n  a: no-such-program -m '${env:MY_MODEL}' --port '{port}'\n" in shown
    assert "the router starts all the same; with --strict, warnings count as failures" in shown
    assert main(["check", "--strict", "--config", str(path)]) == 1
    assert "warnings count as failures" in capsys.readouterr().out
    assert main(["check", "--strict", "--json", "--config", str(path)]) == 1
    capsys.readouterr()
    assert main(["check", "--strict", "--config", str(write_config(tmp_path))]) == 0


def test_schema_accepts_a_good_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.validate(tomli.loads(write_config(tmp_path).read_text("utf-8")), schema)


# Which router.


def options(**given: str) -> Namespace:
    return Namespace(**{"url": None, "api_key": None, "config": None, **given})


def test_where_and_with_which_key(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        '[server]\nhost = "0.0.0.0"\nport = 9000\napi_keys = ["k1", "k2"]\n[engines.a]\ntype = "ollama"\n'
    )
    environ = {"ENGINE_ROUTER_URL": "http://there:1/", "ENGINE_ROUTER_API_KEY": "k3"}

    def found(environ: dict[str, str], **given: str) -> tuple[str, str | None]:
        where = locate(options(**given), environ)
        return where.url, where.key

    assert found({}) == ("http://127.0.0.1:8077", None)
    assert found({}, config=str(path)) == ("http://127.0.0.1:9000", "k1")
    assert found(environ) == ("http://there:1", "k3")
    assert found(environ, url="https://here:2", api_key="k4") == ("https://here:2", "k4")
    with pytest.raises(CommandFailed, match="control characters"):
        found({}, api_key="a\nb")
    assert found({}, url="box:3") == ("http://box:3", None)
    # The configuration's key goes to the router that it is of, and to nobody else.
    assert found({}, config=str(path), url="http://elsewhere:9000") == ("http://elsewhere:9000", None)
    assert found({}, config=str(path), url="http://localhost:9000") == ("http://localhost:9000", "k1")


def test_a_url_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "ftp://x"]) == 2
    assert "is not a URL" in capsys.readouterr().err


def test_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["status"], ["models"], ["use", "x"], ["unload"], ["logs", "x"]):
        url = f"http://127.0.0.1:{free_port()}"
        assert main([*arguments, "--url", url]) == 3
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err == (
            f"engine-router: no router answers at {url} (connection refused); "
            "start one with `engine-router serve`, or say where it is with --url\n"
        )


@contextlib.contextmanager
def some_server(status: int, body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["status", "models"])
@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "is not an engine-router"),
        (200, b"{}", "is not an engine-router"),
        (200, b"[]", "is not an engine-router"),
        (502, b"<html>", "says 502 Bad Gateway"),
        (503, b'{"error": {"message": "no room"}}', "no room"),
        (503, b'{"error": "no room"}', "no room"),
    ],
)
def test_an_http_error_is_not_called_unreachable(
    name: str, status: int, body: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with some_server(status, body) as url:
        assert main([name, "--url", url]) == 1
    told = capsys.readouterr().err
    assert words in told
    assert "no router answers" not in told
    assert told.count("\n") == 1


def test_a_router_of_another_version(capsys: pytest.CaptureFixture[str]) -> None:
    with some_server(200, b'{"version": "9", "pools": {}}') as url:
        assert main(["status", "--url", url]) == 1
        assert "is of another version" in capsys.readouterr().err


def test_what_a_wait_shows() -> None:
    resident = {"resident": "alpha", "in_flight": 2}
    swap = {"source": "alpha", "target": "beta", "phase_elapsed_s": 3.2, "expected_s": 8.0}

    def shown(waiting: int, phase: str | None = None, resident: object = resident) -> str:
        now = None if phase is None else {**swap, "phase": phase}
        step = describe({"swap": now, "resident": resident, "waiting": {"beta": waiting}})
        return "" if step is None else step.whole(12.0)

    assert shown(1) == "waiting for alpha, which is busy with 2 requests: 12 s"
    assert shown(3) == "waiting for alpha, which is busy with 2 requests; 2 others waiting, too: 12 s"
    assert shown(1, "drain") == "letting alpha finish 2 requests: 3.2 s (12 s in all)"
    assert shown(1, "start") == "starting beta: 3.2 s of about 8.0 s (12 s in all)"
    assert shown(1, resident=None) == ""


# Talking to a running router.


def test_status_and_models(router: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unload", "--url", router.url]) == 0
    capsys.readouterr()
    assert main(["status", "--config", str(router.config)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"engine-router {__version__} at {router.url}, up ")
    assert re.search(r"^default +- +empty", shown, re.MULTILINE)
    assert re.search(r"^alpha +process +default +off +red +-$", shown, re.MULTILINE)
    assert "\x1b" not in shown
    assert main(["models", "--url", router.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["MODEL", "ENGINE", "STATE", "KNOWN", "FROM", "ALIASES"],
        ["red", "alpha", "off", "configured", "scarlet"],
    ]
    assert len(lines) == 5  # an alias is no line of its own


def test_json_is_what_the_router_said(router: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json", "--url", router.url]) == 0
    assert "pools" in json.loads(capsys.readouterr().out)
    assert main(["models", "--json", "--url", router.url]) == 0
    assert json.loads(capsys.readouterr().out)["object"] == "list"
    assert main(["use", "red", "--json", "--url", router.url]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["resident"] == "alpha"
    assert told.err == ""
    assert main(["unload", "--json", "--url", router.url]) == 0
    assert json.loads(capsys.readouterr().out) == {"unloaded": ["alpha"]}


def test_use_and_unload(router: Served, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> tuple[str, str]:
        assert main([*arguments, "--url", router.url]) == 0
        told = capsys.readouterr()
        return told.out, told.err

    said("unload")
    assert said("unload") == ("nothing is resident\n", "")
    assert re.fullmatch(r"red \(engine alpha\) is resident after [\d.]+ s\n", said("use", "red")[0])
    assert said("use", "scarlet")[0] == "scarlet (engine alpha) is resident already\n".replace("is", "was", 1)
    out, err = said("use", "beta")
    assert re.fullmatch(r"beta is resident after [\d.]+ s, instead of alpha\n", out)
    assert re.search(r"^starting beta( \(about [\d.]+ s\))?$", err, re.MULTILINE)
    assert said("unload", "red")[0] == "red is not resident\n"
    assert "last: swap alpha -> beta (beta is wanted): stop" in said("status")[0]
    assert said("unload", "blue")[0] == "unloaded beta\n"


def test_what_cannot_be_used(router: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["use", "rad", "--url", router.url]) == 1
    assert capsys.readouterr().err == "engine-router: model 'rad' not found; did you mean 'red'?\n"
    assert main(["use", "broken", "--url", router.url]) == 1
    told = capsys.readouterr().err
    assert "exited with code 1 before it was ready" in told
    assert "no weights" in told
    assert main(["logs", "nobody", "--url", router.url]) == 1
    assert "model 'nobody' not found" in capsys.readouterr().err


def test_logs(router: Served, capsys: pytest.CaptureFixture[str]) -> None:
    main(["use", "alpha", "--url", router.url])
    capsys.readouterr()
    assert main(["logs", "alpha", "-n", "1", "--url", router.url]) == 0
    assert capsys.readouterr().out == "red is loading\n"
    assert main(["logs", "alpha", "-n", "0", "--url", router.url]) == 0
    assert capsys.readouterr().out == ""


@posix
def test_logs_are_followed_until_ctrl_c(router: Served) -> None:
    main(["use", "alpha", "--url", router.url])
    with subprocess.Popen(
        command("logs", "alpha", "-f", "-n", "1", "--url", router.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "red is loading\n"
        router.stream(words=1).close()
        assert following.stdout.readline() == "asked\n"
        following.send_signal(signal.SIGINT)
        assert following.communicate(timeout=SOON_S) == ("", "")
        assert following.returncode == 130


@posix
def test_ctrl_c_gives_up_the_wait_and_the_start(router: Served) -> None:
    using = subprocess.Popen(
        command("use", "slow", "--url", router.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert using.stderr is not None
    while using.stderr.readline() != "starting slow\n":
        pass
    using.send_signal(signal.SIGINT)
    out, err = using.communicate(timeout=SOON_S)
    assert (using.returncode, out) == (130, "")
    assert err == "given up; the router ends the start too, unless somebody else waits for it\n"
    until(lambda: router.get("/status")["pools"]["default"]["resident"] is None)
    swaps = router.get("/status")["swaps"]
    assert [swap["result"] for swap in swaps if swap["target"] == "slow"] == ["abandoned"]


def test_a_reader_that_leaves_is_no_error(router: Served) -> None:
    with subprocess.Popen(
        command("status", "--url", router.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as asking:
        assert asking.stdout is not None
        assert asking.stderr is not None
        asking.stdout.close()
        assert asking.stderr.read() == b""


def on_terminal(*arguments: str | Path) -> tuple[int, str]:
    """Run a command on a terminal and return its exit code and all that it wrote there."""
    import pty  # noqa: PLC0415 - POSIX only

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # so a terminal ends
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    return process.wait(SOON_S), shown.decode()


@posix
def test_on_a_terminal(router: Served) -> None:
    assert main(["unload", "--url", router.url]) == 0
    code, shown = on_terminal("use", "blue", "--url", router.url)
    assert code == 0
    assert "starting beta" in shown
    assert re.search(r"blue \(engine beta\) is resident after", shown)
    code, shown = on_terminal("status", "--url", router.url)
    assert code == 0
    assert re.search(r"\x1b\[32mready", shown)
    code, shown = on_terminal("models", "--json", "--url", router.url)
    assert code == 0
    assert json.loads(shown)["object"] == "list"


def test_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path, server='api_keys = ["right", "other", "schlüssel"]')
    with serving(config) as served:
        assert main(["status", "--url", served.url]) == 1
        told = capsys.readouterr().err
        assert "asks for an API key" in told
        assert "give one with --api-key, or in $ENGINE_ROUTER_API_KEY" in told
        assert main(["models", "--url", served.url, "--api-key", "wrong"]) == 1
        assert "give another with --api-key" in capsys.readouterr().err
        assert main(["models", "--url", served.url, "--api-key", "schlüssel"]) == 0
        assert main(["models", "--config", str(config)]) == 0
        monkeypatch.setenv("ENGINE_ROUTER_API_KEY", "other")
        monkeypatch.setenv("ENGINE_ROUTER_URL", served.url)
        assert main(["models"]) == 0


# serve: its beginning and its end.


def test_the_port_is_in_use(router: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--config", str(router.config)]) == 1
    told = capsys.readouterr().err
    assert re.fullmatch(r"engine-router: 127.0.0.1:\d+ is in use already .*\n", told)


def test_host_and_port_of_the_command_line(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    served = Served(config, "--host", "localhost", "--port", "0")
    try:
        until(lambda: "Ctrl-C stops it" in served.stderr)
        ports = set(re.findall(r"(?:127\.0\.0\.1|\[::1\]|localhost):(\d+)", served.stderr))
        assert len(ports) == 1
        served.url = f"http://127.0.0.1:{ports.pop()}"
        assert served.is_up()
        assert f"engine-router {__version__} serves 4 engines with 4 models at http" in served.stderr
        assert str(config) in served.stderr
    finally:
        served.end()


@posix
def test_sigterm_lets_a_stream_end_and_leaves_nothing(tmp_path: Path) -> None:
    with serving(write_config(tmp_path, server="shutdown_timeout_s = 600")) as served:
        subprocess.run(command("use", "red", "--url", served.url), check=True)
        pid = served.engine_pid()
        with subprocess.Popen(
            command("logs", "alpha", "-f", "--url", served.url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as following:
            assert following.stdout is not None
            following.stdout.readline()
            stream = served.stream(words=20, pause=0.05)
            served.process.send_signal(signal.SIGTERM)
            assert b"w19 " in rest_of(stream)
            stream.close()
            assert served.process.wait(SOON_S) == 0
            # Neither the stream nor the reader of the log holds it up.
            assert following.wait(SOON_S) == 0
            assert following.stderr is not None
            assert following.stderr.read() == b""
        assert not psutil.pid_exists(pid)
        assert "stopping: 1 request may go on for 10 min" in served.stderr
        assert "Traceback" not in served.stderr
        assert (tmp_path / "state.json").exists()


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_at_once(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with serving(write_config(tmp_path, server="shutdown_timeout_s = 600")) as served:
        stream = served.stream(words=100_000, pause=0.05)
        pid = served.engine_pid()
        served.process.send_signal(number)
        until(lambda: "stopping" in served.stderr)
        assert psutil.pid_exists(pid)
        served.process.send_signal(number)
        # Long before the time for requests in flight is over.
        assert served.process.wait(SOON_S) == code
        stream.close()
        until(lambda: not psutil.pid_exists(pid))
        assert "Traceback" not in served.stderr


@posix
@pytest.mark.parametrize("signals", [1, 2])
def test_a_client_that_stopped_reading_does_not_hold_the_router(signals: int, tmp_path: Path) -> None:
    with serving(
        write_config(tmp_path, server=f"shutdown_timeout_s = {0.5 if signals == 1 else 600}")
    ) as served:
        stream = served.stream(words=100_000, size=100_000)
        pid = served.engine_pid()
        time.sleep(0.5)  # until every buffer between the engine and this test is full
        served.process.send_signal(signal.SIGINT)
        if signals == 2:
            until(lambda: "stopping" in served.stderr)
            served.process.send_signal(signal.SIGINT)
        assert served.process.wait(SOON_S) == (0 if signals == 1 else 130)
        until(lambda: not psutil.pid_exists(pid))
        stream.close()
        assert "Traceback" not in served.stderr


@posix
def test_a_signal_before_the_router_is_open(tmp_path: Path) -> None:
    with socket.socket() as mute:  # an engine that accepts connections and never answers
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        served = Served(write_config(tmp_path, more=f'[engines.mute]\ntype = "ollama"\nbase_url = "{url}"'))
        mute.settimeout(SOON_S)
        connection, _ = mute.accept()
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(SOON_S) == 0
        connection.close()
        assert "Traceback" not in served.stderr


@posix
def test_nobody_reads_standard_error(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    served = Served(config)
    served.end()
    closed = subprocess.Popen(
        ["sh", "-c", 'exec "$0" "$@" 2>&- >&- <&-', *command("serve", "--config", config)]
    )
    served.process = closed
    try:
        served.until_up().stream(words=3).close()
        closed.send_signal(signal.SIGTERM)
        assert closed.wait(SOON_S) == 0
    finally:
        served.end()
    with subprocess.Popen(
        command("serve", "--config", config, "--log-level", "debug"), stderr=subprocess.PIPE
    ) as piped:
        assert piped.stderr is not None
        piped.stderr.close()
        served.process = piped
        try:
            served.until_up().stream(words=3).close()
            piped.send_signal(signal.SIGTERM)
            assert piped.wait(SOON_S) == 0
        finally:
            served.end()


@posix
def test_the_log_as_json(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    settings = f'[log]\nformat = "json"\nlevel = "debug"\nfile = {json.dumps(str(log))}'
    with serving(write_config(tmp_path, more=settings)) as served:
        assert main(["use", "broken", "--url", served.url]) == 1
        stream = served.stream(words=1)
        until(lambda: "request_ended" in log.read_text())
        stream.close()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(SOON_S) == 0
        assert served.stderr == ""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    events = [line for line in lines if "event" in line]
    assert events[0]["event"] == "serving"
    assert events[0]["urls"] == [served.url]
    failed, started = [e for e in events if e["event"] == "swap_ended" and e["target"] is not None]
    assert (failed["level"], failed["result"], failed["target"]) == ("error", "error", "broken")
    assert (started["level"], started["result"], started["target"]) == ("info", "ok", "alpha")
    assert next(e for e in events if e["event"] == "request_ended")["status"] == 200
    assert not any(line.get("logger", "").startswith(("httpx", "httpcore", "hypercorn")) for line in lines)


def test_a_log_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, more=f"[log]\nfile = {json.dumps(str(tmp_path / 'absent' / 'log'))}")
    assert main(["serve", "--config", str(config)]) == 1
    assert re.fullmatch(r"engine-router: log.file .* cannot be written: .*\n", capsys.readouterr().err)


# demo.

WHEELS = ("gguf", "numpy", "xllamacpp")
needs_llamacpp = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in WHEELS), reason="needs the extra llamacpp"
)


def test_demo_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else object())
    assert main(["demo", "--once"]) == 1
    told = capsys.readouterr().err
    assert (
        told
        == "engine-router: the demo needs gguf, for a real llama.cpp: pip install 'engine-router[llamacpp]'\n"
    )


@pytest.mark.real
@needs_llamacpp
def test_demo_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    shown = run("demo", "--once", timeout=200)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [line.split()[:3] for line in shown.stdout.splitlines()[-3:]] == [
        ["(empty)", "->", "tiny-a"],
        ["tiny-a", "->", "tiny-b"],
        ["tiny-b", "->", "tiny-a"],
    ]
    assert shown.stdout.count("first token after") == 3
    assert list(tmp_path.iterdir()) == []
    left = [
        p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])
    ]
    assert left == []


@pytest.mark.real
@needs_llamacpp
@posix
def test_demo_until_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    port = free_port()
    with subprocess.Popen(
        command("demo", "--port", str(port), "--keep", folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stderr is not None
        told = ""
        while "Ctrl-C ends it" not in told:
            told += demo.stderr.readline()
        assert f"curl -N http://127.0.0.1:{port}/v1/chat/completions" in told
        demo.send_signal(signal.SIGINT)
        out, _ = demo.communicate(timeout=SOON_S)
        assert demo.returncode == 0
    assert f"kept in {folder}" in out
    assert main(["check", "--config", str(folder / "engines.toml")]) == 0


def test_the_parser_names_a_module_for_each_command() -> None:
    given: dict[str, Sequence[str]] = {"use": ["x"], "logs": ["x"]}
    for name in COMMANDS:
        module = build_parser().parse_args([name, *given.get(name, ())]).module
        assert importlib.util.find_spec(module) is not None
