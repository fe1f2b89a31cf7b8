"""What every dialect can do, and how a request's body is read.

Pure: bytes in, bytes out. Nothing here touches a socket or knows an engine.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import msgspec
from attrs import frozen
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio import multipart

from engine_router.dialects.model_names import checked_name
from engine_router.errors import BadRequest, NoModelNamed, RouterError
from engine_router.guards.limits import MAX_FORM_PARTS, MAX_TOKEN_BYTES

Octets = bytes | bytearray
"""A body. Whoever collected it hands it over: nobody changes it any more."""

_PIECE_BYTES = 262_144


class Dialect(Protocol):
    """One way of speaking: OpenAI's, Ollama's or Anthropic's."""

    @property
    def name(self) -> str:
        """`openai`, `ollama` or `anthropic`."""
        ...

    @property
    def stream_type(self) -> str:
        """Content type of a streamed answer."""
        ...

    @property
    def keepalive(self) -> bytes:
        """Frame that keeps a waiting stream open and means nothing to any client."""
        ...

    def streams(self, path: str, body: Mapping[str, Any]) -> bool:
        """Tell whether the client asked for a stream, in which keep-alive frames may be sent."""
        ...

    def error(self, error: RouterError) -> dict[str, Any]:
        """Render an error as the body of an answer."""
        ...

    def is_error(self, body: bytes) -> bool:
        """Tell whether a body is an error as the dialect's clients read it."""
        ...

    def stream_error(self, error: RouterError) -> bytes:
        """Render an error as the last frame of a stream, one that the dialect's clients raise on."""
        ...

    def frames_end(self, data: bytes) -> int:
        """Return where the last complete frame in these bytes of a stream ends; 0 where none is complete."""
        ...


class Translation(Protocol):
    """One request on its way from the client's dialect to the engine's, and its answer on the way back.

    Holds no whole answer where the client asked for a stream.
    """

    @property
    def path(self) -> str:
        """Path of the request in the engine's dialect."""
        ...

    @property
    def body(self) -> bytes:
        """Body of the request in the engine's dialect."""
        ...

    @property
    def content_type(self) -> str:
        """Content type of the answer in the client's dialect."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take in bytes of the engine's answer, split anywhere; return what the client gets for them.

        Raises:
            ValueError: the engine's answer cannot be understood, or is an error; the message says so.
        """
        ...

    def end(self) -> bytes:
        """Take in the end of the engine's answer; return what the client still gets.

        Raises:
            ValueError: the answer ended before its end.
        """
        ...


def error_headers(error: RouterError) -> dict[str, str]:
    """Return the headers that go with an error's answer."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if not error.retryable:
        # openai and anthropic SDKs honour it: a retry cannot help, so the person waits no longer than needed.
        headers["x-should-retry"] = "false"
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="engine-router"'
    return headers


def to_json(data: object) -> bytes:
    """Encode JSON compactly, as UTF-8 (a lone surrogate, which UTF-8 has no bytes for, stays escaped)."""
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(data, separators=(",", ":")).encode("ascii")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text} is too large")
    return number


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


# What Python reads more generously than others would come out as something else than it went in.
STRICT_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)


def parse_object(body: Octets) -> dict[str, Any]:
    """Parse a body that must be a JSON object.

    Raises:
        BadRequest: it is not.
    """
    _refuse_empty(body)
    try:
        data = STRICT_DECODER.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRequest(f"the request body is not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadRequest("the request body must be a JSON object")
    return data


def _refuse_empty(body: Octets) -> None:
    if not body[:64].strip() and not body.strip():
        raise BadRequest("the request body is empty; expected a JSON object")


def _refuse_other_text(body: Octets) -> None:
    """See that a body is UTF-8, piece by piece: a body may be large, and another copy of it would be as large."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), _PIECE_BYTES):
        try:
            decoder.decode(body[start : start + _PIECE_BYTES], final=start + _PIECE_BYTES >= len(body))
        except UnicodeDecodeError as error:
            raise BadRequest(f"the request body is not UTF-8 text (byte {start + error.start})") from None


