"""Faults of a configuration, and the words and paths that name them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from engine_router.config.values import shown

Fault = tuple[str, str]
"""A path such as `engines.llamacpp.argv`, and what is wrong there."""


KEYS_OF_CLIENTS: Final = "key_priorities"
"""A table whose very keys are secrets."""

# Tables and options whose values may be secrets: they are not repeated.
_PRIVATE: Final = frozenset(
    {
        "api_keys",
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


def close(value: object, known: Sequence[str]) -> str | None:
    """Return the known word that looks most like `value`, if any does."""
    matches = difflib.get_close_matches(str(value), known, n=1, cutoff=0.6)
    return matches[0] if matches else None


def quoted(key: str) -> str:
    """Show a key as TOML would write it in a path."""
    bare = key and all(char.isascii() and (char.isalnum() or char in "-_") for char in key)
    return key if bare else shown(key)


def is_table(value: object) -> bool:
    """Tell whether TOML gave a table."""
    return isinstance(value, Mapping)
