"""The merging of engines' metrics, judged by Prometheus' own library and by promtool."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from engine_router.guards.limits import ENGINE_METRICS_SERIES
from engine_router.telemetry.exposition import BadExposition, Exposition, merged

# As vLLM's documentation shows them (docs/usage/metrics), shortened.
VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-8B"} 8.0
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="Qwen/Qwen3-8B"} 27453.0
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="Qwen/Qwen3-8B"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="Qwen/Qwen3-8B"} 140.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="Qwen/Qwen3-8B"} 140.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="Qwen/Qwen3-8B"} 32.46
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",version="3.12.9"} 1.0
"""
SGLANG = """\
# HELP sglang:num_running_reqs The number of running requests
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="meta-llama/Llama-3.1-8B-Instruct"} 162.0
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",version="3.11.2"} 1.0
"""


def read(text: str, engine: str = "e", model: str = "m", *, is_openmetrics: bool = False) -> Exposition:
    exposition = Exposition({"engine": engine, "model": model}, is_openmetrics=is_openmetrics)
    exposition.read(text.split("\n"))
    return exposition


def one(*expositions: Exposition) -> str:
    return "".join(merged(expositions))


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def only(text: str) -> tuple[str, dict[str, str], float]:
    ((name, labels), value), *more = samples(text).items()
    assert not more
    return name, dict(labels), value


def test_two_engines_share_the_head_of_a_family_and_every_sample_is_there() -> None:
    text = one(read(VLLM, "vllm", "qwen3"), read(SGLANG, "sg", "llama"), read(VLLM, "vllm", "other"))
    lines = text.splitlines()
    assert lines.count("# TYPE python_info gauge") == 1
    assert len(samples(text)) == 2 * 7 + 2
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert kinds["vllm:time_to_first_token_seconds"] == "histogram"
    assert kinds["vllm:generation_tokens"] == "counter"
    found = samples(text)
    # vLLM has a label `engine` of its own.
    labels = {"engine": "vllm", "model": "qwen3", "exported_engine": "0", "model_name": "Qwen/Qwen3-8B"}
    assert found["vllm:num_requests_running", frozenset(labels.items())] == 8
    bucket = frozenset({**labels, "le": "+Inf"}.items())
    assert found["vllm:time_to_first_token_seconds_bucket", bucket] == 140
    # A family's samples stand together, as the format wants it.
    at = [n for n, line in enumerate(lines) if line.startswith("python_info{")]
    assert at == [*range(at[0], at[0] + 3)]


def test_promtool_reads_it() -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    clash = "# TYPE a counter\na 1\n", '# TYPE a histogram\na_bucket{le="+Inf"} 1\na_sum 1\na_count 1\n'
    text = one(read(VLLM), read(SGLANG, "sg"), *(read(body, f"c{n}") for n, body in enumerate(clash)))
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert "error while linting" not in done.stderr, done.stderr
    assert done.returncode in (0, 3)  # 3: names that it finds unusual


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ('{model="x"}', {"exported_model": "x"}),
        ('{ model = "x" , }', {"exported_model": "x"}),
        ('{model="x",exported_model="y"}', {"exported_exported_model": "x", "exported_model": "y"}),
        ('{exported_engine="y",engine="x"}', {"exported_exported_engine": "x", "exported_engine": "y"}),
        ('{a="b}",c=",d=\\"\\\\"}', {"a": "b}", "c": ',d="\\'}),
        ('{a="1\\n2"}', {"a": "1\n2"}),
        ('{a="C:\\models\\x"}', {"a": "C:\\models\\x"}),
        ('{a="→ü"}', {"a": "→ü"}),
        ("{}", {}),
        ("", {}),
    ],
)
def test_labels(own: str, expected: dict[str, str]) -> None:
    name, labels, value = only(one(read(f"x{own} 1\n", 'e"\\', "m\n")))
    assert (name, value) == ("x", 1)
    assert labels == {"engine": 'e"\\', "model": "m\n", **expected}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1", 1),
        ("-1.5e-3", -0.0015),
        ("+Inf", math.inf),
        ("-inf", -math.inf),
        ("1e999", math.inf),
        ("-1e999", -math.inf),
        ("nan", math.nan),
        ("-nan", math.nan),
    ],
)
def test_values(written: str, expected: float) -> None:
    value = only(one(read(f"x {written}\r\n")))[2]
    assert value == expected or (math.isnan(value) and math.isnan(expected))


def test_timestamps_stay() -> None:
    line = 'x{engine="e",model="m"} 1 1700000000123\n'
    assert line in one(read("x 1 1700000000123"))
    assert line in one(read("x 1 1700000000.123", is_openmetrics=True))


