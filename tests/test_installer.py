"""`scripts/install.sh`, run for real in an empty home. It fetches packages, so a nox session of its own runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "install.sh"
fetches = pytest.mark.skipif(
    "ENGINE_ROUTER_TEST_INSTALLER" not in os.environ, reason="nox -s installer runs it"
)
posix = pytest.mark.skipif(os.name != "posix", reason="a script for a shell")
pytestmark = posix


def run(home: Path, *arguments: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
    kept = ("PATH", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    return subprocess.run(
        ["sh", "-s", "--", *arguments],
        input=SCRIPT.read_text() if script is None else script,  # as from curl
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
        cwd=home,
        env={**environment, "HOME": str(home)},
    )


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "--dry-run", "--from", str(ROOT), "--extras", "llamacpp")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{ROOT}[llamacpp]" in done.stdout
    assert (
        f"would run: ln -sfn {tmp_path}/.local/share/engine-router/environment/bin/engine-router"
        in done.stdout
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nope"], "--nope is no option"),
        (["--version"], "--version needs a value"),
        (["--purge"], "--purge is for --uninstall"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 1
    assert words in done.stderr


def test_half_a_script_does_nothing(tmp_path: Path) -> None:
    text = SCRIPT.read_text()
    for share in (0.3, 0.6, 0.9, 0.99):
        run(tmp_path, "--from", str(ROOT), script=text[: int(len(text) * share)])
    assert list(tmp_path.iterdir()) == []


def test_a_python_without_what_it_needs_is_told(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "uname", "mkdir", "cat", "printf"):
        (tools / name).symlink_to(
            next(p for p in (Path("/usr/bin") / name, Path("/bin") / name) if p.exists())
        )
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [tools / "sh", SCRIPT],
        check=False,
        capture_output=True,
        text=True,
        env={"HOME": str(home), "PATH": str(tools)},
    )
    assert done.returncode == 1
    assert "no Python of version 3.10 or later was found" in done.stderr


@fetches
@pytest.mark.timeout(900)
def test_from_nothing_to_a_command_and_back(tmp_path: Path) -> None:
    done = run(tmp_path, "--from", str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "Next: engine-router init" in done.stdout
    assert "Add it to your PATH" in done.stdout
    command = tmp_path / ".local/bin/engine-router"
    said = subprocess.run([command, "--version"], check=True, capture_output=True, text=True)
    assert said.stdout.startswith("engine-router ")
    config = tmp_path / ".config/engine-router/engines.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[engines.a]\ntype = "http"\nbase_url = "http://127.0.0.1:9"\nmodels = ["m"]\n')
    done = run(tmp_path, "--from", str(ROOT))  # an upgrade
    assert done.returncode == 0, done.stderr
    done = run(tmp_path, "--uninstall")
    assert (done.returncode, done.stderr) == (0, "")
    assert not command.is_symlink()
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "engine-router" in path.parts]
    assert left == [config]
