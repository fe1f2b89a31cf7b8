"""`engine-router pull` and `rm` as processes: alone, through a router, ended by Ctrl-C, and killed again and again."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gguf_files import gguf_file
from support.hub_server import COMMIT, Fault, HubServer
from test_cli import SOON_S, command, posix, serving, until, write_config

from engine_router.cli.download_progress import _Lines, line_of
from engine_router.cli.parser import build_parser

pty = pytest.importorskip("pty")
REPO = "user/Tiny-GGUF"
NAME = f"hf:{REPO}"
WEIGHTS = random.Random(1).randbytes(700_001)
PROJECTOR = random.Random(2).randbytes(90_000)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    server.add(
        REPO, {"tiny-Q4_K_M.gguf": WEIGHTS, "tiny-Q8_0.gguf": WEIGHTS[::-1], "mmproj-F16.gguf": PROJECTOR}
    )
    with server.running():
        yield server


@pytest.fixture
def environ(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING", "ENGINE_ROUTER_"))
    }
    home = {
        "HF_HOME": str(tmp_path / "hf"),
        "LLAMA_CACHE": str(tmp_path / "llama"),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    return {**kept, **home, "HF_ENDPOINT": hub.url, "ENGINE_ROUTER_CONFIG": str(tmp_path / "none.toml")}


def run(
    environ: dict[str, str], *arguments: str | Path, code: int = 0, **more: Any
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments),
        env=environ,
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=False,
        stdin=subprocess.DEVNULL,
        **more,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def cached(environ: dict[str, str], name: str = "tiny-Q4_K_M.gguf") -> Path:
    return (
        Path(environ["HF_HOME"]) / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT / name
    )


def partial(environ: dict[str, str], data: bytes = WEIGHTS) -> Path:
    return cached(environ).parents[2] / "blobs" / f"{hashlib.sha256(data).hexdigest()}.incomplete"


# Alone.


def test_it_works_without_a_router_and_without_a_configuration(environ: dict[str, str]) -> None:
    done = run(environ, "pull", NAME, "--no-router")
    assert cached(environ).read_bytes() == WEIGHTS
    assert f"{NAME}:Q4_K_M is there: 1 MB, 1 MB fetched" in done.stdout
    assert str(cached(environ)) in done.stdout
    assert f"{cached(environ, 'mmproj-F16.gguf')} (projector)" in done.stdout
    assert f"to serve it as {REPO}:Q4_K_M, have an engine scan its folder" in done.stdout
    told = json.loads(run(environ, "pull", NAME, "--no-router", "--json", "--no-mmproj").stdout)
    assert (told["fetched_bytes"], told["mmproj"], told["name"]) == (0, None, f"{NAME}:Q4_K_M")


def test_a_plain_url_goes_where_it_is_told(hub: HubServer, environ: dict[str, str], tmp_path: Path) -> None:
    url = f"{hub.cdn_url}/user--Tiny-GGUF/tiny-Q8_0.gguf"
    run(environ, "pull", url, "--to", tmp_path / "models")
    assert (tmp_path / "models" / "tiny-Q8_0.gguf").read_bytes() == WEIGHTS[::-1]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["pull", "tiny"], 2, "names no download"),
        (["pull", REPO], 2, f"did you mean hf:{REPO}"),
        (["pull", NAME, "--no-wait", "--no-router"], 2, "there is none"),
        (["pull", f"{NAME}:Q2_K", "--no-router"], 1, "it has Q4_K_M, Q8_0"),
        (["pull", NAME, "--no-router", "--revision", "v9"], 1, "the revision is not there"),
        (["pull", NAME, "--to", "x"], 1, "go into its cache"),
        (["pull", NAME, "--url", "http://127.0.0.1:1"], 3, "no router answers"),
        (["rm", NAME, "--no-router"], 1, "has nothing of"),
        (["rm", "tiny", "--no-router"], 2, "no model 'tiny' is configured or found here"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_remedy(
    environ: dict[str, str], arguments: list[str], code: int, said: str
) -> None:
    assert said in run(environ, *arguments, code=code).stderr


@posix
def test_ctrl_c_leaves_what_was_fetched_for_the_next_time(hub: HubServer, environ: dict[str, str]) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(stall_after=200_000)]
    process = subprocess.Popen(
        command("pull", NAME, "--no-router"),
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: partial(environ).exists() and partial(environ).stat().st_size == 200_000)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=SOON_S)
    assert process.returncode == 130, said
    assert "what was fetched stays, and the same command goes on from there" in said
    assert "Traceback" not in said
    hub.sent.clear()
    run(environ, "pull", NAME, "--no-router", "--no-mmproj")
    assert cached(environ).read_bytes() == WEIGHTS
    assert hub.sent["tiny-Q4_K_M.gguf"] == len(WEIGHTS) - 200_000


@posix
def test_a_terminal_shows_one_line_that_changes(hub: HubServer, environ: dict[str, str]) -> None:
    parent, child = pty.openpty()
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(stall_after=200_000)]
    process = subprocess.Popen(
        command("pull", NAME, "--no-router"),
        env={**environ, "TERM": "xterm", "COLUMNS": "200"},
        stdout=child,
        stderr=child,
        stdin=child,
    )
    os.close(child)
    shown = b""
    while not re.search(rb"tiny-Q4_K_M.gguf \(1 of 2\): 0 MB of 1 MB \(25 %\)", shown):
        shown += os.read(parent, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(SOON_S) == 130
    os.close(parent)


@posix
def test_killed_twenty_times_it_ends_with_the_right_hash_and_has_fetched_next_to_nothing_twice(
    hub: HubServer, environ: dict[str, str]
) -> None:
    ahead, size, kills = 131_072, 96 * 2**20, 20
    data = random.Random(3).randbytes(size)
    hub.repos["user/big"] = {"big-Q4_K_M.gguf": data}
    folder = Path(environ["HF_HOME"]) / "hub" / "models--user--big"
    growing = folder / "blobs" / f"{hashlib.sha256(data).hexdigest()}.incomplete"
    life, limit = [0], [0]

    def there() -> int:
        return growing.stat().st_size if growing.exists() else 0

    def may_send(_: str, at: int) -> None:
        """Let no more be under way than the client is about to write: what is lost with it does not depend on speed."""
        mine = life[0]
        while life[0] == mine and (at > limit[0] or there() < at - ahead) and growing.exists():
            time.sleep(0.0005)
        if life[0] != mine:
            raise BrokenPipeError

    hub.may_send = may_send
    for wanted in (int(size * (kill + random.uniform(0.1, 0.9)) / kills) for kill in range(kills)):
        process = subprocess.Popen(
            command("pull", "hf:user/big", "--no-router"),
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        began, limit[0] = time.monotonic(), wanted + ahead
        assert there() < wanted
        while there() < wanted:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() - began < SOON_S
            time.sleep(0.0005)
        process.kill()
        process.communicate(timeout=SOON_S)
        life[0] += 1
    limit[0] = size
    assert 0 < there() < size
    run(environ, "pull", "hf:user/big", "--no-router")
    whole = folder / "snapshots" / COMMIT / "big-Q4_K_M.gguf"
    assert hashlib.sha256(whole.read_bytes()).hexdigest() == hashlib.sha256(data).hexdigest()
    assert size <= hub.sent["big-Q4_K_M.gguf"] <= 1.05 * size
    assert not growing.exists()


# Through a router.


def test_a_running_router_downloads_and_removes(
    hub: HubServer, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with serving(write_config(tmp_path)) as router:
        done = run(environ, "pull", NAME, "--url", router.url)
        assert "is there: 1 MB, 1 MB fetched" in done.stdout
        assert [job["subject"] for job in router.get("/admin/jobs")["jobs"]] == [NAME]
        done = run(environ, "pull", f"{NAME}:Q8_0", "--url", router.url, "--no-wait")
        assert "is being downloaded (job j2; engine-router cancel j2 ends it)" in done.stdout
        until(lambda: router.get("/admin/jobs/j2")["state"] == "done")
        assert "--yes" in run(environ, "rm", NAME, "--url", router.url, code=2).stderr
        assert "3 files removed" in run(environ, "rm", NAME, "--url", router.url, "--yes").stdout
        assert not cached(environ).exists()
        assert "hf:user/repo" in run(environ, "pull", "nonsense", "--url", router.url, code=2).stderr
        hub.gated.add(REPO)
        assert "accept the terms" in run(environ, "pull", NAME, "--url", router.url, code=1).stderr


@posix
def test_ctrl_c_ends_the_routers_job(
    hub: HubServer, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(stall_after=200_000)]
    with serving(write_config(tmp_path)) as router:
        process = subprocess.Popen(
            command("pull", NAME, "--url", router.url),
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: partial(environ).exists() and partial(environ).stat().st_size == 200_000)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=SOON_S)
        assert (process.returncode, "what was fetched stays" in said) == (130, True), said
        until(lambda: router.get("/admin/jobs/j1")["state"] == "cancelled")


@posix
def test_a_person_is_shown_what_goes_and_asked(environ: dict[str, str]) -> None:
    run(environ, "pull", NAME, "--no-router")
    for answer, code in ((b"\n", 1), (b"y\n", 0)):
        parent, child = pty.openpty()
        process = subprocess.Popen(
            command("rm", NAME, "--no-router"),
            env=environ,
            stdin=child,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.close(child)
        os.write(parent, answer)
        _, said = process.communicate(timeout=SOON_S)
        os.close(parent)
        assert process.returncode == code
        assert b"Remove 2 files, 1 MB? [y/N]" in said
        assert str(cached(environ)).encode() in said
        assert cached(environ).exists() == (code == 1)


def test_a_model_in_a_folder_is_removed_without_a_router(environ: dict[str, str], tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "models" / "Qwen3-1B-Q8_0.gguf")
    config = tmp_path / "engines.toml"
    config.write_text(
        f'state_file = {json.dumps(str(tmp_path / "state.json"))}\n[engines.llama]\ntype = "process"\n'
        f'argv = ["llama-server", "-m", "{{path}}", "--port", "{{port}}"]\nscan = [{json.dumps(str(path.parent))}]\n'
    )
    done = run(environ, "rm", "qwen3-1b", "--no-router", "--yes", "--json", "--config", config)
    assert json.loads(done.stdout)["used_by"] == ["qwen3-1b:q8_0"]
    assert not path.exists()


# Without a process.


@pytest.mark.parametrize("name", ["pull", "rm"])
def test_help_shows_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args([name, "--help"])
    assert f"\n  engine-router {name} hf:" in capsys.readouterr().out


def test_in_a_pipe_each_tenth_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines, progress = _Lines(), {
        "step": "downloading", "note": None, "file": "x.gguf", "files": 1, "files_done": 0, "done_bytes": 0,
        "total_bytes": 10**10, "bytes_per_s": None, "left_s": None,
    }  # fmt: skip
    for done in range(0, 10**10 + 1, 10**8):
        lines.show({**progress, "done_bytes": done})
    for left in range(50, 0, -1):
        lines.show(
            {**progress, "step": "waiting", "note": f"busy; trying again in {left} s", "done_bytes": 10**10}
        )
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 12
    assert said[1] == "x.gguf: 1.0 GB of 10.0 GB (10 %)"
    assert line_of({**progress, "step": "asking"}) == "asking what there is"
