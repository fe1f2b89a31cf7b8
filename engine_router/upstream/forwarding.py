"""Requests to engines on behalf of clients: which headers go on to an engine, and which come back to a client.

Dropped are the headers that belong to one hop only, and what is nobody else's business.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from attrs import define

from engine_router.config import Config, PeerConfig, RemoteConfig
from engine_router.config.remote import own_headers
from engine_router.errors import EngineRefused
from engine_router.upstream.address import RemoteAddress
from engine_router.upstream.hops import HOPS_HEADER, VIA_HEADER, hop_header
from engine_router.upstream.http1 import Arriving, Headers, ResponseHead, UpstreamRequest, first_value

KEY_HEADER: Final = b"x-engine-router-key"
"""The header for a key that came in the path of a request. No engine gets it."""

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# What pages of other sites may do and read is the router's to say. An engine that allows every page must not
# open it to them, nor one that allows none, as Ollama does, refuse what was let in.
_FOR_PAGES = frozenset(
    b"access-control-" + name
    for name in (
        b"allow-origin",
        b"allow-credentials",
        b"allow-headers",
        b"allow-methods",
        b"allow-private-network",
        b"expose-headers",
        b"max-age",
    )
)
# The router may put frames into the body, so it asks for it unencoded, and decodes what it gets itself; cookies are
# between client and router, and so is a key in the path of the page that a browser comes from.
_NOT_FORWARDED = HOP_BY_HOP | frozenset(
    (
        b"host",
        b"content-length",
        b"content-encoding",
        b"expect",
        b"accept-encoding",
        b"cookie",
        b"origin",
        b"referer",
        KEY_HEADER,
    )
)
_NOT_RETURNED = HOP_BY_HOP | _FOR_PAGES | {b"set-cookie", b"server", b"date"}
_KEYS = frozenset((b"authorization", b"x-api-key", b"x-admin-token"))
# Who asks, and with which key for whom, is no business of a server elsewhere.
_NOT_ABROAD = _KEYS | {
    b"api-key",
    b"baggage",
    b"x-goog-api-key",
    b"openai-organization",
    b"openai-project",
    b"forwarded",
    b"via",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-real-ip",
    b"x-request-priority",
    HOPS_HEADER,
    VIA_HEADER,
}
# A proxy that gathers an answer before it passes it on (nginx does by default) would hold back keep-alive frames,
# and one that keeps answers would give a client another's.
_UNBUFFERED = (b"x-accel-buffering", b"no")
_NOT_KEPT = (b"cache-control", b"no-cache")
# These come in pieces by their nature, even where the whole is there at once.
_STREAM_TYPES = (b"text/event-stream", b"application/x-ndjson")
_JSON = b"application/json"
_JSON_TYPE = re.compile(rb"\s*application/json\s*(;|$)", re.IGNORECASE)
_BODYLESS = frozenset((204, 304))


@define(kw_only=True)
class Outgoing:
    """A request to an engine whose address is not known yet; the attributes are those of `UpstreamRequest`.

    Attributes:
        remote: the address of a remote, whose paths are others; None for other engines.
    """

    engine: str
    method: str
    target: str
    headers: Headers
    body: bytes | bytearray | Arriving
    connect_timeout_s: float
    remote: RemoteAddress | None = None

    def to(self, base_url: str) -> UpstreamRequest:
        """Address the request."""
        request = UpstreamRequest(
            engine=self.engine,
            base_url=base_url,
            method=self.method,
            target=self.target,
            headers=self.headers,
            body=self.body,
            connect_timeout_s=self.connect_timeout_s,
        )
        if (remote := self.remote) is not None:
            request.target, request.ca_file = remote.target(self.target), remote.ca_file
        return request

    def answered(self, head: ResponseHead) -> Headers:
        """Return the headers of the answer that a client gets.

        Raises:
            EngineRefused: a remote points to another place. Its key is for it alone, and a client's for the router.
        """
        if self.remote is not None and 300 <= head.status < 400:
            place = (head.header(b"location") or b"an unnamed place").decode("latin-1")
            words = f"engine '{self.engine}' answered with a redirect to {place}, which is not followed"
            raise EngineRefused(self.engine, 502, f"{words}; if that is its address now, change its base_url")
        return response_headers(head.headers)


class EngineRequests:
    """Requests to one engine on behalf of clients, with the headers that its configuration adds.

    Args:
        instance_id: the id of this router; see `hops`.
    """

    def __init__(self, config: Config, engine: str, instance_id: str = "") -> None:
        settings = config.engines[engine]
        self._engine = engine
        self._connect_timeout_s = settings.connect_timeout_s
        # Other engines are where they were started, or have no path.
        self._remote = RemoteAddress.of(settings) if isinstance(settings, RemoteConfig) else None
        self._added = _added(own_headers(settings))
        self._added_to_messages = _added(own_headers(settings, to_messages=True))
        self._dropped = _NOT_FORWARDED.union(name for name, _ in self._added)
        if config.server.api_keys:  # which no engine gets to see
            self._dropped |= _KEYS
        if self._remote is not None:
            self._dropped |= _NOT_ABROAD
        self._instance_id, self._is_peer = instance_id, isinstance(settings, PeerConfig)
        # Any remote may be a router that leads back here.
        self._tells_hops = self._remote is not None and bool(instance_id)

    def outgoing(
        self,
        method: str,
        target: str,
        headers: Headers,
        body: bytes | bytearray | Arriving,
        *,
        is_encoded: bool = False,
        is_json: bool = False,
    ) -> Outgoing:
        """Return a request with the headers of a client, as they are forwarded.

        Args:
            is_encoded: the body goes on in the content encoding that its headers name.
            is_json: the body is JSON. Clients that say nothing of its type, or what curl says of it, are understood
                all the same.
        """
        forwarded = end_to_end(as_json(headers) if is_json else headers, self._dropped)
        if self._tells_hops:
            forwarded.append(hop_header(headers, self._instance_id, to_peer=self._is_peer))
        forwarded += self._added_to_messages if target.startswith("/v1/messages") else self._added
        if is_encoded and (encoding := first_value(headers, b"content-encoding")) is not None:
            forwarded.append((b"content-encoding", encoding))
        return Outgoing(
            engine=self._engine,
            method=method,
            target=target,
            headers=forwarded,
            body=body,
            connect_timeout_s=self._connect_timeout_s,
            remote=self._remote,
        )

    def headers(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Return the headers that the engine gets: a client's, and those of the configuration, which win over them."""
        forwarded = end_to_end(headers, self._dropped)
        if self._tells_hops:
            forwarded.append(hop_header(headers, self._instance_id, to_peer=self._is_peer))
        return forwarded + self._added


