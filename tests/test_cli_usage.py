"""The command line for a newcomer: words that are no command, narrow terminals, URLs as clients have them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from engine_router.cli import main
from engine_router.cli.address import locate
from engine_router.cli.demo import own_command
from engine_router.cli.parser import build_parser
from engine_router.cli.terminal import Table
from engine_router.proxy.routes import base_url_hint

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))


def usage(*words: str) -> tuple[int, str]:
    """Return the exit code and the complaint of a command line that cannot be run."""
    done = subprocess.run(
        [sys.executable, "-m", "engine_router", *words],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done.returncode, done.stderr


def test_without_a_command_the_commands_are_listed() -> None:
    code, told = usage()
    assert code == 2
    for name in ("serve", "demo", "check", "status", "events"):
        assert re.search(rf"^    {name} ", told, re.MULTILINE), name


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("statsu", "status"),
        ("chekc", "check"),
        ("stop", "unload"),
        ("show", "models"),
        ("models2", "models"),
    ],
)
def test_a_word_that_is_no_command(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"there is no command {word}; did you mean {meant}?" in told
    assert "engine-router --help lists them" in told


def test_a_word_that_is_like_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["\x1b[2Jxyzzy" + "x" * 1000])
    told = capsys.readouterr().err
    assert "there is no command \\x1b[2Jxyzzy" in told
    assert "did you mean" not in told
    assert len(told) < 300


TABLE = Table(
    ("Engine", "Pool", "Models"), [("alpha", "one", "a-model-with-a-long-name, " * 3), ("beta", "one", "b")]
)


def test_what_is_wider_than_the_terminal_is_written_line_by_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine_router.cli.terminal.is_terminal", lambda _stream: True)
    monkeypatch.setenv("COLUMNS", "60")
    TABLE.show()
    shown = capsys.readouterr().out
    assert shown.split("\n\n")[1] == "ENGINE  beta\nPOOL    one\nMODELS  b\n"
    assert shown.startswith(
        "ENGINE  alpha\nPOOL    one\nMODELS  a-model-with-a-long-name, a-model-with-a-long-name, "
    )
    monkeypatch.setenv("COLUMNS", "160")
    TABLE.show()
    assert re.match(r" *Engine +Pool +Models", capsys.readouterr().out)


@pytest.mark.parametrize("behind", ["", "/", "/v1", "/v1/", "/api", "/v1/chat/completions", "/v1/models"])
def test_the_url_that_clients_get_is_the_routers(behind: str) -> None:
    given = Namespace(url=f"http://box:3{behind}", api_key="k", config=None)
    assert locate(given, {}).url == "http://box:3"


def test_a_router_behind_another_path_keeps_it() -> None:
    assert locate(Namespace(url="http://box/llm/", api_key="k", config=None), {}).url == "http://box/llm"


def test_paths_without_v1_are_known() -> None:
    for path in (
        "/chat/completions",
        "/messages",
        "/messages/count_tokens",
        "/responses",
        "/models/x",
        "/audio/speech",
    ):
        assert base_url_hint(path) == f"; it is /v1{path}: the base URL ends in /v1"
    for path in ("/", "/v1/chat/completions", "/chat", "/completions", "/x/chat/completions"):
        assert not base_url_hint(path), path


# How the demonstration names itself.


def test_the_demo_names_a_command_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "bin" / "engine-router"
    there.parent.mkdir()
    there.write_text("#!/bin/sh\n")
    there.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(there)])
    assert own_command() == str(there)
    monkeypatch.setenv("PATH", str(there.parent))
    assert own_command() == ("engine-router" if shutil.which("engine-router") else str(there))
    monkeypatch.setattr(sys, "argv", ["/x/engine_router/__main__.py"])
    assert own_command().endswith(" -m engine_router")


# Benchmarks, from an interpreter that has nothing of the router.


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-E", "-S", str(SCRIPTS / "bench"), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "ENGINE_ROUTER_PYTHON": sys.executable},
    )


@pytest.mark.parametrize(
    "name",
    [
        "swap",
        "relay",
        "start",
        "schedule",
        "context",
        "load",
        "pagecache",
        "scan",
        "paint",
        "soak",
        "faults",
        "mutations",
    ],
)
def test_every_benchmark_starts_from_a_bare_interpreter(name: str) -> None:
    done = bench(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout


def test_the_list_of_benchmarks_is_whole() -> None:
    told = bench("--help")
    assert re.findall(r"^  (\w+) ", told.stdout, re.MULTILINE) == [
        "swap", "relay", "start", "scrape", "schedule", "context", "load", "pagecache", "scan", "paint",
        "soak", "faults", "mutations",
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="measures Linux's page cache")
def test_the_page_cache_is_measured_from_a_bare_interpreter(tmp_path: Path) -> None:
    done = bench("pagecache", "--mib", "1", "--rounds", "1", "--drain", "0.01", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_two_columns_on_a_narrow_terminal_keep_a_line_for_each_row() -> None:
    table = Table(("What", "On this machine"), [("Memory", "25 GB of main memory"), ("GPU", "none")])
    assert table.records() == "Memory  25 GB of main memory\nGPU     none"


# Help pages.

PAGES = {name: command for names, command in build_parser().each_command() for name in names}


@pytest.mark.parametrize("name", PAGES)
def test_a_help_page_is_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = PAGES[name]
    page = command.format_help()
    assert len(command.description or "") > 20
    assert re.search(r"^examples?:\n  \S", page, re.MULTILINE)
    assert re.search(r"^exit codes:\n  0    ok$", page, re.MULTILINE)
    for variable, about in command.variables():
        assert re.search(rf"^  {re.escape(variable)} +{re.escape(about)}$", page, re.MULTILINE)
    prose = page.partition("\nexamples:")[0].partition("\nexample:")[0]
    assert max(map(len, prose.splitlines())) <= 80, prose
    without_help = [action.dest for action in command._actions if not action.help]
    assert not without_help
    if "--config" in page:
        assert "ENGINE_ROUTER_CONFIG" in page.partition("environment:")[2]


@pytest.mark.parametrize("name", PAGES)
def test_the_examples_of_a_help_page_can_be_typed(name: str) -> None:
    page = PAGES[name].format_help()
    lines = re.findall(r"^  (.*)$", re.split("^examples?:\n", page, flags=re.MULTILINE)[1], re.MULTILINE)
    own = [line for line in lines if re.search(r"engine-router \S", line)]
    assert own
    for line in own:
        command = line.partition("engine-router ")[2].partition("#")[0].partition("|")[0].rstrip()
        words = shlex.split(re.split(r" [<>] |\)", command)[0])
        assert build_parser().parse_args(words).module


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help", "ps"], ["residents", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(words)
        assert capsys.readouterr().out.startswith("usage: engine-router residents ")
    assert main(["help"]) == 0
    assert "commands:" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["help", "statsu"])
    assert "did you mean status?" in capsys.readouterr().err


@pytest.mark.parametrize(("alias", "name"), [("ps", "residents"), ("list", "models"), ("ls", "models")])
def test_an_alias_is_the_same_command(alias: str, name: str) -> None:
    assert vars(build_parser().parse_args([alias])) == vars(build_parser().parse_args([name]))


@pytest.mark.real
@pytest.mark.skipif(sys.platform != "linux", reason="files cannot be dropped from the page cache elsewhere")
def test_the_benchmark_of_loads_starts_real_servers_with_and_without_the_router(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    ways = "no mmap", "mmap, read ahead in 4 streams", "mmap, by the router with read_ahead"
    words = [word for way in ways for word in ("--way", way)]
    size = ("--layers", "1", "--width", "64", "--threads", "1", "--rounds", "1", "--folder", str(tmp_path))
    done = bench("load", *size, *words)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and line.count(" s (") == 4]
    assert {row.split(" | ")[0].removeprefix("| ") for row in rows} == set(ways)
