"""TOML text of tables, as a person would write them: one header for each entry, what is deeper on one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Final

Path = tuple[str, ...]
"""The keys that lead to a table or a value: `("engines", "llama", "argv")`."""

NAMED: Final = frozenset(("engines", "peers", "models", "pools", "families"))
"""Tables whose entries are tables with names of their own; the others hold keys."""

_BARE: Final = re.compile(r"[A-Za-z0-9_\-]+")
_WIDTH: Final = 110


def entries(tables: Mapping[str, object]) -> Iterator[tuple[Path, object]]:
    """Yield what can stand under a header of its own, or as a key above all headers, each with its path."""
    for key, value in tables.items():
        if key in NAMED and isinstance(value, Mapping):
            yield from (((key, name), entry) for name, entry in value.items())
        else:
            yield (key,), value


def toml_text(tables: Mapping[str, object], comments: Mapping[Path, str] | None = None) -> str:
    """Return tables as text.

    Args:
        tables: what the text means.
        comments: words for the lines above a table or a key, by its path.

    Raises:
        ValueError: TOML cannot hold one of the values.
    """
    comments = comments or {}
    found = sorted(entries(tables), key=lambda entry: isinstance(entry[1], Mapping))
    blocks: list[str] = []
    for path, value in found:
        lines = comment_lines(comments.get(path, ""))
        if isinstance(value, Mapping):
            lines.append(f"[{'.'.join(map(toml_key, path))}]")
            for key, inner in value.items():
                lines += [
                    *comment_lines(comments.get((*path, key), "")),
                    f"{toml_key(key)} = {toml_value(inner)}",
                ]
        else:
            lines.append(f"{toml_key(path[0])} = {toml_value(value)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def comment_lines(text: str) -> list[str]:
    """Return words as lines of comment."""
    return [f"# {line}".rstrip() for line in text.splitlines()]


def toml_key(key: str) -> str:
    """Return a key, in quotes where it needs them."""
    return key if _BARE.fullmatch(key) else _string(key)


def toml_value(value: object) -> str:
    """Return a value.

    Raises:
        ValueError: TOML has none of its kind.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _string(value) if "\n" not in value else f'"""\n{_escaped_lines(value)}"""'
        case PurePath():
            return _string(str(value))
        case Mapping():
            inner = ", ".join(f"{toml_key(str(key))} = {toml_value(one)}" for key, one in value.items())
            return f"{{ {inner} }}" if inner else "{}"
        case Sequence():
            return _list([toml_value(one) for one in value], value)
        case _:
            raise ValueError(f"a configuration cannot hold a {type(value).__name__}")


def _list(items: Sequence[str], values: Sequence[object]) -> str:
    """Return a list: where one line is too short for it, each option of a command has a line, with its value."""
    line = f"[{', '.join(items)}]"
    if len(line) <= _WIDTH:
        return line
    rows: list[str] = []
    is_option = False
    for item, value in zip(items, values, strict=True):
        follows = is_option and not str(value).startswith("-") and len(rows[-1]) + len(item) < _WIDTH
        is_option = str(value).startswith("-")
        if follows:
            rows[-1] += f", {item}"
        else:
            rows.append(item)
    return "".join(["[\n", *(f"  {row},\n" for row in rows), "]"])


def _string(text: str) -> str:
    """Return a text in quotes: what JSON writes is TOML, too, but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _escaped_lines(text: str) -> str:
    return "\n".join(_string(line)[1:-1] for line in text.split("\n"))