class _Named(msgspec.Struct):
    """What the router needs of a JSON body; everything else is passed over without being taken in."""

    model: Any = None
    name: Any = None
    stream: Any = None
    keep_alive: Any = None


_NAMED = msgspec.json.Decoder(_Named)


def _named_in(body: Octets) -> _Named:
    _refuse_empty(body)
    _refuse_other_text(body)
    try:
        return _NAMED.decode(body.removeprefix(codecs.BOM_UTF8) if body[:3] == codecs.BOM_UTF8 else body)
    except msgspec.ValidationError:
        raise BadRequest("the request body must be a JSON object") from None
    except (msgspec.DecodeError, RecursionError):
        # Python's own parser has the last word, and the better ones: it takes half a surrogate pair, which
        # JavaScript sends where a text was cut, and msgspec does not.
        data = parse_object(body)
        return _Named(data.get("model"), data.get("name"), data.get("stream"), data.get("keep_alive"))


def has_no_value(member: object) -> bool:
    """Tell whether a member that names something is there without naming anything."""
    return member is None or member == ""


def model_in(data: Mapping[str, Any]) -> str:
    """Return the model that a request names (`model`, or `name` as older Ollama clients write).

    An empty `model` counts as absent: Ollama's client in Go sends every member, with or without a value.

    Raises:
        NoModelNamed: it names none.
        BadRequest: it names it, but not as a string.
    """
    model = data.get("model")
    if has_no_value(model):
        model = data.get("name") or model
    if model is None:
        raise NoModelNamed('the request names no model; add "model": "..." (GET /v1/models lists them)')
    if not isinstance(model, str):
        raise BadRequest('"model" must be a string')
    if not model.strip():
        raise NoModelNamed('"model" is empty')
    try:
        checked_name(model).encode()
    except UnicodeEncodeError:
        raise BadRequest('"model" is not text (half a surrogate pair)') from None
    return model


@frozen
class Routed:
    """What the router needs of a request; the rest of the body stays bytes.

    Attributes:
        model: the model that the client named.
        streams: it asked for a stream, in which keep-alive frames may be sent.
        body: the body as it came.
        keep_alive: how long the model shall stay, in Ollama's words; None where nothing is said of that.
        is_json: the body is JSON, whatever its headers call it.
    """

    model: str
    streams: bool
    body: Octets
    keep_alive: Any = None
    is_json: ClassVar[bool] = True

    def data(self) -> dict[str, Any]:
        """Parse the whole body.

        Raises:
            BadRequest: it is no JSON object.
        """
        return parse_object(self.body)

    def renamed(self, model: str) -> Octets:
        """Return the body with the model that the engine knows; the very same bytes where that is the same.

        Raises:
            BadRequest: it has numbers that would not come out as they went in.
        """
        if model == self.model:
            return self.body
        data = self.data()
        return to_json({**data, "model" if "model" in data else "name": model})


def route_json(dialect: Dialect, path: str, body: Octets) -> Routed:
    """Read a JSON request.

    Raises:
        BadRequest: the body is no JSON object, or names no model.
    """
    named = _named_in(body)
    streams = dialect.streams(path, {"stream": named.stream})
    model = model_in({"model": named.model, "name": named.name})
    return Routed(model, streams, body, named.keep_alive)


@frozen
class QueryRouted(Routed):
    """A request that names its model in its query, with a body of any type, which goes on as it came."""

    is_json: ClassVar[bool] = False

    def renamed(self, model: str) -> Octets:  # noqa: ARG002 - the query is what is renamed
        """Return the body as it came."""
        return self.body


@frozen
class DefaultRouted(Routed):
    """A JSON request that names no model and goes to the default one."""

    def renamed(self, model: str) -> Octets:
        """Return the body with the model that the engine knows."""
        return to_json({**self.data(), "model": model})


