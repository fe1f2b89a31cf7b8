"""The trace of one request: the spans of the request, of its wait for a model, and of what its engine did.

They follow OpenTelemetry's conventions for HTTP servers and for generative AI. No text of a request or an answer, no
query, no header and no key is in them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import trio
from attrs import define, field

from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MODEL_NAME_CHARS
from engine_router.in_flight import CLIENT_LEFT, RequestScope
from engine_router.proxy.snapshot import Snapshot
from engine_router.telemetry.traces.context import PARENT, STATE, TraceContext, context_in, parent_header
from engine_router.telemetry.traces.sender import Traces
from engine_router.telemetry.traces.span import (
    Kind,
    Span,
    SpanId,
    Value,
    is_chosen,
    new_span_id,
    new_trace_id,
    without_unknown,
)
from engine_router.telemetry.traces.swaps import SwapTraces
from engine_router.upstream.http1 import Headers

logger = logging.getLogger(__name__)

_NS: Final = 1_000_000_000
# The operations of the GenAI conventions, by endpoint.
_OPERATIONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"), "chat"),
    **dict.fromkeys(
        ("/v1/completions", "/completions", "/completion", "/infill", "/api/generate"), "text_completion"
    ),
    **dict.fromkeys(
        ("/v1/embeddings", "/embeddings", "/embedding", "/api/embed", "/api/embeddings"), "embeddings"
    ),
}
# Beside these, endpoints that have spans of their own name. Others, which anybody may ask for, have the method alone.
_ROUTES: Final = frozenset(
    (
        *_OPERATIONS,
        *(
            "/v1/messages/count_tokens",
            "/v1/rerank",
            "/v1/reranking",
            "/v1/score",
            "/rerank",
            "/reranking",
            "/score",
        ),
        *("/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/realtime"),
        *("/v1/images/generations", "/v1/images/edits", "/tokenize", "/detokenize", "/apply-template"),
        *("/api/show", "/api/pull"),
    )
)
_PORTS: Final = {"http": 80, "https": 443}
_PASSED_ON: Final = "/upstream/"
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))
_CLIENT_LEFT: Final = "client_left"
# A shorter wait for a model is none, in seconds.
_LEAST_WAIT_S: Final = 0.001


@define(eq=False, repr=False)
class RequestTrace:
    """The trace of a request under way.

    Attributes:
        headers: the request's, as they go on: the engine is told which span it works for.
        engine: the one that was asked without a lease; None where there is a lease, which tells it.
        sent_at: when that one was asked, by trio's clock; NaN before.
    """

    headers: Headers
    _scope: RequestScope
    _snapshot: Snapshot
    _method: str
    _parent: TraceContext | None
    _place: SpanId
    _call_id: bytes
    _swaps: SwapTraces
    engine: str | None = None
    sent_at: float = math.nan
    _zero_ns: int = field(init=False)

    @_zero_ns.default
    def _make_zero_ns(self) -> int:
        """Return when trio's clock was zero, in nanoseconds since the epoch."""
        return time.time_ns() - int(trio.current_time() * _NS)

    def asked(self, engine: str) -> None:
        """Note that an engine is asked now, without a lease."""
        self.engine, self.sent_at = engine, trio.current_time()

    def spans(self, now: float) -> list[Span]:
        """Return the spans of the request, which has ended.

        Args:
            now: by trio's clock.
        """
        wait, call = self._wait(now), self._call(now)
        return [self._whole(now), *([] if wait is None else [wait]), *([] if call is None else [call])]

    def _whole(self, now: float) -> Span:
        scope, holder = self._scope, self._scope.holder
        status, route = scope.status or CLIENT_LEFT, _route(scope.path)
        method = self._method if self._method in _METHODS else "_OTHER"
        attributes: dict[str, Value | None] = {
            "http.request.method": method,
            "http.response.status_code": status,
            "http.route": route,
            "url.path": scope.path,
            "url.scheme": "http",
            "client.address": scope.client or None,
            "error.type": self._error(),
            "engine_router.request.id": scope.id,
            "engine_router.key": scope.key_name,
            "engine_router.model": self._model(),
            "engine_router.engine": scope.engine or self.engine,
            "engine_router.route": None if scope.choice is None else scope.choice.route,
        }
        if holder is not None:
            attributes["engine_router.queue_wait_s"] = _known(holder.queue_wait_s)
            attributes["engine_router.load_wait_s"] = _known(holder.load_wait_s)
        return Span(
            place=self._place,
            parent_id=b"" if self._parent is None else self._parent.span_id,
            name=f"{method} {route}" if route else method,
            kind=Kind.SERVER,
            begin_ns=self._ns(scope.began_at),
            end_ns=self._ns(now),
            attributes=without_unknown(attributes),
            is_error=status >= 500,
            state=self._state,
        )

    def _wait(self, now: float) -> Span | None:
        """Return the span of the wait for a model; None where there was none."""
        holder = self._scope.holder
        if holder is None or holder.lease is None:
            return None
        granted_at = holder.lease.granted_at
        was_granted = granted_at < math.inf
        begin, end = holder.entered_at, granted_at if was_granted else now
        if was_granted and end - begin < _LEAST_WAIT_S:
            return None
        begin_ns, end_ns = self._ns(begin), self._ns(end)
        return Span(
            place=SpanId(trace_id=self._place.trace_id, span_id=new_span_id()),
            parent_id=self._place.span_id,
            name="wait for model",
            begin_ns=begin_ns,
            end_ns=end_ns,
            attributes=without_unknown(
                {
                    "engine_router.model": self._model(),
                    "engine_router.engine": self._scope.engine,
                    "engine_router.load_wait_s": _known(holder.load_wait_s),
                    "error.type": None if was_granted else self._error() or str(self._scope.status),
                }
            ),
            is_error=not was_granted and self._scope.status >= 400,
            links=self._swaps.places(str(holder.resident), begin_ns, end_ns),
            state=self._state,
        )

    def _call(self, now: float) -> Span | None:
        """Return the span of the engine's work; None where it was not asked."""
        scope, holder = self._scope, self._scope.holder
        sent_at = self.sent_at if holder is None else holder.sent_at
        engine = self.engine or scope.engine
        if math.isnan(sent_at) or engine is None:
            return None
        operation, model = _operation(scope.path), self._model()
        endpoint = None if holder is None or holder.lease is None else holder.lease.endpoint
        url = urlsplit("" if endpoint is None else endpoint.base_url)
        attributes: dict[str, Value | None] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": self._snapshot.providers.get(engine, engine),
            "gen_ai.request.model": model,
            "server.address": url.hostname,
            "server.port": url.port or _PORTS.get(url.scheme),
            "error.type": self._error() or (str(scope.status) if scope.status >= 400 else None),
            "engine_router.engine": engine,
        }
        if holder is not None:
            figures = holder.figures()
            first_s = figures.first_token_s
            attributes |= {
                "gen_ai.response.model": holder.answered_model(),
                "gen_ai.usage.input_tokens": figures.tokens_in,
                "gen_ai.usage.output_tokens": figures.tokens_out,
                "gen_ai.usage.cache_read.input_tokens": figures.tokens_cached,
                "gen_ai.response.time_to_first_chunk": (
                    None if first_s is None else max(0.0, holder.entered_at + first_s - sent_at)
                ),
            }
        return Span(
            place=SpanId(trace_id=self._place.trace_id, span_id=self._call_id),
            parent_id=self._place.span_id,
            name=f"{operation} {model}" if operation and model else f"ask {engine}",
            kind=Kind.CLIENT,
            begin_ns=self._ns(sent_at),
            end_ns=self._ns(now),
            attributes=without_unknown(attributes),
            is_error=scope.status >= 400,
            state=self._state,
        )

    @property
    def _state(self) -> str:
        return "" if self._parent is None else self._parent.state

    def _error(self) -> str | None:
        """Return what kind of error the request ended with, without its words, which may quote the request."""
        status = self._scope.status or CLIENT_LEFT
        if status == CLIENT_LEFT:
            return _CLIENT_LEFT
        return str(status) if status >= 500 else None

    def _model(self) -> str | None:
        return None if self._scope.model is None else shown(self._scope.model, MODEL_NAME_CHARS)

    def _ns(self, at: float) -> int:
        return self._zero_ns + int(at * _NS)


