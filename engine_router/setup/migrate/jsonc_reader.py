"""JSON with comments and trailing commas: read within bounds, with the line of each value."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from engine_router.guards.documents import (
    MAX_DEPTH,
    MAX_VALUES,
    Document,
    Keys,
    Unreadable,
    number_of,
    whole_text,
)

_BLANK: Final = re.compile(r"(?:[ \t\n\r\ufeff]|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_WORD: Final = re.compile(r"[-+\w.]+")
_WORDS: Final = {"true": True, "false": False, "null": None}


def read_jsonc(text: str) -> Document:
    """Read a JSON file; `//`, `/* */` and commas before a closing bracket are allowed.

    Raises:
        Unreadable: it is no JSON, or is deeper or larger than any configuration.
    """
    return _Reader(text).document()


def is_blank(text: str) -> bool:
    """Tell whether there are only blanks and comments in a text."""
    return _BLANK.fullmatch(text) is not None


class _Reader:
    """One pass over a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line, self._counted = 1, 0
        self._lines: dict[Keys, int] = {}
        self._repeated: list[Keys] = []

    def document(self) -> Document:
        data = self._value(())
        self._skip()
        if self._at < len(self._text):
            raise self._fault("something stands behind its end")
        return Document(data, self._lines, tuple(self._repeated))

    def _here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _fault(self, words: str) -> Unreadable:
        return Unreadable(f"is no JSON: {words}", self._here())

    def _skip(self) -> str:
        """Step over blanks and comments; return the next character, empty at the end."""
        blank = _BLANK.match(self._text, self._at)
        if blank is not None:
            self._at = blank.end()
        return self._text[self._at : self._at + 1]

    def _value(self, keys: Keys) -> Any:
        char = self._skip()
        self._lines[keys] = self._here()
        if len(keys) > MAX_DEPTH or len(self._lines) > MAX_VALUES:
            raise Unreadable("is nested deeper, or holds more, than any configuration", self._here())
        if char == "{":
            return self._table(keys)
        if char == "[":
            return self._list(keys)
        if char == '"':
            return self._string()
        return self._plain()

    def _table(self, keys: Keys) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._at += 1
        while self._skip() != "}":
            if self._skip() != '"':
                raise self._fault("a key in double quotes is expected")
            line = self._here()
            key = self._string()
            if self._skip() != ":":
                raise self._fault(f"a colon is expected behind the key {json.dumps(key[:40])}")
            self._at += 1
            if key in found:
                self._repeated.append((*keys, key))
                del found[key]
            where = (*keys, key)
            found[key] = self._value(where)
            self._lines[where] = line
            self._comma("}")
        self._at += 1
        return found

    def _list(self, keys: Keys) -> list[Any]:
        found: list[Any] = []
        self._at += 1
        while self._skip() != "]":
            found.append(self._value((*keys, len(found))))
            self._comma("]")
        self._at += 1
        return found

    def _comma(self, end: str) -> None:
        char = self._skip()
        if char == ",":
            self._at += 1
        elif char != end:
            raise self._fault(f"a comma or {end} is expected")

    def _string(self) -> str:
        found = _STRING.match(self._text, self._at)
        if found is None:
            raise self._fault("a text does not end")
        try:
            text = json.loads(found[0], strict=False)
        except ValueError:
            raise self._fault("a text has an escape that JSON does not know") from None
        self._at = found.end()
        return whole_text(str(text))

    def _plain(self) -> Any:
        found = _WORD.match(self._text, self._at)
        if found is None:
            raise self._fault("a value is expected")
        if found[0] in _WORDS:
            self._at = found.end()
            return _WORDS[found[0]]
        number = number_of(found[0])
        if number is None:
            raise self._fault("a value is expected: a text in double quotes, a number, true, false or null")
        self._at = found.end()
        return number
