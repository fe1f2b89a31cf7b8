"""What all scripted servers share: a small HTTP server, a record of calls, and models in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeAlias, TypeVar

import h11
import trio
from attrs import define, field, frozen

Scripted = TypeVar("Scripted", bound="ScriptedServer")
Json: TypeAlias = dict[str, Any]

CREATED = "2026-01-01T00:00:00Z"


@frozen
class Call:
    """One request, as it came in.

    Attributes:
        path: without the query.
        headers: names in lower case.
        body: parsed JSON; None where there was none.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Any

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def model(self) -> str:
        """The model that the body names; empty where it names none."""
        return str(self.body.get("model") or "") if isinstance(self.body, dict) else ""


@frozen
class Answer:
    """What is sent back: one body, or a stream of pieces."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    pieces: AsyncGenerator[bytes, None] | None = None
    headers: tuple[tuple[str, str], ...] = ()


def as_json(data: Any, status: int = 200) -> Answer:
    """Answer with JSON."""
    return Answer(status, json.dumps(data).encode())


def event_of(data: Json) -> bytes:
    """Write one server-sent event."""
    return f"data: {json.dumps(data)}\n\n".encode()


Handler: TypeAlias = Callable[[Call], Awaitable[Answer]]


@define
class Script:
    """How a scripted server behaves; the defaults are good behaviour.

    Attributes:
        load_s: seconds that a load takes.
        load_error: what is wrong with every load; None for nothing.
        finish_aborted: a load goes on although its caller has left.
        ignore_unload: an unload is answered, but nothing is unloaded.
        unload_error: what every unload is refused with; None for nothing.
        unload_s: seconds that an unload goes on after its answer.
        hang: paths that are never answered.
        answers: answers that replace those of a path.
        words: how many words a chat answer has.
        word_s: seconds between two words of a stream.
    """

    load_s: float = 0.0
    load_error: str | None = None
    finish_aborted: bool = False
    ignore_unload: bool = False
    unload_error: str | None = None
    unload_s: float = 0.0
    hang: set[str] = field(factory=set)
    answers: dict[str, Answer] = field(factory=dict)
    words: int = 3
    word_s: float = 0.0


class ScriptedServer:
    """What all scripted servers share: sockets, records, models in memory.

    Attributes:
        models: what can be loaded.
        script: how it behaves; may be changed at any time.
        calls: every request, oldest first.
        loaded: the models in memory, by instance id.
        loads: how many loads were begun. `aborted`: how many of them ended because the caller left.
        most_loaded: the largest number of models that were in memory together.
    """

    def __init__(self, *models: str, script: Script | None = None) -> None:
        self.models = list(models)
        self.script = script or Script()
        self.calls: list[Call] = []
        self.loaded: dict[str, str] = {}
        self.loads = 0
        self.aborted = 0
        self.most_loaded = 0
        self.port = 0
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def called(self, method: str, path: str) -> list[Call]:
        """Return the requests to one route."""
        return [call for call in self.calls if (call.method, call.path) == (method, path)]

    @asynccontextmanager
    async def running(self: Scripted, port: int = 0) -> AsyncIterator[Scripted]:  # noqa: PYI019 - Python 3.10 has no Self
        """Serve until the block ends, on a free port unless one is given."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.serve, port)
            yield self
            nursery.cancel_scope.cancel()

    async def serve(
        self, port: int = 0, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled or crashed. It listens when `started()` is called."""
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(trio.serve_listeners, self._connection, listeners)
                task_status.started()
        self.loaded.clear()

    def crash(self) -> None:
        """End it as a crash would: connections break off, nobody listens, memory is free."""
        self._scope.cancel()

    # Memory

    async def load(self, model: str, instance: str | None = None) -> None:
        """Put a model into memory, in `script.load_s` seconds. A caller that leaves aborts it."""
        self.loads += 1
        instance = instance or model
        if self.script.finish_aborted:
            self._later(self.script.load_s, lambda: self._put(instance, model))
        try:
            await trio.sleep(self.script.load_s)
        except trio.Cancelled:
            self.aborted += 1
            raise
        self._put(instance, model)

    def unload(self, instance: str) -> None:
        """Take an instance out of memory, after `script.unload_s` seconds."""
        if not self.script.ignore_unload:
            self._later(self.script.unload_s, lambda: self.loaded.pop(instance, None))

    def _put(self, instance: str, model: str) -> None:
        self.loaded[instance] = model
        self.most_loaded = max(self.most_loaded, len(self.loaded))

    def _later(self, delay_s: float, action: Callable[[], object]) -> None:
        async def wait_and_act() -> None:
            await trio.sleep(delay_s)
            action()

        if delay_s == 0:
            action()
        elif self._nursery is not None:
            self._nursery.start_soon(wait_and_act)

    # Requests

    def routes(self) -> Mapping[str, Handler]:
        """Map `METHOD /path` to handlers."""
        return {"POST /v1/chat/completions": self.openai_chat, "GET /v1/models": self.openai_models}

    async def openai_models(self, _call: Call) -> Answer:
        """List every model in OpenAI's shape."""
        return as_json({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def openai_chat(self, call: Call) -> Answer:
        """Answer a chat request in OpenAI's shape, streamed or not."""
        if refusal := await self.make_ready(call):
            return refusal
        if not call.body.get("stream"):
            message = {"role": "assistant", "content": "".join(self.words(call.model))}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {
                "prompt_tokens": 1,
                "completion_tokens": self.script.words,
                "total_tokens": 1 + self.script.words,
            }
            head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": call.model}
            return as_json({**head, "choices": [choice], "usage": usage})
        return Answer(content_type="text/event-stream", pieces=self._openai_pieces(call.model))

    async def make_ready(self, call: Call) -> Answer | None:
        """See that the model of a chat request can answer; return the refusal otherwise.

        Here: load it when it is known, as LM Studio and llama.cpp's router do.
        """
        if call.model not in self.models:
            return as_json({"error": {"message": f"model '{call.model}' not found", "code": 404}}, 404)
        if call.model not in self.loaded.values():
            await self.load(call.model)
        return None

    def words(self, model: str) -> Iterator[str]:
        """Yield the words of an answer; the first one names the model."""
        yield model
        for number in range(1, self.script.words):
            yield f" word{number}"

    async def _openai_pieces(self, model: str) -> AsyncGenerator[bytes, None]:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": model}
        for word in self.words(model):
            await trio.sleep(self.script.word_s)
            choice = {"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": None}
            yield event_of({**head, "choices": [choice]})
        yield event_of({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield b"data: [DONE]\n\n"

    async def _respond(self, call: Call) -> Answer:
        self.calls.append(call)
        if call.path in self.script.hang:
            await trio.sleep_forever()
        if replacement := self.script.answers.get(call.path):
            return replacement
        handler = self.routes().get(str(call))
        return await handler(call) if handler else as_json({"detail": "Not Found"}, 404)

    async def _connection(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await _Connection(stream, self._respond).serve()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass  # the client left, or speaks something else


@define
class _Connection:
    """One client's connection: requests after one another, each given up when the client leaves."""

    stream: trio.SocketStream
    respond: Handler
    http: h11.Connection = field(factory=lambda: h11.Connection(h11.SERVER))

    async def serve(self) -> None:
        while (call := await self._request()) is not None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, nursery.cancel_scope)
                # A client that left is noticed here or by the watch, whichever comes first.
                with suppress(trio.BrokenResourceError):
                    await self._send(await self.respond(call))
                nursery.cancel_scope.cancel()
            if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
                return
            self.http.start_next_cycle()

    async def _request(self) -> Call | None:
        body, head = b"", None
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(await self.stream.receive_some())
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                path, _, query = head.target.decode().partition("?")
                headers = {name.decode().lower(): value.decode("latin-1") for name, value in head.headers}
                return Call(head.method.decode(), path, query, headers, json.loads(body) if body else None)
            else:
                return None

    async def _watch(self, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await self.stream.receive_some():
                self.http.receive_data(data)
        scope.cancel()

    async def _send(self, answer: Answer) -> None:
        length = (
            ("transfer-encoding", "chunked") if answer.pieces else ("content-length", str(len(answer.body)))
        )
        headers = [("content-type", answer.content_type), length, *answer.headers]
        await self._emit(h11.Response(status_code=answer.status, headers=headers))
        if answer.pieces is None:
            await self._emit(h11.Data(data=answer.body))
        else:
            async with aclosing(answer.pieces) as pieces:
                async for piece in pieces:
                    await self._emit(h11.Data(data=piece))
        await self._emit(h11.EndOfMessage())

    async def _emit(self, event: h11.Event) -> None:
        await self.stream.send_all(self.http.send(event) or b"")
