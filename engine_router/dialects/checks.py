"""What a place in a request must hold, said in one way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_router.errors import BadRequest


def object_at(value: object, place: str) -> Mapping[str, Any]:
    """Return a value that must be an object.

    Raises:
        BadRequest: it is not; the message names the place.
    """
    if not isinstance(value, dict):
        raise BadRequest(f'"{place}" must be an object')
    return value


def list_at(value: object, place: str) -> list[Any]:
    """Return a value that must be a list.

    Raises:
        BadRequest: it is not; the message names the place.
    """
    if not isinstance(value, list):
        raise BadRequest(f'"{place}" must be a list')
    return value


def string_at(value: object, place: str) -> str:
    """Return a value that must be a string.

    Raises:
        BadRequest: it is not; the message names the place.
    """
    if not isinstance(value, str):
        raise BadRequest(f'"{place}" must be a string')
    return value


def number_at(value: object, place: str) -> None:
    """Return a value that must be a number.

    Raises:
        BadRequest: it is not; the message names the place.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f'"{place}" must be a number')


def count_at(value: object, place: str, *, least: int) -> int:
    """Return a value that must be a whole number.

    Raises:
        BadRequest: it is not; the message names the place.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadRequest(f'"{place}" must be a whole number of at least {least}')
    return value
