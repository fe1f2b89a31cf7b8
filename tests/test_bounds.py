"""Whatever comes from outside has a bound: memory, messages and the log stay small whatever a stranger sends."""

from __future__ import annotations

import json
import logging

import attrs
import pytest
import trio
from support.served import RawClient, served
from test_control import process, routing

from engine_router.cli.event_text import EventLog
from engine_router.dialects.responses.answers import translate
from engine_router.errors import BadRequest
from engine_router.events import Event, RequestEnded
from engine_router.guards.limits import MAX_COUNTED_MODELS
from engine_router.telemetry.metrics import Metrics
from engine_router.web.compat.telemetry import summary


def ended(model: str, *, engine: str | None = "e") -> RequestEnded:
    return RequestEnded(
        at=0.0,
        model=model,
        engine=engine,
        path="/v1/chat/completions",
        status=404 if engine is None else 200,
        duration_s=0.1,
        queue_wait_s=None,
        first_byte_s=None,
        error=None,
    )


def test_telemetry_keeps_nothing_of_unknown_names() -> None:
    telemetry = Metrics()
    for number in range(300):
        telemetry.observe(ended(f"nobody-{number}", engine=None))
    telemetry.observe(ended("known"))
    assert summary(telemetry)["requests_by_model"] == {"known": 1}
    assert summary(telemetry)["error_count"] == 0


def test_telemetry_counts_so_many_models_apart_and_the_others_together() -> None:
    telemetry = Metrics()
    for number in range(MAX_COUNTED_MODELS + 5):
        telemetry.observe(ended(f"m{number}"))
    telemetry.observe(ended("m0"))
    assert len(summary(telemetry)["requests_by_model"]) == MAX_COUNTED_MODELS + 1
    assert summary(telemetry)["requests_by_model"]["m0"] == 2
    assert summary(telemetry)["total_requests"] == MAX_COUNTED_MODELS + 6


def test_metrics_have_labels_for_so_many_models() -> None:
    metrics = Metrics()
    for number in range(MAX_COUNTED_MODELS + 5):
        metrics.observe(attrs.evolve(ended(f"m{number}"), tokens_in=2))
        metrics.observe(ended(f"nobody-{number}", engine=None))
    text = metrics.exposition().decode()
    assert text.count("engine_router_requests_total{") == MAX_COUNTED_MODELS + 1
    assert text.count("engine_router_tokens_in_total{") == MAX_COUNTED_MODELS + 1
    assert 'engine_router_tokens_in_total{model="(other models)"} 10.0' in text
    assert "nobody" not in text
    assert 'engine_router_requests_total{model="(other models)",status="200"} 5.0' in text


LONG, LONGER = "n" * 600, "p" * 20_000
HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
REQUESTS: dict[str, tuple[str, str, dict[str, object] | None, tuple[str, ...], int]] = {
    "a model in the body": ("POST", "/v1/chat/completions", {"model": "m" * 2_000_000}, (), 400),
    "a model in Anthropic's body": ("POST", "/v1/messages", {"model": LONG}, (), 400),
    "a model in Ollama's body": ("POST", "/api/show", {"model": LONG}, (), 400),
    "a model in the query": ("GET", f"/v1/audio/voices?model={LONG}", None, (), 400),
    "a model in the path": ("GET", f"/v1/models/{LONG}", None, (), 400),
    "a model's status": ("GET", f"/v1/models/{LONG}/status", None, (), 400),
    "a model to pass on to": ("GET", f"/upstream/{LONG}/x", None, (), 400),
    "a model far down a path": ("GET", f"/upstream/{'b/' * 10_000}", None, (), 404),
    "a job": ("GET", f"/admin/jobs/{LONGER}", None, (), 404),
    "a model to load": ("POST", "/admin/load", {"model": LONG}, (), 400),
    "a model to unload": ("POST", f"/api/models/unload/{LONG}", None, (), 400),
    "a model of a WebSocket": ("GET", f"/upstream/{LONG}/x", None, HANDSHAKE, 400),
    "a model in a WebSocket's query": ("GET", f"/v1/realtime?model={LONG}", None, HANDSHAKE, 400),
    "a WebSocket's path": ("GET", f"/{LONGER}", None, HANDSHAKE, 404),
    "a path": ("GET", f"/{LONGER}", None, (), 404),
    "a path below /v1": ("POST", f"/v1/{LONGER}", {"model": "nobody"}, (), 404),
    "a path below /api": ("POST", f"/api/{LONGER}", {}, (), 404),
    "an engine": ("GET", f"/admin/logs?engine={LONGER}", None, (), 404),
    "an engine to load": ("POST", "/admin/load", {"engine": LONGER}, (), 404),
    "a member": ("POST", "/admin/load", {LONGER: 1}, (), 400),
    "a pool": ("GET", f"/vram?pool={LONGER}", None, (), 404),
    "a request to end": ("POST", "/admin/cancel", {"id": LONGER}, (), 404),
    "an encoding": ("POST", "/v1/chat/completions", {"model": "a"}, (f"Content-Encoding: {LONGER}",), 415),
    "an origin": ("POST", "/admin/load", {"model": "a"}, (f"Origin: http://{LONGER}",), 403),
}


@pytest.mark.parametrize("case", REQUESTS)
async def test_what_is_too_long_is_refused_and_not_repeated(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    method, target, body, headers, status = REQUESTS[case]
    events: list[Event] = []
    with caplog.at_level(logging.DEBUG, "engine_router"), trio.fail_after(200):
        async with routing(process("a")) as router, served(router) as base_url:
            router.hub.listen(events.append)
            async with RawClient.to(base_url) as client:
                data = b"" if body is None else json.dumps(body).encode()
                await client.request(method, target, data, headers=headers)
                answer = await client.answer(method)
        told = [EventLog().described(event)[1] for event in events]
    assert answer.status == status, answer.body[:500]
    assert len(answer.body) < 1000
    assert b"error" in answer.body
    assert all(len(line) < 1000 for line in [*told, *(json.dumps(event.as_dict()) for event in events)])
    assert all(len(line) < 1000 for line in caplog.messages)


def test_the_place_of_a_fault_is_shown_short() -> None:
    data = {"model": "m", "input": "x", "metadata": {LONGER: 1}}
    with pytest.raises(BadRequest) as caught:
        translate("/v1/responses", data, model="m", upstream="m")
    assert len(str(caught.value)) < 300
