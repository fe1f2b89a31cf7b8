"""The calls of Docker's API, which Podman understands, too, over a UNIX socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import trio
from attrs import define, frozen

from engine_router.engines.readiness import dig
from engine_router.guards.foreign_text import one_line
from engine_router.guards.limits import LONG_LINE_BYTES
from engine_router.upstream.control_answers import UnreadableAnswer, json_or_none, read_answer
from engine_router.upstream.control_client import ControlClient
from engine_router.upstream.control_errors import CallFailed

if TYPE_CHECKING:
    import httpx

# The newest version of the API that is asked for; an older daemon is asked in its own.
_NEWEST: Final = (1, 47)
_MESSAGE_CHARS: Final = 500
# The header of a piece of output: which stream it is of, and its length.
_HEADER_BYTES: Final = 8

Query = Mapping[str, str]


class DaemonError(Exception):
    """The daemon refused a call, or did not answer it.

    Attributes:
        status: of its answer; None without one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_missing(self) -> bool:
        """True where it has no such container or image."""
        return self.status == 404


@frozen
class ContainerState:
    """The state of a container.

    Attributes:
        is_running: it runs, or is paused.
        exit_code: of its first process, once that has ended.
        is_out_of_memory: the kernel killed it for want of memory.
        error: why it could not be started, in the daemon's words.
        pid: of its first process, in the daemon's eyes; None where it does not run.
    """

    is_running: bool
    exit_code: int | None = None
    is_out_of_memory: bool = False
    error: str = ""
    pid: int | None = None


