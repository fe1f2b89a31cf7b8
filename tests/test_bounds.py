"""Whatever comes from outside has a bound: memory, messages and the log stay small whatever a stranger sends."""

from __future__ import annotations

from engine_router.events import RequestEnded
from engine_router.limits import MAX_COUNTED_MODELS
from engine_router.metrics import Metrics
from engine_router.web.rivals.telemetry import Telemetry


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
    telemetry = Telemetry()
    for number in range(300):
        telemetry.observe(ended(f"nobody-{number}", engine=None))
    telemetry.observe(ended("known"))
    assert dict(telemetry.requests) == {"known": 1}
    assert telemetry.summary()["error_count"] == 0


def test_telemetry_counts_so_many_models_apart_and_the_others_together() -> None:
    telemetry = Telemetry()
    for number in range(MAX_COUNTED_MODELS + 5):
        telemetry.observe(ended(f"m{number}"))
    telemetry.observe(ended("m0"))
    assert len(telemetry.requests) == MAX_COUNTED_MODELS + 1
    assert telemetry.requests["m0"] == 2
    assert telemetry.summary()["total_requests"] == MAX_COUNTED_MODELS + 6


def test_metrics_have_labels_for_so_many_models() -> None:
    metrics = Metrics(in_flight=dict, waiting=dict, resident=dict)
    for number in range(MAX_COUNTED_MODELS + 5):
        metrics.observe(ended(f"m{number}"))
        metrics.observe(ended(f"nobody-{number}", engine=None))
    text = metrics.exposition().decode()
    assert text.count("engine_router_requests_total{") == MAX_COUNTED_MODELS + 1
    assert "nobody" not in text
    assert 'engine_router_requests_total{model="(other models)",status="200"} 5.0' in text
