"""Headers on their way to an engine and back: what belongs to one hop only, and what is nobody else's business."""

from __future__ import annotations

import re
from collections.abc import Mapping

from engine_router.proxy.credentials import KEY_HEADER
from engine_router.upstream.http1 import Headers, ResponseHead, first_value

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
_KEYS = frozenset((b"authorization", b"x-api-key"))
# A proxy that gathers an answer before it passes it on (nginx does by default) would hold back keep-alive frames,
# and one that keeps answers would give a client another's.
_UNBUFFERED = (b"x-accel-buffering", b"no")
_NOT_KEPT = (b"cache-control", b"no-cache")
# These come in pieces by their nature, even where the whole is there at once.
_STREAM_TYPES = (b"text/event-stream", b"application/x-ndjson")
_JSON_TYPE = re.compile(rb"\s*application/json\s*(;|$)", re.IGNORECASE)
_BODYLESS = frozenset((204, 304))


class AddedHeaders:
    """Headers that a configuration adds to requests; they win over the client's. Made once, used for all."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.pairs = [(name.encode("latin-1"), value.encode("utf-8")) for name, value in headers.items()]
        self._dropped = _NOT_FORWARDED | {name.lower() for name, _ in self.pairs}
        self._dropped_with_keys = self._dropped | _KEYS

    def dropped(self, *, strip_keys: bool) -> frozenset[bytes]:
        """Return the names, in lower case, of what is not passed on."""
        return self._dropped_with_keys if strip_keys else self._dropped


def request_headers(headers: Headers, *, strip_keys: bool, added: AddedHeaders) -> Headers:
    """Return the headers that an engine gets of a client's.

    Args:
        strip_keys: the router has keys of its own, which are nobody else's business.
    """
    dropped = added.dropped(strip_keys=strip_keys)
    if named := named_in_connection(headers):
        dropped |= named
    return [item for item in headers if item[0].lower() not in dropped] + added.pairs


def as_json(headers: Headers) -> Headers:
    """Return the headers of a request whose body is JSON, with a type that says so."""
    if any(name.lower() == b"content-type" and _JSON_TYPE.match(value) for name, value in headers):
        return headers
    kept = [item for item in headers if item[0].lower() != b"content-type"]
    return [*kept, (b"content-type", b"application/json")]


def response_headers(headers: Headers) -> Headers:
    """Return the headers that a client gets of an engine's."""
    dropped = _NOT_RETURNED | named_in_connection(headers)
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def as_streamed(status: int, headers: Headers) -> Headers:
    """Return the headers of an answer, with those added that keep a proxy from gathering or keeping a stream.

    A stream is an answer whose length is not known at its beginning, or whose type is a stream's. Both tiers
    of the server ask here for every answer, so that no route has to think of it. What an engine says of the
    caching of something else, such as a page of its own, is left to it.
    """
    said = {name.lower(): value for name, value in headers}
    is_stream = is_stream_type(said.get(b"content-type", b""))
    if status in _BODYLESS or (b"content-length" in said and not is_stream):
        return headers
    added = [_UNBUFFERED] if b"cache-control" in said and not is_stream else [_UNBUFFERED, _NOT_KEPT]
    replaced = [name for name, _ in added]
    return [*(item for item in headers if item[0].lower() not in replaced), *added]


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


def named_in_connection(headers: Headers) -> frozenset[bytes]:
    """Return the headers that a Connection header declares to be for one hop only."""
    return frozenset(
        token.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for token in value.split(b",")
    )
