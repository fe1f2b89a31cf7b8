"""Commands of Docker and servers elsewhere, in the formats of local-engine-router and large-model-proxy."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.migration import imported

from engine_router.config import ContainerConfig, RemoteConfig

RUN = "docker run -d --rm --name vllm --gpus all -p 8123:8000 -v /models:/models:ro vllm/vllm-openai --model /models/a"


def local(**engine: Any) -> str:
    return json.dumps({"engines": {"e": {"base_url": "http://127.0.0.1:8123", **engine}}, "models": []})


def proxy(command: str, **service: Any) -> str:
    program, _, args = command.partition(" ")
    found = {"Name": "e", "Command": program, "Args": args, "ProxyTargetPort": 8123, **service}
    return json.dumps({"Services": [found], "ResourcesAvailable": {}})


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (local(type="generic_process", start_cmd=RUN.split(), stop_timeout_s=9), "engines.e.start_cmd"),
        (proxy(RUN, KillCommand="docker stop vllm"), "Services[0].KillCommand"),
        (proxy(RUN, ConsiderStoppedOnProcessExit=False), "Services[0].ConsiderStoppedOnProcessExit"),
    ],
    ids=["local-engine-router", "large-model-proxy", "large-model-proxy, detached"],
)
def test_what_docker_runs_becomes_a_container_engine(text: str, place: str) -> None:
    found = imported(text)
    engine = found.config.engines["e"]
    assert isinstance(engine, ContainerConfig)
    assert (engine.image, engine.command) == ("vllm/vllm-openai", ("--model", "/models/a"))
    assert (engine.base_url, engine.ports, engine.gpus) == (
        "http://127.0.0.1:8123",
        ("8123:8000",),
        "all",
    )
    assert (engine.volumes, engine.socket) == (("/models:/models:ro",), "/var/run/docker.sock")
    assert found.outcome(place) == "carried over"


@pytest.mark.parametrize(
    "text",
    [
        local(type="generic_process", start_cmd=RUN.split(), env={"DOCKER_HOST": "tcp://x"}),
        local(type="generic_process", start_cmd=RUN.replace("-d", "-d -w /x").split()),
        proxy(RUN, Workdir="/opt"),
        proxy(RUN, KillCommand="./clean.sh"),
        proxy(f"sudo {RUN}"),
    ],
    ids=["environment", "unknown option", "folder", "another stop", "sudo"],
)
def test_what_a_container_engine_could_not_do_stays_a_command_that_is_ended_by_name(text: str) -> None:
    engine = imported(text).process("e")
    sudo = ("sudo",) if engine.argv[0] == "sudo" else ()
    assert engine.argv[len(sudo) :][:2] == ("docker", "run")
    assert "-d" not in engine.argv
    assert engine.stop_command in ((*sudo, "docker", "stop", "vllm"), ("./clean.sh",))
    assert engine.kill_command == (*sudo, "docker", "rm", "-f", "vllm")


def test_podman_has_to_serve_its_socket() -> None:
    found = imported(local(type="generic_process", start_cmd=RUN.replace("docker", "podman").split()))
    assert isinstance(found.config.engines["e"], ContainerConfig)
    assert any("podman.socket" in note.remedy for note in found.draft.notes)


@pytest.mark.parametrize("path", ["", "/", "/v1"])
def test_a_server_of_another_machine_that_unloads_nothing_is_a_remote(path: str) -> None:
    url = f"https://cloud.example{path}"
    found = imported(local(type="api_swap", base_url=url, load_path="/load", control_headers={"X-Key": "k"}))
    engine = found.config.engines["e"]
    assert isinstance(engine, RemoteConfig)
    assert (engine.base_url, engine.headers) == ("https://cloud.example/v1", {"X-Key": "k"})
    assert (found.outcome("engines.e.type"), found.outcome("engines.e.load_path")) == ("approximated", "lost")
