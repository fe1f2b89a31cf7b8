"""Declarations of the configuration's options, each with its documentation and its default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import attrs

T = TypeVar("T")


def options_of(cls: type[Any]) -> tuple[attrs.Attribute[Any], ...]:
    """Return the fields of a class that are options: what stands in the file, and so is documented."""
    return tuple(field for field in attrs.fields(cls) if "doc" in field.metadata)


def default_of(field: attrs.Attribute[Any]) -> object:
    """Return the default of an option; `attrs.NOTHING` where it must be given."""
    return field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type,union-attr]


def required(doc: str) -> Any:
    """Declare an option that must be given."""
    return attrs.field(metadata={"doc": doc})


def option(default: T, doc: str) -> T:
    """Declare an option with a default."""
    return attrs.field(default=default, metadata={"doc": doc})


def no_option(value: T) -> T:
    """Declare that what is an option of other tables is none of this one, and has this value."""
    return attrs.field(default=value)


def table(factory: Callable[[], T], doc: str) -> T:
    """Declare an option whose default is made anew: a table of its own."""
    return attrs.field(factory=factory, metadata={"doc": doc})
