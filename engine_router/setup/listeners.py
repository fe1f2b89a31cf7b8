"""The engines that run on this machine: what listens, what it is, and how it was started.

Only looks: a few GET requests to ports on which an engine may listen. What could not be found out is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import httpx
import psutil
import trio
from attrs import field, frozen

from engine_router.engines.command_options import model_options
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MAX_NAME_FILE_BYTES
from engine_router.setup.marks import Answer, kind_of

LOOK_S: Final = 3.0
"""Seconds that looking at all listeners may take."""

_MOST_LISTENERS: Final = 200
MOST_ANSWER_BYTES: Final = 4 << 20
# Where engines listen unless told otherwise; a port of another process is left alone unless its command is known.
_PORTS: Final = frozenset((1234, 5000, 5001, 7997, 8000, 8001, 8002, 8080, 8081, 8082, 9292, 11434, 30000))
_CONTAINER: Final = re.compile(r"(?:docker|libpod|cri-containerd|crio)[-/]([0-9a-f]{12,64})")
_UNIT: Final = re.compile(r"([\w:.@\\-]+\.service)$")
_ROUTER: Final = re.compile(r"(?:engine-router|engine_router)(?:\.exe|/__main__\.py)? serve\b")
_ANY: Final = frozenset(("0.0.0.0", "::", ""))  # noqa: S104 - nothing listens here


@frozen(kw_only=True)
class Listener:
    """A server that runs here.

    Attributes:
        kind: as the presets call it; None where it is none that is known.
        base_url: where it answers.
        argv: its command; empty where it belongs to somebody else, or is not known.
        cwd: the folder in which it was started; empty where that is not known.
        unit: the systemd unit that runs it; None for none.
        is_user_unit: that is a unit of a user's.
        container: the id of the container that it is in; None for none.
    """

    kind: str | None
    base_url: str
    argv: tuple[str, ...] = ()
    cwd: str = ""
    unit: str | None = None
    is_user_unit: bool = False
    container: str | None = None


@frozen
class Listeners:
    """What listens on this machine.

    Attributes:
        engines: those whose kind is known.
        unknown: what could not be found out.
    """

    engines: tuple[Listener, ...] = ()
    unknown: tuple[str, ...] = field(default=())


@frozen
class _Socket:
    host: str
    port: int
    pid: int | None
    argv: tuple[str, ...]
    cwd: str = ""


async def find_listeners(root: Path = Path("/"), own_ports: Iterable[int] = ()) -> Listeners:
    """Return the engines that run here, within `LOOK_S` seconds. Cancellation ends it at once.

    Args:
        root: where the system's files are.
        own_ports: ports that are not looked at.
    """
    found: list[Listener] = []
    unknown: list[str] = []
    waiting: set[int] = set()
    with trio.move_on_after(LOOK_S) as looking:
        sockets, complaints = await trio.to_thread.run_sync(_sockets, abandon_on_cancel=True)
        unknown += complaints
        left = [each for each in sockets if each.port not in own_ports and _may_be_engine(each)]
        waiting.update(each.port for each in left)

        async def look(listening: _Socket) -> None:
            if (listener := await _identified(client, listening, root)) is not None:
                found.append(listener)
            waiting.discard(listening.port)

        async with (
            httpx.AsyncClient(trust_env=False, timeout=LOOK_S) as client,
            trio.open_nursery() as nursery,
        ):
            for listening in left:
                nursery.start_soon(look, listening)
    if looking.cancelled_caught:
        ports = ", ".join(map(str, sorted(waiting))) or "any port"
        unknown.append(f"what listens on {ports}: no answer within {LOOK_S:g} s")
    found.sort(key=lambda listener: listener.base_url)
    return Listeners(tuple(found), tuple(unknown))


def _sockets() -> tuple[list[_Socket], list[str]]:
    """Return what listens, each port once. Blocks."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError) as error:
        return [_Socket("127.0.0.1", port, None, ()) for port in sorted(_PORTS)], [
            f"which processes listen here: {shown(str(error))}; the usual ports were tried"
        ]
    found: dict[int, _Socket] = {}
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and len(found) < _MOST_LISTENERS:
            host, port = connection.laddr[:2]
            if _is_a_routers(connection.pid):
                continue
            found.setdefault(port, _Socket(host, port, connection.pid, *_command(connection.pid)))
    return list(found.values()), []


def _is_a_routers(pid: int | None) -> bool:
    """Tell whether a router has started a process: then it is that router's to start and stop."""
    try:
        return pid is not None and any(map(_is_router, psutil.Process(pid).parents()))
    except psutil.Error:
        return False


def _is_router(process: psutil.Process) -> bool:
    try:
        return _ROUTER.search(" ".join(process.cmdline())) is not None
    except psutil.Error:
        return False


def _command(pid: int | None) -> tuple[tuple[str, ...], str]:
    """Return a process's command, and the folder in which it runs."""
    if pid is None:
        return (), ""
    try:
        process = psutil.Process(pid)
        return tuple(process.cmdline()), process.cwd()
    except (psutil.Error, OSError):
        return (), ""


def _may_be_engine(listening: _Socket) -> bool:
    """Tell whether a port may be asked: others may be disturbed by HTTP."""
    return listening.port in _PORTS or bool(model_options(listening.argv).kind.name)


async def _identified(client: httpx.AsyncClient, listening: _Socket, root: Path) -> Listener | None:
    host = "127.0.0.1" if listening.host in _ANY else listening.host
    host = f"[{host}]" if ":" in host else host

    base_url = f"http://{host}:{listening.port}"

    async def ask(path: str) -> Answer | None:
        return await get(client, base_url + path)

    kind = await kind_of(ask)
    if kind is None:
        return None
    unit, is_user_unit, container = _manager(listening.pid, root)
    return Listener(
        kind=kind,
        base_url=base_url,
        argv=listening.argv,
        cwd=listening.cwd,
        unit=unit,
        is_user_unit=is_user_unit,
        container=container,
    )


def _manager(pid: int | None, root: Path) -> tuple[str | None, bool, str | None]:
    """Return the unit that runs a process, whether a user's systemd has it, and its container."""
    if pid is None:
        return None, False, None
    try:
        with (root / "proc" / str(pid) / "cgroup").open("rb") as file:
            text = file.read(MAX_NAME_FILE_BYTES).decode("utf-8", "replace")
    except OSError:
        return None, False, None
    if (container := _CONTAINER.search(text)) is not None:
        return None, False, container[1][:12]
    for line in text.splitlines():
        unit = _UNIT.search(line)
        if unit is not None and not unit[1].startswith(
            ("user@", "session", "docker", "containerd", "podman")
        ):
            return unit[1], "/user@" in line, None
    return None, False, None


async def get(client: httpx.AsyncClient, url: str) -> Answer | None:
    """Get a URL; None where nobody answers with HTTP. What is longer than `MOST_ANSWER_BYTES` is cut."""
    data = bytearray()
    try:
        async with client.stream("GET", url) as response:
            async for piece in response.aiter_bytes():
                data += piece
                if len(data) > MOST_ANSWER_BYTES:
                    break
    except (httpx.HTTPError, ValueError):
        return None
    return Answer(response.status_code, bytes(data))
