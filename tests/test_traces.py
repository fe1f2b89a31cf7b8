"""Traces: what a collector gets of requests and swaps, and what an engine is told, over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from support.served import RawClient, served
from support.traced import CHAT, LIMIT_S, PARENT, PROGRAM, SPAN, TRACE, only, told, tracing


async def test_a_chat_is_a_trace_of_three_spans_that_tell_how_it_went(tmp_path: Path, fast: bool) -> None:
    async with tracing(tmp_path, fast=fast) as (_router, post, collector):
        body = {"model": "m", "do": "chat", "messages": [{"role": "user", "content": "hello"}]}
        assert (await post("POST", CHAT, body=body)).status == 200
    spans = collector.spans
    server, wait, chat = only(spans, f"POST {CHAT}"), only(spans, "wait for model"), only(spans, "chat m")
    assert (server.kind, wait.kind, chat.kind) == ("SERVER", "INTERNAL", "CLIENT")
    assert {server.trace, wait.trace, chat.trace} == {server.trace}
    assert (server.parent, wait.parent, chat.parent) == ("", server.id, server.id)
    assert server.attributes.items() >= {
        ("http.request.method", "POST"),
        ("http.response.status_code", 200),
        ("http.route", CHAT),
        ("url.path", CHAT),
        ("engine_router.model", "m"),
        ("engine_router.engine", "e"),
    }
    assert str(server.attributes["engine_router.request.id"]).startswith("r")
    assert chat.attributes.items() >= {
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "e"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.response.model", "m"),
        ("gen_ai.usage.input_tokens", 1),
        ("gen_ai.usage.output_tokens", 1),
        ("server.address", "127.0.0.1"),
    }
    assert not any(span.is_error for span in spans)
    begin, end = server.raw.start_time_unix_nano, server.raw.end_time_unix_nano
    assert (
        begin <= wait.raw.start_time_unix_nano < wait.raw.end_time_unix_nano <= chat.raw.start_time_unix_nano
    )
    assert chat.raw.start_time_unix_nano < chat.raw.end_time_unix_nano <= end
    assert server.resource["service.name"] == "engine-router"
    assert collector.targets[0] == "POST /v1/traces"
    assert collector.posts[0]["content-type"] == "application/x-protobuf"


async def test_a_swap_is_a_trace_of_its_own_to_which_the_wait_links(tmp_path: Path) -> None:
    async with tracing(tmp_path) as (_router, post, collector):
        for model in ("m", "o"):
            assert (await post("POST", CHAT, body={"model": model, "do": "chat"})).status == 200
        for model in ("o", "m"):  # the first of them is there
            assert (await post("POST", CHAT, body={"model": model, "do": "chat"})).status == 200
    swaps = [
        span
        for span in collector.spans
        if span.name == "swap" and "engine_router.swap.target" in span.attributes
    ]
    first, second, third = swaps
    assert second.attributes.items() >= {
        ("engine_router.pool", "default"),
        ("engine_router.swap.source", "e"),
        ("engine_router.swap.cause", "request"),
        ("engine_router.swap.result", "ok"),
    }
    phases = {
        swap.id: [
            span.name for span in collector.spans if span.parent == swap.id and span.trace == swap.trace
        ]
        for swap in (first, second)
    }
    assert phases[first.id] == ["start"]
    assert phases[second.id][-1] == "start"
    assert "stop" in phases[second.id]
    ends = 0
    for phase in [span for span in collector.spans if span.parent == second.id]:  # one after the other
        assert ends <= phase.raw.start_time_unix_nano <= phase.raw.end_time_unix_nano
        ends = phase.raw.end_time_unix_nano
    waits = [span for span in collector.spans if span.name == "wait for model"]
    assert [wait.links for wait in waits] == [((swap.trace, swap.id),) for swap in (first, second, third)]
    assert first.trace != second.trace != waits[1].trace


async def test_the_engine_works_for_the_span_that_it_is_told(tmp_path: Path, fast: bool) -> None:
    async with tracing(tmp_path, fast=fast) as (_router, post, collector):
        headers = {"traceparent": PARENT, "tracestate": "a=1, b=2"}
        asked = await post("POST", CHAT, body={"model": "m", "do": "echo"}, headers=headers)
        new = await post("POST", CHAT, body={"model": "m", "do": "echo"}, headers={"tracestate": "a=1"})
    server, *others = [span for span in collector.spans if span.trace == TRACE]
    assert (server.name, server.parent) == (f"POST {CHAT}", SPAN)
    call = only(others, "chat m")
    assert told(asked)["traceparent"] == f"00-{TRACE}-{call.id}-01"
    assert told(asked)["tracestate"] == "a=1, b=2"
    assert {span.raw.trace_state for span in (server, *others)} == {"a=1,b=2"}
    other = next(span for span in collector.spans if span.name == "chat m" and span.trace != TRACE)
    assert told(new)["traceparent"] == f"00-{other.trace}-{other.id}-03"
    assert "tracestate" not in told(new)


async def test_a_client_that_does_not_record_is_not_recorded(tmp_path: Path, fast: bool) -> None:
    async with tracing(tmp_path, fast=fast) as (_router, post, collector):
        given = f"00-{TRACE}-{SPAN}-00"
        answer = await post("POST", CHAT, body={"model": "m", "do": "echo"}, headers={"traceparent": given})
    assert told(answer)["traceparent"] == given
    assert {span.kind for span in collector.spans} == {"INTERNAL"}  # of the swap


async def test_the_share_of_traces_is_for_those_that_begin_here(tmp_path: Path) -> None:
    async with tracing(tmp_path, "traces.sample_ratio = 0") as (_router, post, collector):
        own = await post("POST", CHAT, body={"model": "m", "do": "echo"})
        assert told(own)["traceparent"].endswith("-02")  # so that the engine records nothing either
        assert (
            await post("POST", CHAT, body={"model": "m", "do": "echo"}, headers={"traceparent": PARENT})
        ).status == 200
    assert {span.trace for span in collector.spans if "POST" in span.name} == {TRACE}


async def test_what_fails_is_told_by_its_kind_alone(tmp_path: Path, fast: bool) -> None:
    async with tracing(tmp_path, fast=fast) as (_router, post, collector):
        for wish in (
            {"do": "status", "status": 400},
            {"do": "break", "stream": True},
            {"do": "status", "status": 503},
        ):
            await post("POST", CHAT, body={"model": "m", "messages": "SECRET", **wish})
        assert (await post("POST", CHAT, body={"model": "unknown"})).status == 404
    found = [
        (span.attributes["http.response.status_code"], span.attributes.get("error.type"), span.is_error)
        for span in collector.spans
        if span.kind == "SERVER"
    ]
    assert found == [(400, None, False), (502, "502", True), (503, "503", True), (404, None, False)]
    calls = [
        (span.attributes.get("error.type"), span.is_error)
        for span in collector.spans
        if span.kind == "CLIENT"
    ]
    assert calls == [("400", True), ("502", True), ("503", True)]
    assert b"SECRET" not in b"".join(collector.bodies)


async def test_a_client_that_leaves_ends_its_trace(tmp_path: Path) -> None:
    async with tracing(tmp_path, fast=True) as (router, _post, collector), served(router) as url:
        async with RawClient.to(url) as client:
            wish = json.dumps({"model": "m", "do": "head", "stream": True}).encode()
            await client.request("POST", CHAT, wish)
            await client.until(b"200")
        while len(router.in_flight):
            await trio.sleep(0.01)
    for span in (only(collector.spans, f"POST {CHAT}"), only(collector.spans, "chat m")):
        assert span.attributes["error.type"] == "client_left"
    assert only(collector.spans, f"POST {CHAT}").attributes["http.response.status_code"] == 499


async def test_no_key_no_query_and_no_text_is_in_a_span(
    tmp_path: Path, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLLECTOR_KEY", "collector-secret")
    more = """
        server.api_keys = [{ name = "ann", key = "SECRET-key", admin = true }]
        traces.headers = { Authorization = "Bearer ${env:COLLECTOR_KEY}" }
    """
    async with tracing(tmp_path, more, fast=fast) as (_router, post, collector):
        body = {"model": "m", "do": "chat", "messages": [{"role": "user", "content": "SECRET-text"}]}
        headers = {"Authorization": "Bearer SECRET-key", "X-Note": "SECRET-header"}
        for path in (CHAT, f"/k/SECRET-key{CHAT}", f"/upstream/m{CHAT}"):
            await post("POST", path, query="a=SECRET-query", body=body, headers=headers)
    assert [span.attributes["engine_router.key"] for span in collector.spans if span.kind == "SERVER"] == [
        "ann"
    ] * 3
    bodies = b"".join(collector.bodies)
    assert b"SECRET" not in bodies
    assert b"collector-secret" not in bodies
    assert {post["authorization"] for post in collector.posts} == {"Bearer collector-secret"}


OFF = """
import sys, trio
from engine_router import open_router
from engine_router.config import parse_config
from engine_router.server.serve import listen, serve

