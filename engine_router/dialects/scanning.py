"""Scanners that find `model` and `stream` in a body that is still coming.

Large bodies only: what is there as a whole is read faster as a whole (`routed.route_json`). Nothing is kept but
the few values that are looked for, however large the rest.
"""

from __future__ import annotations

import codecs
import enum
import json
import re
from typing import Any, Protocol

from engine_router.dialects.json_body import Octets
from engine_router.dialects.routed import NO_NAME, model_in
from engine_router.errors import BadRequest
from engine_router.guards.limits import MAX_TOKEN_BYTES

_WANTED = frozenset(("model", "name", "stream"))
_BLANK = b" \t\r\n"
_NOT_BLANK = re.compile(rb"[^ \t\r\n]")
_STRUCTURE = re.compile(rb'["{}\[\]]')
# Whole members at the top level that nobody looks for, and their commas: passed over together, however many they are.
# An escape in a name may hide a wanted one, so that such a member is read by itself.
_UNWANTED = re.compile(
    rb'(?:[ \t\r\n]*"(?!(?:model|name|stream)")[^"\\]*"[ \t\r\n]*:[ \t\r\n]*'
    rb'(?:"[^"\\]*"|[A-Za-z0-9.+-]+|\[[^"\[\]{}]*\]|\{[ \t\r\n]*\})[ \t\r\n]*,)+'
)
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_PAIR = re.compile(rb"[{\[][^{}\[\]]*[}\]]")
# Values inside of values are looked at in windows of so many bytes, the innermost pairs of brackets so many times.
_WINDOW_BYTES = 65536
_PAIR_PASSES = 4
_SCALAR_END = re.compile(rb"[,}\s]")


class Scanner(Protocol):
    """A reader of a body that comes piece by piece, for its model."""

    @property
    def model(self) -> str | None:
        """The model, once its whole name has come; None before, and where there is none."""
        ...

    @property
    def streams(self) -> bool:
        """Whether `"stream": true` has come."""
        ...

    def feed(self, data: Octets) -> None:
        """Take in the next piece.

        Raises:
            BadRequest: it names a second model, or names it in a way that nobody can mean.
        """
        ...


class _At(enum.Enum):
    START = enum.auto()
    NAME = enum.auto()
    IN_NAME = enum.auto()
    COLON = enum.auto()
    VALUE = enum.auto()
    IN_STRING = enum.auto()
    IN_SCALAR = enum.auto()
    NESTED = enum.auto()
    IN_NESTED_STRING = enum.auto()
    BEHIND = enum.auto()
    OVER = enum.auto()