def begin_trace(
    traces: Traces, snapshot: Snapshot, scope: RequestScope, method: str, headers: Headers
) -> RequestTrace | None:
    """Begin the trace of a request, and follow it to its end. None where none is made and its headers go on as they are.

    Args:
        snapshot: one with traces.
    """
    settings = snapshot.traces
    if settings is None:
        return None
    parent = context_in(headers)
    if parent is not None and not parent.is_sampled:
        return None
    place = SpanId(trace_id=new_trace_id() if parent is None else parent.trace_id, span_id=new_span_id())
    is_sampled = parent is not None or is_chosen(place.trace_id, settings.sample_ratio)
    call_id = new_span_id()
    is_random = parent is None or parent.is_random
    dropped = (PARENT,) if parent is not None and parent.state else (PARENT, STATE)
    onward = [item for item in headers if item[0] not in dropped]
    onward.append(parent_header(place.trace_id, call_id, is_sampled=is_sampled, is_random=is_random))
    trace = RequestTrace(onward, scope, snapshot, method, parent, place, call_id, traces.swaps)
    if not is_sampled:
        return trace

    def end() -> None:
        try:
            traces.add(trace.spans(trio.current_time()))
        except Exception:
            # A defect here is no reason to fail a request that went well.
            logger.exception("the trace of request %s failed", scope.id)

    scope.on_leave(end)
    return trace


def _route(path: str) -> str | None:
    """Return the route of a path; None where it is one that anybody could make up."""
    if path.startswith(_PASSED_ON):
        return "/upstream/{model}"
    return path if path in _ROUTES else None


def _operation(path: str) -> str | None:
    """Return the operation of a path, which goes straight to an engine where it begins so."""
    if not path.startswith(_PASSED_ON):
        return _OPERATIONS.get(path)
    ends = [end for end in _OPERATIONS if path.endswith(end)]
    return _OPERATIONS[max(ends, key=len)] if ends else None


def _known(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds
