"""The proxied routes: read `model`, wait for its engine, relay."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import trio
from quart import Request, Response, request

from engine_router.dialects import OLLAMA, dialect_of
from engine_router.dialects.base import Dialect, Routed, Translation, route_json, route_multipart
from engine_router.dialects.ollama_openai import translate
from engine_router.discovery import Target
from engine_router.errors import NoSuchRoute, RouterError
from engine_router.relay import Outgoing, Passage, plain_body, request_headers, waiting_body
from engine_router.router import Router
from engine_router.upstream import ResponseHead
from engine_router.web.scope import RequestScope, scope_of, whole_body

V1_ROUTES = frozenset(
    (
        "chat/completions",
        "completions",
        "embeddings",
        "responses",
        "messages",
        "messages/count_tokens",
        "rerank",
        "reranking",
        "score",
    )
)
V1_PREFIXES = ("audio/", "images/")
_PLAIN_PATH = re.compile(r"\w[\w.-]*(/\w[\w.-]*)+", re.ASCII)
API_ROUTES = frozenset(("chat", "generate", "embed", "embeddings"))


def is_proxied(path: str) -> bool:
    """Tell whether a path below /v1/ is routed by `model`; one that leads anywhere else (`audio/..`) is not."""
    return path in V1_ROUTES or (path.startswith(V1_PREFIXES) and _PLAIN_PATH.fullmatch(path) is not None)


class Proxy:
    """Answers requests by relaying them to the engine that owns their model."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._strip_keys = bool(router.config.server.api_keys)
        self._interval_s = float(router.config.server.keepalive_interval_s) or math.inf

    async def v1(self, rest: str) -> Response:
        """`POST /v1/...`."""
        if not is_proxied(rest):
            raise NoSuchRoute(f"there is no POST /v1/{rest} here")
        return await self._answer(f"/v1/{rest}")

    async def api(self, rest: str) -> Response:
        """`POST /api/{chat,generate,embed,embeddings}`."""
        return await self._answer(f"/api/{rest}")

    async def _answer(self, path: str) -> Response:
        scope = scope_of(request)
        dialect = dialect_of(path)
        routed = await self._read(dialect, path)
        scope.model = routed.model
        target = await self._router.resolve(routed.model)
        scope.model, scope.engine = target.model, target.engine
        translation = self._translation(path, routed, target)
        passage = Passage(
            self._router.supervisor,
            self._router.upstream,
            self._outgoing(path, routed, target, translation),
            translation,
        )
        scope.queue_wait_s = lambda: passage.queue_wait_s
        scope.first_byte_s = lambda: passage.first_byte_s
        scope.stack.callback(passage.close)
        passage.enter()
        return await self._begin(passage, dialect, scope, streams=routed.streams)

    async def _read(self, dialect: Dialect, path: str) -> Routed:
        body = await whole_body(request)
        content_type = request.headers.get("Content-Type", "")
        if content_type.startswith("multipart/"):
            return route_multipart(content_type, body)
        return route_json(dialect, path, body)

    def _translation(self, path: str, routed: Routed, target: Target) -> Translation | None:
        """Return the translation that a request needs: Ollama's dialect for an engine that speaks OpenAI's."""
        if dialect_of(path) is not OLLAMA or self._router.config.engines[target.engine].type == "ollama":
            return None
        return translate(path, routed.data or {}, asked=routed.model, upstream=target.upstream)

    def _outgoing(
        self, path: str, routed: Routed, target: Target, translation: Translation | None
    ) -> Outgoing:
        engine = self._router.config.engines[target.engine]
        # Without the header an engine may choose any encoding; the router may put frames into the body.
        added = {"Accept-Encoding": "identity", **engine.headers}
        return Outgoing(
            engine=target.engine,
            resident=target.resident,
            method="POST",
            target=wire_target(request, translation.path if translation else path),
            headers=request_headers(wire_headers(request), strip_keys=self._strip_keys, added=added),
            body=translation.body if translation else routed.renamed(target.upstream),
            connect_timeout_s=engine.connect_timeout_s,
        )

    async def _begin(
        self, passage: Passage, dialect: Dialect, scope: RequestScope, *, streams: bool
    ) -> Response:
        """Answer with the engine's own status and headers, or keep the client's stream open until they come."""
        until = trio.current_time() + self._interval_s if streams else math.inf
        try:
            head = await passage.head(until)
        except RouterError:
            passage.close()
            raise
        if head is None:
            return self._waiting(passage, dialect, scope)
        # No error frame can be put into an answer that is encoded, nor into one that is an error itself.
        is_open = streams and head.status < 400 and head.header(b"content-encoding") in (None, b"identity")
        return as_response(head, plain_body(passage, dialect, scope.note_error, streams=is_open))

    def _waiting(self, passage: Passage, dialect: Dialect, scope: RequestScope) -> Response:
        body = waiting_body(passage, dialect, self._interval_s, scope.note_error)
        head = ResponseHead(
            200, [(b"content-type", dialect.stream_type.encode()), (b"cache-control", b"no-cache")]
        )
        return as_response(head, body)


def wire_target(incoming: Request, path: str) -> str:
    """Return the target of a request to an engine: a path, and the query that the client sent."""
    query = incoming.query_string.decode("ascii")
    return quote(path) + (f"?{query}" if query else "")


def wire_headers(incoming: Request) -> list[tuple[bytes, bytes]]:
    """Return the headers that the client sent."""
    return [(name, value) for name, value in incoming.scope["headers"]]


def as_response(head: ResponseHead, body: AsyncIterator[bytes]) -> Response:
    """Make an answer of an engine's head and a body that comes in pieces."""
    response = Response(body, status=head.status)
    response.headers.clear()
    for name, value in head.headers:
        response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
    response.timeout = None
    return response
