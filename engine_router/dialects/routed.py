"""A request as the router reads it: its model, and whether it asks for a stream; the rest of its body stays bytes."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
from attrs import define

from engine_router.dialects.base import Dialect
from engine_router.dialects.json_body import Octets, parse_object, to_json
from engine_router.errors import BadRequest, NoModelNamed
from engine_router.guards.limits import MODEL_NAME_CHARS

NO_NAME = (None, "")
"""The values with which a member names nothing, as if it were absent."""

_PIECE_BYTES = 262_144


class _Named(msgspec.Struct):
    """The members of a JSON body that the router needs; all others are passed over without being taken in."""

    model: Any = None
    name: Any = None
    stream: Any = None
    keep_alive: Any = None


_NAMED = msgspec.json.Decoder(_Named)


def _named_in(body: Octets) -> _Named:
    if not body.isascii():
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


def checked_name(model: str) -> str:
    """Return a model's name as it came.

    Raises:
        BadRequest: it is longer than any name of a model.
    """
    if len(model) > MODEL_NAME_CHARS:
        raise BadRequest(
            f'"model" has {len(model)} characters, more than {MODEL_NAME_CHARS}: {model[:40]!r}...'
        )
    return model


def model_in(data: Mapping[str, Any]) -> str:
    """Return the model that a request names (`model`, or `name` as older Ollama clients write).

    An empty `model` counts as absent: Ollama's client in Go sends every member, with or without a value.

    Raises:
        NoModelNamed: it names none.
        BadRequest: it names it, but not as a string.
    """
    return _model_of(data.get("model"), data.get("name"))


def _model_of(model: object, name: object) -> str:
    """Return what two members of a request name; see `model_in`."""
    if model in NO_NAME:
        model = name or model
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


@define(repr=False)
class Routed:
    """A request as the router needs it; the rest of the body stays bytes.

    Attributes:
        model: the model that the client named.
        streams: it asked for a stream, in which keep-alive frames may be sent.
        body: the body as it came.
        keep_alive: how long the model shall stay, in Ollama's words; None where nothing is said of that.
        is_json: the body is JSON, whatever its headers call it.
        most_named: how many members of its body may name a model.
    """

    model: str
    streams: bool
    body: Octets
    keep_alive: Any = None
    is_json: ClassVar[bool] = True
    most_named: ClassVar[int] = 1

    def check_one_model(self) -> None:
        """See that no engine can read another model in the body than the router does.

        Of two members of one name engines take either, and those in Go read `MODEL` as `model`.

        Raises:
            BadRequest: one could.
        """
        names = [name for name in _members(self.body) if name.lower() == "model"]
        if len(names) > self.most_named or any(name != "model" for name in names):
            raise BadRequest('the request names a model more than once; name it once, as "model"')

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
    return Routed(_model_of(named.model, named.name), streams, body, named.keep_alive)


@define(repr=False)
class QueryRouted(Routed):
    """A request that names its model in its query, with a body of any type, which goes on as it came."""

    is_json: ClassVar[bool] = False
    most_named: ClassVar[int] = 0

    def renamed(self, model: str) -> Octets:  # noqa: ARG002 - the query is what is renamed
        """Return the body as it came."""
        return self.body


@define(repr=False)
class DefaultRouted(Routed):
    """A JSON request that names no model and goes to the default one."""

    def renamed(self, model: str) -> Octets:
        """Return the body with the model that the engine knows."""
        return to_json({**self.data(), "model": model})


class _Members(list[tuple[str, object]]):
    """The members of a JSON object, those of one name each by itself."""


def _members(body: Octets) -> list[str]:
    """Return the names of the members of a JSON object, as often as they stand there; none of anything else."""
    try:
        found = json.loads(body, object_pairs_hook=_Members)
    except (ValueError, RecursionError):
        return []
    return [name for name, _ in found] if isinstance(found, _Members) else []


def _refuse_other_text(body: Octets) -> None:
    """See that a body is UTF-8, piece by piece: a body may be large, and another copy of it would be as large."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), _PIECE_BYTES):
        try:
            decoder.decode(body[start : start + _PIECE_BYTES], final=start + _PIECE_BYTES >= len(body))
        except UnicodeDecodeError as error:
            raise BadRequest(f"the request body is not UTF-8 text (byte {start + error.start})") from None
