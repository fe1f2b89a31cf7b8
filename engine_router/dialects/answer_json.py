"""The JSON of an engine's answer: parsing it, and one kind of error for whatever it may turn out to be.

Functions whose names end in `_in` raise ValueError for a value of another kind; its message says what the value is of.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from engine_router.dialects.json_body import STRICT_DECODER, Octets
from engine_router.guards.foreign_text import printable

# What an answer of an unexpected shape leads to.
UNEXPECTED = (AttributeError, TypeError, LookupError, RecursionError, OverflowError)

# How much of an answer that is not understood stands in the error.
_SHOWN_BYTES: Final = 200


def misshapen(what: str) -> ValueError:
    """Return the one kind of error that the relay knows, for an answer of an unexpected shape.

    Args:
        what: what is wrong, or what was not understood, in words for the client.
    """
    return ValueError(f"its answer has an unexpected shape: {what}")


@contextlib.contextmanager
def understanding(data: Octets | None = None) -> Iterator[None]:
    """Turn what an answer of an unexpected shape leads to into the one kind of error that the relay knows.

    Args:
        data: what is being understood, if that is known: the error shows how it begins, and nothing of Python.
    """
    try:
        yield
    except UNEXPECTED as error:
        raise misshapen(
            "a member is missing, or of another kind" if data is None else beginning(data)
        ) from error


def beginning(data: Octets) -> str:
    """Return how an answer begins, for an error."""
    return printable(data[:_SHOWN_BYTES].decode("utf-8", "replace"))


def object_in(value: object, what: str) -> Mapping[str, Any]:
    """Return a value that must be an object."""
    if not isinstance(value, dict):
        raise misshapen(f"{what} that is no object")
    return value


def text_in(value: object, what: str) -> str:
    """Return a value that must be a text, with U+FFFD where it has half a surrogate pair."""
    if not isinstance(value, str):
        raise misshapen(f"{what} that is no text")
    return mended(value)


def whole_number_in(value: object, what: str) -> int:
    """Return a value that must be a whole number; some engines write it as a text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    number = number_in(value, what)
    if number != int(number):
        raise misshapen(f"{what} that is no whole number")
    return int(number)


def number_in(value: object, what: str) -> int | float:
    """Return a value that must be a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise misshapen(f"{what} that is no number")
    if isinstance(value, float) and not math.isfinite(value):
        raise misshapen(f"{what} that is not finite")
    return value


def mended(text: str) -> str:
    """Return a text in which two halves of a surrogate pair are the character that they mean, and one is U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def half_at_end(text: str) -> str:
    """Return the first half of a surrogate pair at the end of a text, whose other half may be still to come."""
    return text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""


def parse_answer(data: Octets) -> dict[str, Any]:
    """Parse an answer that must be a JSON object.

    Raises:
        ValueError: it is not.
    """
    try:
        parsed = _loads(data)
    except (ValueError, RecursionError):
        raise ValueError(f"its answer is not JSON: {beginning(data)}") from None
    if not isinstance(parsed, dict):
        raise ValueError("its answer is not a JSON object")  # noqa: TRY004 - one kind of error for the relay
    return parsed


def arguments_of(text: str) -> dict[str, Any]:
    """Return a tool call's arguments as an object; what a model garbled is handed on as text.

    That is on purpose, and no error: it is the model that wrote them, not the engine. Who called it sees what it
    meant, and tells it; an error would lose the answer, and a stream has shown them already.
    """
    try:
        arguments = STRICT_DECODER.decode(text or "{}")
        if isinstance(arguments, dict):  # halves of surrogate pairs may stand in it as escapes
            whole = json.dumps(arguments, ensure_ascii=False)
            return arguments if (sound := mended(whole)) == whole else dict(json.loads(sound))
    except (ValueError, RecursionError):
        pass
    return {"arguments": text}


def _loads(data: Octets) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Python's own parser takes half a surrogate pair, which engines send where a character was cut.
        return STRICT_DECODER.decode(data.decode())
