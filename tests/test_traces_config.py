"""`[traces]`: the file, OpenTelemetry's own environment variables, and both together."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from engine_router.config import TracesConfig, TraceSettings, parse_config, trace_settings
from engine_router.config.masked import masked_config
from engine_router.config.traces import trace_problems
from engine_router.errors import ConfigError
from engine_router.models.config_warnings import warnings

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
HERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
ENGINES = '[engines.e]\ntype = "ollama"\n'


def settings(text: str, **environ: str) -> TraceSettings | None:
    return trace_settings(parse_config(f"{text}\n{ENGINES}").traces, environ)


@pytest.mark.parametrize(
    ("text", "environ", "url"),
    [
        ("", {}, None),
        ("traces.enabled = true", {}, "http://localhost:4318/v1/traces"),
        ('traces.endpoint = "http://c:4318/"', {}, "http://c:4318/v1/traces"),
        ('traces.endpoint = "https://c/api/public/otel"', {}, "https://c/api/public/otel/v1/traces"),
        ('traces.endpoint = "https://c/otel/v1/traces"', {}, "https://c/otel/v1/traces"),
        ('traces.endpoint = "http://c:4318"\ntraces.enabled = false', {}, None),
        ("", HERE, "http://c:4318/v1/traces"),
        ("", {ENDPOINT: "http://c:4318/base/"}, "http://c:4318/base/v1/traces"),
        ("", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/own"} | HERE, "http://t/own"),
        ('traces.endpoint = "http://file:4318"', HERE, "http://file:4318/v1/traces"),
        ("traces.enabled = false", HERE, None),
        ("", HERE | {"OTEL_SDK_DISABLED": "true"}, None),
        ("", HERE | {"OTEL_SDK_DISABLED": "false"}, "http://c:4318/v1/traces"),
        ("", HERE | {"OTEL_TRACES_EXPORTER": "none"}, None),
        ('traces.endpoint = "http://c:4318"', {"OTEL_SDK_DISABLED": "TRUE"}, None),
        ("traces.enabled = true", HERE | {"OTEL_SDK_DISABLED": "true"}, "http://c:4318/v1/traces"),
        ("", HERE | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None),
        ("", HERE | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, "http://c:4318/v1/traces"),
        ("", {ENDPOINT: "c:4318"}, None),
        ("", {ENDPOINT: " "}, None),
    ],
    ids=str,
)
def test_where_traces_go(text: str, environ: Mapping[str, str], url: str | None) -> None:
    found = settings(text, **environ)
    assert (None if found is None else found.url) == url


def test_the_environment_fills_in_what_the_file_does_not_say() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20env,x-team=%C3%A9,x-a=1,,broken",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "/env/ca.pem",
        "OTEL_SERVICE_NAME": "from env",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=home%20lab,service.name=other",
    }
    found = settings("traces.enabled = true", **environ)
    assert found is not None
    assert found.headers == {"authorization": "Bearer env", "x-a": "1"}
    assert found.ca_file == "/env/ca.pem"
    assert found.resource == {"deployment.environment.name": "home lab", "service.name": "from env"}
    text = """
        [traces]
        enabled = true
        headers = { Authorization = "Bearer file" }
        ca_file = "/file/ca.pem"
        service_name = "mine"
        sample_ratio = 0.5
    """
    found = settings(text, **environ)
    assert found is not None
    assert found.headers == {"x-a": "1", "Authorization": "Bearer file"}
    assert (found.ca_file, found.resource["service.name"], found.sample_ratio) == (
        "/file/ca.pem",
        "mine",
        0.5,
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sample_ratio = 2", "expected a number from 0 to 1"),
        ("sample_ratio = -0.1", "expected a number from 0 to 1"),
        ('endpoint = "c:4318"', "expected a URL"),
        ('endpoint = "http://user:word@c:4318"', "expected a URL"),
        ('headers = { "a b" = "c" }', "the name of an HTTP header"),
        ('enabled = "yes"', "expected true, false"),
        ('url = "http://c"', "unknown key"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_with_its_place(line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        parse_config(f"[traces]\n{line}\n{ENGINES}")
    assert "traces." in str(raised.value)


@pytest.mark.parametrize(
    ("options", "environ", "words"),
    [
        ({}, {}, None),
        ({"endpoint": "http://c:4318"}, {}, None),
        ({"endpoint": "http://c:4317"}, {}, "port 4317 is a collector's for gRPC"),
        ({}, {ENDPOINT: "http://c:4317"}, "port 4317"),
        ({}, HERE | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "is for gRPC"),
        ({}, HERE | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_SDK_DISABLED": "true"}, None),
        ({"enabled": False}, HERE | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None),
        ({}, {ENDPOINT: "c:4318"}, "holds no URL"),
    ],
    ids=str,
)
def test_what_keeps_traces_from_arriving_is_told(
    options: dict[str, Any], environ: Mapping[str, str], words: str | None
) -> None:
    found = [text for _, text in trace_problems(TracesConfig(**options), environ)]
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


def test_check_tells_of_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config(f'traces.endpoint = "http://c:4318"\n{ENGINES}')
    assert not [words for place, words in warnings(config) if place.startswith("traces")]
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "opentelemetry", raising=False)
    monkeypatch.delitem(sys.modules, "opentelemetry.proto", raising=False)
    assert ("traces", "they need: pip install 'engine-router[otel]'") in warnings(config)
    # An environment that is meant for other programs too is no reason for a warning.
    monkeypatch.setenv(ENDPOINT, "http://c:4317")
    assert not [words for place, words in warnings(parse_config(ENGINES)) if place.startswith("traces")]


def test_the_headers_are_secrets_of_the_file() -> None:
    text = (
        '[traces]\nheaders = { Authorization = "Bearer abcdefgh" }\n[traces.headers]\nx-other = "ijklmnop"\n'
    )
    shown = masked_config(text)
    assert "abcdefgh" not in shown
    assert "ijklmnop" not in shown
