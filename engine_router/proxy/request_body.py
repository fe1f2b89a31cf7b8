"""Bodies of requests: their encoding, the model that they name, and whether they have to be held as a whole."""

from __future__ import annotations

import functools
import importlib
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import quote

import trio
from attrs import define, frozen

from engine_router.dialects.base import Dialect
from engine_router.dialects.json_body import Octets, parse_object
from engine_router.dialects.routed import DefaultRouted, QueryRouted, Routed, route_json
from engine_router.dialects.scanning import FormScanner, JsonScanner
from engine_router.errors import BadRequest, BodyTooLarge, NoModelNamed, UnknownEncoding, UnpacksTooLarge
from engine_router.guards.limits import MAX_UNPACK_RATIO, REMEMBERED_PATHS, UNPACK_FREE_BYTES
from engine_router.proxy.held_bodies import HeldShare
from engine_router.proxy.routes import model_in_query, query_for, wire_target
from engine_router.proxy.streamed_body import StreamedRequest, Upload
from engine_router.upstream.http1 import Headers, first_value

T = TypeVar("T")

# Decoding so much may take longer than others should wait, small as it is: it is done in a thread.
_THREAD_BYTES = 16_384
IN_THE_LOOP_BYTES = 262_144
"""So much is read, or translated, in the time that a thread takes to begin."""
_STEP_BYTES = 1_048_576


_quoted = functools.lru_cache(REMEMBERED_PATHS)(quote)


@define(eq=False, repr=False)
class IncomingRequest:
    """A request to a proxied route; a whole one, unless its body is large.

    Attributes:
        path: decoded, without the query.
        query: as it came, without the question mark.
        headers: as they came.
        method: `POST`, except where a query names the model.
    """

    path: str
    query: bytes
    headers: Headers
    body: Octets | Upload
    method: str = "POST"

    def target(self, path: str, model: str) -> str:
        """Return the target of the request to an engine: a path, and the client's query with the engine's model."""
        return wire_target(path, query_for(self.query, model)) if self.query else _quoted(path)


def is_form(incoming: IncomingRequest) -> bool:
    """Tell whether a body is a form, not JSON."""
    return (first_value(incoming.headers, b"content-type") or b"").startswith(b"multipart/")


async def read(
    dialect: Dialect,
    incoming: IncomingRequest,
    *,
    max_body_bytes: int,
    held: HeldShare,
    passes: Callable[[str, str], Awaitable[bool]],
    default_model: str | None = None,
) -> Routed | StreamedRequest:
    """Read the whole request, or of a large one as much as is needed where nothing in it has to be changed.

    A model in the body wins over one in the query, and that over the default.

    Args:
        held: counts what is kept of the body.
        default_model: the model of requests that name none.
        passes: tells whether a request to a path, for a model, goes to its engine as it is.

    Raises:
        RouterError: it cannot be read.
    """
    body, (content_type, encoding) = incoming.body, _form_of(incoming.headers)
    if isinstance(body, Upload):
        body.hold(held)
        if encoding == b"identity":
            is_form = content_type.startswith("multipart/")
            model = await body.find_model(FormScanner(content_type) if is_form else JsonScanner())
            if model is not None and await passes(incoming.path, model):
                return StreamedRequest(model, body)
        body = await body.whole()
    else:
        held.grow(len(body))
    if encoding != b"identity":
        body = await decoded(body, encoding, max_body_bytes, held.grow)
    if len(body) <= IN_THE_LOOP_BYTES:
        return _routed(dialect, incoming, content_type, body, default_model)
    return await off_loop(
        len(body), functools.partial(_routed, dialect, incoming, content_type, body, default_model)
    )


def _form_of(headers: Headers) -> tuple[str, bytes]:
    """Return the content type of a body, empty where none is named, and its content encoding."""
    content_type = encoding = None
    for name, value in headers:
        if name == b"content-type" and content_type is None:
            content_type = value.decode("latin-1")
        elif name == b"content-encoding" and encoding is None:
            encoding = value.strip().lower()
    return content_type or "", encoding or b"identity"


async def off_loop(size_bytes: int, work: Callable[[], T]) -> T:
    """Do what only computes: at once where little has to be read for it, else in a thread, so that nobody waits.

    Cancellation leaves a thread behind, whose result nobody gets.
    """
    if size_bytes <= IN_THE_LOOP_BYTES:
        return work()
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