class JsonScanner:
    """The members of a JSON object's top level. What is no JSON is not judged here: nothing more is found."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self._at = _At.START
        self._name = ""
        self._token = bytearray()
        self._is_kept = False
        self._escaped = False
        self._depth = 0
        self._looked_to = 0

    @property
    def model(self) -> str | None:
        """See `Scanner.model`. An older `name` counts only where the body has ended without a `model`."""
        return None if self._found.get("model") in NO_NAME else model_in(self._found)

    @property
    def streams(self) -> bool:
        """See `Scanner.streams`."""
        return self._found.get("stream") is True

    def feed(self, data: Octets) -> None:
        """See `Scanner.feed`."""
        position = self._looked_to = 0
        while position < len(data) and self._at is not _At.OVER:
            if self._at in (_At.IN_NAME, _At.IN_STRING, _At.IN_NESTED_STRING):
                position = self._string(data, position)
            elif self._at is _At.NESTED:
                position = self._nested(data, position)
            elif self._at is _At.IN_SCALAR:
                position = self._scalar(data, position)
            else:
                position = self._between(data, position)

    def _between(self, data: Octets, position: int) -> int:
        """Pass over blanks and read the one character that tells what comes next."""
        if self._at is _At.NAME and (found := _UNWANTED.match(data, position)) is not None:
            return found.end()
        if self._at is _At.START and data.startswith(codecs.BOM_UTF8, position):
            return position + len(codecs.BOM_UTF8)
        found = _NOT_BLANK.search(data, position)
        if found is None:
            return len(data)
        position, char = found.end(), found[0]
        match self._at, bytes(char):
            case (_At.START, b"{") | (_At.BEHIND, b","):
                self._at = _At.NAME
            case _At.NAME, b'"':
                self._begin(_At.IN_NAME, kept=True)
            case _At.COLON, b":":
                self._at = _At.VALUE
            case _At.VALUE, b'"':
                self._begin(_At.IN_STRING, kept=self._name in _WANTED)
            case _At.VALUE, b"{" | b"[":
                self._depth = 1
                self._begin(_At.NESTED, kept=False)
            case _At.VALUE, _:
                self._begin(_At.IN_SCALAR, kept=self._name in _WANTED)
                return position - 1
            case _:
                self._at = _At.OVER
        return position

    def _begin(self, at: _At, *, kept: bool) -> None:
        self._at, self._is_kept, self._escaped = at, kept, False
        self._token.clear()

    def _string(self, data: Octets, position: int) -> int:
        """Read on in a string, up to the quote that ends it."""
        start = position
        while (quote := data.find(b'"', position)) >= 0:
            if not self._is_escaped(data, start, quote):
                self._keep(data[start:quote])
                self._string_done()
                return quote + 1
            position = quote + 1
        self._escaped = self._is_escaped(data, start, len(data))
        self._keep(data[start:])
        return len(data)

    def _is_escaped(self, data: Octets, start: int, end: int) -> bool:
        """Tell whether what stands at `end` has an odd number of backslashes before it."""
        first = end
        while first > start and data[first - 1] == 0x5C:
            first -= 1
        count = end - first + (self._escaped if first == start else 0)
        return count % 2 == 1

    def _string_done(self) -> None:
        self._escaped = False
        if self._at is _At.IN_NESTED_STRING:
            self._at = _At.NESTED
        elif self._at is _At.IN_NAME:
            self._name = str(_parsed(b'"' + self._token + b'"'))
            self._at = _At.COLON
        else:
            self._value_done(_parsed(b'"' + self._token + b'"') if self._is_kept else None)

    def _scalar(self, data: Octets, position: int) -> int:
        found = _SCALAR_END.search(data, position)
        end = len(data) if found is None else found.start()
        self._keep(data[position:end])
        if found is not None:
            self._value_done(_parsed(bytes(self._token)) if self._is_kept else None)
        return end

    def _whole_window(self, data: Octets, position: int) -> int:
        """Pass over the next bytes of a nested value if it cannot end there; return how many they are, or 0."""
        window = bytes(data[position : position + _WINDOW_BYTES])
        rest = _STRING.sub(b"", window)
        if (cut := rest.find(b'"')) >= 0:  # a string that goes on behind the window
            window = window[: len(window) - (len(rest) - cut)]
            rest = rest[:cut]
        for _ in range(_PAIR_PASSES):
            rest, count = _PAIR.subn(b"", rest)
            if not count:
                break
        closing = rest.count(b"}") + rest.count(b"]")
        if closing >= self._depth:
            return 0
        self._depth += rest.count(b"{") + rest.count(b"[") - closing
        return len(window)

    def _nested(self, data: Octets, position: int) -> int:
        if position >= self._looked_to:
            if count := self._whole_window(data, position):
                return position + count
            self._looked_to = position + _WINDOW_BYTES
        found = _STRUCTURE.search(data, position)
        if found is None:
            return len(data)
        if found[0] == b'"':
            self._at, self._escaped = _At.IN_NESTED_STRING, False
        else:
            self._depth += 1 if bytes(found[0]) in b"{[" else -1
            if self._depth == 0:
                self._value_done(())
        return found.end()

    def _value_done(self, value: object) -> None:
        self._at = _At.BEHIND
        if self._name not in _WANTED:
            return
        if self._name in self._found:
            raise BadRequest(f'the request has more than one "{self._name}"')
        self._found[self._name] = value

    def _keep(self, data: Octets) -> None:
        if not self._is_kept:
            return
        self._token += data
        if len(self._token) > MAX_TOKEN_BYTES:
            raise BadRequest("the request has a member whose name, or model, is far too long")


def _parsed(token: Octets) -> object:
    try:
        return json.loads(token)
    except ValueError:  # the engine will say so
        return None


class FormScanner:
    """The fields of a multipart form."""

    def __init__(self, content_type: str) -> None:
        from engine_router.dialects.multipart import FormReader  # noqa: PLC0415 - used by uploads only

        self._reader = FormReader(content_type)

    @property
    def model(self) -> str | None:
        """See `Scanner.model`."""
        found = self._reader.values
        return model_in({"model": found[0].decode("utf-8", "replace")}) if found else None

    @property
    def streams(self) -> bool:
        """No form asks for a stream in which frames may be added."""
        return False

    def feed(self, data: Octets) -> None:
        """See `Scanner.feed`."""
        self._reader.feed(data)
        if len(self._reader.headers_end) > 1:
            raise BadRequest('the form has more than one field "model"')
