"""Checks of the values in a request: each returns a value of the right kind, or raises BadRequest with its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine_router.errors import BadRequest
from engine_router.guards.foreign_text import shown

Check = Callable[[object, str], object]
"""Returns a value as a request may have it; raises BadRequest, with the place that is its second argument."""


def object_at(value: object, place: str) -> Mapping[str, Any]:
    """Return a value that must be an object."""
    if not isinstance(value, dict):
        raise BadRequest(f'"{shown(place)}" must be an object')
    return value


def list_at(value: object, place: str) -> list[Any]:
    """Return a value that must be a list."""
    if not isinstance(value, list):
        raise BadRequest(f'"{shown(place)}" must be a list')
    return value


def string_at(value: object, place: str) -> str:
    """Return a value that must be a string."""
    if not isinstance(value, str):
        raise BadRequest(f'"{shown(place)}" must be a string')
    return value


def number_at(value: object, place: str) -> int | float:
    """Return a value that must be a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f'"{shown(place)}" must be a number')
    return value


def cut_number_at(value: object, place: str) -> int:
    """Return a value that must be a number, without what stands behind its point."""
    return int(number_at(value, place))


def whole_at(value: object, place: str) -> int:
    """Return a value that must be a whole number; one with a point, such as 40.0, is."""
    number = number_at(value, place)
    if number != int(number):
        raise BadRequest(f'"{shown(place)}" must be a whole number')
    return int(number)


def flag_at(value: object, place: str) -> bool:
    """Return a value that must be true or false; none at all counts as false."""
    if value is None:
        return False
    if not isinstance(value, bool):
        raise BadRequest(f'"{shown(place)}" must be true or false')
    return value


def count_at(value: object, place: str, *, least: int) -> int:
    """Return a value that must be a whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadRequest(f'"{shown(place)}" must be a whole number of at least {least}')
    return value


def texts_at(value: object, place: str) -> str | list[str]:
    """Return a value that must be a string or a list of strings."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadRequest(f'"{shown(place)}" must be a string or a list of strings')
    return [string_at(text, f"{place}.{index}") for index, text in enumerate(value)]
