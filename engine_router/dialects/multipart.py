"""A multipart request (audio, images): its field `model`; every other part is passed over."""

from __future__ import annotations

from typing import ClassVar

from attrs import define
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio import multipart

from engine_router.dialects.json_body import Octets
from engine_router.dialects.routed import Routed, model_in
from engine_router.errors import BadRequest, NoModelNamed
from engine_router.guards.limits import MAX_FORM_PARTS, MAX_TOKEN_BYTES

_PIECE_BYTES = 262_144


@define
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
    """A reader of a multipart form that comes piece by piece: its fields `model`, and nothing else.

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
