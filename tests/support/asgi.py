"""An ASGI server that exists only in the program: it drives an app without a socket, under any clock.

It does to an app what Hypercorn does, the unpleasant things included: a client may leave at any moment, and
one that has stopped reading holds a send, shielded from cancellation, for as long as it likes.

    async with conversation(app, "POST", "/v1/chat/completions", body=[b"{...}"]) as talk:
        await talk.begun()
        talk.disconnect()
        await talk.over()
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio
from attrs import define, field
from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent, Scope

HOST = "router.test"


class App(Protocol):
    """An ASGI app, version 3."""

    def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable, /
    ) -> Awaitable[None]:
        """Serve one scope."""
        ...


@define(eq=False)
class Received:
    """An answer as far as it has come, whichever way.

    Attributes:
        status: 0 until it begins.
        headers: names in lower case.
        pieces: its body as it was sent.
        is_complete: its end was sent too; a server breaks the connection where it was not.
        error: what the app raised, where that can be seen; a server would log it.
    """

    status: int = 0
    headers: dict[str, str] = field(factory=dict)
    pieces: list[bytes] = field(factory=list)
    is_complete: bool = False
    error: BaseException | None = None

    @property
    def body(self) -> bytes:
        """The body as far as it has come."""
        return b"".join(self.pieces)

    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.body)


@define(eq=False)
class Conversation(Received):
    """One request, and the answer as far as it has come.

    Attributes:
        task: the one in which the app runs; None before its first step.
    """

    task: trio.lowlevel.Task | None = None
    _over: trio.Event = field(factory=trio.Event)
    _changed: trio.Event = field(factory=trio.Event)
    _flowing: trio.Event | None = None
    _left: bool = False
    _send: trio.MemorySendChannel[ASGIReceiveEvent] = field(init=False)
    _receive: trio.MemoryReceiveChannel[ASGIReceiveEvent] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[ASGIReceiveEvent](2**31)

    # What the client does: synchronous, at any time.

    def upload(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the request's body."""
        self._send.send_nowait({"type": "http.request", "body": data, "more_body": more})

    def disconnect(self) -> None:
        """Leave. What the app sends from now on is lost."""
        if not self._left:
            self._left = True
            self._send.send_nowait({"type": "http.disconnect"})

    def stall(self) -> None:
        """Stop reading: the app's next send does not return, cancelled or not, before `resume`."""
        self._flowing = self._flowing or trio.Event()

    def resume(self) -> None:
        """Read again."""
        if self._flowing is not None:
            self._flowing.set()
            self._flowing = None

    # What the client sees.

    @property
    def is_over(self) -> bool:
        """Whether the app is done with the request."""
        return self._over.is_set()

    async def over(self) -> None:
        """Wait until the app is done with the request."""
        await self._over.wait()

    async def begun(self) -> None:
        """Wait for the answer's status and headers, or for the end of it all."""
        await self.until(lambda: bool(self.status))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, looking after each message of the app; or for the end of it all."""
        while not condition() and not self.is_over:
            self._changed = trio.Event()
            await self._changed.wait()

    # The server's side.

    async def serve(self, app: App, scope: Scope) -> None:
        """Let the app serve the request. Cancellation is that of a server which goes down."""
        self.task = trio.lowlevel.current_task()
        try:
            await app(scope, self._next, self._take)
        except Exception as error:  # noqa: BLE001 - a server survives whatever its app raises
            self.error = error
        finally:
            self._over.set()
            self._changed.set()

    async def _next(self) -> ASGIReceiveEvent:
        return await self._receive.receive()

    async def _take(self, message: ASGISendEvent) -> None:
        await trio.lowlevel.checkpoint()
        if self._flowing is not None:
            with trio.CancelScope(shield=True):
                await self._flowing.wait()
        if self._left:
            return
        if message["type"] == "http.response.start":
            if self.status:
                raise AssertionError("the answer began twice")
            self.status = message["status"]
            self.headers = as_text(message["headers"])
        elif message["type"] == "http.response.body":
            if not self.status or self.is_complete:
                raise AssertionError("a body before its head, or after its end")
            if data := message.get("body", b""):
                self.pieces.append(bytes(data))
            self.is_complete = not message.get("more_body", False)
        self._changed.set()
        if self.is_complete:
            await self._finish()

    async def _finish(self) -> None:
        """Do what a server does after an answer, in the app's own task: it must be let finish."""
        self.disconnect()
        await trio.lowlevel.cancel_shielded_checkpoint()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.error = AssertionError("the last send was cancelled, so the connection stays half closed")
            raise


def as_text(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by their names in lower case."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


def request_of(
    body: object, headers: Mapping[str, str] | None = None
) -> tuple[dict[str, str], tuple[bytes, ...]]:
    """Return the headers of a request, names in lower case, and the pieces of its body.

    Args:
        body: bytes as they are; a tuple of bytes for pieces of a length that is not told; anything else as
            JSON; None for no body.
        headers: beside Host and what frames the body, or in their place.
    """
    framing: dict[str, str] = {}
    pieces: tuple[bytes, ...] = ()
    if isinstance(body, tuple):
        framing, pieces = {"transfer-encoding": "chunked"}, body
    elif body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        framing, pieces = {"content-length": str(len(data))}, (data,)
    given = {name.lower(): value for name, value in (headers or {}).items()}
    return {"host": HOST, **framing, **given}, pieces


def http_scope(method: str, path: str, *, query: str = "", headers: Mapping[str, str] | None = None) -> Scope:
    """Return the scope of an HTTP/1.1 request.

    Args:
        path: decoded, as a server hands it over.
        headers: beside Host; values in any Unicode are sent as UTF-8.
    """
    given, _ = request_of(None, headers)
    return {
        "type": "http",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
        "state": {},  # type: ignore[typeddict-item] # what Hypercorn itself puts there
        "extensions": {},
    }


@asynccontextmanager
async def conversation(
    app: App,
    method: str,
    path: str,
    *,
    query: str = "",
    headers: Mapping[str, str] | None = None,
    body: Iterable[bytes] = (),
    complete: bool = True,
) -> AsyncIterator[Conversation]:
    """Make a request; when the block ends, leave it and wait until the app has let go.

    Args:
        body: the pieces of the request's body that are there at once.
        complete: these are all; otherwise the rest comes by `upload`.
    """
    talk = Conversation()
    for piece in body:
        talk.upload(piece, more=True)
    if complete:
        talk.upload(b"", more=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.serve, app, http_scope(method, path, query=query, headers=headers))
        try:
            yield talk
        finally:
            talk.resume()
            talk.disconnect()


async def ask(
    app: App,
    method: str,
    path: str,
    *,
    query: str = "",
    headers: Mapping[str, str] | None = None,
    body: object = None,
) -> Conversation:
    """Make a request and wait for the whole answer.

    Args:
        headers: as `request_of` takes them, and `body` too.
    """
    given, pieces = request_of(body, headers)
    async with conversation(app, method, path, query=query, headers=given, body=pieces) as talk:
        await talk.over()
    return talk
