"""From a whole request to the beginning of its answer: what both tiers of the HTTP server share.

A tier reads a request in its own way, hands it in as `Incoming`, and writes the `Reply` in its own way. What
happens in between, and every decision in it, is here and below.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import AsyncGenerator, Callable
from urllib.parse import quote

import trio
from attrs import define, field, frozen

from engine_router.dialects import OLLAMA, dialect_of
from engine_router.dialects.base import Dialect, Octets, Routed, Translation, route_json, route_multipart
from engine_router.dialects.ollama_openai import translate
from engine_router.dialects.scanning import FormScanner, JsonScanner
from engine_router.discovery import Target
from engine_router.errors import RouterError
from engine_router.events import EventHub, RequestEnded
from engine_router.relay import Outgoing, Passage, plain_body, request_headers, waiting_body
from engine_router.router import Router
from engine_router.upload import Passing, Upload
from engine_router.wire.upstream import Headers, ResponseHead, first_value

CLIENT_LEFT = 499
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
API_ROUTES = frozenset(("chat", "generate", "embed", "embeddings"))
VISIBLE = "".join(map(chr, range(33, 127)))
_PLAIN_PATH = re.compile(r"\w[\w.-]*(/\w[\w.-]*)+", re.ASCII)


def is_proxied(path: str) -> bool:
    """Tell whether a POST to a path is routed by `model`; one that leads anywhere else (`audio/..`) is not."""
    kind, _, rest = path.removeprefix("/").partition("/")
    if kind == "v1":
        return rest in V1_ROUTES or (rest.startswith(V1_PREFIXES) and _PLAIN_PATH.fullmatch(rest) is not None)
    return kind == "api" and rest in API_ROUTES


@frozen
class Incoming:
    """A request to a proxied route; a whole one, unless its body is large.

    Attributes:
        path: decoded, without the query.
        query: as it came, without the question mark.
        headers: as they came.
    """

    path: str
    query: bytes
    headers: Headers
    body: Octets | Upload

    def target(self, path: str) -> str:
        """Return the target of the request to an engine: a path, and the query that the client sent."""
        return wire_target(path, self.query)


def wire_target(path: str, query: bytes) -> str:
    """Return path and query as they go on the wire: nothing in them may end the request line."""
    query_text = quote(query, safe=VISIBLE)
    return quote(path) + (f"?{query_text}" if query_text else "")


@define(eq=False)
class RequestScope:
    """What one request holds and how it goes.

    Everything that a request holds is given back synchronously. So the departure of a client gives it back
    in the very step in which it is noticed, even where its handler is stuck in a send that nobody reads.

    Attributes:
        stack: what it holds; every exit callback is synchronous.
        model, engine: filled in once known.
        status: what the client got; 0 while nothing was sent.
        error: in words, where something failed.
    """

    path: str
    hub: EventHub
    stack: contextlib.ExitStack = field(factory=contextlib.ExitStack)
    model: str | None = None
    engine: str | None = None
    status: int = 0
    queue_wait_s: Callable[[], float] = lambda: math.nan
    first_byte_s: Callable[[], float] = lambda: math.nan
    error: str | None = None
    finished: bool = False
    _began_at: float = field(factory=trio.current_time)

    def note_error(self, error: RouterError) -> None:
        """Record what the client is told of an error in an answer that has begun."""
        self.status, self.error = error.status, str(error)

    def client_left(self) -> bool:
        """Give everything back, since nobody waits for the answer any more. Returns False if it was complete."""
        if self.finished:
            return False
        self.status = 0 if self.status < 400 else self.status
        self.leave()
        return True

    def leave(self) -> None:
        """Give everything back and record how it went. Never waits; may be called again.

        A handler that is about to run when its client leaves may still take something before it is cancelled:
        the next call gives that back.
        """
        self.stack.close()
        if self.finished:
            return
        self.finished = True
        if self.engine is not None or self.model is not None:
            self.hub.publish(
                RequestEnded(
                    at=time.time(),
                    model=self.model,
                    engine=self.engine,
                    path=self.path,
                    status=self.status or CLIENT_LEFT,
                    duration_s=trio.current_time() - self._began_at,
                    queue_wait_s=_known(self.queue_wait_s()),
                    first_byte_s=_known(self.first_byte_s()),
                    error=self.error,
                )
            )


def _known(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds


@frozen
class Reply:
    """The beginning of an answer: its head, and a body that comes in pieces.

    Attributes:
        has_body: the first piece of the body is there already, so that head and piece can go out together.
    """

    head: ResponseHead
    body: AsyncGenerator[bytes, None]
    has_body: bool


class Answerer:
    """Answers requests to the proxied routes by relaying them to the engine that owns their model."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._strip_keys = bool(router.config.server.api_keys)
        self._interval_s = float(router.config.server.keepalive_interval_s) or math.inf

    async def answer(self, incoming: Incoming, scope: RequestScope) -> Reply:
        """Wait for the engine and for the head of its answer, or for the first keep-alive frame to be due.

        What the request holds hangs on `scope`; cancellation leaves it there.

        Raises:
            RouterError: there is no answer but this error.
        """
        dialect = dialect_of(incoming.path)
        routed = await self._read(dialect, incoming)
        scope.model = routed.model
        target = await self._router.resolve(routed.model)
        scope.model, scope.engine = target.model, target.engine
        translation = self._translation(incoming.path, routed, target)
        outgoing = self._outgoing(incoming, routed, target, translation)
        passage = Passage(self._router.supervisor, self._router.upstream, outgoing, translation)
        scope.queue_wait_s = lambda: passage.queue_wait_s
        scope.first_byte_s = lambda: passage.first_byte_s
        scope.stack.callback(passage.close)
        passage.enter()
        return await self._begin(passage, dialect, scope, routed)

    async def _read(self, dialect: Dialect, incoming: Incoming) -> Routed | Passing:
        """Read the whole request, or of a large one as much as is needed, where nothing in it has to be changed."""
        body = incoming.body
        content_type = (first_value(incoming.headers, b"content-type") or b"").decode("latin-1")
        is_form = content_type.startswith("multipart/")
        if isinstance(body, Upload):
            model = await body.find_model(FormScanner(content_type) if is_form else JsonScanner())
            if model is not None and await self._passes(incoming.path, model):
                return Passing(model, body)
            body = await body.whole()
        return route_multipart(content_type, body) if is_form else route_json(dialect, incoming.path, body)

    async def _passes(self, path: str, model: str) -> bool:
        """Tell whether a request for a model goes to its engine as it is."""
        target = await self._router.resolve(model)
        return target.upstream == model and not self._needs_translation(path, target)

    def _needs_translation(self, path: str, target: Target) -> bool:
        """Tell whether the engine does not know the path: Ollama's dialect, and it speaks OpenAI's."""
        return dialect_of(path) is OLLAMA and self._router.config.engines[target.engine].type != "ollama"

    def _translation(self, path: str, routed: Routed | Passing, target: Target) -> Translation | None:
        """Return the translation that a request needs; None where the engine speaks the client's dialect."""
        if isinstance(routed, Passing) or not self._needs_translation(path, target):
            return None
        return translate(path, routed.data(), asked=routed.model, upstream=target.upstream)

    def _outgoing(
        self, incoming: Incoming, routed: Routed | Passing, target: Target, translation: Translation | None
    ) -> Outgoing:
        engine = self._router.config.engines[target.engine]
        # Without the header an engine may choose any encoding; the router may put frames into the body.
        added = {"Accept-Encoding": "identity", **engine.headers}
        return Outgoing(
            engine=target.engine,
            resident=target.resident,
            method="POST",
            target=incoming.target(translation.path if translation else incoming.path),
            headers=request_headers(incoming.headers, strip_keys=self._strip_keys, added=added),
            body=translation.body if translation else routed.renamed(target.upstream),
            connect_timeout_s=engine.connect_timeout_s,
        )

    async def _begin(
        self, passage: Passage, dialect: Dialect, scope: RequestScope, routed: Routed | Passing
    ) -> Reply:
        """Answer with the engine's own status and headers, or keep the client's stream open until they come."""
        try:
            head = await self._head(passage, routed)
        except RouterError:
            passage.close()
            raise
        if head is None:
            head = ResponseHead(
                200, [(b"content-type", dialect.stream_type.encode()), (b"cache-control", b"no-cache")]
            )
            return Reply(
                head, waiting_body(passage, dialect, self._interval_s, scope.note_error), has_body=True
            )
        # No error frame can be put into an answer that is encoded, nor into one that is an error itself.
        is_open = (
            routed.streams and head.status < 400 and head.header(b"content-encoding") in (None, b"identity")
        )
        body = plain_body(passage, dialect, scope.note_error, streams=is_open)
        return Reply(head, body, has_body=passage.has_chunk)

    async def _head(self, passage: Passage, routed: Routed | Passing) -> ResponseHead | None:
        """Wait for the head of the answer; None when a client that asked for a stream should hear something."""
        # Whether a stream is asked for may come after what the engine is asked for.
        if not (routed.streams or isinstance(routed, Passing)):
            return await passage.head()
        while True:
            head = await passage.head(trio.current_time() + self._interval_s)
            if head is not None or routed.streams:
                return head
