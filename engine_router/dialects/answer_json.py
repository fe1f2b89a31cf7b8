"""The JSON of an engine's answer: parsing it, and one kind of error for whatever it may turn out to be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from engine_router.dialects.base import STRICT_DECODER, Octets

# What an answer of an unexpected shape leads to.
UNEXPECTED = (AttributeError, TypeError, LookupError, RecursionError, OverflowError)


def unexpected(error: Exception) -> ValueError:
    """Return the one kind of error that the relay knows, for what an unexpected shape led to."""
    return ValueError(f"its answer has an unexpected shape: {error}")


@contextlib.contextmanager
def understanding() -> Iterator[None]:
    """Turn what an answer of an unexpected shape leads to into the one kind of error that the relay knows."""
    try:
        yield
    except UNEXPECTED as error:
        raise unexpected(error) from error


def parse_answer(data: Octets) -> dict[str, Any]:
    """Parse an answer that must be a JSON object.

    Raises:
        ValueError: it is not.
    """
    try:
        parsed = _loads(data)
    except (ValueError, RecursionError):
        raise ValueError(f"its answer is not JSON: {data[:200].decode('utf-8', 'replace')}") from None
    if not isinstance(parsed, dict):
        raise ValueError("its answer is not a JSON object")  # noqa: TRY004 - one kind of error for the relay
    return parsed


def arguments_of(text: str) -> dict[str, Any]:
    """Return a tool call's arguments as an object; what a model garbled is handed on as text."""
    try:
        arguments = STRICT_DECODER.decode(text or "{}")
    except (ValueError, RecursionError):
        return {"arguments": text}
    return arguments if isinstance(arguments, dict) else {"arguments": text}


def _loads(data: Octets) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Python's own parser takes half a surrogate pair, which engines send where a character was cut.
        return STRICT_DECODER.decode(data.decode())
