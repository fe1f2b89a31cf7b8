"""Sections: foreign tables that are read key by key, so that none is passed over in silence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import define, field

from engine_router.config.faults import quoted
from engine_router.guards.documents import Document, Keys, number_of
from engine_router.guards.foreign_text import shown
from engine_router.setup.migrate.draft import Draft, Outcome

_REFERENCE: Final = re.compile(r"\$\{env:(\w+)\}")


@define(eq=False, repr=False)
class Section:
    """A foreign table, and what became of its keys.

    A getter returns None where the key is absent or empty, and where its value is of another kind, which is
    reported. What no getter asked for is reported by `finish`.

    Attributes:
        data: its values.
        keys: where it stands.
        seen: the keys that were asked for, or reported.
    """

    data: Mapping[str, Any]
    keys: Keys
    document: Document
    draft: Draft
    seen: set[str] = field(factory=set)

    @classmethod
    def root(cls, document: Document, draft: Draft) -> Section:
        """Return the whole file; report the keys that it has twice."""
        data = document.data if isinstance(document.data, dict) else {}
        section = cls(data, (), document, draft)
        for keys in document.repeated:
            words = "the table has this key twice; the last one counts"
            draft.note("approximated", place_of(keys), document.line(*keys), words)
        return section

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def raw(self, key: str) -> Any:
        """Return a value as it is."""
        self.seen.add(key)
        return self.data.get(key)

    def text(self, key: str) -> str | None:
        """Return a text; a number is one, too."""
        value = self.raw(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str):
            return value if value.strip() else None
        self._unfit(key, value, "a text")
        return None

    def number(self, key: str) -> int | float | None:
        """Return a number of zero or more; a text that is a number is one, too."""
        value = self.raw(key)
        if isinstance(value, str):
            value = self._number(key, value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
            return value
        self._unfit(key, value, "a number of zero or more")
        return None

    def whole(self, key: str) -> int | None:
        """Return a whole number of zero or more."""
        value = self.number(key)
        if value is None or value == int(value):
            return None if value is None else int(value)
        self._unfit(key, value, "a whole number")
        return None

    def flag(self, key: str) -> bool | None:
        """Return true or false."""
        value = self.raw(key)
        if isinstance(value, bool):
            return value
        self._unfit(key, value, "true or false")
        return None

    def texts(self, key: str) -> list[str]:
        """Return a list of texts; one text is a list of one."""
        value = self.raw(key)
        items = [value] if isinstance(value, str) and value.strip() else value
        if not isinstance(items, list):
            self._unfit(key, value, "a list")
            return []
        found: list[str] = []
        for item in items:
            if isinstance(item, (str, int, float)) and not isinstance(item, bool) and str(item).strip():
                found.append(str(item))
            elif item is not None:
                self._unfit(key, item, "a list of texts")
        return found

    def mapping(self, key: str) -> dict[str, Any]:
        """Return a table as it is."""
        value = self.raw(key)
        if isinstance(value, dict):
            return value
        self._unfit(key, value, "a table")
        return {}

    def section(self, key: str) -> Section | None:
        """Return a table, to be read by its keys."""
        return self.inner(key, self.mapping(key)) if key in self.data else None

    def inner(self, key: str, data: Mapping[str, Any]) -> Section:
        """Return a section for a table that stands under a key here."""
        return Section(data, (*self.keys, key), self.document, self.draft)

    def sections(self, key: str) -> Iterator[tuple[str, Section]]:
        """Yield every table of a table of named ones."""
        for name, value in self.mapping(key).items():
            where = (*self.keys, key, name)
            if isinstance(value, dict):
                yield name, Section(value, where, self.document, self.draft)
            else:
                self._lost(where, "a table is expected here", "")

    def items(self, key: str) -> Iterator[Section]:
        """Yield every table of a list of them."""
        value = self.raw(key)
        if not isinstance(value, list):
            self._unfit(key, value, "a list")
            return
        for index, item in enumerate(value):
            where = (*self.keys, key, index)
            if isinstance(item, dict):
                yield Section(item, where, self.document, self.draft)
            else:
                self._lost(where, "a table is expected here", "")

    def carried(self, key: str, words: str, remedy: str = "") -> None:
        """Say that a key, if it is there, is carried over."""
        self.note("carried over", key, words, remedy)

    def approximated(self, key: str, words: str, remedy: str = "") -> None:
        """Say that a key, if it is there, became something like it."""
        self.note("approximated", key, words, remedy)

    def lost(self, *keys: str, words: str, remedy: str = "") -> None:
        """Say that keys, where they are there, are lost."""
        for key in keys:
            self.note("lost", key, words, remedy)

    def note(self, outcome: Outcome, key: str, words: str, remedy: str = "") -> None:
        """Say what became of a key, if it is there. An empty key is the section itself."""
        self.seen.add(key)
        if not key or key in self.data:
            keys = (*self.keys, key) if key else self.keys
            self.draft.note(outcome, place_of(keys), self.document.line(*keys), words, remedy)

    def finish(self) -> None:
        """Report the keys that nobody asked for."""
        for key in self.data:
            if key not in self.seen:
                self.note("lost", key, "the key is not known here")

    def _number(self, key: str, text: str) -> int | float | str | None:
        """Return the number that a text is, or that the environment has now where it is a reference."""
        reference = _REFERENCE.fullmatch(text.strip())
        if reference is None:
            number = number_of(text.strip())
            return text if number is None else number
        number = number_of(os.environ.get(reference[1], ""))
        if number is None:
            self.note(
                "lost", key, f"a number cannot come from the environment ({reference[1]})", "write it in"
            )
            return None
        self.note("approximated", key, f"the number that {reference[1]} has now is written in its place")
        return number

    def _unfit(self, key: str, value: Any, expected: str) -> None:
        if value is not None and value != "":
            self.note("lost", key, f"{expected} is expected here")

    def _lost(self, keys: Keys, words: str, remedy: str) -> None:
        self.draft.note("lost", place_of(keys), self.document.line(*keys), words, remedy)


def place_of(keys: Keys) -> str:
    """Show where a value stands: `models.qwen3.aliases[0]`."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{quoted(shown(key, 80))}" for key in keys]
    return "".join(parts).lstrip(".")
