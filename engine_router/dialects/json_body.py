"""JSON bodies: encoding them, and parsing them strictly."""

from __future__ import annotations

import json
import math
from typing import Any

from engine_router.errors import BadRequest

JsonObject = dict[str, Any]

Octets = bytes | bytearray
"""A body. Whoever collected it hands it over: nobody changes it any more."""


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
    if not body[:64].strip() and not body.strip():
        raise BadRequest("the request body is empty; expected a JSON object")
    try:
        data = STRICT_DECODER.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRequest(f"the request body is not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadRequest("the request body must be a JSON object")
    return data


def json_object(body: bytes | None) -> dict[str, Any] | None:
    """Return the JSON object that a body is; None where it is something else."""
    if not body:
        return None
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
