"""Metrics: what Prometheus reads, and what the figures are after events."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine_router.events import (
    EventHub,
    MemorySettled,
    RequestEnded,
    ResidentDied,
    ResidentReady,
    RouteChosen,
    RouterNotice,
    SwapBegan,
    SwapEnded,
    TenantAsked,
)
from engine_router.guards.limits import MAX_COUNTED_MODELS
from engine_router.telemetry.metrics import Metrics

AWKWARD = 'a "b"%d%\\\n→ü{}'


def metrics(**readings: dict[tuple[str, ...], float]) -> Metrics:
    return Metrics(lambda: readings)


def samples(of: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name.removeprefix("engine_router_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(of.exposition().decode())
        for sample in family.samples
    }


def value(of: Metrics, name: str, **labels: str) -> float:
    return samples(of).get((name, frozenset(labels.items())), math.nan)


def ended(**fields: object) -> RequestEnded:
    given = {"at": 0.0, "model": "m", "engine": "a", "path": "/", "status": 200, "duration_s": 2.0}
    return RequestEnded(**{**given, **fields})


def swap(**fields: object) -> SwapEnded:
    given = {
        "at": 0.0,
        "pool": "default",
        "source": "a",
        "target": "b",
        "cause": "b is wanted",
        "result": "ok",
        "duration_s": 25.0,
        "phases": {"stop": 2.0, "settle": 0.5, "start": 22.5},
    }
    return SwapEnded(**{**given, **fields})


def test_every_family_is_described_and_nothing_is_there_before_anything_happened() -> None:
    families = list(text_string_to_metric_families(metrics().exposition().decode()))
    assert {family.name.removeprefix("engine_router_") for family in families} >= {
        "in_flight",
        "waiting",
        "resident",
        "oldest_wait_seconds",
        "memory_free_bytes",
        "build_info",
        "swaps",
        "swap_causes",
        "evictions",
        "route_choices",
        "context_saves",
        "context_restores",
        "context_reused_tokens",
        "context_saved_bytes",
        "context_saved_conversations",
        "context_kept",
        "starts",
        "start_failures",
        "settle_failures",
        "tenant_asks",
        "tenant_freed_bytes",
        "load_wait_seconds",
        "swap_seconds",
        "swap_phase_seconds",
        "in_flight_at_swap_start",
        "resident_start_time_seconds",
        "settle_seconds",
        "start_seconds",
        "deaths",
        "requests",
        "queue_wait_seconds",
        "first_byte_seconds",
        "request_seconds",
        "tokens_in",
        "tokens_cached",
        "tokens_out",
        "first_token_seconds",
        "time_per_output_token_seconds",
    }
    assert all(family.name.startswith("engine_router_") for family in families)
    assert all(family.documentation.endswith(".") for family in families)
    assert all(value == 0 for (name, _), value in samples(metrics()).items() if "created" not in name)


def test_gauges_are_read_when_they_are_asked_for() -> None:
    waiting: dict[tuple[str, ...], float] = {}
    of = metrics(in_flight={("default", "a/m"): 3.0}, waiting=waiting, resident={("default", "a/m"): 1.0})
    labels = {"pool": "default", "resident": "a/m"}
    assert value(of, "in_flight", **labels) == 3
    assert value(of, "resident", **labels) == 1
    assert math.isnan(value(of, "waiting", **labels))
    waiting["default", "a/m"] = 2.0
    assert value(of, "waiting", **labels) == 2
    waiting.clear()
    assert math.isnan(value(of, "waiting", **labels))


def test_requests() -> None:
    of = metrics()
    of.observe(ended(queue_wait_s=1.0, load_wait_s=0.0, first_byte_s=1.5))
    of.observe(ended(engine="c", queue_wait_s=20.0, load_wait_s=18.0))
    of.observe(ended(status=503, error="no"))
    of.observe(ended(status=499, engine="b", model=None))
    assert value(of, "requests_total", model="m", status="200") == 2
    assert value(of, "load_wait_seconds_sum", engine="c") == 18
    assert math.isnan(value(of, "load_wait_seconds_count", engine="a"))
    assert value(of, "requests_total", model="m", status="503") == 1
    assert value(of, "requests_total", model="none", status="499") == 1
    assert value(of, "request_seconds_count", engine="a") == 2
    assert value(of, "request_seconds_sum", engine="a") == 4
    assert value(of, "queue_wait_seconds_sum", engine="a") == 1
    assert value(of, "first_byte_seconds_sum", engine="a") == 1.5
    assert value(of, "first_byte_seconds_count", engine="a") == 1
    assert math.isnan(value(of, "queue_wait_seconds_count", engine="b"))
    assert value(of, "first_byte_seconds_bucket", engine="a", le="1.0") == 0
    assert value(of, "first_byte_seconds_bucket", engine="a", le="2.5") == 1


def test_tokens() -> None:
    of = metrics()
    of.observe(ended(tokens_in=30, tokens_cached=29, tokens_out=4, tokens_per_s=40.0, first_token_s=0.3))
    of.observe(ended(tokens_in=5))
    of.observe(ended(model="n"))
    assert value(of, "tokens_in_total", model="m") == 35
    assert value(of, "tokens_cached_total", model="m") == 29
    assert value(of, "tokens_out_total", model="m") == 4
    assert value(of, "time_per_output_token_seconds_sum", engine="a") == 0.025
    assert value(of, "time_per_output_token_seconds_count", engine="a") == 1
    assert value(of, "first_token_seconds_sum", engine="a") == 0.3
    # Where nothing is told, nothing is counted: not even none.
    assert math.isnan(value(of, "tokens_in_total", model="n"))


def test_a_model_that_nobody_serves_makes_no_series() -> None:
    of = metrics()
    before = samples(of)
    for n in range(50):
        of.observe(ended(model=f"typo-{n}", engine=None, status=404))
    assert samples(of) == before


def test_choices_of_routes() -> None:
    of = metrics()
    for model in ("a", "b", "a"):
        of.observe(RouteChosen(at=0.0, id="r1", route="auto", model=model, reason="loaded"))
    assert value(of, "route_choices_total", route="auto", model="a") == 2


def test_swaps() -> None:
    of = metrics()
    of.observe(swap())
    of.observe(swap(source=None, result="error", error="no", phases={"start": 1.0}, duration_s=1.0))
    of.observe(swap(target=None, result="abandoned", phases={}, duration_s=0.0))
    assert value(of, "swaps_total", source="a", target="b", result="ok") == 1
    assert value(of, "swaps_total", source="none", target="b", result="error") == 1
    assert value(of, "swaps_total", source="a", target="none", result="abandoned") == 1
    assert value(of, "swap_causes_total", cause="request", result="ok") == 1
    assert value(of, "evictions_total", reason="request") == 1
    assert value(of, "start_failures_total", resident="b") == 1
    assert value(of, "swap_seconds_count") == 3
    assert value(of, "swap_seconds_sum") == 26
    assert value(of, "swap_phase_seconds_sum", phase="start") == 23.5
    assert value(of, "swap_phase_seconds_count", phase="settle") == 1


def test_what_a_swap_has_to_wait_for() -> None:
    of = metrics()
    for source, count in (("a", 0), ("a", 3), (None, 0)):
        of.observe(
            SwapBegan(at=0.0, pool="default", source=source, target="b", cause="request", in_flight=count)
        )
    assert value(of, "in_flight_at_swap_start_count") == 2
    assert value(of, "in_flight_at_swap_start_sum") == 3
    assert [value(of, "in_flight_at_swap_start_bucket", le=le) for le in ("0.0", "2.0", "4.0")] == [1, 1, 2]


def test_when_the_start_of_each_resident_began() -> None:
    a, b = ("default", "a"), ("default", "b")
    ready, present = {b: 1.0}, {a: 0.0, b: 0.0}
    of = metrics(resident=ready, in_flight=present)

    def began(resident: str) -> float:
        return value(of, "resident_start_time_seconds", pool="default", resident=resident)

    for resident in "ab":
        of.observe(ResidentReady(at=1e9, pool="default", resident=resident, start_s=12.5, adopted=False))
    # One that is drained, or not quite ready, is not shown, and not forgotten.
    assert math.isnan(began("a"))
    assert began("b") == 1e9 - 12.5
    ready[a] = 1.0
    assert began("a") == 1e9 - 12.5
    del present[a]
    assert math.isnan(began("a"))
    present[a] = 0.0
    assert math.isnan(began("a"))


def test_residents_and_memory() -> None:
    of = metrics()
    of.observe(ResidentReady(at=0.0, pool="default", resident="a", start_s=12.0, adopted=False))
    of.observe(ResidentReady(at=0.0, pool="default", resident="a", start_s=1.0, adopted=False, woken=True))
    of.observe(ResidentReady(at=0.0, pool="default", resident="a", start_s=0.0, adopted=True))
    of.observe(ResidentDied(at=0.0, pool="default", resident="a", message="exited"))
    of.observe(
        MemorySettled(
            at=0.0,
            pool="default",
            resident="a",
            outcome="returned",
            released_bytes=1,
            expected_bytes=None,
            waited_s=0.3,
        )
    )
    assert value(of, "start_seconds_sum", resident="a") == 13
    assert [value(of, "starts_total", resident="a", kind=kind) for kind in ("cold", "wake", "adopted")] == [
        1,
        1,
        1,
    ]
    assert math.isnan(value(of, "settle_failures_total", pool="default", outcome="returned"))
    assert value(of, "deaths_total", resident="a") == 1
    assert value(of, "settle_seconds_sum", outcome="returned") == pytest.approx(0.3)


def test_tenants_that_were_asked_are_counted_with_what_they_freed() -> None:
    of = metrics()

    def ask(tenant: str, outcome: str, freed_bytes: int | None) -> None:
        fields = {"severity": "info", "message": "", "pool": "p", "asked_bytes": 9, "duration_s": 1.0}
        told = {"tenant": tenant, "outcome": outcome, "freed_bytes": freed_bytes}
        of.observe(TenantAsked(at=0.0, **{**fields, **told}))

    ask("ComfyUI", "freed", 9)
    ask("ComfyUI", "freed", 9)
    ask("ComfyUI", "partly", 3)
    ask("game", "no_answer", None)
    assert value(of, "tenant_asks_total", tenant="ComfyUI", outcome="freed") == 2
    assert value(of, "tenant_asks_total", tenant="ComfyUI", outcome="partly") == 1
    assert value(of, "tenant_asks_total", tenant="game", outcome="no_answer") == 1
    assert value(of, "tenant_freed_bytes_total", tenant="ComfyUI") == 21
    assert math.isnan(value(of, "tenant_freed_bytes_total", tenant="game"))
    for n in range(MAX_COUNTED_MODELS + 5):
        ask(f"t{n}", "freed", 1)
    names = {
        dict(labels)["tenant"] for (name, labels), _ in samples(of).items() if name == "tenant_asks_total"
    }
    assert len(names) == MAX_COUNTED_MODELS + 1


def test_memory_that_does_not_come_back_is_counted() -> None:
    of = metrics()
    settled = MemorySettled(
        at=0.0,
        pool="default",
        resident="a",
        outcome="short",
        released_bytes=1,
        expected_bytes=9,
        waited_s=60.0,
        warning="8 bytes did not come back",
    )
    of.observe(settled)
    assert value(of, "settle_failures_total", pool="default", outcome="short") == 1


def test_labels_are_bounded_whatever_residents_there_are() -> None:
    of = metrics()
    for n in range(MAX_COUNTED_MODELS + 5):
        of.observe(ResidentReady(at=0.0, pool="p", resident=f"r{n}", start_s=1.0, adopted=False))
        of.observe(ResidentDied(at=0.0, pool="p", resident=f"r{n}", message="exited"))
        of.observe(swap(source=f"r{n}", target=f"r{n + 1}", cause=f"words {n}"))
    found = [name for name, _ in samples(of)]
    for name in ("starts_total", "deaths_total", "swaps_total"):
        assert found.count(name) == MAX_COUNTED_MODELS + 1
    assert value(of, "deaths_total", resident="(others)") == 5
    assert value(of, "swaps_total", source="(others)", target="(others)", result="ok") == 5
    assert value(of, "swap_causes_total", cause="other", result="ok") == MAX_COUNTED_MODELS + 5


def test_other_events_count_for_nothing() -> None:
    of = metrics()
    before = samples(of)
    of.observe(SwapBegan(at=0.0, pool="default", source=None, target="a", cause="request"))
    of.observe(RouterNotice(at=0.0, severity="warning", message="x"))
    assert samples(of) == before


def test_awkward_names_stay_what_they_are() -> None:
    of = metrics(waiting={("default", AWKWARD): 1.0})
    of.observe(ended(model=AWKWARD, engine=AWKWARD))
    assert value(of, "requests_total", model=AWKWARD, status="200") == 1
    assert value(of, "waiting", pool="default", resident=AWKWARD) == 1


def test_it_listens_to_a_hub_and_two_routers_do_not_mix() -> None:
    hub, of, other = EventHub(), metrics(), metrics()
    hub.listen(of.observe)
    hub.publish(ended())
    assert value(of, "requests_total", model="m", status="200") == 1
    assert math.isnan(value(other, "requests_total", model="m", status="200"))


def test_what_changed_after_a_reading_is_in_the_next_one() -> None:
    counted = metrics()
    for times in (1, 2, 3):
        counted.observe(ended(duration_s=float(times), tokens_out=5))
        counted.observe(ended(model="other", engine="b"))
        assert value(counted, "requests_total", model="m", status="200") == times
        assert value(counted, "tokens_out_total", model="m") == 5 * times
        assert value(counted, "request_seconds_count", engine="a") == times
        assert value(counted, "request_seconds_sum", engine="a") == sum(range(times + 1))
        assert value(counted, "request_seconds_bucket", engine="b", le="+Inf") == times


def test_the_lines_have_the_form_of_prometheus_own_library() -> None:
    counted = metrics()
    counted.observe(ended())
    lines = counted.exposition().decode().splitlines()
    assert 'engine_router_request_seconds_bucket{engine="a",le="2.5"} 1.0' in lines
    assert 'engine_router_request_seconds_sum{engine="a"} 2.0' in lines
    assert 'engine_router_requests_total{model="m",status="200"} 1.0' in lines
