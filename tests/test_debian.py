"""From a bare Debian to a router that is back after a reboot, and away again; on a systemd that is process 1.

ENGINE_ROUTER_TEST_DEBIAN names a folder that debootstrap made, with /srv/wheels in it: `nox -s debian` makes both.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen
from support.system_manager import ROOT, SystemManager, system_manager
from support.user_manager import until

FOLDER = os.environ.get("ENGINE_ROUTER_TEST_DEBIAN")
INSTALLER = (ROOT / "scripts" / "install.sh").read_text()
OFFLINE = "env PIP_NO_INDEX=1 PIP_FIND_LINKS=/srv/wheels"
CONFIG = f"""\
# Mine.
[pools.default]
gauge = "none"
[engines.a]
type = "process"
argv = ["python3", "{ROOT}/tests/programs/small_engine.py", "port={{port}}"]
models = ["m"]
"""
pytestmark = [
    pytest.mark.skipif(FOLDER is None, reason="nox -s debian runs it"),
    pytest.mark.timeout(900),
]


@frozen
class Ada:
    """A person with a home on that machine."""

    machine: SystemManager

    def run(self, command: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a line in a shell that has just logged in."""
        return self.machine.run("runuser", "-l", "ada", "-c", command, given=given)

    def said(self, command: str, given: str | None = None) -> str:
        """Run a line that has to work, and return what it printed."""
        done = self.run(command, given)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def ada(tmp_path: Path) -> Iterator[Ada]:
    with system_manager(tmp_path, Path(FOLDER or "/")) as booted:
        assert booted.run("useradd", "--create-home", "--shell", "/bin/bash", "ada").returncode == 0
        yield Ada(booted)


def test_from_a_bare_debian_to_a_service_and_back(ada: Ada) -> None:
    machine = ada.machine
    before = machine.written()
    wheel = ada.said("ls /srv/wheels/engine_router-*.whl").strip()
    shown = ada.said(f"{OFFLINE} sh -s -- --from {wheel}", given=INSTALLER)  # as from curl
    assert "Next: engine-router init" in shown
    ada.said("mkdir -p .config/engine-router && cat >.config/engine-router/engines.toml", given=CONFIG)
    # A new shell finds the command.
    assert "is fine: 1 engine" in ada.said("engine-router check")
    assert "runs, and starts by itself from now on" in ada.said("engine-router service install")
    assert "m (engine a) is resident" in ada.said("engine-router use m")

    assert machine.reboot()
    # Nobody has logged in.
    assert until(lambda: machine.run("pgrep", "-u", "ada", "-f", "engine_router serve").returncode == 0)
    assert until(lambda: ada.run("engine-router status").returncode == 0)
    assert "active (running)" in ada.said("engine-router service status")
    assert "m (engine a) is resident" in ada.said("engine-router use m")
    assert "small_engine" in ada.said("ps -u ada -o args=")

    assert "loginctl disable-linger" in ada.said("engine-router service uninstall")
    assert "engine" not in ada.said("ps -u ada -o args=")
    shown = ada.said("sh -s -- --uninstall --purge", given=INSTALLER)
    assert "What is yours stays: engines.toml and models." in shown
    assert machine.written() - before == {"/home/ada/.config/engine-router/engines.toml"}
    assert ada.said("cat .config/engine-router/engines.toml") == CONFIG
    assert ada.said("find -type l") == ""
    assert ada.run("engine-router --version").returncode == 127


def test_uninstalling_takes_a_running_service_along_and_keeps_what_was_learned(ada: Ada) -> None:
    wheel = ada.said("ls /srv/wheels/engine_router-*.whl").strip()
    ada.said("mkdir -p .config/engine-router && cat >.config/engine-router/engines.toml", given=CONFIG)
    assert "Your configuration is as it was" in ada.said(
        f"{OFFLINE} sh -s -- --from {wheel}", given=INSTALLER
    )
    ada.said("engine-router service install && engine-router use m")
    ada.said("sh -s -- --uninstall", given=INSTALLER)
    assert "engine" not in ada.said("ps -u ada -o args=")
    assert ada.said("find .config/systemd -type f") == ""
    assert "state.json" in ada.said("ls .local/state/engine-router")


def test_a_service_of_the_machine_goes_with_its_program(ada: Ada) -> None:
    machine = ada.machine
    before = machine.written()
    wheel = ada.said("ls /srv/wheels/engine_router-*.whl").strip()
    places = "env ENGINE_ROUTER_HOME=/opt/engine-router ENGINE_ROUTER_BIN=/usr/local/bin"

    def root(command: str, given: str | None = None) -> str:
        done = machine.run("runuser", "-l", "root", "-c", command, given=given)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    root(f"{OFFLINE} {places} sh -s -- --from {wheel}", given=INSTALLER)
    root("mkdir -p /etc/engine-router && cat >/etc/engine-router/engines.toml", given=CONFIG)
    assert "runs, and starts by itself" in root("engine-router service install --system")
    assert "m (engine a) is resident" in ada.said("engine-router use m")
    # Who may not end the service may not take its program away, either.
    refused = ada.run(f"{places} sh -s -- --uninstall", given=INSTALLER)
    assert refused.returncode == 1
    assert "sudo /usr/local/bin/engine-router service uninstall --system" in refused.stderr
    assert "m (engine a) was resident already" in ada.said("engine-router use m")

    root(f"{places} sh -s -- --uninstall --purge", given=INSTALLER)
    assert machine.run("pgrep", "-f", "engine_router|small_engine").returncode == 1
    accounts = {
        f"/etc/{name}{old}"
        for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")
        for old in ("", "-")
    }
    assert machine.written() - before - accounts == {"/etc/engine-router/engines.toml"}
