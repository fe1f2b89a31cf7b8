"""The way of traces to their collector: what is sent again, what is lost, and what is told of it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)
from support.collector import Collector
from trio.testing import MockClock

from engine_router.config import TraceSettings
from engine_router.guards.limits import TRACE_BACKLOG, TRACE_POST_S, TRACES_AT_ONCE
from engine_router.telemetry import traces
from engine_router.telemetry.traces import sender
from engine_router.telemetry.traces.sender import SEND_INTERVAL_S, Traces
from engine_router.telemetry.traces.span import Span, SpanId, new_span_id, new_trace_id
from engine_router.upstream.control_client import ControlClient, control_client

LIMIT_S = 200.0


class Sending:
    """A sender on its own, and what it tells and counts."""

    def __init__(self, collector: Collector) -> None:
        self.notes: list[str] = []
        self.counted: Counter[str] = Counter()
        self.settings: TraceSettings | None = TraceSettings(url=f"{collector.url}/v1/traces")
        self.of = Traces(lambda: self.settings, self._note, self._count)

    def _note(self, message: str, *, severity: str = "warning") -> None:
        self.notes.append(f"{severity}: {message}")

    def _count(self, result: str, *, by: int) -> None:
        self.counted[result] += by

    def add(self, *names: str) -> None:
        for name in names:
            place = SpanId(trace_id=new_trace_id(), span_id=new_span_id())
            self.of.add([Span(place=place, name=name, begin_ns=1, end_ns=2)])


@asynccontextmanager
async def sending() -> AsyncIterator[tuple[Sending, Collector, ControlClient]]:
    with trio.fail_after(LIMIT_S):
        async with Collector().listening() as collector, control_client() as client:
            yield Sending(collector), collector, client


def names_of(collector: Collector) -> list[str]:
    return [span.name for span in collector.spans]


def is_down(collector: Collector) -> None:
    """Give it a port on which nobody listens."""
    collector.port = 1


def is_busy(status: int) -> Callable[[Collector], None]:
    return lambda collector: collector.statuses.extend([status, status])


@pytest.mark.parametrize(
    ("breaks", "why"),
    [
        (is_down, "cannot be reached"),
        (is_busy(429), "answers with status 429 (Too Many Requests)"),
        (is_busy(502), "answers with status 502 (Bad Gateway)"),
        (is_busy(503), "answers with status 503 (Service Unavailable)"),
        (is_busy(504), "answers with status 504 (Gateway Timeout)"),
    ],
    ids=["down", "429", "502", "503", "504"],
)
async def test_what_a_collector_cannot_take_now_is_sent_again(
    jumping_clock: MockClock, breaks: Callable[[Collector], None], why: str
) -> None:
    async with sending() as (of, collector, client):
        good = of.settings
        breaks(collector)
        of.settings = TraceSettings(url=f"{collector.url}/v1/traces")
        of.add("first")
        await of.of.flush(client)
        (note,) = of.notes
        assert note.startswith(f"warning: traces cannot be sent to {collector.url}: it {why}")
        posts = len(collector.posts)
        of.add("second")
        await of.of.flush(client)  # too early: it is left alone for a while
        assert len(collector.posts) == posts
        jumping_clock.jump(60)
        await of.of.flush(client)  # fails again, which is not told again
        jumping_clock.jump(60)
        of.settings = good
        await of.of.flush(client)
        assert names_of(collector) == ["first", "second"]
        assert len(of.notes) == 2
        assert of.notes[1].startswith("info: ")
        assert of.notes[1].endswith("takes traces again")
        assert of.counted == {"sent": 2}


async def test_a_busy_collector_says_when_it_is_to_be_tried(jumping_clock: MockClock) -> None:
    async with sending() as (of, collector, client):
        collector.statuses, collector.retry_after = [429], "30"
        of.add("first")
        await of.of.flush(client)
        for seconds, count in ((20, 1), (11, 2)):
            jumping_clock.jump(seconds)
            await of.of.flush(client)
            assert len(collector.posts) == count


async def test_a_collector_that_hangs_is_given_up_after_some_seconds(jumping_clock: MockClock) -> None:
    async with sending() as (of, collector, client):
        collector.hangs = True
        of.add("first")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(of.of.flush, client)
            await collector.until(lambda: bool(collector.posts))
            of.add("second")  # waits for nothing
            jumping_clock.jump(TRACE_POST_S)
        assert "does not answer within 10 s" in of.notes[0]
        collector.hangs = False
        jumping_clock.jump(60)
        await of.of.flush(client)
        assert names_of(collector) == ["first", "second"]


async def test_the_end_of_the_router_waits_for_no_collector_that_hangs(
    jumping_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "TRACE_POST_S", 1e6)
    async with sending() as (of, collector, client):
        collector.hangs = True
        of.add("first")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(of.of.close, client)
            await collector.until(lambda: bool(collector.posts))
            jumping_clock.jump(2.0)
        assert of.counted == {"lost": 1}


@pytest.mark.parametrize("status", [301, 400, 401, 404, 500])
async def test_what_a_collector_does_not_want_is_not_sent_again(status: int) -> None:
    async with sending() as (of, collector, client):
        collector.statuses = [status, status]
        for name in ("first", "second", "third"):
            of.add(name)
            await of.of.flush(client)
        assert names_of(collector) == ["third"]
        assert of.counted == {"refused": 2, "sent": 1}
        refused, again = of.notes
        assert f"does not take traces: it answers with status {status}" in refused
        assert again.endswith("takes traces again")


async def test_what_a_collector_rejects_of_a_post_is_told(jumping_clock: MockClock) -> None:
    async with sending() as (of, collector, client):
        partial = ExportTracePartialSuccess(rejected_spans=1, error_message="too\x1b old")
        collector.answer = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
        of.add("first")
        await of.of.flush(client)
        assert "it rejected 1 spans (too\\x1b old)" in of.notes[0]
        for answer in (
            b"",
            b"{}",
            b"thank you",
            ExportTraceServiceResponse().SerializeToString(),
            b"x" * 1_000_000,
        ):
            collector.answer = answer
            of.add("more")
            await of.of.flush(client)
        assert of.counted == {"refused": 1, "sent": 5}


async def test_the_oldest_are_lost_where_too_many_wait(jumping_clock: MockClock) -> None:
    async with sending() as (of, collector, client):
        collector.statuses = [503]
        of.add("first")
        await of.of.flush(client)
        of.add(*map(str, range(TRACE_BACKLOG + 2)))
        assert of.counted == {"lost": 3}
        jumping_clock.jump(60)
        await of.of.flush(client)
        assert names_of(collector) == [*map(str, range(2, TRACE_BACKLOG + 2))]
        assert len(collector.posts) == 1 + TRACE_BACKLOG // TRACES_AT_ONCE
        assert of.counted == {"lost": 3, "sent": TRACE_BACKLOG}


async def test_they_are_sent_every_few_seconds(jumping_clock: MockClock) -> None:
    async with sending() as (of, collector, client), trio.open_nursery() as nursery:
        nursery.start_soon(of.of.run, client)
        for count in (1, 2):
            of.add(f"trace {count}")
            await trio.testing.wait_all_tasks_blocked()
            jumping_clock.jump(SEND_INTERVAL_S)
            await collector.named(f"trace {count}")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("is_in_file", "severity"), [(True, "warning"), (False, "info")])
async def test_without_the_package_the_remedy_is_told_once(
    monkeypatch: pytest.MonkeyPatch, is_in_file: bool, severity: str
) -> None:
    monkeypatch.delitem(sys.modules, "engine_router.telemetry.traces.otlp", raising=False)
    monkeypatch.delattr(traces, "otlp", raising=False)
    monkeypatch.setitem(sys.modules, "google.protobuf.message", None)
    async with sending() as (of, collector, client):
        of.settings = TraceSettings(url=f"{collector.url}/v1/traces", is_in_file=is_in_file)
        for name in ("first", "second"):
            of.add(name)
            await of.of.flush(client)
        assert not collector.posts
        assert not of.of.is_on
    (note,) = of.notes
    assert note.startswith(f"{severity}: ")
    assert note.endswith("pip install 'engine-router[otel]'")
    assert of.counted == {"lost": 1}


async def test_where_they_are_turned_off_what_waits_is_forgotten() -> None:
    async with sending() as (of, collector, client):
        of.add("first")
        good, of.settings = of.settings, None
        await of.of.flush(client)
        of.settings = good
        await of.of.flush(client)
        assert not collector.posts
