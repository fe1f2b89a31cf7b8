"""`[traces]`: where spans of requests and swaps go, by the file and by OpenTelemetry's own environment variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from engine_router.config.addresses import read_remote_url
from engine_router.config.kinds import BoolOrAuto, HeaderValue, Name, Ratio, RemoteUrl
from engine_router.config.options import option, table
from engine_router.config.values import read_header_name, read_header_value

PATH: Final = "/v1/traces"
"""The path at which a collector takes spans."""

_DEFAULT_ENDPOINT: Final = "http://localhost:4318"
_DEFAULT_SERVICE: Final = "engine-router"
_GRPC_PORT: Final = 4317
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"  # goes as it is, without a path added


@frozen(kw_only=True, repr=False)
class TracesConfig:
    """`[traces]`: spans of requests and swaps for a collector, by OTLP over HTTP."""

    enabled: BoolOrAuto = option(
        "auto",
        "Send spans of requests and swaps to a collector (extra otel): true, false, or auto: where there is an endpoint, "
        "here or in OTEL_EXPORTER_OTLP_ENDPOINT.",
    )
    endpoint: RemoteUrl | None = option(
        None,
        "Where the collector takes OTLP over HTTP, such as http://127.0.0.1:4318; /v1/traces is added. Absent: "
        "OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4318.",
    )
    headers: Mapping[str, HeaderValue] = table(
        dict,
        "Headers of each request to the collector, such as Authorization; ${env:NAME} keeps a key out of the file.",
    )
    ca_file: str | None = option(
        None, "File with the certificates that vouch for the collector's; the system's when absent."
    )
    sample_ratio: Ratio = option(
        1.0,
        "Share of the requests that are traced, from 0 to 1. A client's traceparent decides for its own requests; swaps "
        "are always traced.",
    )
    service_name: Name | None = option(
        None, "Name of the router in traces. Absent: OTEL_SERVICE_NAME, else engine-router."
    )


@frozen(kw_only=True, repr=False)
class TraceSettings:
    """The settings of traces that are on, from the file and the environment together.

    Attributes:
        url: where spans are posted to.
        headers: those of each post, a key perhaps among them.
        ca_file: the authorities that vouch for the collector; None for the system's.
        sample_ratio: the share of traces begun here that is recorded, from 0 to 1.
        resource: what every span comes from: the service's name, and more of the environment's attributes.
        is_in_file: the file asks for traces, not the environment alone.
    """

    url: str
    headers: Mapping[str, str] = field(factory=dict)
    ca_file: str | None = None
    sample_ratio: float = 1.0
    resource: Mapping[str, str] = field(factory=dict)
    is_in_file: bool = True

    @property
    def place(self) -> str:
        """The collector as it is named to people: scheme, host and port, without a path that may be secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


def trace_settings(config: TracesConfig, environ: Mapping[str, str]) -> TraceSettings | None:
    """Return the settings of traces; None where there are none. The file counts more than the environment."""
    if config.enabled is False or (config.enabled == "auto" and not _is_wanted(config, environ)):
        return None
    if config.endpoint is not None:
        url = config.endpoint if config.endpoint.endswith(PATH) else config.endpoint + PATH
    else:
        url = _url_in(environ) or _DEFAULT_ENDPOINT + PATH
    given = _pairs(_first(environ, "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"))
    named = {name.lower() for name in config.headers}
    headers = {
        name: value for name, value in given if name.lower() not in named and _may_be_sent(name, value)
    }
    resource = dict(_pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    service = config.service_name or environ.get("OTEL_SERVICE_NAME") or resource.get("service.name")
    certificate = _first(environ, "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE")
    return TraceSettings(
        url=url,
        headers={**headers, **config.headers},
        ca_file=config.ca_file or certificate or None,
        sample_ratio=config.sample_ratio,
        resource={**resource, "service.name": service or _DEFAULT_SERVICE},
        is_in_file=is_in_file(config),
    )


def is_in_file(config: TracesConfig) -> bool:
    """Tell whether the file asks for traces: the environment may ask all programs of a machine for them."""
    return config.enabled is True or config.endpoint is not None


def trace_problems(config: TracesConfig, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what keeps traces from arriving that are meant to, as (place in the file, words)."""
    if config.enabled is False or (config.enabled == "auto" and _is_disabled(environ)):
        return
    endpoint = _first(environ, _TRACES_ENDPOINT, _ENDPOINT)
    if config.endpoint is None and endpoint:
        if _speaks_grpc(environ) and config.enabled == "auto":
            words = f"no traces: {_ENDPOINT} is for gRPC (OTEL_EXPORTER_OTLP_PROTOCOL), and the router speaks OTLP over HTTP"
            yield "traces", f"{words}; give it an endpoint of its own, such as {_DEFAULT_ENDPOINT}"
        elif _url_in(environ) is None:
            yield "traces", f"no traces: {_ENDPOINT} holds no URL such as {_DEFAULT_ENDPOINT}"
    settings = trace_settings(config, environ)
    if settings is not None and _port_of(settings.url) == _GRPC_PORT:
        words = f"port {_GRPC_PORT} is a collector's for gRPC; the router speaks OTLP over HTTP, whose port is 4318"
        yield "traces.endpoint" if config.endpoint else "traces", words


def _is_wanted(config: TracesConfig, environ: Mapping[str, str]) -> bool:
    """Tell whether `auto` means that there are traces."""
    if _is_disabled(environ):
        return False
    return config.endpoint is not None or (_url_in(environ) is not None and not _speaks_grpc(environ))


def _is_disabled(environ: Mapping[str, str]) -> bool:
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"


def _speaks_grpc(environ: Mapping[str, str]) -> bool:
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return _first(environ, *names).lower() == "grpc"


def _url_in(environ: Mapping[str, str]) -> str | None:
    """Return the URL that the environment gives; None where it gives none that is one."""
    whole, base = environ.get(_TRACES_ENDPOINT, "").strip(), environ.get(_ENDPOINT, "").strip()
    try:
        return read_remote_url(whole) if whole else read_remote_url(base) + PATH if base else None
    except ValueError:
        return None


def _port_of(url: str) -> int | None:
    return urlsplit(url).port


def _first(environ: Mapping[str, str], *names: str) -> str:
    """Return the first variable that is not empty."""
    return next((found for name in names if (found := environ.get(name, "").strip())), "")


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yield what a variable such as `a=1,b=x%20y` lists (W3C Baggage, without properties)."""
    for part in text.split(","):
        name, separator, value = part.partition("=")
        if separator and name.strip():
            yield unquote(name.strip()), unquote(value.strip())


def _may_be_sent(name: str, value: str) -> bool:
    """Tell whether a header can stand in a request."""
    try:
        read_header_name(name)
        read_header_value(value)
    except ValueError:
        return False
    return True
