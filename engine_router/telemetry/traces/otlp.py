"""OTLP, the form in which spans go to a collector; of the optional package opentelemetry-proto.

Nothing imports this before there are spans to send.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from engine_router import __version__
from engine_router.guards.foreign_text import shown
from engine_router.telemetry.traces.span import Span, Value

HEADERS: Final = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "gzip",
    "User-Agent": f"engine-router/{__version__}",
}
"""The headers of a post."""

_GZIP_LEVEL: Final = 3
# The flag of a span's sampled bit, which collectors of newer versions look at.
_SAMPLED: Final = 0x01


def encoded(spans: Sequence[Span], resource: Mapping[str, str]) -> bytes:
    """Return the body of a post; for a thread: it takes some milliseconds for hundreds of spans."""
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    of_resource.resource.CopyFrom(Resource(attributes=_attributes(resource)))
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.CopyFrom(InstrumentationScope(name="engine_router", version=__version__))
    of_scope.spans.extend(map(_span, spans))
    return gzip.compress(request.SerializeToString(), _GZIP_LEVEL)


def rejected(answer: bytes) -> tuple[int, str]:
    """Return how many spans a collector did not take of a post that it accepted, and why, as it says it."""
    response = ExportTraceServiceResponse()
    try:
        response.ParseFromString(answer)
    except DecodeError:  # JSON, or words for people
        return 0, ""
    partial = response.partial_success
    return partial.rejected_spans, shown(partial.error_message)


def _span(span: Span) -> trace_pb2.Span:
    status = trace_pb2.Status(
        code=trace_pb2.Status.STATUS_CODE_ERROR if span.is_error else trace_pb2.Status.STATUS_CODE_UNSET
    )
    return trace_pb2.Span(
        trace_id=span.place.trace_id,
        span_id=span.place.span_id,
        trace_state=span.state,
        parent_span_id=span.parent_id,
        flags=_SAMPLED,
        name=span.name,
        kind=trace_pb2.Span.SpanKind.ValueType(span.kind.value),
        start_time_unix_nano=span.begin_ns,
        end_time_unix_nano=max(span.begin_ns, span.end_ns),
        attributes=_attributes(span.attributes),
        links=[
            trace_pb2.Span.Link(trace_id=link.trace_id, span_id=link.span_id, flags=_SAMPLED)
            for link in span.links
        ],
        status=status,
    )


def _attributes(values: Mapping[str, Value]) -> Iterator[KeyValue]:
    return (KeyValue(key=key, value=_value(value)) for key, value in values.items())


def _value(value: Value) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    # A name that a client sent may hold half of a character, which protobuf refuses.
    return AnyValue(string_value=value.encode("utf-8", "replace").decode())
