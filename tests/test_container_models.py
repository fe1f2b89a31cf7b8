"""Models of containers: their sleep, what is known of the files that are mounted, and logins for their images."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio
from support.scripted import supervised
from support.scripted.docker import ScriptedDocker

from engine_router import open_router
from engine_router.config import ContainerConfig, SleepConfig, parse_config
from engine_router.config.container import path_outside
from engine_router.engines.base import ResidentId
from engine_router.engines.container.container_engine import ContainerEngine
from engine_router.engines.container.logins import RegistryLogin, login_files, login_for
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.engines.sleep import resident_sleep
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.models.weights import launch_of
from engine_router.setup.doctor import needs_of
from engine_router.upstream.control_client import control_client

pytestmark = pytest.mark.skipif(os.name != "posix", reason="UNIX sockets")

IMAGE = "ghcr.io/ggml-org/llama.cpp:server"
LIMIT_S = 600.0


@asynccontextmanager
async def an_engine(docker: ScriptedDocker, **settings: Any) -> AsyncIterator[ContainerEngine]:
    with TemporaryDirectory(prefix="er-") as folder, trio.fail_after(LIMIT_S):
        path = Path(folder) / "docker.sock"
        options = {"image": IMAGE, "ports": ("{port}:8000",), "socket": str(path), **settings}
        async with docker.at(path), control_client() as client, trio.open_nursery() as nursery:
            registry = SleepRegistry()
            await nursery.start(registry.run)
            yield ContainerEngine("boxed", ContainerConfig(**options), client, sleep_registry=registry)
            await registry.close()
            nursery.cancel_scope.cancel()


# Sleep.


async def test_a_container_sleeps_instead_of_stopping_and_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_sleep, "MIN_WAKE_S", LIMIT_S)
    docker = ScriptedDocker(IMAGE)
    async with an_engine(docker, sleep=SleepConfig(kind="vllm", verify=False)) as engine:
        async with supervised(engine, "m") as resident:
            await resident.ready.wait()
            await resident.stop()
            assert resident.ended is not None
            assert resident.ended.asleep
        (container,) = docker.containers.values()
        assert (container.is_running, container.sleeps, container.signals) == (True, True, [])
        async with supervised(engine, "m") as resident:
            await resident.ready.wait()
            assert not container.sleeps
            assert [*docker.containers.values()] == [container]
            await resident.stop()
        async with supervised(engine, "m") as resident:
            container.end(137)  # while it sleeps
            await resident.ready.wait()
            (other,) = docker.containers.values()
            assert other is not container
            resident.supervision.stop(for_good=True)
            await resident.over.wait()
            assert docker.containers == {}


async def test_a_container_that_sleeps_is_removed_with_its_router() -> None:
    docker = ScriptedDocker(IMAGE)
    async with an_engine(docker, sleep=SleepConfig(kind="vllm", verify=False)) as engine:
        async with supervised(engine, "m") as resident:
            await resident.ready.wait()
            await resident.stop()
        (container,) = docker.containers.values()
        assert container.sleeps
    assert (docker.containers, container.is_running) == ({}, False)


# Files of models.


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("/models/a.gguf", "/srv/models/a.gguf"),
        ("/models/../models/deep/b.gguf", "/srv/models/deep/b.gguf"),
        ("/models/own/c.gguf", "/home/own/c.gguf"),
        ("/m.gguf", "/w/x:y.gguf"),
        ("/modelsother/a.gguf", None),
        ("/cache/a.gguf", None),
        ("models/a.gguf", None),
    ],
)
def test_where_a_file_of_a_container_is_on_this_machine(inside: str, outside: str | None) -> None:
    volumes = ("/srv/models:/models:ro", "/home/own:/models/own/", "{path}:/m.gguf", "cache:/cache")
    engine = ContainerConfig(image=IMAGE, ports=("1:2",), volumes=volumes)
    found = path_outside(engine, inside, {"path": "/w/x:y.gguf"})
    assert found == (None if outside is None else Path(outside))


async def test_the_memory_of_mounted_models_is_estimated(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", context_length=512)
    config = parse_config(
        f"""
        state_file = "/dev/null/state.json"
        [pools.default]
        gauge = "none"
        mode = "budget"
        budget_gb = 4
        [engines.plain]
        type = "process"
        argv = ["llama-server", "-m", "{tmp_path}/tiny.gguf", "--port", "{{port}}"]
        models = ["plain"]
        [engines.boxed]
        type = "container"
        image = "{IMAGE}"
        command = ["-m", "/models/tiny.gguf", "--port", "8080"]
        volumes = ["{tmp_path}:/models:ro"]
        ports = ["{{port}}:8080"]
        models = ["boxed"]
        [engines.template]
        type = "container"
        image = "{IMAGE}"
        command = ["-m", "/model.gguf", "--port", "8080"]
        volumes = ["{{path}}:/model.gguf:ro"]
        ports = ["{{port}}:8080"]
        [models.made]
        engine = "template"
        path = "{tmp_path}/tiny.gguf"
        [engines.elsewhere]
        type = "container"
        image = "{IMAGE}"
        command = ["-m", "/image/tiny.gguf", "--port", "8080"]
        ports = ["{{port}}:8080"]
        models = ["elsewhere"]
        """
    )
    assert launch_of(config, "boxed", "boxed").path == tmp_path / "tiny.gguf"
    assert launch_of(config, "elsewhere", "elsewhere").path is None
    assert needs_of(config)["made"] > 2**28
    with trio.fail_after(LIMIT_S):
        async with open_router(config) as router:
            needs = {
                name: router.read_model.profile(resident).need_bytes
                for name, resident in (
                    ("plain", ResidentId("plain")),
                    ("boxed", ResidentId("boxed")),
                    ("made", ResidentId("template", "made")),
                    ("elsewhere", ResidentId("elsewhere")),
                )
            }
    assert needs["plain"] == needs["boxed"] == needs["made"]
    assert needs["plain"] is not None
    assert needs["plain"] > 2**28
    assert needs["elsewhere"] != needs["plain"]


# Logins at registries.


def encoded(login: str) -> str:
    return base64.b64encode(login.encode()).decode()


def decoded(login: RegistryLogin) -> Any:
    return None if login.header is None else json.loads(base64.urlsafe_b64decode(login.header))


@pytest.mark.parametrize(
    ("image", "auths", "expected"),
    [
        ("vllm/vllm-openai:v1", "https://index.docker.io/v1/", "https://index.docker.io/v1/"),
        ("docker.io/vllm/vllm-openai", "docker.io", "https://index.docker.io/v1/"),
        ("ghcr.io/a/b@sha256:12", "ghcr.io", "ghcr.io"),
        ("localhost:5000/a:1", "http://localhost:5000", "localhost:5000"),
        ("quay.io/org/sub/image:1", "quay.io/org", "quay.io"),  # as Podman keeps it
        ("quay.io/other/image", "quay.io/org", None),
        ("ghcr.io/a", "ghcr.io.example", None),
        ("alpine", "ghcr.io", None),
    ],
)
def test_the_login_for_an_image(image: str, auths: str, expected: str | None, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"auths": {auths: {"auth": encoded("me:pass:word")}}}))
    found = decoded(login_for(image, (tmp_path / "none.json", file)))
    login = {"username": "me", "password": "pass:word", "serveraddress": expected}
    assert found == (None if expected is None else login)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"auths": 7}',
        '{"auths": {"ghcr.io": {"auth": "?"}}}',
        '{"auths": {"ghcr.io": {}}}',
        "[" * 9000,
    ],
)
def test_a_file_without_a_login_is_no_login(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert login_for("ghcr.io/a/b", (tmp_path / "config.json",)) == RegistryLogin()


def test_a_token_is_a_login_and_a_helper_is_named(tmp_path: Path) -> None:
    token, helpers = tmp_path / "token.json", tmp_path / "helpers.json"
    token.write_text(json.dumps({"auths": {"ghcr.io": {"identitytoken": "t"}}}))
    helpers.write_text(
        json.dumps({"credsStore": "desktop", "credHelpers": {"ghcr.io": "gh"}, "auths": {"ghcr.io": {}}})
    )
    assert decoded(login_for("ghcr.io/a", (helpers, token))) == {
        "identitytoken": "t",
        "serveraddress": "ghcr.io",
    }
    assert login_for("ghcr.io/a", (helpers,)) == RegistryLogin(helper="docker-credential-gh")
    assert login_for("quay.io/a", (helpers,)).helper == "docker-credential-desktop"


def test_where_logins_are_kept() -> None:
    environment = {"DOCKER_CONFIG": "/d", "REGISTRY_AUTH_FILE": "/a.json", "XDG_RUNTIME_DIR": "/run/user/1"}
    expected = ["/d/config.json", "/a.json", "/run/user/1/containers/auth.json"]
    assert [str(file) for file in login_files(environment)][:3] == expected


async def test_a_pull_sends_the_login_and_an_error_names_the_helper(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    file.write_text(json.dumps({"auths": {"ghcr.io": {"auth": encoded("me:secret")}}}))
    docker = ScriptedDocker()
    docker.pulling.set()
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        await resident.ready.wait()
        (call,) = docker.called("POST", "/v1.47/images/create")
        assert decoded(RegistryLogin(call.headers["x-registry-auth"]))["password"] == "secret"
        assert "secret" not in "".join(engine.log.tail(1000))
        await resident.stop()
    file.write_text(json.dumps({"credsStore": "desktop"}))
    docker = ScriptedDocker()
    docker.pull_lines = [{"error": "unauthorized"}]
    docker.pulling.set()
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        await resident.over.wait()
        assert "x-registry-auth" not in docker.called("POST", "/v1.47/images/create")[0].headers
        said = str(resident.error)
        assert (
            "unauthorized; the login at ghcr.io is with docker-credential-desktop, which is not run" in said
        )
