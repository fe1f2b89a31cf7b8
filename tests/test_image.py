"""The image's command under the options of compose.yml, in a container of a real Podman, with this machine's Python."""

from __future__ import annotations

import json
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
import yaml
from support.podman import FOLDERS, IMAGE, PYTHON, NoPodman, Podman
from support.ports import free_port
from support.user_manager import until

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "scripts/deploy/Dockerfile").read_text()
SERVICE = yaml.safe_load((ROOT / "scripts/deploy/compose.yml").read_text())["services"]["engine-router"]
# The user's number in the Dockerfile.
UID = 10001
MEMORY_BYTES = 512 * 1024 * 1024
NAME = "engine-router"
TEXT = """
    [server]
    api_keys = ["the-key"]
    [engines.a]
    type = "process"
    argv = ["no-such-program", "--port", "{port}"]
    models = ["m"]
"""
# What a Podman without its network's plugins, and a kernel without that controller, say.
CANNOT = re.compile("plugin|netavark|cni|network|cgroup|memory", re.IGNORECASE)


@pytest.fixture
def podman() -> Iterator[Podman]:
    with TemporaryDirectory(prefix="er-", ignore_cleanup_errors=True) as folder:
        found = Podman(Path(folder))
        try:
            found.prepare()
            yield found
        except NoPodman as error:
            pytest.skip(str(error))
        finally:
            found.close()


def environment() -> dict[str, str]:
    """Return the variables that the Dockerfile sets."""
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    pairs = (word.partition("=")[::2] for word in block.replace("\\\n", " ").split())
    return {name: value for name, value in pairs if name != "PATH"}


def options(folder: Path, port: int) -> list[str]:
    """Return the options of compose.yml as those of `podman run`, with folders and a port of the test's own."""
    assert f"--uid {UID} " in DOCKERFILE
    (published,) = SERVICE["ports"]
    address, _, inside = published.split(":")
    places = dict(volume.split(":", 1) for volume in SERVICE["volumes"])
    assert set(places) == {"./config", "data"}
    words = [f"--publish={address}:{port}:{inside}", f"--user={UID}:{UID}"]
    words += [f"--volume={folder}/config:{places['./config']}", f"--volume={folder}/data:{places['data']}"]
    words += [f"--security-opt={option}" for option in SERVICE["security_opt"]]
    words += [f"--cap-drop={name}" for name in SERVICE["cap_drop"]]
    words += [f"--tmpfs={place}" for place in SERVICE["tmpfs"]]
    words += ["--read-only"] if SERVICE["read_only"] else []
    return [*words, *(f"--env={name}={value}" for name, value in environment().items())]


def command() -> list[str]:
    (said,) = re.findall(r"^CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    return [PYTHON, "-m", "engine_router", *json.loads(said)]


def is_healthy(url: str) -> bool:
    return httpx.get(f"{url}/health").status_code == 200


def metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", headers={"x-api-key": "the-key"}).text


def test_it_serves_as_compose_runs_it(podman: Podman, tmp_path: Path) -> None:
    config, data = tmp_path / "config", tmp_path / "data"
    config.mkdir()
    data.mkdir()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder != Path("/") and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    (config / "engines.toml").write_text(TEXT)
    (config / "engines.toml").chmod(0o644)
    os.chown(data, UID, UID)
    port = free_port()
    site = sysconfig.get_path("purelib")
    program = [f"--volume={folder}:{folder}:ro" for folder in FOLDERS]
    program += [f"--volume={ROOT}/engine_router:/app/engine_router:ro", f"--volume={site}:/site:ro"]
    program += ["--env=PYTHONPATH=/app:/site", "--env=PYTHONDONTWRITEBYTECODE=1"]
    try:
        podman.run(
            *("run", "--detach", "--pull=never", f"--name={NAME}", f"--memory={MEMORY_BYTES}"),
            *options(tmp_path, port),
            *program,
            IMAGE,
            *command(),
        )
    except NoPodman as error:
        if CANNOT.search(str(error)):
            pytest.skip(str(error))
        raise
    url = f"http://127.0.0.1:{port}"
    assert until(lambda: is_healthy(url)), podman.run("logs", NAME)
    # The check of the image, inside.
    (check,) = re.findall(r"^    CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    podman.run("exec", NAME, PYTHON, *json.loads(check)[1:])
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert until(lambda: "memory_total_bytes{" in metrics(url))
    assert f'engine_router_memory_total_bytes{{pool="default"}} {float(MEMORY_BYTES)}\n' in metrics(url)
    status = podman.run("exec", NAME, PYTHON, "-c", "print(open('/proc/1/status').read())")
    assert re.findall(r"^(?:CapEff|NoNewPrivs):\s+(\S+)", status, re.MULTILINE) == ["0" * 16, "1"]
    chat = {"model": "m", "messages": []}
    answer = httpx.post(f"{url}/v1/chat/completions", json=chat, headers={"x-api-key": "the-key"})
    assert "no-such-program" in answer.text
    # As process 1 it ends when it is asked to, and what it remembers lies in /data.
    podman.run("stop", "--time=60", NAME)
    assert podman.run("inspect", "--format={{.State.ExitCode}}", NAME).strip() == "0"
    assert (data / "state/engine-router/history.db").stat().st_uid == UID
