"""The text of a configuration for those who may see it, but not the secrets in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import tomli

from engine_router.config.faults import KEYS_OF_CLIENTS
from engine_router.config.places import Statement, statements
from engine_router.guards.masking import MASK, Mask, is_secret_name, masked_text, secrets_in

_KEYS: Final = "api_keys"
_KEY: Final = "api_key"
_HEADERS: Final = "headers"
# Its name has no quotes here: `["a"]` may be an item of a list that has no end.
_TABLE: Final = re.compile(r"\[\[?[ \t]*[A-Za-z0-9_-]")


def masked_config(text: str) -> str:
    """Return a configuration's text without its secrets: keys, headers, and what looks like one in commands.

    The text may be no TOML: it is searched for what looks like a secret all the same.
    """
    text = Mask(_secrets(text))(text)
    lines = text.split("\n")
    found = [*statements(text)]
    begun = {statement.line - 1 for statement in found}
    shown: list[str] = []
    done = 0
    for statement in found:
        start, first = _secret_from(statement), statement.line - 1
        if start is None or first < done:
            continue
        shown += (*lines[done:first], f"{lines[first][:start].rstrip()} {MASK}".lstrip())
        done = first + 1 + statement.more
        while done < len(lines) and _may_belong(lines[done], statement, is_begun=done in begun):
            done += 1
    return masked_text("\n".join((*shown, *lines[done:])))


def _may_belong(line: str, secret: Statement, *, is_begun: bool) -> bool:
    """Tell whether a line behind a secret may be a part of it: all ahead of the next table, where it has no end.

    In TOML a new statement, a comment or an empty line follows a value; what is neither is left of a broken one.

    Args:
        is_begun: a statement begins with the line.
    """
    plain = line.strip()
    if secret.is_open:
        return _TABLE.match(plain) is None
    return not is_begun and plain != "" and not plain.startswith("#")


def _secret_from(statement: Statement) -> int | None:
    """Return the column from which a statement is a secret; None where it is none."""
    *tables, key = statement.keys or ("",)
    if statement.value >= len(statement.text):  # the header of a table
        return None
    if KEYS_OF_CLIENTS in tables:  # the very keys are secrets
        return statement.column
    if (
        key in (_KEYS, _KEY, KEYS_OF_CLIENTS, _HEADERS)
        or _HEADERS in tables
        or (_KEYS in tables and key == "key")
    ):
        return statement.value
    return statement.value if is_secret_name(key) and "env" in tables else None


def _secrets(text: str) -> list[str]:
    """Return the secrets of a text that is TOML, wherever else they may stand in it, such as in a comment."""
    try:
        data = tomli.loads(text)
    except (ValueError, RecursionError):
        return []
    server = data.get("server")
    keys = server.get(_KEYS) if isinstance(server, dict) else None
    found = [key for key in (keys if isinstance(keys, list) else []) if isinstance(key, str)]
    found += [
        entry["key"]
        for entry in (keys if isinstance(keys, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("key"), str)
    ]
    commands, settings = [], []
    for value in _values(data):
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            commands.append(value)
        elif isinstance(value, dict):
            settings.append({name: text for name, text in value.items() if isinstance(text, str)})
    return [
        value
        for value in (*found, *secrets_in(commands=commands, settings=settings))
        if not value.startswith("${")
    ]


def _values(data: Mapping[str, Any]) -> Iterator[object]:
    """Yield the tables and lists in a table, itself among them."""
    yield data
    for value in data.values():
        if isinstance(value, dict):
            yield from _values(value)
        elif isinstance(value, list):
            yield value
            for item in value:
                if isinstance(item, dict):
                    yield from _values(item)
