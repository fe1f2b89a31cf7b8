"""`engine-router launch`: every client's variables, files and command, as docs/clients.md has them, and real starts."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli
from support.background import Running
from support.client_harness import serving, talker
from test_cli import SOON_S, command, posix

from engine_router.cli import main
from engine_router.cli.clients import NAMES
from engine_router.cli.clients.json_file import merged, read_json, replaced, write_json
from engine_router.cli.clients.rendered import Rendered, Values, render
from engine_router.cli.clients.table import CLIENTS
from engine_router.cli.exit_codes import CommandFailed

PAGE = (Path(__file__).parents[1] / "docs" / "clients.md").read_text("utf-8")
VALUES = Values("http://127.0.0.1:8077", "any", "qwen3-30b", 32768)

# What each client gets: variables, the command behind its program, and whether a file of its own is changed.
TABLE: dict[str, tuple[dict[str, str | None], list[str], str | None]] = {
    "claude": (
        {
            "ANTHROPIC_BASE_URL": "http://127.0.0.1:8077",
            "ANTHROPIC_AUTH_TOKEN": "any",
            "ANTHROPIC_API_KEY": None,
            "ANTHROPIC_MODEL": "qwen3-30b",
            "ANTHROPIC_DEFAULT_OPUS_MODEL": "qwen3-30b",
            "ANTHROPIC_DEFAULT_SONNET_MODEL": "qwen3-30b",
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": "qwen3-30b",
            "CLAUDE_CODE_SUBAGENT_MODEL": "qwen3-30b",
            "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
        [],
        None,
    ),
    "codex": (
        {"ROUTER_API_KEY": "any"},
        [
            "-c",
            'model_provider="router"',
            "-c",
            'model_providers.router={name="engine-router",base_url="http://127.0.0.1:8077/v1",wire_api="responses",env_key="ROUTER_API_KEY"}',
            "-m",
            "qwen3-30b",
            "-c",
            "model_context_window=32768",
        ],
        None,
    ),
    "opencode": (
        {
            "OPENCODE_CONFIG_CONTENT": json.dumps(
                {
                    "provider": {
                        "router": {
                            "npm": "@ai-sdk/openai-compatible",
                            "name": "engine-router",
                            "options": {"baseURL": "http://127.0.0.1:8077/v1", "apiKey": "any"},
                            "models": {"qwen3-30b": {"name": "qwen3-30b"}},
                        }
                    },
                    "model": "router/qwen3-30b",
                    "small_model": "router/qwen3-30b",
                }
            )
        },
        [],
        None,
    ),
    "aider": (
        {"OPENAI_API_BASE": "http://127.0.0.1:8077/v1", "OPENAI_API_KEY": "any"},
        ["--model", "openai/qwen3-30b"],
        None,
    ),
    "qwen": (
        {
            "OPENAI_BASE_URL": "http://127.0.0.1:8077/v1",
            "OPENAI_API_KEY": "any",
            "OPENAI_MODEL": "qwen3-30b",
        },
        ["--auth-type", "openai", "--model", "qwen3-30b"],
        None,
    ),
    "crush": ({}, [], "~/.config/crush/crush.json"),
    "cline": ({}, [], None),
    "goose": (
        {
            "GOOSE_PROVIDER": "openai",
            "GOOSE_MODEL": "qwen3-30b",
            "OPENAI_HOST": "http://127.0.0.1:8077",
            "OPENAI_BASE_PATH": "v1/chat/completions",
            "OPENAI_API_KEY": "any",
        },
        ["session"],
        None,
    ),
    "copilot": (
        {
            "COPILOT_PROVIDER_TYPE": "openai",
            "COPILOT_PROVIDER_BASE_URL": "http://127.0.0.1:8077/v1",
            "COPILOT_PROVIDER_API_KEY": "any",
            "COPILOT_MODEL": "qwen3-30b",
        },
        [],
        None,
    ),
    "vscode": ({}, [], "~/.config/Code/User/chatLanguageModels.json"),
    "droid": ({}, [], "~/.factory/settings.json"),
    "open-webui": (
        {
            "ENABLE_OLLAMA_API": "False",
            "OPENAI_API_BASE_URL": "http://127.0.0.1:8077/v1",
            "OPENAI_API_KEY": "any",
            "DEFAULT_MODELS": "qwen3-30b",
        },
        ["serve"],
        None,
    ),
    "ollama": ({"OLLAMA_HOST": "http://127.0.0.1:8077"}, ["run", "qwen3-30b"], None),
}


def rendered(name: str, *arguments: str) -> Rendered:
    return render(CLIENTS[name], VALUES, arguments, "linux")


@pytest.mark.parametrize("name", NAMES)
def test_what_each_client_is_told(name: str) -> None:
    variables, arguments, path = TABLE[name]
    client = rendered(name)
    assert client.variables == variables
    assert client.command == [CLIENTS[name].program, *arguments]
    assert client.path == (None if path is None else Path(path).expanduser())


def test_the_table_is_whole() -> None:
    assert tuple(CLIENTS) == NAMES == tuple(TABLE)
    for client in CLIENTS.values():
        assert client.page.startswith("https://")


def section(title: str) -> str:
    return PAGE.partition(f"\n### {title}\n")[2].partition("\n### ")[0]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize(
    ("name", "title"), [("claude", "Claude Code"), ("aider", "aider"), ("open-webui", "Open WebUI")]
)
def test_the_page_sets_the_same_variables(name: str, title: str) -> None:
    block = blocks("sh", section(title))[0]
    pairs = dict(
        word.split("=", 1) for word in shlex.split(block, comments=True) if re.match("[A-Z_]+=", word)
    )
    assert pairs
    assert pairs.items() <= rendered(name).variables.items()


def test_the_page_has_codex_told_the_same() -> None:
    page = tomli.loads(blocks("toml", section("Codex"))[0])
    pairs = [word for word in rendered("codex").command if "=" in word]
    told = {
        key: tomli.loads(f"x = {value}")["x"] for key, _, value in (pair.partition("=") for pair in pairs)
    }
    provider = told.pop("model_providers.router")
    assert provider.pop("env_key") == "ROUTER_API_KEY"
    assert {**told, "model": "qwen3-30b", "model_providers": {"router": provider}} == page


def test_the_page_has_opencode_told_the_same() -> None:
    page = json.loads(blocks("json", section("opencode"))[0])
    told = json.loads(rendered("opencode").variables["OPENCODE_CONFIG_CONTENT"] or "")
    page["provider"]["router"]["models"]["qwen3-30b"]["name"] = "qwen3-30b"
    assert told == page


def test_the_page_has_vs_code_told_the_same() -> None:
    assert json.loads(blocks("json", section("VS Code Copilot"))[0]) == rendered("vscode").content


@pytest.mark.parametrize("name", ["qwen", "goose", "copilot", "cline", "crush", "droid"])
def test_the_page_has_a_row_for_each_of_the_others(name: str) -> None:
    (row,) = re.findall(rf"^\| [^|]+ \| `{name}` \| (.*) \|$", PAGE, re.MULTILINE)
    client = rendered(name)
    if client.path is not None:
        assert str(client.path) in row.replace("~", str(Path.home()))
        return
    line = re.findall("`([^`]+)`", row)[0]
    words = shlex.split(line)
    pairs = dict(word.split("=", 1) for word in words if re.match("[A-Z_]+=", word))
    assert pairs == client.variables
    assert words[len(pairs) :] == (client.set_up or client.command)


def test_each_client_is_named_on_the_page() -> None:
    for name in NAMES:
        assert re.search(rf"`engine-router launch {name}`|^\| [^|]+ \| `{name}` \|", PAGE, re.MULTILINE), name


# Files.


def test_nothing_that_is_there_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "crush.json"
    there = {
        "$schema": "x",
        "providers": {"mine": {"type": "openai"}, "engine-router": {"models": [{"id": "a", "cost": 1}]}},
        "models": {"large": {"provider": "mine", "model": "big"}},
    }
    path.write_text(json.dumps(there))
    content = rendered("crush").content
    file = read_json(path, dict)
    before, data = file.text, file.data
    whole = merged(data, content, "id")
    assert replaced(data, content, "id") == ["models.large.provider", "models.large.model"]
    assert write_json(path, whole, before) == tmp_path / "crush.json.bak"
    written = json.loads(path.read_text())
    assert written["$schema"] == "x"
    assert written["providers"]["mine"] == {"type": "openai"}
    assert [model["id"] for model in written["providers"]["engine-router"]["models"]] == ["a", "qwen3-30b"]
    assert json.loads((tmp_path / "crush.json.bak").read_text()) == there
    assert merged(written, content, "id") == written


def test_a_second_change_keeps_the_first_backup(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    path.chmod(0o600)
    (tmp_path / "link.json").symlink_to(path)
    for value in (2, 3):
        found = read_json(tmp_path / "link.json", dict)
        write_json(tmp_path / "link.json", {**found.data, "b": value}, found.text)
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads(path.read_text()) == {"a": 1, "b": 3}
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "x.json.bak").read_text() == '{"a": 1}'
    assert '"b": 2' in (tmp_path / "x.json.bak.2").read_text()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'{// mine\n"a": 1', "is no JSON"),
        (b"[]", "does not hold what its program wants"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_files_that_can_only_be_changed_by_hand(text: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(CommandFailed, match=complaint):
        read_json(path, dict)
    assert path.read_bytes() == text


# Real starts, of programs that write down what they get.


@pytest.fixture(scope="module")
def router() -> Iterator[Running]:
    with serving(talker("talker"), talker("other"), server={"api_keys": ["secret key"]}) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, router: Running, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with every client in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for client in CLIENTS.values():
        program = folder / client.program
        program.write_text(
            f"#!{sys.executable} -IS\nimport json, os, sys\n"
            f"with open({str(tmp_path / 'started')!r}, 'a') as file:\n"
            "    print(json.dumps([sys.argv, dict(os.environ)]), file=file)\n"
            "sys.exit(int(os.environ.get('FAIL_' + sys.argv[1] if len(sys.argv) > 1 else '', 5)))\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("ENGINE_ROUTER_URL", router.url)
    monkeypatch.setenv("ENGINE_ROUTER_API_KEY", "secret key")
    monkeypatch.setenv("ENGINE_ROUTER_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-stronger")
    return tmp_path


def launch(*words: str, given: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("launch", *words),
        capture_output=True,
        text=True,
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        timeout=SOON_S,
        check=False,
        env={**os.environ, **environ},
    )


def started(home: Path) -> list[tuple[list[str], dict[str, str]]]:
    path = home / "started"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


@posix
@pytest.mark.parametrize("name", NAMES)
def test_each_client_is_started(name: str, home: Path, router: Running) -> None:
    words = [name, "--model", "talker", "--yes", "--", "-p", "two words"]
    environ = {"FAIL_auth": "0"}
    done = launch(*words, **environ)
    assert done.returncode == 5, done.stderr
    *before, (argv, environment) = started(home)
    told = render(CLIENTS[name], Values(router.url, "secret key", "talker"), ["-p", "two words"])
    assert argv == [str(home / "bin" / CLIENTS[name].program), *told.command[1:]]
    assert argv[-2:] == ["-p", "two words"]
    for variable, value in told.variables.items():
        assert environment.get(variable) == value
    assert [argv[1:] for argv, _ in before] == ([told.set_up[1:]] if told.set_up else [])
    if told.path is not None:
        assert json.loads(told.path.read_text()) == told.content
        assert "talker" in told.path.read_text() or name == "vscode"


@posix
@pytest.mark.parametrize("name", NAMES)
def test_printing_changes_and_starts_nothing(name: str, home: Path) -> None:
    done = launch(name, "--model", "talker", "--print")
    assert done.returncode == 0, done.stderr
    assert started(home) == []
    assert not list(home.glob(".*"))
    program = CLIENTS[name].program
    assert re.search(rf"^{program}( |$)", done.stdout, re.MULTILINE)
    # A shell does with it what the command itself would do.
    ran = subprocess.run(["/bin/sh", "-c", done.stdout], timeout=SOON_S, check=False, env=os.environ)
    assert ran.returncode == 5
    assert started(home)[-1][0][1:] == launched(name, home)


def launched(name: str, home: Path) -> list[str]:
    done = launch(name, "--model", "talker", "--yes", FAIL_auth="0")
    assert done.returncode == 5
    return started(home)[-1][0][1:]


@posix
def test_nothing_is_written_without_being_asked(home: Path) -> None:
    for name in ("crush", "cline"):
        done = launch(name, "--model", "talker")
        assert done.returncode == 2
        assert "--yes does it without a question, --print shows it" in done.stderr
    assert started(home) == []
    assert not list(home.glob(".*"))


@posix
def test_a_file_with_comments_is_left_to_the_person(home: Path) -> None:
    path = home / ".config" / "crush" / "crush.json"
    path.parent.mkdir(parents=True)
    path.write_text('{\n  // mine\n  "options": {"debug": true,},\n}\n')
    before = path.read_text()
    done = launch("crush", "--model", "talker", "--yes")
    assert done.returncode == 1
    assert "has comments, which would be lost: nothing was changed. Put this into it by hand" in done.stderr
    assert path.read_text() == before
    assert started(home) == []
    # Once it is there, the client starts, and its comments stay.
    content = done.stderr[done.stderr.index("{") :].strip()
    path.write_text(f"// mine\n{content[:-1]}, /* all */ }}")
    by_hand = path.read_text()
    done = launch("crush", "--model", "talker")
    assert done.returncode == 5, done.stderr
    assert path.read_text() == by_hand
    assert len(started(home)) == 1


@posix
def test_a_set_up_that_fails_starts_nothing(home: Path) -> None:
    done = launch("cline", "--model", "talker", "--yes", FAIL_auth="7")
    assert done.returncode == 1
    assert "could not be set up (exit code 7)" in done.stderr
    assert len(started(home)) == 1


@posix
def test_what_cannot_be_launched(home: Path) -> None:
    for words, code, complaint in (
        (["claude", "--model", "nobody"], 1, "nobody"),
        (["claude"], 2, "which model? --model talker or --model other"),
        (["claude", "-p", "hi"], 2, "what is for the client goes behind --"),
        (["clod"], 2, "invalid choice"),
        (["claude", "--model", "talker", "--url", "http://127.0.0.1:1"], 3, "no router answers"),
    ):
        done = launch(*words)
        assert (done.returncode, complaint in done.stderr) == (code, True), done.stderr
    (home / "bin" / "claude").unlink()
    done = launch("claude", "--model", "talker")
    assert done.returncode == 1
    assert "Claude Code is not installed" in done.stderr
    # That is said before anything is asked of a router.
    assert "is not installed" in launch("claude", "--url", "http://127.0.0.1:1").stderr
    assert CLIENTS["claude"].page in done.stderr
    assert "claude      Claude Code  (not installed: https://" in launch().stdout
    assert started(home) == []


@posix
def test_the_resident_model_is_the_one_that_is_meant(home: Path, router: Running) -> None:
    assert main(["load", "other", "--url", router.url, "--api-key", "secret key"]) == 0
    assert launch("copilot").returncode == 5
    assert started(home)[-1][1]["COPILOT_MODEL"] == "other"
    (home / "engines.toml").write_text(
        '[server]\ndefault_model = "talker"\n[engines.talker]\ntype = "ollama"\nmodels = ["talker"]\n'
    )
    assert launch("copilot", ENGINE_ROUTER_CONFIG=str(home / "engines.toml")).returncode == 5
    assert started(home)[-1][1]["COPILOT_MODEL"] == "talker"


@posix
def test_a_person_is_asked(home: Path, router: Running) -> None:
    import pty  # noqa: PLC0415 - POSIX only

    assert main(["unload", "--all", "--url", router.url, "--api-key", "secret key"]) == 0

    def answering(*answers: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            command("launch", "crush"),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            os.write(ours, "".join(f"{answer}\n" for answer in answers).encode())
            told: Any = process.communicate(timeout=SOON_S)
        os.close(ours)
        os.close(theirs)
        return process.returncode, told[1]

    code, told = answering("9", "nonsense", "2", "n")
    assert code == 1
    assert "2  other" in told
    assert not (home / ".config").exists()
    code, told = answering("talker", "y")
    assert code == 5
    assert "written: " in told
    assert '"talker"' in (home / ".config/crush/crush.json").read_text()
    assert len(started(home)) == 1
