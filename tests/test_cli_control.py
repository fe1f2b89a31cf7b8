"""The commands that see and steer what is resident, against a router in a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli import SOON_S, Served, command, run, serving, until, write_config

from engine_router.cli import main
from engine_router.cli.event_text import EventLog
from engine_router.cli.events import _line
from engine_router.cli.parser import build_parser

COMMANDS = {
    "queue": [],
    "requests": [],
    "residents": [],
    "failed": [],
    "load": ["red"],
    "reset": ["red"],
    "pin": ["red"],
    "unpin": ["red"],
    "cancel": ["r1"],
    "events": [],
}


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(write_config(tmp_path_factory.mktemp("router"))) as served:
        yield served


@pytest.fixture
def told(router: Served) -> Any:
    """Run a command and return what it printed; `--json` gives it parsed."""

    def tell(*arguments: str, code: int = 0) -> Any:
        done = run(*arguments, "--url", router.url)
        assert done.returncode == code, done.stderr
        if code:
            return done.stderr
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    return tell


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_and_is_found(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert re.search(rf"examples?:\n  engine-router {name}", capsys.readouterr().out)
    options = build_parser().parse_args([name, *COMMANDS[name], "--json", "--url", "http://127.0.0.1:1"])
    assert options.command == name
    assert main([name, *COMMANDS[name], "--url", "http://127.0.0.1:1"]) == 3
    assert "no router answers at http://127.0.0.1:1" in capsys.readouterr().err


def test_load_and_unload(told: Any) -> None:
    told("unload", "--all")
    assert told("residents") == "nothing is resident\n"
    assert re.fullmatch(r"scarlet \(engine alpha\) is resident after .+ s\n", told("load", "scarlet"))
    shown = told("residents").splitlines()
    assert shown[0].split()[:3] == ["POOL", "RESIDENT", "STATE"]
    assert shown[1].split()[:3] == ["default", "alpha", "ready"]
    assert told("load", "red", "--keep-alive", "2h") == "red (engine alpha) was resident already\n"
    (entry,) = told("residents", "--json")["residents"]
    assert 7000 < entry["expires_in_s"] <= 7200
    assert re.search(r" 2\.0 h +0 +-$", told("residents").splitlines()[1])
    assert told("unload", "--all") == "unloaded alpha\n"
    assert told("unload", "red", "--json") == {"unloaded": []}


def test_a_load_that_is_not_waited_for(told: Any, router: Served) -> None:
    told("unload")
    shown = told("load", "grey", "--no-wait")
    job = re.fullmatch(r"grey is being loaded \(job (j\d+); engine-router cancel \1 ends it\)\n", shown)
    assert job is not None
    (entry,) = told("queue", "--json")["waiting"]
    assert entry["id"] == job[1]
    assert re.search(rf"{job[1]} +1 +grey +normal .* loading slow", told("queue"))
    assert re.search(rf"{job[1]} +grey +waiting +\S+ ?m?s +- +- +- +- +load\n", told("requests"))
    assert told("cancel", job[1]) == f"ended {job[1]}: load grey\n"
    until(lambda: router.get(f"/admin/jobs/{job[1]}")["state"] == "cancelled")
    assert told("queue") == "no request is waiting\n"
    assert told("requests") == "no request is under way\n"
    assert told("queue", "--json") == {"total": 0, "waiting": []}
    assert f"no request '{job[1]}' waits or runs" in told("cancel", job[1], code=1)
    assert '"keep_alive" must be a duration' in told("load", "red", "--keep-alive", "long", code=1)


def test_a_request_is_ended(told: Any, router: Served) -> None:
    told("load", "red")
    stream = router.stream(words=100, pause=5.0)
    with stream:
        (entry,) = told("residents", "--json")["residents"]
        (request,) = entry["requests"]
        assert told("residents").splitlines()[1].split()[-1] == request["id"]
        assert told("cancel", request["id"]) == f"ended {request['id']}: /v1/chat/completions red\n"
        data = b""
        while b"was ended by the person" not in data:
            piece = stream.recv(65536)
            assert piece, data
            data += piece


def test_what_failed_is_shown_and_forgotten(told: Any) -> None:
    assert told("failed") == "nothing has failed\n"
    assert "no weights" in told("load", "lost", code=1)
    shown = told("failed")
    assert re.match(r"lost: failed 1 time, tried again in .+ s\n  engine 'broken' exited with code 1", shown)
    assert [entry["model"] for entry in told("failed", "--json")["failed"]] == ["lost"]
    assert told("reset", "lost") == "lost: 1 failure forgotten; the next request starts it\n"
    assert told("reset", "lost") == "lost had not failed\n"
    assert "not found" in told("reset", "nothing", code=1)


def test_a_pin(told: Any) -> None:
    told("unload", "--all")
    assert told("pin", "red") == ("red is pinned: it stays once it is loaded (engine-router load red)\n")
    told("load", "red")
    assert told("pin", "red") == "red is pinned: it stays until it is unpinned or unloaded\n"
    assert " pinned " in told("residents").splitlines()[1]
    assert "which is pinned" in told("load", "blue", code=1)
    assert told("unpin", "red") == "red is not pinned any more\n"
    assert told("unpin", "red", "--json")["pinned"] is False


@pytest.mark.parametrize("as_json", [False, True])
def test_events_are_shown_as_they_happen(told: Any, router: Served, tmp_path: Path, as_json: bool) -> None:
    told("unload", "--all")
    out = tmp_path / "out.txt"
    arguments = ["events", "--url", router.url, *(["--json"] if as_json else [])]
    with out.open("wb") as stdout, subprocess.Popen(command(*arguments), stdout=stdout) as process:
        if as_json:
            until(lambda: '"event": "status"' in out.read_text())
        else:
            until(lambda: router.get("/status")["uptime_s"] > 0)
        wanted = '"swap_ended"' if as_json else "start alpha"

        def is_shown() -> bool:
            told("load", "red")
            if wanted in out.read_text():
                return True
            told("unload", "--all")
            return False

        until(is_shown)
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON_S) == 130
    lines = out.read_text().splitlines()
    if as_json:
        names = [json.loads(line)["event"] for line in lines]
        assert names[0] == "status"
        assert {"swap_began", "swap_phase", "swap_ended", "resident_ready"} <= set(names)
    else:
        assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)


def test_a_line_for_what_was_lost_and_none_for_what_is_not_known() -> None:
    log = EventLog()
    assert _line(log, {"event": "lost", "count": 1}) == "1 event lost: they came faster than they were read"
    assert _line(log, {"event": "status", "pools": {}}) is None
    assert _line(log, {"event": "newer_than_this"}) is None
    notice = {"event": "router_notice", "at": 0.0, "severity": "warning", "message": "oh", "more": 1}
    line = _line(log, notice)
    assert line is not None
    assert line.endswith(" warning: oh")


def test_all_goes_with_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["unload", "red", "--all"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_reload_says_that_the_old_port_may_still_be_in_use(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    path.write_text('[server]\nport = 1\n[engines.e]\ntype = "ollama"\n', "utf-8")
    done = run("reload", "-c", str(path))
    assert done.returncode == 3
    assert "if they were changed, the router that runs still uses the old ones" in done.stderr
    named = run("reload", "-c", str(path), "--url", "http://127.0.0.1:1")
    assert named.returncode == 3
    assert "old ones" not in named.stderr


def test_one_model_and_the_routers_own_log(told: Any) -> None:
    told("load", "scarlet")
    shown = told("models", "scarlet")
    assert shown.startswith("red: engine alpha, ready")
    assert "command: " in shown
    assert "engine.argv" in shown
    assert re.search(r"\d started after ", shown)
    assert told("models", "red", "--json")["id"] == "red"
    assert "not found" in told("models", "nonsense", code=1)
    assert "start alpha" in told("logs")
    assert "alpha starts: requested" in told("status")