def test_openmetrics_becomes_text() -> None:
    text = """\
# TYPE requests counter
# UNIT requests requests
# HELP requests All \\"requests\\".
requests_total{a="1"} 17.0 # {trace_id="abc"} 0.67
requests_created{a="1"} 1605281325.0
# TYPE build info
build_info{version="1"} 1
# TYPE lag_seconds histogram
lag_seconds_bucket{le="+Inf"} 2
lag_seconds_count 2
lag_seconds_sum 3
lag_seconds_created 1605281325.0
# TYPE queue gaugehistogram
queue_bucket{le="+Inf"} 2
queue_gcount 2
queue_gsum 3
# TYPE odd unknown
odd 1
# EOF
"""
    made = one(read(text, is_openmetrics=True))
    kinds = {family.name: family.type for family in text_string_to_metric_families(made)}
    assert kinds == {
        "requests": "counter",
        "requests_created": "gauge",
        "build_info": "gauge",
        "lag_seconds": "histogram",
        "lag_seconds_created": "gauge",
        "queue": "histogram",
        "queue_gcount": "gauge",
        "queue_gsum": "gauge",
        "odd": "unknown",
    }
    assert '# HELP requests_total All "requests".\n' in made
    assert len(samples(made)) == 11
    assert "trace_id" not in made


def test_contradictory_types_cost_the_type_only() -> None:
    made = one(
        read("# HELP a One.\n# TYPE a counter\na 1\n", "x"),
        read('# TYPE a histogram\na_bucket{le="+Inf"} 1\na_sum 2\na_count 1\n', "y"),
        read("# TYPE a_sum gauge\na_sum 5\n", "z"),
    )
    assert {line for line in made.splitlines() if line.startswith("# TYPE")} == {
        f"# TYPE {name} untyped" for name in ("a", "a_bucket", "a_sum", "a_count")
    }
    assert sorted(samples(made).values()) == [1, 1, 1, 2, 5]


def test_the_routers_own_names_are_the_routers() -> None:
    made = one(read("# TYPE engine_router_swaps_total counter\nengine_router_swaps_total 1\ny 2\n"))
    assert only(made)[0] == "y"


@pytest.mark.parametrize(
    "line",
    [
        "<!DOCTYPE html>",
        '{"error": "not found"}',
        "x",
        "x{",
        'x{a="1"',
        'x{a="1"} ',
        "x{a=1} 1",
        'x{a="1" b="2"} 1',
        'x{a="1",a="2"} 1',
        'x{__name__="y"} 1',
        "x{,} 1",
        'x{"a.b"} 1',
        "1x 1",
        "x one",
        "x 0x1p3",
        "x 1_000",
        "x 1 later",
        "x 1 1.5",
        "x 1 99999999999999999999",
        "x \u0661",
        "x " + "1" * 5000,
    ],
)
def test_what_is_no_sample_is_refused(line: str) -> None:
    with pytest.raises(BadExposition, match="no sample"):
        read(f"y 1\n{line}\n")


def test_samples_are_bounded() -> None:
    read("x 1\n" * ENGINE_METRICS_SERIES)
    with pytest.raises(BadExposition, match="10,000 samples"):
        read("x 1\n" * (ENGINE_METRICS_SERIES + 1))


@pytest.mark.parametrize(
    "line", ['x{a="' + "\\" * 200_000, "x{" + '"",' * 100_000, "x" * 300_000 + "{", "x " + "# " * 9]
)
def test_a_long_line_is_judged_at_once(line: str) -> None:
    with pytest.raises(BadExposition):
        read(line)


_PIECES = st.sampled_from(
    (
        *("x", "x_sum", "x_count", 'x_bucket{le="1"}', "y{}", 'a="', 'model="m"', "engine", "1e5", "é"),
        *("{", "}", '"', "\\", ",", "=", "#", " ", "\t", "\r", "\n", "\u2028", " 1\n", " NaN\n", " 1 2\n"),
        *("# TYPE x histogram\n", "# TYPE x_sum gauge\n", "# TYPE x gauge\n", "# HELP x A \\ word.\n"),
    )
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(_PIECES, max_size=12).map("".join), min_size=1, max_size=4))
def test_whatever_is_accepted_prometheus_library_reads(texts: list[str]) -> None:
    accepted: list[Exposition] = []
    for number, text in enumerate(texts):
        try:
            accepted.append(read(text, f"e{number}"))
        except BadExposition:
            continue
    assert len(_series(one(*accepted))) == sum(exposition.series for exposition in accepted)


def _series(text: str) -> Iterable[object]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]
