"""`engine-router service --system`: a real systemd as process 1, which is killed at, rebooted and left clean."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import evolve
from support.system_manager import SystemManager, system_manager
from support.user_manager import until

from engine_router.cli import main
from engine_router.cli.exit_codes import CommandFailed
from engine_router.cli.service import _refuse_closed
from engine_router.config import parse_config
from engine_router.setup.service.managers import manager_for
from engine_router.setup.service.settings import settings_of
from engine_router.setup.service.steps import RunCommand

ENGINE = Path(__file__).parent / "programs" / "small_engine.py"
CLIENTS = Path(__file__).parent / "programs" / "waiting_clients.py"
CONFIG = "/etc/engine-router/engines.toml"
KEY = "a-key-of-the-service"
TEXT = f"""
    [server]
    api_keys = ["{KEY}"]
    [pools.default]
    gauge = "none"
    [engines.a]
    type = "process"
    argv = [{json.dumps(sys.executable)}, {json.dumps(str(ENGINE))}, "port={{port}}"]
    models = ["m"]
    [engines.slow]
    type = "process"
    argv = [{json.dumps(sys.executable)}, {json.dumps(str(ENGINE))}, "port={{port}}", "loading=100000"]
    models = ["slow"]
    start_timeout_s = 100000
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[SystemManager]:
    """Boot a systemd, with a configuration that only root may read."""
    with system_manager(tmp_path) as booted:
        # On this machine the interpreter may lie where only its owner goes.
        for folder in (*Path(sys.executable).resolve().parents, *Path(sys.executable).parents):
            booted.run("chmod", "o+x", str(folder))
        booted.run("mkdir", "-p", str(Path(CONFIG).parent))
        booted.run("tee", CONFIG, given=TEXT)
        booted.run("chmod", "600", CONFIG)
        yield booted


def serves(machine: SystemManager) -> bool:
    return machine.router("status", "--api-key", KEY).returncode == 0


def processes(machine: SystemManager) -> dict[str, str]:
    """Return the processes of the service's user: their commands by their ids."""
    done = machine.run("ps", "-u", "engine-router", "-o", "pid=,args=")
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def test_it_is_back_after_a_kill_and_a_reboot_and_leaves_nothing(machine: SystemManager) -> None:
    before = machine.written()
    done = machine.router("service", "install", "--system")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.property("StatusText") == "serving at http://127.0.0.1:8077"
    assert serves(machine)
    assert machine.router("use", "m", "--api-key", KEY).returncode == 0
    running = processes(machine)
    router = machine.property("MainPID")
    assert "engine_router serve" in running[router]
    (engine,) = [pid for pid, command in running.items() if str(ENGINE) in command]

    machine.run("kill", "-KILL", router)
    assert until(lambda: machine.property("MainPID") not in ("0", router) and serves(machine))
    assert machine.property("NRestarts") == "1"
    assert engine not in processes(machine)

    assert machine.router("use", "m", "--api-key", KEY).returncode == 0
    assert machine.reboot()
    assert until(lambda: serves(machine))
    assert machine.run("test", "-s", "/var/lib/engine-router/state.json").returncode == 0
    assert "stopping" in machine.router("service", "logs", "--system").stdout
    assert machine.run("journalctl", "--quiet", "-t", "engine-router", "-n", "1").stdout

    done = machine.router("service", "uninstall", "--system", "--purge")
    assert (done.returncode, done.stderr) == (0, "")
    assert not processes(machine)
    files = ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")
    accounts = {f"/etc/{name}{old}" for name in files for old in ("", "-")}
    assert machine.written() - before - accounts == set()
    assert "engine-router" not in machine.run("cat", "/etc/passwd", "/etc/group", "/etc/shadow").stdout
    assert machine.run("ls", "/var/lib/engine-router", "/var/cache/engine-router").stdout == ""
    assert machine.run("cat", CONFIG).stdout == TEXT


def test_whoever_waits_is_told_of_a_kill(machine: SystemManager) -> None:
    assert machine.router("service", "install", "--system").returncode == 0
    clients = (sys.executable, "-I", "-S", str(CLIENTS), "127.0.0.1:8077", KEY)
    with ThreadPoolExecutor() as pool:
        # Some ask for a stream, the others for an answer in one piece; the model loads without end.
        waiting = pool.submit(machine.run, *clients, "slow", "6")
        assert until(lambda: machine.router("queue", "--json", "--api-key", KEY).stdout.count('"slow"') >= 6)
        (engine,) = [pid for pid, command in processes(machine).items() if str(ENGINE) in command]
        router = machine.property("MainPID")
        machine.run("kill", "-KILL", router)
        # Nobody holds what the router held: their connections end with it, or these would wait without end.
        assert waiting.result().stdout.splitlines() == ["broken off"] * 6
        assert until(lambda: machine.property("MainPID") not in ("0", router) and serves(machine))
        assert engine not in processes(machine)
        assert machine.run(*clients, "m", "2").stdout.splitlines() == ["answered 200"] * 2


def test_its_user_must_reach_what_it_runs(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    path = closed / "engines.toml"
    settings = settings_of(parse_config(TEXT), path, version="1", python="/bin/sh", user="engine-router")
    with pytest.raises(CommandFailed, match=f"{path} lies in {tmp_path}"):
        _refuse_closed(settings)
    (closed / "python").touch()
    link = tmp_path / "python"
    link.symlink_to(closed / "python")
    led = evolve(settings, command=(str(link),), config=Path("/etc/engines.toml"))
    with pytest.raises(CommandFailed, match="may not enter"):
        _refuse_closed(led)


@pytest.mark.skipif(sys.platform != "linux", reason="--system is for Linux")
def test_a_configuration_with_keys_is_opened_to_the_service_alone(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    path.write_text(TEXT)
    settings = settings_of(parse_config(TEXT), path, version="1", user="engine-router")
    for mode, expected in (
        (0o644, []),
        (0o600, [("chgrp", "engine-router", str(path)), ("chmod", "g+r", str(path))]),
    ):
        path.chmod(mode)
        steps = manager_for(is_system=True, user="engine-router").install(settings)
        run = [step.argv for step in steps if isinstance(step, RunCommand)]
        assert [argv for argv in run if argv[0] in ("chgrp", "chmod")] == expected


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="needs systemctl")
def test_what_a_purge_takes_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "uninstall", "--system", "--purge", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "systemctl clean --what=state --what=cache engine-router.service" in shown
    assert "userdel engine-router" in shown
    assert main(["service", "uninstall", "--system", "--dry-run"]) == 0
    assert "userdel" not in capsys.readouterr().out
    assert main(["service", "uninstall", "--purge"]) == 2
    assert "--purge is for uninstall --system" in capsys.readouterr().err