def _added(own: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    # Without the header an engine may choose any encoding; the router may put frames into the body.
    added = {"accept-encoding": "identity"} | {name.lower(): value for name, value in own.items()}
    return [(name.encode("latin-1"), value.encode("utf-8")) for name, value in added.items()]


def as_json(headers: Headers) -> Headers:
    """Return the headers of a request whose body is JSON, with a type that says so."""
    for name, value in headers:
        if name == b"content-type":
            if value == _JSON or _JSON_TYPE.match(value):
                return headers
            break
    kept = [item for item in headers if item[0] != b"content-type"]
    return [*kept, (b"content-type", _JSON)]


def response_headers(headers: Headers) -> Headers:
    """Return the headers that a client gets of an engine's."""
    return end_to_end(headers, _NOT_RETURNED)


def as_streamed(status: int, headers: Headers) -> Headers:
    """Return the headers of an answer, with those added that keep a proxy from gathering or keeping a stream.

    A stream is an answer whose length is not known at its beginning, or whose type is a stream's. Both tiers
    of the server ask here for every answer, so that no route has to think of it. What an engine says of the
    caching of something else, such as a page of its own, is left to it.
    """
    is_stream = has_length = is_cached = is_buffered = False
    for name, value in headers:
        if name == b"content-type":
            is_stream = is_stream_type(value)
        elif name == b"content-length":
            has_length = True
        elif name == b"cache-control":
            is_cached = True
        elif name == b"x-accel-buffering":
            is_buffered = True
    if status in _BODYLESS or (has_length and not is_stream):
        return headers
    added = (_UNBUFFERED,) if is_cached and not is_stream else (_UNBUFFERED, _NOT_KEPT)
    if is_cached or is_buffered:
        replaced = dict(added)
        headers = [item for item in headers if item[0] not in replaced]
    return [*headers, *added]


def is_plain(headers: Headers) -> bool:
    """Tell whether a body has no content encoding."""
    return (first_value(headers, b"content-encoding") or b"identity").strip().lower() in (b"", b"identity")


def retry_after_s(head: ResponseHead | None) -> float | None:
    """Return after how many seconds an engine says that a retry makes sense; None where it says none, or a date."""
    said = b"" if head is None else (head.header(b"retry-after") or b"").strip()
    return float(said) if re.fullmatch(rb"[0-9]{1,6}", said) else None


def is_stream_type(content_type: bytes) -> bool:
    """Tell whether answers of a type come in pieces by their nature."""
    return content_type.partition(b";")[0].strip().lower() in _STREAM_TYPES


def end_to_end(headers: Headers, dropped: Collection[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the headers but for some, and for those that a Connection header declares to be for one hop only."""
    kept: list[tuple[bytes, bytes]] = []
    has_connection = False
    for item in headers:
        name = item[0]
        if name == b"connection":
            has_connection = True
        elif name not in dropped:
            kept.append(item)
    if not has_connection:
        return kept
    named = named_in_connection(headers)
    return [item for item in kept if item[0] not in named]


def named_in_connection(headers: Headers) -> frozenset[bytes]:
    """Return the headers that a Connection header declares to be for one hop only."""
    named: list[bytes] = []
    for name, value in headers:
        if name == b"connection":
            named += (token.strip().lower() for token in value.split(b","))
    return frozenset(named)
