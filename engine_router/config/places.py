"""Places of paths such as `engines.llama.argv` in the text of a TOML file: the lines, to be shown with a caret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Final

from attrs import frozen

from engine_router.config.faults import KEYS_OF_CLIENTS, is_private
from engine_router.guards.masking import masked_text

_PART: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|[A-Za-z0-9_\-]+')
_HEADER: Final = re.compile(r"\[\[?[ \t]*(?P<keys>[^\n#]*?)[ \t]*\]\]?[ \t]*(#.*)?$")
_TOKEN: Final = re.compile(r'"""|\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}\n]')
_LONGEST_LINE: Final = 100
_MOST_SHOWN: Final = 50
# A value that goes on for more lines is one that does not end.
_MOST_LINES: Final = 500
# Values that do not end are looked for in so many places: a text that has more of them is no TOML, and to read on
# from each of them would take a time that grows with the square.
_MOST_OPEN: Final = 20


@frozen
class Statement:
    """A key with its value, or the header of a table, in the text of a file.

    Attributes:
        line: from 1 on.
        column: of the key, or the bracket, in its line, from 0 on.
        keys: the whole path.
        text: the line.
        value: where the value begins in the line; the line's length where there is none.
        more: how many more lines the value goes on for.
        is_open: the value does not end.
    """

    line: int
    column: int
    keys: tuple[str, ...]
    text: str
    value: int
    more: int = 0
    is_open: bool = False

    @property
    def is_private(self) -> bool:
        """True if its value must not be shown."""
        return is_private(self.keys)


def excerpts(text: str, paths: Sequence[str]) -> list[str]:
    """Return for each fault's path the line of the file that it means, numbered, with carets below.

    It is empty where there is none, and for all but the first faults of a file that has very many.
    """
    found = _Index(text)
    return [_excerpt(found, path) if index < _MOST_SHOWN else "" for index, path in enumerate(paths)]


def places(text: str, paths: Sequence[str]) -> list[tuple[int, int] | None]:
    """Return for each fault's path the line and the column of what it means, both from 1 on; None where there is none."""
    found = _Index(text)
    best = (found.meant(path) for path in paths)
    return [None if statement is None else (statement.line, statement.column + 1) for statement in best]


class _Index:
    """The statements of a text by their keys: a text may have as many faults as it has statements."""

    def __init__(self, text: str) -> None:
        self._by_keys: dict[tuple[str, ...], Statement] = {}
        for statement in statements(text):
            self._by_keys.setdefault(statement.keys, statement)
        self._lengths = sorted({len(keys) for keys in self._by_keys}, reverse=True)

    def meant(self, path: str) -> Statement | None:
        """Return the statement that a path means, or the nearest one around it."""
        wanted = _parts(path)
        lengths = (length for length in self._lengths if length <= len(wanted)) if wanted else ()
        return next((self._by_keys[keys] for n in lengths if (keys := wanted[:n]) in self._by_keys), None)


def _excerpt(found: _Index, path: str) -> str:
    best = found.meant(path)
    if best is None:
        return ""
    end = len(best.text) if best.value >= len(best.text) else best.text.rindex("=", 0, best.value)
    return _drawn(best, best.column, len(best.text[best.column : end].rstrip()))


def excerpt_at(text: str, line: int, column: int) -> str:
    """Return a line of a file with a caret below a column; both are counted from 1 on."""
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        return ""
    before = [found for found in statements(text) if found.line <= line]
    context = before[-1] if before else None
    if context is not None and context.is_private:
        return _drawn(context, context.column, 1)
    shown = lines[line - 1].rstrip("\r")
    words = [found for found in re.finditer(r"[\w-]+", shown) if is_private([found[0]])]
    shown = masked_text(shown) if not words else f"{shown[: words[0].end()]} ..."
    return _drawn(Statement(line, 0, (), shown, len(shown)), min(column - 1, len(shown)), 1)


def statements(text: str) -> Iterator[Statement]:
    """Yield the statements of a TOML text, in order; from a text that is not TOML, those that look like some."""
    lines = text.split("\n")
    table: tuple[str, ...] = ()
    number = found_open = 0
    while number < len(lines):
        line = lines[number].rstrip("\r")
        stripped = line.lstrip()
        column = len(line) - len(stripped)
        number += 1
        if (header := _HEADER.match(stripped)) is not None:
            table = _parts(header["keys"])
            yield Statement(number, column, table, line, len(line))
            continue
        keys, equals = _keys(stripped)
        if equals < 0:
            continue
        value = column + equals + 1
        most = _MOST_LINES if found_open < _MOST_OPEN else 1
        more = _lines_of_value(lines, number - 1, value, most)
        found_open += more is None
        yield Statement(number, column, (*table, *keys), line, value, more or 0, is_open=more is None)
        number += more or 0


def _lines_of_value(lines: Sequence[str], first: int, start: int, most: int) -> int | None:
    """Return how many more lines a value goes on for, a list or a text in three quotes; None where it has no end."""
    depth, quote = 0, ""
    for more, line in enumerate(lines[first : first + most]):
        for found in _TOKEN.finditer(line, start if more == 0 else 0):
            mark = found.group()
            if quote:
                quote = "" if mark == quote else quote
            elif mark in ('"""', "'''"):
                quote = mark
            elif mark in "[{":
                depth += 1
            elif mark in "]}":
                depth -= 1
        if depth <= 0 and not quote:
            return more
    return None


def _keys(line: str) -> tuple[tuple[str, ...], int]:
    """Return the key at the beginning of a line, and where its `=` is; -1 where there is none."""
    keys: list[str] = []
    at = 0
    while (part := _PART.match(line, at)) is not None:
        keys.append(_plain(part.group()))
        rest = line[part.end() :].lstrip(" \t")
        at = len(line) - len(rest)
        if rest.startswith("="):
            return tuple(keys), at
        if not rest.startswith("."):
            break
        at += 1 + len(rest[1:]) - len(rest[1:].lstrip(" \t"))
    return (), -1


def _parts(path: str) -> tuple[str, ...]:
    """Return the keys of a path; the numbers of a list's items are left out."""
    return tuple(_plain(part) for part in _PART.findall(re.sub(r"\[\d+\]", "", path)))


def _plain(part: str) -> str:
    if part.startswith("'"):
        return part[1:-1]
    if not part.startswith('"'):
        return part
    try:
        return str(json.loads(part))
    except ValueError:
        return part[1:-1]


def _drawn(statement: Statement, column: int, width: int) -> str:
    """Draw a line with carets below. Tabs become blanks, so that the carets stand where they should."""
    end = statement.column if KEYS_OF_CLIENTS in statement.keys[:-1] else statement.value
    shown = statement.text[:end] + " ..." if statement.is_private else masked_text(statement.text)
    shown = shown.expandtabs(1)
    if len(shown) > _LONGEST_LINE:
        shown = shown[: _LONGEST_LINE - 3] + "..."
    margin = f"{statement.line:>6} | "
    pointer = " " * (len(margin) - 2) + "| " + " " * column + "^" * max(1, min(width, _LONGEST_LINE - column))
    return f"{margin}{shown}\n{pointer}" if column < _LONGEST_LINE else f"{margin}{shown}"
