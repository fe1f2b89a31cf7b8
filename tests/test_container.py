"""Containers of a scripted daemon, which follows Docker's documentation: pulls, refusals, and a daemon that hangs or dies."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import pytest
import trio
from support.scripted import SupervisedResident, as_json, supervised, until
from support.scripted.docker import ScriptedContainer, ScriptedDocker
from trio.testing import MockClock

from engine_router.config import ContainerConfig, parse_config
from engine_router.config.template import NO_ARGUMENTS
from engine_router.engines.container.container_engine import ContainerEngine
from engine_router.engines.container.creation import creation
from engine_router.engines.container.daemon import _next_piece
from engine_router.engines.container.ownership import Owner, leftovers
from engine_router.engines.container.removal import remove
from engine_router.engines.container.sockets import NoSocket, find_socket
from engine_router.errors import EngineStartFailed, EngineStopFailed
from engine_router.models.config_warnings import warnings
from engine_router.setup.doctor import of_containers
from engine_router.upstream.control_client import control_client

pytestmark = pytest.mark.skipif(os.name != "posix", reason="UNIX sockets")

IMAGE = "vllm/vllm-openai:v1"
LIMIT_S = 100_000.0  # longer than any jump of a clock


@asynccontextmanager
async def an_engine(docker: ScriptedDocker, **settings: Any) -> AsyncIterator[ContainerEngine]:
    # The path of a socket has few characters.
    with TemporaryDirectory(prefix="er-") as folder, trio.fail_after(LIMIT_S):
        path = Path(folder) / "docker.sock"
        options = {"image": IMAGE, "ports": ("{port}:8000",), "socket": str(path), **settings}
        async with docker.at(path), control_client() as client:
            yield ContainerEngine("boxed", ContainerConfig(**options), client)


async def container_of(docker: ScriptedDocker, resident: SupervisedResident) -> ScriptedContainer:
    await resident.ready.wait()
    (container,) = docker.containers.values()
    return container


async def test_a_pull_is_told_while_it_lasts() -> None:
    docker = ScriptedDocker()
    docker.pull_lines = [
        {"status": "Pulling from vllm/vllm-openai", "id": "v1"},
        {
            "status": "Downloading",
            "id": "a",
            "progressDetail": {"current": 500_000_000, "total": 1_500_000_000},
        },
        {
            "status": "Downloading",
            "id": "b",
            "progressDetail": {"current": 100_000_000, "total": 500_000_000},
        },
        {"status": "Download complete", "id": "b", "progressDetail": {}},
    ]
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        await until(lambda: resident.supervision.step == f"pulling {IMAGE}: 1.0 of 2.0 GB")
        docker.pulling.set()
        container = await container_of(docker, resident)
        assert resident.supervision.step is None
        assert resident.endpoint is not None
        assert resident.endpoint.pid is None  # 4321 is somebody else here
        assert container.body["Image"] == IMAGE
        await resident.stop()
        assert container.signals == ["SIGINT"]  # the image's own
        assert docker.containers == {}


async def test_a_stop_ends_a_pull() -> None:
    docker = ScriptedDocker()
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        await until(lambda: "pull" in docker.verbs)
        await resident.stop()
        assert resident.stopped
        assert "create" not in docker.verbs


async def test_a_pull_that_tells_nothing_is_given_up(jumping_clock: MockClock) -> None:
    docker = ScriptedDocker()
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        await until(lambda: "pull" in docker.verbs)
        jumping_clock.jump(601)
        await resident.over.wait()
        assert "nothing was heard of the pull" in str(resident.error)


async def test_a_pull_that_fails_is_told_in_the_words_of_the_daemon() -> None:
    docker = ScriptedDocker()
    docker.pull_lines = [{"errorDetail": {"message": "manifest unknown"}, "error": "manifest unknown"}]
    docker.pulling.set()
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert resident.error.summary == "cannot be started: manifest unknown"


async def test_want_of_memory_is_told_with_the_last_words() -> None:
    docker = ScriptedDocker(IMAGE)
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        container = await container_of(docker, resident)
        container.output.append(b"loading\n")
        container.end(137, oom_killed=True)
        await resident.over.wait()
        assert resident.ended is not None
        assert resident.ended.message == "was killed by the kernel for want of memory (OOMKilled)"
        assert docker.containers == {}


@pytest.mark.parametrize(
    ("verb", "status", "said"),
    [
        ("create", 409, 'The container name "/x" is already in use'),
        ("create", 400, "invalid mount config"),
        ("start", 500, "could not select device driver with capabilities: [[gpu]]"),
        ("image", 500, "the disk is full"),
        ("ping", 500, "starting up"),
        ("state", 500, "no space left"),
    ],
)
async def test_a_refusal_is_told_and_leaves_nothing(verb: str, status: int, said: str) -> None:
    docker = ScriptedDocker(IMAGE)
    docker.refusals[verb] = as_json({"message": said}, status)
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert said in resident.error.summary
        assert docker.containers == {}


@pytest.mark.parametrize("verb", ["ping", "image", "create", "start", "state"])
async def test_a_daemon_that_hangs_in_a_start_costs_its_time_only(
    verb: str, jumping_clock: MockClock
) -> None:
    docker = ScriptedDocker(IMAGE)
    docker.hangs.add(verb)
    async with an_engine(docker, start_timeout_s=60.0) as engine, supervised(engine, "m") as resident:
        await until(lambda: verb in docker.verbs)
        jumping_clock.jump(61)
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert resident.error.summary == "cannot be started: the daemon did not answer within 60 s"
        assert docker.containers == {}


@pytest.mark.parametrize("verb", ["create", "start"])
async def test_a_stop_while_the_daemon_hangs_leaves_nothing(verb: str) -> None:
    docker = ScriptedDocker(IMAGE)
    docker.hangs.add(verb)
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        await until(lambda: verb in docker.verbs)
        await resident.stop()
        assert resident.stopped
        assert docker.containers == {}


async def test_a_stop_whose_end_the_daemon_does_not_tell(jumping_clock: MockClock) -> None:
    docker = ScriptedDocker(IMAGE)
    docker.hangs.add("wait")
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        container = await container_of(docker, resident)
        resident.supervision.stop()
        await until(lambda: container.signals)
        jumping_clock.jump(11)
        await until(lambda: docker.verbs.count("kill") == 2)
        jumping_clock.jump(6)
        await resident.over.wait()
        assert resident.stopped
        assert docker.containers == {}


@pytest.mark.parametrize("verb", ["kill", "remove"])
async def test_what_cannot_be_removed_is_stuck_and_taken_up_again(
    verb: str, jumping_clock: MockClock
) -> None:
    docker = ScriptedDocker(IMAGE)
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        await resident.ready.wait()
        docker.hangs.update((verb, "remove"))
        resident.supervision.stop()
        await until(lambda: verb in docker.verbs)
        jumping_clock.jump(31)
        await resident.over.wait()
        assert isinstance(resident.error, EngineStopFailed)
        assert "does not answer" in str(resident.error)
        docker.hangs.clear()
        async with supervised(engine, "m", adopt=True) as again:
            again.supervision.stop()
            await again.over.wait()
            assert again.stopped
        assert docker.containers == {}


async def test_a_signal_that_is_ignored_is_followed_by_sigkill(jumping_clock: MockClock) -> None:
    docker = ScriptedDocker(IMAGE)
    docker.ignored.add("SIGINT")
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        container = await container_of(docker, resident)
        resident.supervision.stop()
        await until(lambda: container.signals)
        jumping_clock.jump(11)
        await resident.over.wait()
        assert container.signals == ["SIGINT", "SIGKILL"]


async def test_a_container_that_somebody_removes_is_dead() -> None:
    docker = ScriptedDocker(IMAGE)
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        container = await container_of(docker, resident)
        docker.containers.clear()
        container.end(137)
        await resident.over.wait()
        assert resident.died


async def test_an_older_daemon_is_asked_in_its_own_version() -> None:
    docker = ScriptedDocker(IMAGE, version="1.41")
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        await resident.ready.wait()
        assert {call.path.split("/")[1] for call in docker.calls} == {"_ping", "v1.41"}
        await resident.stop()


# The body of the call that makes a container


def body_of(*, is_podman: bool = False, **settings: Any) -> dict[str, Any]:
    values = {"port": "12345", "model": "m", "path": "/models/m:q4.gguf"}
    config = ContainerConfig(**{"image": IMAGE, **settings})
    return creation(config, NO_ARGUMENTS, values, {"a": "b"}, is_podman=is_podman)


def test_what_is_made_of_the_options() -> None:
    body = body_of(
        command=("-m", "/m.gguf", "--alias", "{model}"),
        entrypoint=("/bin/server",),
        env={"HF_HOME": "/cache", "PORT": "{port}"},
        volumes=("{path}:/m.gguf:ro", "cache:/cache", "/data:/data:z"),
        ports=("{port}:8000", "0.0.0.0:9000:9000/udp"),
        devices=("/dev/kfd", "/dev/dri:/dev/dri:rw"),
        ipc="host",
        shm_size=1 << 30,
        user="1000",
        host_config={"CapAdd": ["SYS_PTRACE"]},
    )
    assert body["Cmd"] == ["-m", "/m.gguf", "--alias", "m"]
    assert body["Entrypoint"] == ["/bin/server"]
    assert body["Env"] == ["HF_HOME=/cache", "PORT=12345"]
    assert body["User"] == "1000"
    assert body["ExposedPorts"] == {"8000/tcp": {}, "9000/udp": {}}
    host = body["HostConfig"]
    assert host["PortBindings"] == {
        "8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "12345"}],
        "9000/udp": [{"HostIp": "0.0.0.0", "HostPort": "9000"}],
    }
    assert host["Mounts"] == [
        {"Type": "bind", "Source": "/models/m:q4.gguf", "Target": "/m.gguf", "ReadOnly": True},
        {"Type": "volume", "Source": "cache", "Target": "/cache", "ReadOnly": False},
    ]
    assert host["Binds"] == ["/data:/data:z"]
    assert [device["CgroupPermissions"] for device in host["Devices"]] == ["rwm", "rw"]
    assert (host["IpcMode"], host["ShmSize"], host["CapAdd"]) == ("host", 1 << 30, ["SYS_PTRACE"])


@pytest.mark.parametrize(
    ("gpus", "is_podman", "expected"),
    [
        ("all", False, {"Driver": "", "Capabilities": [["gpu"]], "Count": -1}),
        (2, False, {"Driver": "", "Capabilities": [["gpu"]], "Count": 2}),
        (("1",), False, {"Driver": "", "Capabilities": [["gpu"]], "DeviceIDs": ["1"]}),
        ("all", True, {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}),
        (2, True, {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]}),
    ],
)
def test_gpus(gpus: Any, is_podman: bool, expected: dict[str, Any]) -> None:
    assert body_of(gpus=gpus, is_podman=is_podman)["HostConfig"]["DeviceRequests"] == [expected]


# Output


@pytest.mark.parametrize("size", [1, 3, 8, 9, 1000])
def test_output_is_put_together_however_it_is_cut(size: int) -> None:
    lines = [b"one\n", b"", b"two " * 5000 + b"\n", b"three\n"]
    stream = b"".join(b"\x02\0\0\0" + len(line).to_bytes(4, "big") + line for line in lines)
    buffer, found = bytearray(), b""
    for start in range(0, len(stream), size):
        buffer += stream[start : start + size]
        while (piece := _next_piece(buffer)) is not None:
            found += piece
        assert len(buffer) < 10_000
    assert found == b"".join(lines)


# Whose a container is


HERE = Owner(pid=1, began_at=1.0, table="4026531836 boot")


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        (Owner(2**22 + 1, 1.0, "4026531836 boot"), True),  # no such process
        (Owner(os.getpid(), 1.0, "4026531836 boot"), True),  # another has its number by now
        (Owner(1, 1.0, "4026531836 earlier"), True),
        (Owner(7, 1.0, "999 boot", container="living"), False),
        (Owner(7, 1.0, "999 boot", container="ended"), True),
        (Owner(7, 1.0, "999 boot", container="absent"), True),
        (Owner(7, 1.0, "999 boot"), False),  # nothing of it can be seen from here
    ],
)
async def test_only_what_is_certainly_nobodys_is_left_over(owner: Owner, expected: bool) -> None:
    docker = ScriptedDocker(IMAGE)
    async with an_engine(docker) as engine:
        docker.containers["living"] = ScriptedContainer("living", {"Labels": {}}, is_running=True)
        docker.containers["ended"] = ScriptedContainer("ended", {"Labels": {}})
        docker.containers["x"] = ScriptedContainer("x", {"Labels": {"engine-router.owner": owner.label()}})
        docker.containers["y"] = ScriptedContainer("y", {"Labels": {"engine-router.owner": "nonsense"}})
        daemon = await engine._daemon()
        assert await leftovers(daemon, HERE) == (["x"] if expected else [])


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells when a process began by a clock that nobody sets"
)
async def test_the_process_before_this_one_does_not_live_though_it_had_its_number() -> None:
    docker, this = ScriptedDocker(IMAGE), Owner.this()
    assert this.ticks
    async with an_engine(docker) as engine:
        # As process 1 of a container that was started anew, within seconds, in a process table of the same number.
        before = attrs.evolve(this, began_at=this.began_at - 2.0, ticks=this.ticks - 200)
        for name, owner in (("before", before), ("this", this), ("old label", attrs.evolve(this, ticks=0))):
            labels = {"engine-router.owner": owner.label()}
            docker.containers[name] = ScriptedContainer(name, {"Labels": labels})
        assert await leftovers(await engine._daemon(), this) == ["before"]


async def test_this_program_lives() -> None:
    docker = ScriptedDocker(IMAGE)
    async with an_engine(docker) as engine, supervised(engine, "m") as resident:
        await resident.ready.wait()
        assert await engine.find() == []
        assert len(docker.containers) == 1
        await resident.stop()


async def test_the_program_that_removes_waits_for_what_is_still_made() -> None:
    """Podman may say that it has removed what it still makes, and have it all the same in the end."""
    docker = ScriptedDocker(IMAGE)
    async with an_engine(docker) as engine, trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, remove, engine.config.socket, "late", 3.0)
        await until(lambda: "remove" in docker.verbs)
        for _ in range(2):
            docker.containers["late"] = ScriptedContainer("late", {"Labels": {}})
            await until(lambda: not docker.containers)


# The socket


def test_no_socket_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NoSocket, match=r"no socket /absent, which the option socket names; start Docker"):
        find_socket("/absent")
    with pytest.raises(NoSocket, match="only unix:// can be used"):
        find_socket(None, {"DOCKER_HOST": "tcp://10.0.0.1:2375"})


async def test_the_first_socket_is_used() -> None:
    with TemporaryDirectory(prefix="er-") as folder:
        path = Path(folder) / "podman" / "podman.sock"
        path.parent.mkdir()
        async with ScriptedDocker().at(path):
            assert find_socket(None, {"XDG_RUNTIME_DIR": folder}) == str(path)
            assert find_socket(None, {"DOCKER_HOST": f"unix://{path}"}) == str(path)
            assert find_socket(f"unix://{path}") == str(path)


# The examination


@pytest.mark.parametrize(
    ("images", "pull", "grade", "words"),
    [
        ((IMAGE,), "missing", "ok", f"has {IMAGE}"),
        ((), "missing", "note", "yet"),
        ((), "never", "problem", f"has no image {IMAGE}"),
    ],
)
async def test_the_doctor_asks_the_daemon(images: tuple[str, ...], pull: str, grade: str, words: str) -> None:
    async with an_engine(ScriptedDocker(*images), pull=pull) as engine:
        config = attrs.evolve(parse_config('[engines.o]\ntype = "ollama"'), engines={"boxed": engine.config})
        (finding,) = [each async for each in of_containers(config)]
        assert finding.grade == grade
        assert finding.words.endswith(words)


async def test_the_doctor_says_where_no_daemon_is() -> None:
    (finding,) = [
        each
        async for each in of_containers(
            parse_config(
                '[engines.a]\ntype = "container"\nimage = "i"\nports = ["{port}:1"]\nsocket = "/absent"'
            )
        )
    ]
    assert finding.grade == "problem"
    assert "no socket /absent" in finding.words
    assert "systemctl --user enable" in finding.remedy


def test_a_published_port_that_accepts_connections_says_nothing() -> None:
    text = '[engines.a]\ntype = "container"\nimage = "i"\nports = ["{port}:1"]\nready_check = "port"\nmodels = ["m"]'
    assert [place for place, _ in warnings(parse_config(text))] == ["engines.a.ready_check"]
