"""Faults of a text that is not TOML, and what to write instead."""

from __future__ import annotations

import re
from typing import Final

from engine_router.config.faults import quoted
from engine_router.config.places import excerpt_at, statements

_POSITION: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_DECLARED: Final = re.compile(r"Cannot declare \((.*?),?\) twice")
_TYPOGRAPHIC: Final = "\u201c\u201d\u201e\u2018\u2019\u201a\u00ab\u00bb"
_YAML: Final = re.compile(r"""^[ \t]*(- )?["']?[\w.\-/]+["']?:([ \t]|$)""", re.MULTILINE)

# What tomli says, as a pattern, and what to do about it.
_REMEDIES: Final = (
    (r"Unescaped '\\' in a string|Invalid hex value", "in double quotes a backslash begins an escape: use single quotes ('C:\\models')"),
    (r"Illegal character '\\n'|Unterminated string|Expected '\"\"\"|Expected \"'''", "a quote is not closed; text of several lines stands in '''"),
    (r"Unclosed array", "a list is not closed with ], or a comma is missing between two of its values"),
    (r"Expected newline or end of document", 'the value ends before this column; write one key on a line, and text that contains " between single quotes'),
    (r"Unclosed inline table|Expected '}'", "an inline table is not closed with }"),
    (r"Expected '=' after a key", "write key = value; a key with other characters than letters, digits, - and _ needs quotes"),
    (r"Expected '\]' at the end|Expected ']'", "the name of a table stands in brackets, [engines.NAME]; other characters than letters, digits, - and _ need quotes"),
    (r"Invalid initial character for a key part", "a key with other characters than letters, digits, - and _ needs quotes"),
    (r"Cannot overwrite a value", "the key stands twice in its table: leave one of them"),
    (r"Cannot mutate immutable namespace", "the table is complete already: put the key between its { and }"),
)  # fmt: skip


def syntax_fault(message: str, text: str) -> tuple[str, str]:
    """Return what to say about a text that tomli refused with a message, and the excerpt to show."""
    if (other := _other_language(text)) is not None:
        return other, ""
    position = _POSITION.search(message)
    words = message[: position.start()] if position else message
    line, column = _place(position, text)
    said = _twice(words, text, line) or _typographic(words, text, line, column) or _value(words, text, line)
    if said is None:
        remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, words)), None)
        said = f"is not TOML: {words}" + (f"; {remedy}" if remedy else "")
    return f"{said} (line {line}, column {column})", excerpt_at(text, line, column)


def _place(position: re.Match[str] | None, text: str) -> tuple[int, int]:
    if position is not None and position[1] is not None:
        return int(position[1]), int(position[2])
    lines = text.rstrip("\n").split("\n")
    return len(lines), len(lines[-1]) + 1


def _other_language(text: str) -> str | None:
    """Return what to say where the text is written in another language of configurations."""
    first = next(
        (line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")), ""
    )
    if first.lstrip().startswith("{"):
        return "is JSON, not TOML; write it as engines.toml.example shows"
    if _YAML.match(first) or first.startswith("---"):
        return "is YAML, not TOML; write it as engines.toml.example shows: [engines.NAME], key = value"
    return None


def _twice(words: str, text: str, line: int) -> str | None:
    """Return what to say where a table is declared twice, with the line of the first."""
    declared = _DECLARED.search(words)
    if declared is None:
        return None
    keys = tuple(part.strip().strip("'\"") for part in declared[1].split(", "))
    first = next((found.line for found in statements(text) if found.keys[: len(keys)] == keys), None)
    table = ".".join(quoted(key) for key in keys)
    where = f" and in line {first}" if first is not None and first < line else ""
    return f"the table [{table}] stands here{where}: put both together, or give this one another name"


def _typographic(words: str, text: str, line: int, column: int) -> str | None:
    """Return what to say where a value begins with a quote from a word processor or a web page."""
    if not words.startswith("Invalid value"):
        return None
    mark = text.split("\n")[line - 1][column - 1 : column]
    if not mark or mark not in _TYPOGRAPHIC:
        return None
    return f'{mark} is a typographic quote; replace all of these by plain ones (")'


def _value(words: str, text: str, line: int) -> str | None:
    """Return what to say where a value is none, most often a word without quotes."""
    if not words.startswith("Invalid value"):
        return None
    found = next((s for s in reversed([*statements(text)]) if s.line <= line), None)
    if found is None or found.line != line or not found.keys:
        return "is not TOML: there is no value here; text stands in quotes"
    value, key = found.text[found.value :].strip(), quoted(found.keys[-1])
    if value.lower() in ("true", "false", "yes", "no", "on", "off"):
        meant = "true" if value.lower() in ("true", "yes", "on") else "false"
        return f"{key} has no value that TOML knows; write {key} = {meant}"
    if not value:
        return f"{key} has no value"
    return f'the value of {key} is not in quotes; text stands in quotes: {key} = "..."'
