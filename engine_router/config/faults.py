"""Faults of a configuration, and the words and paths that name them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from attrs import define

from engine_router.config.values import shown
from engine_router.guards.limits import MODEL_NAME_CHARS, MOST_FAULTS

Fault = tuple[str, str]
"""A path such as `engines.llamacpp.argv`, and what is wrong there."""


KEYS_OF_CLIENTS: Final = "key_priorities"
"""A table whose very keys are secrets."""

# Tables and options whose values may be secrets: they are not repeated.
_PRIVATE: Final = frozenset(
    {
        "api_key",
        "api_keys",
        "encryption_key",
        KEYS_OF_CLIENTS,
        "headers",
        "env",
        "body",
        "argv",
        "command",
        "prefix",
        "stop_command",
        "kill_command",
        "set",
    }
)


def is_private(keys: Iterable[str]) -> bool:
    """Tell whether what stands there may be a secret."""
    return any(key in _PRIVATE for key in keys)


@define
class _Explained:
    """How many faults of a text may still be explained."""

    left: int = MOST_FAULTS


_EXPLAINED: Final[ContextVar[_Explained | None]] = ContextVar("explained", default=None)


@contextmanager
def few_explained() -> Iterator[None]:
    """Have only the first faults explained that are found in this block: a text may have as many as it has lines."""
    token = _EXPLAINED.set(_Explained())
    try:
        yield
    finally:
        _EXPLAINED.reset(token)


def is_explained() -> bool:
    """Tell whether what was meant is still looked for, and what is known listed."""
    explained = _EXPLAINED.get()
    return explained is None or explained.left > 0


def close(value: object, known: Iterable[str]) -> str | None:
    """Return the known word that looks most like `value`, if any does; it is looked for `few_explained` times."""
    if not is_explained():
        return None
    if (explained := _EXPLAINED.get()) is not None:
        explained.left -= 1
    matches = difflib.get_close_matches(str(value), list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def quoted(key: str) -> str:
    """Show a key as TOML would write it in a path."""
    bare = 0 < len(key) <= MODEL_NAME_CHARS and all(
        char.isascii() and (char.isalnum() or char in "-_") for char in key
    )
    return key if bare else shown(key)


def is_table(value: object) -> bool:
    """Tell whether TOML gave a table."""
    return isinstance(value, Mapping)
