"""Ollama's requests that only load or unload a model, and how long a model is to stay."""

from __future__ import annotations

import codecs
import math
import re
import time
from typing import Any

import msgspec

from engine_router.dialects.base import Clock
from engine_router.dialects.json_body import Octets, parse_object, to_json
from engine_router.dialects.ollama.dialect import timestamp
from engine_router.errors import BadRequest
from engine_router.guards.foreign_text import shown

CONTENT_TYPE = "application/json; charset=utf-8"
"""Of the answer to such a request, also where the client asked for a stream."""

_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "\u00b5s": 1e-6,
    "\u03bcs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_PART = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:{})".format("|".join(_SECONDS))
_DURATION = re.compile(rf"[-+]?(?:0|(?:{_PART})+)")
_NUMBER_AND_UNIT = re.compile(r"([0-9.]+)([^0-9.]+)")
# Go counts nanoseconds in 63 bits; Ollama means "for ever" by the largest.
_FOR_EVER_S = 2**63 / 1e9
_NOTHING = msgspec.Raw(b"null")
_EMPTY = (b"null", b'""', b"[]")
_LONGEST_EMPTY = 100


class _Content(msgspec.Struct):
    """The members of a request that a model is to answer, as they stand in its body, which may be large: unread."""

    messages: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    images: msgspec.Raw = _NOTHING
    suffix: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING


_CONTENT = msgspec.json.Decoder(_Content)


def loads(path: str, body: Octets) -> bool:
    """Tell whether a request only loads a model (or unloads it, where `keep_alive` is 0): it has nothing to answer.

    Args:
        path: `/api/chat`, `/api/generate`, `/api/embed` or `/api/embeddings`; no other loads.

    Raises:
        BadRequest: the body is no JSON object.
    """
    try:
        content = _CONTENT.decode(body.removeprefix(codecs.BOM_UTF8))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Python's own parser has the last word: it takes half a surrogate pair.
        content = _Content(
            **{
                name: msgspec.Raw(to_json(value))
                for name, value in parse_object(body).items()
                if name in _Content.__struct_fields__
            }
        )
    if path == "/api/chat":
        return _is_one_of(content.messages, b"null", b"[]")
    if path == "/api/generate":
        is_complete = _is_one_of(content.images, *_EMPTY) and _is_one_of(content.suffix, *_EMPTY)
        return is_complete and _is_one_of(content.prompt, b"null", b'""')
    if path == "/api/embed":
        return _is_one_of(content.input, *_EMPTY)
    return path == "/api/embeddings" and _is_one_of(content.prompt, b"null", b'""')


def _is_one_of(member: msgspec.Raw, *values: bytes) -> bool:
    # Blanks between the brackets of an empty list are all that can make it longer.
    return len(member) < _LONGEST_EMPTY and b"".join(bytes(member).split()) in values


def load_answer(path: str, model: str, *, unloaded: bool, wall_clock: Clock = time.time) -> bytes:
    """Return the answer to a request that only loads: one object, also where the client asked for a stream.

    Args:
        path: as for `loads`.
        model: the model as the client named it.
        unloaded: the model was unloaded.
        wall_clock: seconds since 1970, for `created_at`.
    """
    if path == "/api/embeddings":
        return to_json({"embedding": []})
    if path == "/api/embed":
        return to_json({"model": model, "embeddings": []})
    said: dict[str, Any] = {"response": ""}
    if path == "/api/chat":
        said = {"message": {"role": "assistant", "content": ""}}
    reason = "unload" if unloaded else "load"
    ending = {"done": True, "done_reason": reason}
    return to_json({"model": model, "created_at": timestamp(wall_clock()), **said, **ending})


def kept_for_ever(body: Octets) -> Octets:
    """Return a request that keeps its model for ever, whatever it said of that.

    The member goes to the end, where it wins over one before it for Ollama, which reads the last one. So the
    rest of the body, which may be large, need not be understood.
    """
    end = len(body)
    while body[end - 1 : end].isspace():
        end -= 1
    return body[: end - 1] + b',"keep_alive":-1}'


def keep_alive_s(value: object) -> float | None:
    """Return for how many seconds a model is to stay after its last request, as `keep_alive` says it.

    A number is seconds; a string is one of Go's durations ("5m", "1h30m", "300ms"), in which only 0 needs no
    unit, as for Ollama. What is negative, or longer than Go can count (292 years), means for ever: infinity.
    None: nothing is said of it.

    Raises:
        BadRequest: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _for_ever_if_beyond(value)
    if not isinstance(value, str):
        raise BadRequest('"keep_alive" must be a number of seconds or a duration such as "5m"')
    if not _DURATION.fullmatch(value):
        raise BadRequest(f'"keep_alive" must be a duration such as "5m" or "1h30m", not {shown(value)!r}')
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _NUMBER_AND_UNIT.findall(value))
    return _for_ever_if_beyond(-seconds if value.startswith("-") else seconds)


def _for_ever_if_beyond(seconds: float) -> float:
    # Compared first: a whole number in JSON may be too large for a float.
    return abs(float(seconds)) if 0 <= seconds < _FOR_EVER_S else math.inf