@define(eq=False, repr=False)
class Daemon:
    """Docker's or Podman's daemon.

    Every call raises `DaemonError`, and has a connection of its own. None has a limit of time: the callers have.
    Cancellation closes the connection; what was asked for may happen all the same.

    Attributes:
        socket: the path of its socket.
        is_podman: it is Podman's; known after `greet`.
        release: of Podman, its version; likewise.
    """

    socket: str
    is_podman: bool = False
    release: str = ""
    _prefix: str = ""

    async def greet(self) -> None:
        """Ask which version of the API it speaks."""
        async with self._stream("GET", "/_ping", prefix="") as response:
            await _read(response)
            version = tuple(map(int, response.headers.get("api-version", "1.41").split(".")))
            self.release = response.headers.get("libpod-api-version", "")
        self.is_podman = bool(self.release)
        self._prefix = "/v" + ".".join(map(str, min(version, _NEWEST)))

    # Images.

    async def image(self, name: str) -> Mapping[str, Any] | None:
        """Return what is known of an image; None where it is not on this machine."""
        try:
            found = await self._call("GET", f"/images/{quote(name, safe='/:@')}/json")
        except DaemonError as error:
            if error.is_missing:
                return None
            raise
        return found if isinstance(found, Mapping) else {}

    async def pull(
        self, name: str, tell: Callable[[Mapping[str, Any]], None], login: str | None = None
    ) -> None:
        """Pull an image.

        Args:
            tell: called with what the daemon tells meanwhile; it does not wait.
            login: at its registry, as `X-Registry-Auth`; None for none.
        """
        image, tag = split_image(name)
        failure = None
        query = {"fromImage": image, "tag": tag}
        headers = {} if login is None else {"X-Registry-Auth": login}
        async with self._stream("POST", "/images/create", query, headers=headers) as response:
            buffer = bytearray()
            async for data in response.aiter_raw():
                for entry in _entries(buffer, data):
                    failure = failure or entry.get("error") or dig(entry, "errorDetail.message")
                    tell(entry)
        if failure:
            raise DaemonError(one_line(str(failure), _MESSAGE_CHARS))

    # Containers.

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        """Make a container, which is not started yet; return its id."""
        found = await self._call("POST", "/containers/create", {"name": name}, body)
        return str(dig(found, "Id") or name)

    async def start(self, name: str) -> None:
        """Start a container."""
        await self._call("POST", f"/containers/{name}/start")

    async def signal(self, name: str, signal: str) -> None:
        """Send a signal to a container's first process. Silent where it does not run, or is not there."""
        try:
            await self._call("POST", f"/containers/{name}/kill", {"signal": signal})
        except DaemonError as error:
            if error.status not in (404, 409):
                raise

    async def wait(self, name: str) -> None:
        """Wait until a container does not run any more."""
        await self._call("POST", f"/containers/{name}/wait", {"condition": "not-running"})

    async def state(self, name: str) -> ContainerState:
        """Return the state of a container."""
        found = await self._call("GET", f"/containers/{quote(name, safe='')}/json")
        state = dig(found, "State")
        if not isinstance(state, Mapping):
            raise DaemonError("answered with something else than the state of a container")
        code, pid = state.get("ExitCode"), state.get("Pid")
        return ContainerState(
            is_running=bool(state.get("Running") or state.get("Paused")),
            exit_code=code if isinstance(code, int) else None,
            is_out_of_memory=bool(state.get("OOMKilled")),
            error=one_line(str(state.get("Error") or ""), _MESSAGE_CHARS),
            pid=pid if isinstance(pid, int) and pid > 0 else None,
        )

    async def output(self, name: str, since: float, take: Callable[[bytes], Awaitable[None]]) -> None:
        """Hand on what a container writes, until it ends.

        Args:
            since: in seconds since 1970; what was written before is left out.
            take: called with each piece.
        """
        query = {"follow": "1", "stdout": "1", "stderr": "1", "since": str(int(since))}
        async with self._stream("GET", f"/containers/{name}/logs", query) as response:
            buffer = bytearray()
            async for data in response.aiter_raw():
                buffer += data
                while (piece := _next_piece(buffer)) is not None:
                    try:
                        await take(piece)
                    except trio.Cancelled:
                        break  # raised again by the next step, within httpx's generators, which end properly only so

    async def remove(self, name: str) -> None:
        """Kill and remove a container, with its anonymous volumes."""
        await self._call("DELETE", f"/containers/{name}", {"force": "true", "v": "true"})

    async def labelled(self, label: str) -> list[tuple[str, str]]:
        """Return the containers that have a label, running or not, each by its id and the label's value."""
        query = {"all": "true", "filters": json.dumps({"label": [label]})}
        found = await self._call("GET", "/containers/json", query)
        entries = found if isinstance(found, list) else []
        return [
            (entry["Id"], str(dig(entry, "Labels") and entry["Labels"].get(label)))
            for entry in entries
            if isinstance(entry, Mapping) and isinstance(entry.get("Id"), str)
        ]

    # Calls.

    async def _call(self, method: str, path: str, query: Query | None = None, body: Any = None) -> Any:
        """Make a call, and return the JSON of its answer."""
        if not self._prefix:
            await self.greet()
        async with self._stream(method, path, query, body) as response:
            return json_or_none(await _read(response))

    @asynccontextmanager
    async def _stream(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: Any = None,
        prefix: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """Make a call; the block reads its answer, which is none of an error."""
        url = f"http://localhost{self._prefix if prefix is None else prefix}{path}"
        if query:
            url += f"?{urlencode(query)}"
        try:
            # A client of its own: one that is cancelled just when it has connected would keep that connection for ever.
            async with (
                aclosing(ControlClient(socket=self.socket)) as client,
                client.stream(method, url, headers=headers or {}, json=body) as response,
            ):
                if response.status_code >= 400:
                    said = dig(json_or_none(await _read(response)), "message")
                    raise DaemonError(
                        one_line(str(said or f"answered {response.status_code}"), _MESSAGE_CHARS),
                        response.status_code,
                    )
                yield response
        except CallFailed as error:
            raise DaemonError(f"the daemon at {self.socket} does not answer ({error.kind})") from error


def split_image(name: str) -> tuple[str, str]:
    """Return an image's name and its tag or digest, `latest` where it has none.

    >>> split_image("localhost:5000/vllm"), split_image("vllm/vllm-openai:v0.11"), split_image("a@sha256:12")
    (('localhost:5000/vllm', 'latest'), ('vllm/vllm-openai', 'v0.11'), ('a', 'sha256:12'))
    """
    image, at, digest = name.partition("@")
    if at:
        return image.rpartition(":")[0] if ":" in image.rpartition("/")[2] else image, digest
    stem, colon, tag = name.rpartition(":")
    return (stem, tag) if colon and "/" not in tag else (name, "latest")


async def _read(response: httpx.Response) -> bytes:
    try:
        return await read_answer(response)
    except UnreadableAnswer as error:
        raise DaemonError(f"answered {error}") from error


def _entries(buffer: bytearray, data: bytes) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON objects of the lines that a piece of an answer completes; what is left stays in the buffer."""
    *whole, rest = bytes(buffer + data).split(b"\n")
    buffer[:] = rest[-LONG_LINE_BYTES * 16 :]
    for line in whole:
        if isinstance(entry := json_or_none(line), Mapping):
            yield entry


def _next_piece(buffer: bytearray) -> bytes | None:
    """Take the next piece of output out of a buffer; a long piece comes in parts. None where more has to come."""
    if len(buffer) < _HEADER_BYTES:
        return None
    if buffer[0] > 2 or any(buffer[1:4]):  # a terminal's output has no headers
        piece = bytes(buffer)
        buffer.clear()
        return piece
    size = int.from_bytes(buffer[4:8], "big")
    if len(buffer) < _HEADER_BYTES + size and len(buffer) < _HEADER_BYTES + LONG_LINE_BYTES:
        return None
    piece = bytes(buffer[_HEADER_BYTES : _HEADER_BYTES + size])
    left = size - len(piece)
    if left:  # the rest of it comes under a header of its own
        buffer[:] = buffer[:4] + left.to_bytes(4, "big")
    else:
        del buffer[: _HEADER_BYTES + size]
    return piece
