"""The context of a trace as it travels in headers: `traceparent` and `tracestate` (W3C Trace Context)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from attrs import frozen

PARENT: Final = b"traceparent"
STATE: Final = b"tracestate"
TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8

_SAMPLED: Final = 0x01
_RANDOM: Final = 0x02  # of level 2 of the standard: who does not make the id hands it on as it came
# A version above 00 may have more behind the flags, and is read as far as it is known.
_PARENT_FORM: Final = re.compile(
    rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)
_KEY: Final = r"[a-z0-9][a-z0-9_\-*/@]{0,255}"
_MEMBER: Final = re.compile(
    rf"({_KEY})=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)
_MOST_MEMBERS: Final = 32
_MOST_CHARS: Final = 512


@frozen
class TraceContext:
    """The place of a request in a trace that its client began.

    Attributes:
        trace_id: of the trace; 16 bytes.
        span_id: of the client's span; 8 bytes.
        is_sampled: the client records the trace.
        is_random: the client made the trace's id at random.
        state: what tracing systems add, in the form of `tracestate`.
    """

    trace_id: bytes
    span_id: bytes
    is_sampled: bool
    is_random: bool = False
    state: str = ""


def context_in(headers: Sequence[tuple[bytes, bytes]]) -> TraceContext | None:
    """Return the context in a request's headers, whose names are in lower case; None where there is none that is valid.

    A `tracestate` that is not valid is left out.
    """
    parents = [value for name, value in headers if name == PARENT]
    if len(parents) != 1 or (found := _PARENT_FORM.fullmatch(parents[0].strip(b" \t"))) is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    trace, span, flag = bytes.fromhex(trace_id.decode()), bytes.fromhex(span_id.decode()), int(flags, 16)
    if not any(trace) or not any(span):
        return None
    state = _state([value for name, value in headers if name == STATE])
    return TraceContext(trace, span, bool(flag & _SAMPLED), bool(flag & _RANDOM), state)


def parent_header(
    trace_id: bytes, span_id: bytes, *, is_sampled: bool, is_random: bool
) -> tuple[bytes, bytes]:
    """Return the header that makes a span the parent of what follows from it."""
    flags = is_sampled * _SAMPLED | is_random * _RANDOM
    return PARENT, f"00-{trace_id.hex()}-{span_id.hex()}-{flags:02x}".encode()


def _state(values: Sequence[bytes]) -> str:
    """Return what `tracestate` headers say together; empty where they are not valid."""
    text = b",".join(values).decode("latin-1")
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    found = [_MEMBER.fullmatch(member) for member in members]
    keys = {match[1] for match in found if match is not None}
    is_valid = len(keys) == len(members) <= _MOST_MEMBERS
    joined = ",".join(members)
    return joined if is_valid and len(joined) <= _MOST_CHARS else ""
