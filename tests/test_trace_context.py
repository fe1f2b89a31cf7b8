"""`traceparent` and `tracestate` as W3C Trace Context has them: what is valid is continued, what is not is ignored."""

from __future__ import annotations

import pytest

from engine_router.telemetry.traces.context import TraceContext, context_in, parent_header
from engine_router.telemetry.traces.span import is_chosen, new_trace_id

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def context(*values: str, state: tuple[str, ...] = ()) -> TraceContext | None:
    headers = [(b"traceparent", value.encode("latin-1")) for value in values]
    return context_in(
        [(b"host", b"h"), *headers, *((b"tracestate", value.encode("latin-1")) for value in state)]
    )


@pytest.mark.parametrize(
    ("value", "is_sampled", "is_random"),
    [
        (f"00-{TRACE}-{SPAN}-01", True, False),
        (f"00-{TRACE}-{SPAN}-00", False, False),
        (f"00-{TRACE}-{SPAN}-03", True, True),
        (f"00-{TRACE}-{SPAN}-fe", False, True),
        (f"  00-{TRACE}-{SPAN}-01\t", True, False),
        (f"01-{TRACE}-{SPAN}-01", True, False),
        (f"cc-{TRACE}-{SPAN}-01-what-will-be", True, False),
    ],
)
def test_what_is_valid_is_continued(value: str, is_sampled: bool, is_random: bool) -> None:
    found = context(value)
    assert found == TraceContext(bytes.fromhex(TRACE), bytes.fromhex(SPAN), is_sampled, is_random)


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("",),
        (f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01"),
        (f"00-{TRACE}-{SPAN}",),
        (f"00-{TRACE}-{SPAN}-1",),
        (f"00-{TRACE}-{SPAN}-01-more",),
        (f"01-{TRACE}-{SPAN}-01.more",),
        (f"ff-{TRACE}-{SPAN}-01",),
        (f"00-{TRACE.upper()}-{SPAN}-01",),
        (f"00-{'0' * 32}-{SPAN}-01",),
        (f"00-{TRACE}-{'0' * 16}-01",),
        (f"00-{TRACE[:-1]}g-{SPAN}-01",),
        (f"00-{TRACE}-{SPAN}-\xff1",),
        (f"00_{TRACE}_{SPAN}_01",),
    ],
    ids=str,
)
def test_what_is_not_valid_is_ignored(values: tuple[str, ...]) -> None:
    assert context(*values, state=("a=1",)) is None


@pytest.mark.parametrize(
    ("state", "read"),
    [
        (("a=1",), "a=1"),
        (("a=1, b=2", "c=3"), "a=1,b=2,c=3"),
        (("fw529a3039@dt=FfAAA, 0k_-*/@x=!~ x",), "fw529a3039@dt=FfAAA,0k_-*/@x=!~ x"),
        (("a=1,,b=2,",), "a=1,b=2"),
        (("a=1,a=2",), ""),
        (("A=1",), ""),
        (("a",), ""),
        (("a=",), ""),
        (("a=b=c",), ""),
        (("a=\xe9",), ""),
        (
            (",".join(f"k{number}=v" for number in range(32)),),
            ",".join(f"k{number}=v" for number in range(32)),
        ),
        ((",".join(f"k{number}=v" for number in range(33)),), ""),
        ((f"a={'x' * 256},b={'x' * 256}",), ""),
        ((f"a={'x' * 257}",), ""),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_state_is_handed_on_where_it_is_valid(state: tuple[str, ...], read: str) -> None:
    found = context(f"00-{TRACE}-{SPAN}-01", state=state)
    assert found is not None
    assert found.state == read


@pytest.mark.parametrize("is_sampled", [True, False])
@pytest.mark.parametrize("is_random", [True, False])
def test_what_an_engine_is_told_says_what_was_meant(is_sampled: bool, is_random: bool) -> None:
    trace, span = bytes.fromhex(TRACE), bytes.fromhex(SPAN)
    header = parent_header(trace, span, is_sampled=is_sampled, is_random=is_random)
    assert context_in([header]) == TraceContext(trace, span, is_sampled, is_random)


def test_a_share_of_all_traces_is_chosen_by_their_ids() -> None:
    ids = [new_trace_id() for _ in range(4000)]
    assert all(is_chosen(trace, 1.0) for trace in ids)
    assert not any(is_chosen(trace, 0.0) for trace in ids)
    assert 700 < sum(is_chosen(trace, 0.25) for trace in ids) < 1300
