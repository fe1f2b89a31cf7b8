"""A collector of traces: it takes OTLP over HTTP on a socket, and decodes it with OpenTelemetry's own messages."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import h11
import trio
from attrs import define, field, frozen
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

Attributes = Mapping[str, object]


@frozen(kw_only=True)
class GotSpan:
    """A span that came, its ids in hexadecimal.

    Attributes:
        raw: the message itself.
        resource: the attributes of what it comes from.
    """

    name: str
    trace: str
    id: str
    parent: str
    kind: str
    attributes: Attributes
    is_error: bool
    links: tuple[tuple[str, str], ...]
    raw: trace_pb2.Span
    resource: Attributes


@define(eq=False)
class Collector:
    """A collector.

    Attributes:
        spans: those that it took, in the order in which they came.
        targets: method and path of all posts.
        posts: headers of all posts, those that it did not take too; names in lower case.
        bodies: what they held, decompressed.
        statuses: with what it answers the next posts; 200 when there is none left.
        answer: what an answer says.
        retry_after: the header of an answer; empty for none.
        hangs: it answers nothing.
    """

    spans: list[GotSpan] = field(factory=list)
    posts: list[Mapping[str, str]] = field(factory=list)
    targets: list[str] = field(factory=list)
    bodies: list[bytes] = field(factory=list)
    statuses: list[int] = field(factory=list)
    answer: bytes = b""
    retry_after: str = ""
    hangs: bool = False
    port: int = 0
    _came: trio.Event = field(factory=trio.Event)

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[Collector]:
        """Listen until the block ends, on a free port unless one is given."""
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, self._serve, listeners)
            yield self
            nursery.cancel_scope.cancel()

    async def until(self, is_enough: Callable[[], bool]) -> None:
        """Wait until what came is enough."""
        while not is_enough():
            came = self._came
            await came.wait()

    async def named(self, name: str, count: int = 1) -> list[GotSpan]:
        """Wait for so many spans of a name."""
        await self.until(lambda: sum(span.name == name for span in self.spans) >= count)
        return [span for span in self.spans if span.name == name]

    async def _serve(self, stream: trio.SocketStream) -> None:
        parser, body = h11.Connection(h11.SERVER), b""
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                try:
                    parser.receive_data(bytes(await stream.receive_some(65536)))
                except trio.BrokenResourceError:
                    return
            elif isinstance(event, h11.Request):
                headers = {name.decode(): value.decode() for name, value in event.headers}
                self.targets.append(f"{event.method.decode()} {event.target.decode()}")
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return
        await self._take(stream, parser, headers, body)

    async def _take(
        self, stream: trio.SocketStream, parser: h11.Connection, headers: Mapping[str, str], body: bytes
    ) -> None:
        plain = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
        self.posts.append(headers)
        self.bodies.append(plain)
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200 and not self.hangs:
            self.spans += decoded(plain)
        self._came.set()
        self._came = trio.Event()
        if self.hangs:
            await trio.sleep_forever()
        length = [("content-length", str(len(self.answer))), ("connection", "close")]
        length += [("retry-after", self.retry_after)] if self.retry_after else []
        said = (
            h11.Response(status_code=status, headers=length),
            h11.Data(data=self.answer),
            h11.EndOfMessage(),
        )
        await stream.send_all(b"".join(parser.send(part) or b"" for part in said))


def decoded(body: bytes) -> list[GotSpan]:
    """Return the spans of a post."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        GotSpan(
            name=span.name,
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
            attributes=_attributes([*span.attributes]),
            is_error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
            links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
            raw=span,
            resource=_attributes([*of_resource.resource.attributes]),
        )
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _attributes(items: list[KeyValue]) -> Attributes:
    return {item.key: _value(item.value) for item in items}


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
