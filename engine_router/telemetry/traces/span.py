"""Spans: the parts of a trace, each with a beginning, an end, and attributes by OpenTelemetry's conventions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final

from attrs import field, frozen

from engine_router.telemetry.traces.context import SPAN_ID_BYTES, TRACE_ID_BYTES

Value = str | bool | int | float
"""The value of an attribute."""

# Ids are no secrets. This generator is seeded by the system's, and as quick as ids have to be made.
_RANDOM: Final = random.Random()  # noqa: S311 - see above


class Kind(Enum):
    """The role of a span, numbered as in OTLP."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


@frozen(kw_only=True, eq=False, repr=False)
class SpanId:
    """The place of a span: its trace, and its id in it."""

    trace_id: bytes
    span_id: bytes


@frozen(kw_only=True, eq=False, repr=False)
class Span:
    """A span that has ended.

    Attributes:
        parent_id: the span that it is a part of; empty for the first one of a trace.
        begin_ns, end_ns: wall-clock time, in nanoseconds since the epoch.
        is_error: it failed.
        links: spans of other traces that it has to do with.
        state: the trace's `tracestate`.
    """

    place: SpanId
    name: str
    begin_ns: int
    end_ns: int
    parent_id: bytes = b""
    kind: Kind = Kind.INTERNAL
    attributes: Mapping[str, Value] = field(factory=dict)
    is_error: bool = False
    links: Sequence[SpanId] = ()
    state: str = ""


def new_trace_id() -> bytes:
    """Return an id that no trace has yet."""
    return _RANDOM.randbytes(TRACE_ID_BYTES)


def new_span_id() -> bytes:
    """Return an id that no span has yet."""
    return _RANDOM.randbytes(SPAN_ID_BYTES)


def without_unknown(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    """Return attributes without those that are not known."""
    return {name: value for name, value in attributes.items() if value is not None}


def is_chosen(trace_id: bytes, ratio: float) -> bool:
    """Tell whether a trace belongs to a share of all, by its id, as OpenTelemetry's samplers do it."""
    return int.from_bytes(trace_id[8:], "big") < ratio * 2.0**64