HEAD = b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n"
BODY = b'{"model": "m", "do": "chat"}'

async def main():
    async with open_router(parse_config(sys.argv[1])) as router, trio.open_nursery() as nursery:
        sockets = listen(router.config.server, 0)
        await nursery.start(lambda task_status: serve(router, sockets=sockets, task_status=task_status))
        stream = await trio.open_tcp_stream("127.0.0.1", sockets[0].getsockname()[1])
        await stream.send_all(HEAD % len(BODY) + BODY)
        answer = b"".join([data async for data in stream])
        assert answer.startswith(b"HTTP/1.1 200"), answer
        nursery.cancel_scope.cancel()

trio.run(main)
print(sorted(name for name in sys.modules if name.startswith(("opentelemetry", "google", "engine_router"))))
"""


def test_nothing_is_imported_where_traces_are_off(tmp_path: Path) -> None:
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}"])
    config = f"""
        state_file = "/dev/null/state.json"
        pools.default.gauge = "none"
        engines.e = {{ type = "process", argv = {argv}, models = ["m"] }}
        """
    ran = subprocess.run(
        [sys.executable, "-c", OFF, config], capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    assert "'engine_router.telemetry.traces.sender'" in ran.stdout
    for name in ("opentelemetry", "google", "traces.otlp", "proxy.tracing", "engines.providers"):
        assert f"{name}'" not in ran.stdout, name
        assert f"'{name}" not in ran.stdout, name
