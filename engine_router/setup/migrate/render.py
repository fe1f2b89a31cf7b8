"""The text of a draft, as people write TOML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine_router.guards.foreign_text import printable
from engine_router.setup.migrate.draft import Draft
from engine_router.setup.toml_text import Path, toml_text

# What people look for first; the rest follows in the order in which it came.
_ORDER: Final = (
    "type",
    "engine",
    "match",
    "argv",
    "scan",
    "base_url",
    "path",
    "models",
    "aliases",
    "pool",
    "group",
)


def rendered(draft: Draft) -> str:
    """Return a draft as the text of an `engines.toml`."""
    return toml_text(tables_of(draft), comments_of(draft))


def tables_of(draft: Draft) -> dict[str, Any]:
    """Return a draft as plain tables."""
    tables: dict[str, Any] = {}
    for keys, entry in draft.tables():
        if len(keys) == 1:
            tables[keys[0]] = dict(entry.values)
        else:
            first = [key for key in _ORDER if key in entry.values]
            ordered = {key: entry.values[key] for key in dict.fromkeys((*first, *entry.values))}
            tables.setdefault(keys[0], {})[keys[1]] = ordered
    return tables


def comments_of(draft: Draft) -> dict[Path, str]:
    """Return the comments above the tables of a draft."""
    return {
        keys: printable(entry.comment, keep_lines=True) for keys, entry in draft.tables() if entry.comment
    }


def without_nulls(value: Any) -> Any:
    """Return a value without what TOML cannot say: null, in tables and lists."""
    if isinstance(value, Mapping):
        return {str(key): without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value if item is not None]
    return value
