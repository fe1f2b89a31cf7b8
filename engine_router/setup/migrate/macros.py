"""Macros of llama-swap: `${NAME}` in any value, of the whole file and of one model, one inside of another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field

from engine_router.guards.documents import Unreadable

MACRO: Final = re.compile(r"\$\{([A-Za-z0-9_-]+)\}")
_LONGEST_TEXT: Final = 65_536
_MOST_TEXT: Final = 8 << 20


@define(eq=False, repr=False)
class Expansion:
    """The text that macros have made so far, of one file."""

    chars: int = 0

    def count(self, text: str) -> str:
        """Return a text.

        Raises:
            Unreadable: macros make more text than any configuration has.
        """
        self.chars += len(text)
        if len(text) > _LONGEST_TEXT or self.chars > _MOST_TEXT:
            raise Unreadable("has macros that make more text than any configuration has")
        return text


@define(eq=False, repr=False)
class Macros:
    """The macros that count in one place. One may use those that stand ahead of it.

    Attributes:
        values: by name, in the order of the file.
    """

    values: Mapping[str, Any]
    _expansion: Expansion = field(factory=Expansion)
    _order: dict[str, int] = field(factory=dict)
    _known: dict[str, Any] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self._order = {name: index for index, name in enumerate(self.values)}

    def of_model(self, name: str, own: Mapping[str, Any]) -> Macros:
        """Return those of a model: its own replace the file's."""
        values = {"MODEL_ID": name, **self.values}
        values.update(own)
        return Macros(values, self._expansion)

    def expanded(self, value: Any) -> Any:
        """Return a value with its macros filled in; a text that is nothing but a macro takes its kind, too."""
        if isinstance(value, str):
            return self._text(value, len(self._order))
        if isinstance(value, Mapping):
            return {key: self.expanded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.expanded(item) for item in value]
        return value

    def key(self, text: str) -> str:
        """Return a key with its macros filled in."""
        return _written(self._text(text, len(self._order)))

    def _text(self, text: str, end: int) -> Any:
        if "${" not in text:
            return text
        whole = MACRO.fullmatch(text)
        if whole is not None and self._order.get(whole[1], end) < end:
            return self._macro(whole[1])

        def value(found: re.Match[str]) -> str:
            return _written(self._macro(found[1])) if self._order.get(found[1], end) < end else found[0]

        return self._expansion.count(MACRO.sub(value, text))

    def _macro(self, name: str) -> Any:
        if name not in self._known:
            value = self.values[name]
            self._known[name] = self._text(value, self._order[name]) if isinstance(value, str) else value
        return self._known[name]


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
