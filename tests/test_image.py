"""The image's command under the options of the compose files, in containers of a real Podman, with this machine's Python."""

from __future__ import annotations

import json
import os
import re
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import yaml
from support.podman import FOLDERS, IMAGE, PYTHON, NoPodman, Podman, as_toml, small_engine
from support.ports import free_port
from support.user_manager import until

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "scripts/deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
# The user's number in the Dockerfile.
UID = 10001
MEMORY_BYTES = 512 * 1024 * 1024
NAME = "engine-router"
KEY = {"x-api-key": "the-key"}
SERVER = '[server]\napi_keys = ["the-key"]\n'
NO_PROGRAM = """
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make the folders of the configuration and of the data; the user of the image may reach them."""
    for name in ("config", "data"):
        (tmp_path / name).mkdir()
    os.chown(tmp_path / "data", UID, UID)
    for each in (tmp_path, *tmp_path.parents):
        if not each.stat().st_mode & 0o001:
            each.chmod(each.stat().st_mode | 0o011)
    return tmp_path


def service(path: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load((DEPLOY / path).read_text())["services"]["engine-router"]
    return found


def environment() -> dict[str, str]:
    """Return the variables that the Dockerfile sets."""
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    pairs = (word.partition("=")[::2] for word in block.replace("\\\n", " ").split())
    return {name: value for name, value in pairs if name != "PATH"}


def as_words(given: Mapping[str, Any], places: Mapping[str, str], port: int) -> list[str]:
    """Return the options of a service as those of `podman run`, with folders and a port of the test's own.

    Args:
        places: what is mounted in place of what the file names.
    """
    assert f"--uid {UID} " in DOCKERFILE
    words = [f"--user={UID}:{UID}"]
    for published in given.get("ports", ()):
        address, _, inside = published.split(":")
        words.append(f"--publish={address}:{port}:{inside}")
    for volume in given["volumes"]:
        # A variable with its default has a colon, too.
        source, target = re.fullmatch(r"(\$\{.+?\}|[^:]+):(.+)", volume).groups()  # type: ignore[union-attr]
        words.append(f"--volume={places[source]}:{target}")
    words += [f"--security-opt={option}" for option in given["security_opt"]]
    words += [f"--cap-drop={name}" for name in given["cap_drop"]]
    words += [f"--tmpfs={place}" for place in given["tmpfs"]]
    words += ["--read-only"] if given["read_only"] else []
    words += [f"--network={given['network_mode']}"] if "network_mode" in given else []
    return [*words, *(f"--env={name}={value}" for name, value in environment().items())]


def command(given: Mapping[str, Any]) -> list[str]:
    (said,) = re.findall(r"^CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    return [PYTHON, "-m", "engine_router", *(given.get("command") or json.loads(said))]


def run(podman: Podman, *words: str) -> None:
    """Run the router in a container; skip the test where such a one cannot be made here."""
    program = [f"--volume={place}:{place}:ro" for place in FOLDERS]
    program += [f"--volume={ROOT}/engine_router:/app/engine_router:ro"]
    program += [f"--volume={sysconfig.get_path('purelib')}:/site:ro"]
    program += ["--env=PYTHONPATH=/app:/site", "--env=PYTHONDONTWRITEBYTECODE=1"]
    try:
        podman.run("run", "--detach", "--pull=never", f"--name={NAME}", *program, *words)
    except NoPodman as error:
        if CANNOT.search(str(error)):
            pytest.skip(str(error))
        raise


def write(folder: Path, text: str) -> None:
    (folder / "config/engines.toml").write_text(text)
    (folder / "config/engines.toml").chmod(0o644)


def is_healthy(url: str) -> bool:
    return httpx.get(f"{url}/health").status_code == 200


def metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", headers=KEY).text


def ask(url: str) -> httpx.Response:
    chat = {"model": "m", "messages": []}
    return httpx.post(f"{url}/v1/chat/completions", json=chat, headers=KEY, timeout=120)


def test_it_serves_as_compose_runs_it(podman: Podman, folder: Path) -> None:
    write(folder, SERVER + NO_PROGRAM)
    given, port = service("compose.yml"), free_port()
    places = {"./config": f"{folder}/config", "data": f"{folder}/data"}
    run(podman, f"--memory={MEMORY_BYTES}", *as_words(given, places, port), IMAGE, *command(given))
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
    assert "no-such-program" in ask(url).text
    # As process 1 it ends when it is asked to, and what it remembers lies in /data.
    podman.run("stop", "--time=60", NAME)
    assert podman.run("inspect", "--format={{.State.ExitCode}}", NAME).strip() == "0"
    assert (folder / "data/state/engine-router/history.db").stat().st_uid == UID


def test_it_starts_engines_in_containers_beside_it(podman: Podman, folder: Path) -> None:
    podman.start_service()
    podman.socket.chmod(0o660)  # to the group that the file names
    podman.folder.chmod(0o711)
    port = free_port()
    engine = {"type": "container", "models": ("m",), **small_engine(podman.socket, "stop=0")}
    engine["socket"] = "/var/run/docker.sock"
    write(folder, f"{SERVER}port = {port}\n[pools.default]\ngauge = 'none'\n{as_toml({'a': engine})}")
    given = service("containers/compose.yml")
    places = {"./config": f"{folder}/config", "data": f"{folder}/data"}
    places["${SOCKET:-/var/run/docker.sock}"] = str(podman.socket)
    group = podman.socket.stat().st_gid
    words = [*as_words(given, places, port), f"--group-add={group}", IMAGE, *command(given)]
    run(podman, *words)
    url = f"http://127.0.0.1:{port}"
    assert until(lambda: is_healthy(url)), podman.run("logs", NAME)
    answer = ask(url)
    assert answer.status_code == 200, answer.text
    (first,) = [name for name in podman.containers() if name != NAME]
    # A crash of the whole container leaves the engine behind, of which the next one rids the machine.
    podman.run("kill", "--signal=KILL", NAME)
    podman.run("wait", NAME)
    podman.run("start", NAME)
    assert until(lambda: is_healthy(url)), podman.run("logs", NAME)
    assert until(lambda: first not in podman.containers())
    assert ask(url).status_code == 200
    podman.run("stop", "--time=60", NAME)
    assert podman.run("inspect", "--format={{.State.ExitCode}}", NAME).strip() == "0"
    assert podman.containers() == [NAME]
