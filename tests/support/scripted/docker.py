"""Docker's daemon, as the reference of its API (1.41 and later) describes it, on a UNIX socket."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import trio
from attrs import define, field

from support.scripted.server import Answer, Call, ScriptedServer, as_json


@define(eq=False)
class ScriptedContainer:
    """A container. While it runs, a server listens at its published port, and answers 200 to everything.

    Attributes:
        asked: what its server was asked, as `METHOD /path?query`.
        sleeps: what it says when it is asked for that, as vLLM does.
    """

    name: str
    body: dict[str, Any]
    signals: list[str] = field(factory=list)
    exit_code: int = 0
    oom_killed: bool = False
    is_running: bool = False
    ended: trio.Event = field(factory=trio.Event)
    output: list[bytes] = field(factory=list)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    asked: list[str] = field(factory=list)
    sleeps: bool = False

    async def answer(self, stream: trio.SocketStream) -> None:
        """Answer a request."""
        async with stream:
            method, target, _ = (await stream.receive_some()).decode().split(" ", 2)
            self.asked.append(f"{method} {target}")
            if target.startswith(("/sleep", "/wake_up")):
                self.sleeps = target.startswith("/sleep")
            body = json.dumps({"is_sleeping": self.sleeps}).encode()
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            await stream.send_all(head.encode() + body)

    def end(self, code: int, *, oom_killed: bool = False) -> None:
        """End its first process."""
        self.exit_code, self.oom_killed = code, oom_killed
        self.is_running = False
        self.scope.cancel()
        self.ended.set()


class ScriptedDocker(ScriptedServer):
    """Docker's daemon.

    Attributes:
        images: those that are on this machine; a pull adds one.
        containers: by name.
        hangs: verbs that are never answered: ping, image, pull, create, start, wait, state, logs, kill, remove, list.
        refusals: answers that replace those of a verb.
        pull_lines: what a pull tells; it goes on when `pulling` is set.
        ignored: signals that containers ignore.
    """

    def __init__(self, *images: str, version: str = "1.47") -> None:
        super().__init__()
        self.images = set(images)
        self.version = version
        self.containers: dict[str, ScriptedContainer] = {}
        self.hangs: set[str] = set()
        self.refusals: dict[str, Answer] = {}
        self.pull_lines: list[dict[str, Any]] = []
        self.pulling = trio.Event()
        self.ignored: set[str] = set()
        self.verbs: list[str] = []

    @asynccontextmanager
    async def at(self, path: Path) -> AsyncIterator[ScriptedDocker]:
        """Serve at a socket until the block ends."""
        with trio.socket.socket(socket.AF_UNIX) as listener:
            await listener.bind(str(path))
            listener.listen(32)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                listeners = [trio.SocketListener(_unchecked(listener))]
                nursery.start_soon(trio.serve_listeners, self._connection, listeners)
                yield self
                nursery.cancel_scope.cancel()
        path.unlink(missing_ok=True)

    async def _respond(self, call: Call) -> Answer:  # noqa: PLR0911 - one for each verb
        self.calls.append(call)
        words = call.path.lstrip("/").split("/")
        if words[0].startswith("v1."):
            assert tuple(map(int, words.pop(0)[1:].split("."))) <= tuple(map(int, self.version.split(".")))
        query = {key: values[0] for key, values in parse_qs(call.query).items()}
        verb = _verb_of(call.method, words)
        self.verbs.append(verb)
        if verb in self.hangs:
            await trio.sleep_forever()
        if (refusal := self.refusals.get(verb)) is not None:
            return refusal
        match verb:
            case "ping":
                return Answer(200, b"OK", "text/plain", headers=(("api-version", self.version),))
            case "image":
                name = "/".join(words[1:-1])
                return (
                    as_json({"Config": {"StopSignal": "SIGINT"}}) if name in self.images else _missing(name)
                )
            case "pull":
                return Answer(pieces=self._pull(f"{query['fromImage']}:{query['tag']}"))
            case "create":
                return self._create(query["name"], call.body)
            case "list":
                return as_json([{"Id": c.name, "Labels": c.body["Labels"]} for c in self.containers.values()])
        container = self.containers.get(words[1])
        return _missing(words[1]) if container is None else await self._of_container(verb, container, query)

    def _create(self, name: str, body: dict[str, Any]) -> Answer:
        if name in self.containers:
            return as_json({"message": f'Conflict. The container name "/{name}" is already in use'}, 409)
        if body["Image"] not in self.images:
            return _missing(body["Image"])
        self.containers[name] = ScriptedContainer(name, body)
        return as_json({"Id": name, "Warnings": []}, 201)

    async def _of_container(self, verb: str, container: ScriptedContainer, query: dict[str, str]) -> Answer:
        match verb:
            case "start":
                assert self._nursery is not None
                container.is_running = True
                await self._nursery.start(self._serve_container, container)
            case "wait":
                await container.ended.wait()
                return as_json({"StatusCode": container.exit_code})
            case "state":
                state = {
                    "Running": container.is_running,
                    "ExitCode": container.exit_code,
                    "OOMKilled": container.oom_killed,
                    "Pid": 4321 if container.is_running else 0,
                    "Error": "",
                }
                return as_json({"State": state})
            case "logs":
                return Answer(
                    content_type="application/vnd.docker.multiplexed-stream", pieces=_logs(container)
                )
            case "kill":
                if not container.is_running:
                    return as_json({"message": "is not running"}, 409)
                container.signals.append(query["signal"])
                if query["signal"] == "SIGKILL":
                    container.end(137)
                elif query["signal"] not in self.ignored:
                    container.end(0)
            case "remove":
                assert query["force"] == "true"
                container.end(container.exit_code if container.ended.is_set() else 137)
                self.containers.pop(container.name, None)
        return Answer(204)

    async def _serve_container(
        self, container: ScriptedContainer, *, task_status: trio.TaskStatus[None]
    ) -> None:
        (binding,) = next(iter(container.body["HostConfig"]["PortBindings"].values()))
        listeners = await trio.open_tcp_listeners(int(binding["HostPort"]), host=binding["HostIp"])
        with container.scope:
            task_status.started()
            await trio.serve_listeners(container.answer, listeners)

    async def _pull(self, name: str) -> AsyncGenerator[bytes, None]:
        for line in self.pull_lines:
            yield json.dumps(line).encode() + b"\r\n"
        await self.pulling.wait()
        if not any("error" in line for line in self.pull_lines):
            self.images.add(name)
        yield b'{"status": "done"}\r\n'


def _verb_of(method: str, words: list[str]) -> str:  # noqa: PLR0911 - one for each
    match words:
        case ["_ping"]:
            return "ping"
        case ["images", "create"]:
            return "pull"
        case ["images", *_]:
            return "image"
        case ["containers", "json"]:
            return "list"
        case ["containers", "create"]:
            return "create"
        case ["containers", _]:
            return "remove"
        case ["containers", _, "json"]:
            return "state"
        case ["containers", _, verb]:
            return verb
    return f"{method} {words}"


def _missing(name: str) -> Answer:
    return as_json({"message": f"No such object: {name}"}, 404)


async def _logs(container: ScriptedContainer) -> AsyncGenerator[bytes, None]:
    for line in container.output:
        yield b"\x01\0\0\0" + len(line).to_bytes(4, "big") + line
    await container.ended.wait()


def _unchecked(listener: Any) -> Any:
    return listener