@frozen
class MultipartRouted(Routed):
    """A multipart request (audio, images).

    Attributes:
        start, end: where the model's name stands in the body.
    """

    start: int = 0
    end: int = 0
    is_json: ClassVar[bool] = False

    def renamed(self, model: str) -> Octets:
        """Return the body with another model in its field `model`; every other byte stays."""
        if model == self.model:
            return self.body
        return self.body[: self.start] + model.encode() + self.body[self.end :]


def route_multipart(content_type: str, body: Octets) -> Routed:
    """Read a multipart request: its field `model`.

    Raises:
        BadRequest: it is not multipart, or has no such field, or more than one.
    """
    reader = FormReader(content_type)
    for start in range(0, len(body), _PIECE_BYTES):
        reader.feed(body[start : start + _PIECE_BYTES])
    reader.end()
    if not reader.values:
        raise NoModelNamed('the form has no field "model"')
    if len(reader.values) > 1:
        raise BadRequest('the form has more than one field "model"')
    headers_end, value = reader.headers_end[0], reader.values[0]
    start = headers_end + (2 if body.startswith(b"\r\n", headers_end) else 1)
    try:
        name = value.decode()
    except UnicodeDecodeError:
        raise BadRequest('the field "model" is not UTF-8 text') from None
    return MultipartRouted(
        model_in({"model": name}), streams=False, body=body, start=start, end=start + len(value)
    )


class FormReader:
    """Reads a multipart form piece by piece, for its fields `model`; keeps nothing else.

    Attributes:
        headers_end: where the headers of each such field end; the line break before its value follows.
        values: the value of each such field that has ended.
    """

    def __init__(self, content_type: str) -> None:
        self._decoder = multipart.MultipartDecoder(_boundary(content_type), max_parts=MAX_FORM_PARTS)
        self._fed = 0
        self._value: bytearray | None = None
        self.headers_end: list[int] = []
        self.values: list[bytes] = []

    def feed(self, data: Octets) -> None:
        """Take in the next piece.

        Raises:
            BadRequest: it is no form.
        """
        self._fed += len(data)
        self._decoder.receive_data(bytes(data))
        self._read_on()

    def end(self) -> None:
        """Take in the end.

        Raises:
            BadRequest: it is not the end of a form.
        """
        self._decoder.receive_data(None)
        self._read_on()

    def _read_on(self) -> None:
        try:
            while not isinstance(
                event := self._decoder.next_event(), (multipart.NeedData, multipart.Epilogue)
            ):
                self._take(event)
        except (ValueError, RuntimeError) as error:
            raise BadRequest(f"the form cannot be read: {error}") from None
        except RequestEntityTooLarge:
            raise BadRequest(f"the form has more than {MAX_FORM_PARTS} parts") from None

    def _take(self, event: multipart.Event) -> None:
        if isinstance(event, (multipart.Field, multipart.File)):
            self._value = None
            if isinstance(event, multipart.Field) and event.name == "model":
                self._value = bytearray()
                self.headers_end.append(self._fed - len(self._decoder.buffer))
        elif isinstance(event, multipart.Data) and self._value is not None:
            self._value += event.data
            if len(self._value) > MAX_TOKEN_BYTES:
                raise BadRequest('the field "model" is far too long')
            if not event.more_data:
                # werkzeug leaves half of the line break to the value where a piece ends just behind the boundary.
                self.values.append(bytes(self._value).removesuffix(b"\r"))
                self._value = None


def _boundary(content_type: str) -> bytes:
    from werkzeug.http import parse_options_header  # noqa: PLC0415 - used by uploads only

    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary", "")
    if kind != "multipart/form-data" or not boundary:
        raise BadRequest("expected multipart/form-data with a boundary")
    return boundary.encode("latin-1", "replace")
