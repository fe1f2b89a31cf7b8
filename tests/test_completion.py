"""`engine-router completion`: scripts for real shells, made from the parser, with the models of a real router."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.background import Running
from support.client_harness import serving, talker
from test_cli import SOON_S, command, posix

from engine_router.cli import main
from engine_router.cli.completions import LIVE, SHELLS
from engine_router.cli.completions.described import describe_commands
from engine_router.cli.parser import build_parser

MORE = """
[models."qwen3:8b"]
engine = "talker"
[models."qwen3:14b"]
engine = "talker"
[models."$(touch ran)"]
engine = "talker"
"""

Complete = Callable[[str], list[str]]


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"no {shell} here")


@pytest.fixture(scope="module")
def router() -> Iterator[Running]:
    with serving(talker("talker"), talker("other"), more=MORE) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path, router: Running, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files, in which the command is on the PATH, and knows the router."""
    program = tmp_path / "bin" / "engine-router"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command())} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "engines.toml").write_text("")
    (tmp_path / "some models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("ENGINE_ROUTER_URL", router.url)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def output_of(*words: str) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=SOON_S, check=False, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def script_for(shell: str, place: Path) -> Path:
    path = place / "bin" / f"script.{shell}"
    path.write_text(output_of("engine-router", "completion", shell))
    return path


def bash(place: Path) -> Complete:
    """Complete as bash does, which puts what comes in place of all behind the last colon."""
    script = script_for("bash", place)

    def complete(line: str) -> list[str]:
        program = (
            f"source {shlex.quote(str(script))}; COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}; "
            "_engine_router engine-router; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        found = output_of("bash", "--norc", "-c", program).split("\n")
        prefix = line.rpartition(" ")[2].rpartition(":")
        return sorted(prefix[0] + prefix[1] + word for word in found if word)

    return complete


def fish(place: Path) -> Complete:
    script = script_for("fish", place)

    def complete(line: str) -> list[str]:
        program = f"source {shlex.quote(str(script))}; complete -C {shlex.quote(line)}"
        found = output_of("fish", "--no-config", "-c", program).splitlines()
        return sorted(word.partition("\t")[0] for word in found)

    return complete


SHELL_COMPLETIONS = [
    pytest.param(bash, id="bash", marks=needs("bash")),
    pytest.param(fish, id="fish", marks=needs("fish")),
]


@posix
@pytest.mark.parametrize("shell", SHELL_COMPLETIONS)
def test_what_is_completed(shell: Callable[[Path], Complete], place: Path) -> None:
    complete = shell(place)
    models = complete("engine-router run ")
    assert {"talker", "other", "qwen3:8b"} <= set(models)
    for line, found in {
        "engine-router mode": ["models"],
        "engine-router p": ["pin", "presets", "ps", "pull"],
        "engine-router run oth": ["other"],
        "engine-router run --system x oth": ["other"],
        "engine-router run --raw oth": ["other"],
        "engine-router run qwen3:1": ["qwen3:14b"],
        "engine-router run other wor": [],
        "engine-router use tal": ["talker"],
        "engine-router launch co": ["codex", "copilot"],
        "engine-router launch codex --model oth": ["other"],
        "engine-router serve --log-level w": ["warning"],
        "engine-router completion ": ["bash", "fish", "zsh"],
        "engine-router help resi": ["residents"],
        "engine-router ls --ur": ["--url"],
        "engine-router serve --config eng": ["engines.toml"],
        "engine-router nonsense ": [],
    }.items():
        assert complete(line) == found, line
    assert "--keep-alive" in complete("engine-router load -")
    assert not (place / "ran").exists()


@posix
@pytest.mark.parametrize("shell", SHELL_COMPLETIONS)
def test_without_a_router_there_are_no_names_and_no_errors(
    shell: Callable[[Path], Complete], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_ROUTER_URL", "http://127.0.0.1:1")
    complete = shell(place)
    assert complete("engine-router run ") == []
    assert complete("engine-router launch clau") == ["claude"]


@posix
@needs("bash")
def test_names_are_quoted_for_bash(place: Path) -> None:
    complete = bash(place)
    assert complete("engine-router run $") == ["\\$\\(touch\\ ran\\)"]
    assert complete("engine-router import some") == ["some models"]
    assert not (place / "ran").exists()


@posix
@needs("zsh")
def test_zsh_completes(place: Path) -> None:
    script = script_for("zsh", place)
    (place / ".zshrc").write_text(
        f"autoload -Uz compinit; compinit -u -D; source {script}\nPS1='ready> '; unsetopt beep\n"
        'dump() { print -r -- "$BUFFER" >> $ZDOTDIR/buffers }; zle -N dump; bindkey "^Xd" dump\n'
    )
    lines = {
        "engine-router mode": "engine-router models ",
        "engine-router run oth": "engine-router run other ",
        "engine-router run --system x oth": "engine-router run --system x other ",
        "engine-router run qwen3:1": "engine-router run qwen3:14b ",
        "engine-router run other wor": "engine-router run other wor",
        "engine-router run \\$\\(tou": "engine-router run \\$\\(touch\\ ran\\) ",
        "engine-router launch codex --model oth": "engine-router launch codex --model other ",
        "engine-router launch cop": "engine-router launch copilot ",
        "engine-router serve --log-level w": "engine-router serve --log-level warning ",
        "engine-router serve --config eng": "engine-router serve --config engines.toml ",
        "engine-router import some": "engine-router import some\\ models/",
        "engine-router load --keep": "engine-router load --keep-alive ",
        "engine-router help resi": "engine-router help residents ",
    }
    assert zsh_buffers(place, list(lines)) == list(lines.values())
    assert not (place / "ran").exists()


def zsh_buffers(home: Path, lines: list[str]) -> list[str]:
    """Type lines in an interactive zsh, each with a Tab, and return what it made of them."""
    import pty  # noqa: PLC0415 - POSIX only

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "vt100", "ZDOTDIR": str(home), "COLUMNS": "200"}
    process = subprocess.Popen(
        ["zsh", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    shown, buffers, deadline = "", home / "buffers", time.monotonic() + SOON_S
    buffers.write_text("")
    waiting = ["", *lines]
    try:
        while len(made := buffers.read_text().splitlines()) < len(lines):
            assert time.monotonic() < deadline, (made, shown)
            if select.select([ours], [], [], 0.05)[0]:
                shown += os.read(ours, 65536).decode("utf-8", "replace")
            if "ready> " in shown and len(waiting) == len(lines) - len(made) + 1:
                waiting.pop(0)
                # The line is emptied, typed, completed, and noted.
                os.write(ours, f"\x15{waiting[0]}\t\x18d".encode())
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return made


def test_names_of_models_and_engines(router: Running, capsys: pytest.CaptureFixture[str]) -> None:
    told = {}
    for name in LIVE:
        assert main(["completion", name, "--url", router.url]) == 0
        told[name] = capsys.readouterr().out.splitlines()
    assert sorted(told["engines"]) == ["other", "talker"]
    assert {"talker", "other", "qwen3:8b"} <= set(told["models"])
    assert told["names"] == told["models"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense://x", "http://[::1"])
def test_names_that_cannot_be_had_are_none(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "models", "--url", url]) == 0
    assert capsys.readouterr() == ("", "")


def test_the_scripts_have_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    described = describe_commands(build_parser())
    assert {name for each in described for name in each.names} == set(build_parser().commands)
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        for each in described:
            assert all(name in script for name in each.names)
            for option in each.options:
                long = next((flag for flag in option.flags if flag.startswith("--")), option.flags[0])
                assert (long[2:] if shell == "fish" else long) in script


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    assert main(["completion", shell]) == 0
    done = subprocess.run(
        [shell, "-n"],
        input=capsys.readouterr().out,
        text=True,
        capture_output=True,
        timeout=SOON_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "csh"])
    said = capsys.readouterr().err
    assert "there is no script for csh, only for bash, zsh or fish" in said
    assert not any(name in said for name in LIVE)  # what the scripts themselves ask for
