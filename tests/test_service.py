"""`engine-router service`: what it writes and runs on each platform, and a real systemd that runs it."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import psutil
import pytest
import trio
from attrs import evolve
from support.ports import free_port
from support.user_manager import UserManager, until, user_manager
from trio.testing import MockClock

from engine_router.cli import main
from engine_router.cli.service_notify import ServiceNotifier, take_notifier
from engine_router.config import parse_config
from engine_router.setup.service.launchd import LaunchdManager
from engine_router.setup.service.managers import NoServiceManager, manager_for
from engine_router.setup.service.settings import ServiceSettings, captured, settings_of
from engine_router.setup.service.steps import (
    RemoveFile,
    RunCommand,
    StepFailed,
    WriteFile,
    carry_out,
    is_edited,
    marked,
)
from engine_router.setup.service.systemd import SystemdManager
from engine_router.setup.service.task_scheduler import TaskSchedulerManager

ENGINE = Path(__file__).parent / "programs" / "small_engine.py"
SETTINGS = ServiceSettings(
    command=(
        "/opt/my python/bin/python",
        "-m",
        "engine_router",
        "serve",
        "--config",
        "/home/me/a$b 100%.toml",
    ),
    config=Path("/home/me/a$b 100%.toml"),
    environment={"PATH": '/opt/a "quoted" folder:/usr/bin', "CUDA_HOME": "/usr/local/cuda"},
    stop_timeout_s=55.0,
    needs_sudo=False,
    version="1.2.3",
)
LIMIT_S = 120.0


def test_what_the_shell_had_is_captured_but_no_secret() -> None:
    environ = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_TOKEN": "hf_x",
        "VLLM_API_KEY": "s",
        "HOME": "/home/me",
        "LD_LIBRARY_PATH": "",
        "LANG": "de\nFoo=1",
        "HF_HOME": "/models",
    }
    assert captured(environ) == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "HF_HOME": "/models"}


def test_settings_come_from_the_configuration(tmp_path: Path) -> None:
    config = parse_config("""
        [server]
        shutdown_timeout_s = 20
        [engines.a]
        type = "systemd"
        unit = "vllm.service"
        scope = "system"
        prefix = ["sudo", "-n"]
        base_url = "http://127.0.0.1:1"
        stop_timeout_s = 90
        models = ["m"]
    """)
    settings = settings_of(config, tmp_path / "engines.toml", version="1", environ={}, python="/py")
    assert settings.command == (
        "/py",
        "-m",
        "engine_router",
        "serve",
        "--config",
        str(tmp_path / "engines.toml"),
    )
    assert settings.stop_timeout_s >= 20 + 90
    assert settings.needs_sudo


# What is written.


def test_an_edit_is_seen() -> None:
    text = marked("# {mark}\n[Service]\nA=1\n", "1.0")
    assert not is_edited(text)
    assert is_edited(text.replace("A=1", "A=2"))
    assert is_edited("[Service]\n")
    xml = marked("<!-- {mark} -->\n<a/>\n", "1.0")
    assert not is_edited(xml)


@pytest.mark.parametrize("is_system", [False, True])
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path, *, is_system: bool) -> None:
    unit = tmp_path / "engine-router.service"
    settings = evolve(
        SETTINGS, command=(sys.executable, *SETTINGS.command[1:]), user="nobody" if is_system else None
    )
    unit.write_text(SystemdManager(folder=tmp_path, is_system=is_system).file_text(settings))
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            "--recursive-errors=no",
            "--system" if is_system else "--user",
            unit,
        ],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "warning"},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_sudo_needs_its_setuid_bit() -> None:
    manager = SystemdManager(folder=Path("/x"))
    assert "NoNewPrivileges=yes" in manager.file_text(SETTINGS)
    text = manager.file_text(evolve(SETTINGS, needs_sudo=True))
    assert "NoNewPrivileges=no" in text
    assert "RestrictSUIDSGID=no" in text


def test_launchd_reads_the_agent_back() -> None:
    text = LaunchdManager(home=Path("/Users/me"), uid=501).file_text(SETTINGS)
    read = plistlib.loads(text.encode())
    assert read["ProgramArguments"] == list(SETTINGS.command)
    assert read["EnvironmentVariables"] == SETTINGS.environment
    assert (read["ExitTimeOut"], read["KeepAlive"]) == (55, {"SuccessfulExit": False})
    assert not is_edited(text)


def test_windows_task_is_sound_xml() -> None:
    manager = TaskSchedulerManager(folder=Path("/state"), user="HOME&CO\\me")
    root = ET.fromstring(manager.file_text(SETTINGS))
    names = {"t": "http://schemas.microsoft.com/windows/2004/02/mit/task"}
    assert root.findtext(".//t:LogonTrigger/t:UserId", namespaces=names) == "HOME&CO\\me"
    arguments = root.findtext(".//t:Arguments", namespaces=names)
    assert arguments is not None
    assert '"/opt/my python/bin/python" -m engine_router serve --config' in arguments


# What is run.


def commands(steps: Sequence[object]) -> list[str]:
    return [" ".join(step.argv) for step in steps if isinstance(step, RunCommand)]


def test_the_steps_of_each_platform() -> None:
    user = SystemdManager(folder=Path("/u"), linger_user="me")
    assert commands(user.install(SETTINGS)) == [
        "systemctl --user daemon-reload",
        "systemctl --user enable engine-router.service",
        "systemctl --user restart engine-router.service",
        "loginctl enable-linger me",
    ]
    system = SystemdManager(folder=Path("/s"), is_system=True, creates_user=True)
    assert commands(system.install(evolve(SETTINGS, user="engine-router")))[0].startswith("useradd --system ")
    assert commands(system.uninstall())[0] == "systemctl disable --now engine-router.service"
    agent = LaunchdManager(home=Path("/h"), uid=501)
    plist = "/h/Library/LaunchAgents/local.engine-router.plist"
    assert commands(agent.install(SETTINGS))[-1] == f"launchctl bootstrap gui/501 {plist}"
    assert RemoveFile(Path(plist)) in agent.uninstall()
    task = TaskSchedulerManager(folder=Path("/t"), user="me")
    assert (
        commands(task.install(SETTINGS))[0]
        == "schtasks /Create /TN engine-router /XML /t/engine-router-task.xml /F"
    )
    assert commands(task.act("stop")) == ["schtasks /End /TN engine-router"]
    with pytest.raises(NoServiceManager, match="--system is for Linux"):
        manager_for(is_system=True, platform="darwin")
    with pytest.raises(NoServiceManager, match="freebsd"):
        manager_for(is_system=False, platform="freebsd")


def test_steps_keep_what_was_edited_and_stop_at_a_failure(tmp_path: Path) -> None:
    said: list[str] = []
    ran: list[Sequence[str]] = []

    def run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        ran.append(argv)
        return subprocess.CompletedProcess(argv, 1 if "bad" in argv else 0, "", "it is\nbroken")

    unit = tmp_path / "deep" / "unit"
    one, two = (marked(f"# {{mark}}\n{word}\n", "1") for word in ("one", "two"))
    carry_out([WriteFile(unit, one), RunCommand(("good",))], tell=said.append, run=run)
    carry_out([WriteFile(unit, two)], tell=said.append, run=run)
    assert (unit.read_text(), said) == (two, [])
    unit.write_text(f"{two}mine\n")
    carry_out([WriteFile(unit, one)], tell=said.append, run=run)
    assert unit.read_text() == f"{two}mine\n"
    assert said == [f"{unit} was edited, and stays as it is; --force replaces it"]
    carry_out([WriteFile(unit, one)], tell=said.append, force=True, run=run)
    assert (unit.read_text(), (unit.parent / "unit.bak").read_text()) == (one, f"{two}mine\n")
    with pytest.raises(StepFailed, match="bad: it is broken"):
        carry_out([RunCommand(("bad",)), RunCommand(("never",))], tell=said.append, run=run)
    carry_out(
        [RunCommand(("bad",), may_fail=True), RemoveFile(unit), RemoveFile(unit)], tell=said.append, run=run
    )
    assert not unit.exists()
    assert ("never",) not in ran


# What systemd is told.


def test_only_the_process_that_is_meant_gives_signs_of_life() -> None:
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "42", "A": "1"}
    assert take_notifier(environ, pid=42) == ServiceNotifier("\0x", 20.0)
    assert environ == {"A": "1"}
    assert (
        take_notifier({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "6", "WATCHDOG_PID": "1"}, pid=2).alive_s
        is None
    )
    assert take_notifier({"NOTIFY_SOCKET": "vsock:1", "WATCHDOG_USEC": "6"}) == ServiceNotifier()
    ServiceNotifier("/nowhere").tell("READY=1")


@pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")
async def test_signs_of_life_come_in_time(tmp_path: Path, autojump_clock: MockClock) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "s"))
        notifier = take_notifier({"NOTIFY_SOCKET": str(tmp_path / "s"), "WATCHDOG_USEC": "60000000"})
        with trio.move_on_after(59):
            await notifier.keep_alive()
        assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3


# The command.


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "engines.toml"
    path.write_text(f"""
        state_file = {json.dumps(str(tmp_path / "state.json"))}
        [server]
        port = {free_port()}
        [pools.default]
        gauge = "none"
        [engines.a]
        type = "process"
        argv = [{json.dumps(sys.executable)}, {json.dumps(str(ENGINE))}, "port={{port}}"]
        models = ["m"]
    """)
    return path


def test_steps_are_shown_and_not_taken(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert main(["service", "install", "--dry-run", "--config", str(config)]) == 0
    assert f"write {tmp_path}/xdg/systemd/user/engine-router.service" in capsys.readouterr().out
    assert main(["service", "install", "--print", "--config", str(config)]) == 0
    assert f'"--config" "{config}"' in capsys.readouterr().out
    assert not (tmp_path / "xdg").exists()
    assert main(["service", "start", "--as", "me"]) == 2
    assert "--as is for --system" in capsys.readouterr().err


def test_without_a_service_manager_nothing_is_half_installed(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert main(["service", "install", "--config", str(config)]) == 1
    told = capsys.readouterr().err
    assert "systemctl was not found" in told
    assert "nothing was changed" in told
    assert not (tmp_path / "xdg").exists()
    # What an earlier one left goes all the same.
    unit = tmp_path / "xdg" / "systemd" / "user" / "engine-router.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Unit]")
    assert main(["service", "uninstall"]) == 0
    assert not unit.exists()


# A real systemd.


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[UserManager]:
    """Start a systemd user manager."""
    with user_manager(tmp_path) as started:
        yield started


def test_systemd_runs_the_router_and_starts_it_again(manager: UserManager, config: Path) -> None:
    url = f"http://127.0.0.1:{parse_config(config.read_text()).server.port}"

    done = manager.service("install", "--config", str(config))
    assert (done.returncode, done.stderr) == (0, "")
    # Type=notify: `systemctl restart` came back only when the router had said that it serves.
    assert httpx.get(f"{url}/health").status_code == 200
    assert manager.property("StatusText") == f"serving at {url}"
    assert httpx.post(f"{url}/admin/swap", json={"model": "m"}, timeout=LIMIT_S).status_code == 200
    router = int(manager.property("MainPID"))
    (engine,) = [p for p in psutil.Process(router).children(recursive=True) if str(ENGINE) in p.cmdline()]
    assert "NOTIFY_SOCKET" not in engine.environ()

    os.kill(router, signal.SIGKILL)
    assert until(
        lambda: (
            httpx.get(f"{url}/health").status_code == 200
            and manager.property("MainPID") not in ("0", str(router))
        )
    )
    assert until(lambda: not engine.is_running())  # nothing of the first one is left
    assert manager.property("NRestarts") == "1"

    assert manager.service("install", "--config", str(config)).returncode == 0  # as an upgrade does
    assert manager.run("systemctl", "--user", "reload", "engine-router").returncode == 0
    assert "active (running)" in manager.service("status").stdout
    unit = manager.home / ".config/systemd/user/engine-router.service"
    unit.write_text(unit.read_text().replace("RestartSec=1", "RestartSec=2"))
    assert "was edited, and stays" in manager.service("install", "--config", str(config)).stdout
    assert manager.service("stop").returncode == 0
    assert manager.property("Result") == "success"
    done = manager.service("uninstall")
    assert (done.returncode, done.stderr) == (0, "")
    assert not [path for path in manager.home.rglob("*") if "engine-router" in path.name and path.is_file()]
    assert config.exists()