def _routed(
    dialect: Dialect, incoming: IncomingRequest, content_type: str, body: Octets, default_model: str | None
) -> Routed:
    in_query = model_in_query(incoming.query) if incoming.query else None
    if in_query is not None and not _may_name_a_model(content_type, body):
        return QueryRouted(in_query, streams=False, body=body)
    try:
        if content_type.startswith("multipart/"):
            from engine_router.dialects.multipart import route_multipart  # noqa: PLC0415 - used by uploads only

            return route_multipart(content_type, body)
        return route_json(dialect, incoming.path, body)
    except NoModelNamed:
        if in_query is not None:
            return QueryRouted(in_query, streams=False, body=body)
        if default_model is None:
            raise
        if content_type.startswith("multipart/"):
            return QueryRouted(default_model, streams=False, body=body)
        return DefaultRouted(default_model, streams=_asks_for_stream(dialect, incoming.path, body), body=body)


def _may_name_a_model(content_type: str, body: Octets) -> bool:
    """Tell whether a body is a form or, whatever it is called, begins like a JSON object."""
    return content_type.startswith("multipart/") or bytes(body[:64]).lstrip().startswith(b"{")


def _asks_for_stream(dialect: Dialect, path: str, body: Octets) -> bool:
    return dialect.streams(path, parse_object(body))


def _uncounted(_count: int) -> None:
    pass


async def decoded(
    body: Octets, encoding: bytes, max_bytes: int, grow: Callable[[int], None] = _uncounted
) -> bytearray:
    """Return a body without its content encoding.

    Args:
        grow: is told of every piece, in a thread too; what it raises ends the decoding.

    Raises:
        UnknownEncoding: it is none of gzip, deflate and zstd.
        BodyTooLarge: decoded, it has more than `max_bytes`. No more than that is ever made of it.
        UnpacksTooLarge: that is out of all proportion.
        BadRequest: it is not what it says.

    Cancellation leaves a thread behind that ends soon, by the limit.
    """
    if encoding not in _DECODERS:
        raise UnknownEncoding(encoding.decode("latin-1"))
    if len(body) <= _THREAD_BYTES:
        return _decode(body, encoding, max_bytes, grow)
    return await trio.to_thread.run_sync(_decode, body, encoding, max_bytes, grow, abandon_on_cancel=True)


def _decode(
    body: Octets, encoding: bytes, max_bytes: int, grow: Callable[[int], None] = _uncounted
) -> bytearray:
    decoding = _DECODERS[encoding](body)
    result = bytearray()
    most = max(UNPACK_FREE_BYTES, MAX_UNPACK_RATIO * len(body))
    try:
        for piece in decoding.pieces(body):
            grow(len(piece))
            result += piece
            if len(result) > min(max_bytes, most):
                break
    except decoding.faults as error:
        raise _garbled(encoding, str(error)) from None
    if len(result) > max_bytes:
        raise BodyTooLarge(max_bytes)
    if len(result) > most:
        raise UnpacksTooLarge(
            f"without its {encoding.decode('latin-1')} the request body is more than {MAX_UNPACK_RATIO} times as "
            "large; send it as it is"
        )
    if not decoding.decoder.eof:
        raise _garbled(encoding, "it ends too early")
    return result


def _garbled(encoding: bytes, why: str) -> BadRequest:
    return BadRequest(f"the request body is not {encoding.decode('latin-1')} as its header says: {why}")


@frozen(eq=False, repr=False)
class _Decoding:
    """A decoder of zlib or of zstd, and what it raises at what it cannot decode."""

    decoder: Any
    faults: type[Exception]

    def pieces(self, body: Octets) -> Iterator[bytes]:
        """Yield what the body decodes to, in pieces of a bounded size."""
        decoder, source = self.decoder, body
        while not decoder.eof:
            piece: bytes = decoder.decompress(source, _STEP_BYTES)
            source = getattr(decoder, "unconsumed_tail", b"")  # zstd's keeps that to itself
            if not piece and not source:
                return
            yield piece


def _gzip(body: Octets) -> _Decoding:  # noqa: ARG001 - the shape that all share
    return _Decoding(zlib.decompressobj(zlib.MAX_WBITS | 32), zlib.error)


def _deflate(body: Octets) -> _Decoding:
    # "deflate" is zlib's format by the standard, and the bare one in some clients.
    is_zlib = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _Decoding(zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS), zlib.error)


def _zstd(body: Octets) -> _Decoding:  # noqa: ARG001 - likewise
    zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    return _Decoding(zstd.ZstdDecompressor(), zstd.ZstdError)


_DECODERS: dict[bytes, Callable[[Octets], _Decoding]] = {
    b"gzip": _gzip,
    b"x-gzip": _gzip,
    b"deflate": _deflate,
    b"zstd": _zstd,
}
