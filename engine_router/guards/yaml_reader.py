"""YAML: read by events, without tags or objects, within bounds, and with the line of each value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from attrs import define, field

from engine_router.guards.documents import (
    MAX_DEPTH,
    MAX_VALUES,
    Document,
    Keys,
    Unreadable,
    number_of,
    whole_text,
)
from engine_router.guards.foreign_text import shown

_WORDS: Final = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_NUMBER: Final = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?")
_RADIX: Final = re.compile(r"0(x[0-9a-fA-F]{1,15}|o[0-7]{1,20})")
_TAGS: Final = (
    None,
    "!",
    *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")),
)
_MERGE: Final = "<<"
# `${env.NAME}` is put in before YAML is read, and its braces would be a table in a list such as [${env.KEY}]. These
# characters of nobody stand for them meanwhile.
_REFERENCE: Final = re.compile(r"\$\{env\.([A-Za-z_]\w*)\}", re.ASCII)
_HELD: Final = re.compile("\ue000([A-Za-z_][A-Za-z0-9_]*)\ue001")


@define(eq=False, repr=False)
class _Value:
    """A value on its way: what it is, where it stands, and how many values it is in all."""

    data: Any
    line: int
    size: int = 1
    entries: dict[str | int, _Value] = field(factory=dict)
    repeated: set[str] = field(factory=set)


def read_yaml(text: str) -> Document:
    """Read the first document of a YAML file, by the core schema: `yes` and `on` are words.

    `${env.NAME}` becomes `${env:NAME}`.

    Raises:
        Unreadable: it is no YAML, has tags of programs, or is deeper or larger than any configuration.
    """
    import yaml  # noqa: PLC0415 - only this command needs it

    try:
        events = yaml.parse(_REFERENCE.sub("\ue000\\1\ue001", text), Loader=yaml.SafeLoader)
        root = _Builder(events).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(
            f"is no YAML: {error.problem or error.context}", mark.line + 1 if mark else None
        ) from None
    except yaml.YAMLError as error:
        raise Unreadable(f"is no YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise Unreadable("is nested deeper than any configuration") from None
    lines: dict[Keys, int] = {}
    repeated: list[Keys] = []
    data = _plain(root, (), lines, repeated)
    return Document(data, lines, tuple(repeated))


class _Builder:
    """Builds values from events; aliases share what they mean, and count as often as they stand."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchors: dict[str, _Value] = {}

    def document(self) -> _Value:
        for event in self._events:
            if type(event).__name__ == "DocumentStartEvent":
                return self._value(next(self._events), 0)
        return _Value(None, 1)

    def _value(self, event: Any, depth: int) -> _Value:
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise Unreadable("is nested deeper than any configuration", line)
        kind = type(event).__name__
        if kind != "AliasEvent" and event.tag not in _TAGS:
            raise Unreadable(f"has a tag that no configuration needs: {shown(event.tag, 80)}", line)
        if kind == "AliasEvent":
            known = self._anchors.get(event.anchor)
            if known is None:
                raise Unreadable(f"*{event.anchor} is used before &{event.anchor} is complete", line)
            return known
        if kind == "ScalarEvent":
            value = _Value(_scalar(event), line)
        elif kind == "SequenceStartEvent":
            value = self._sequence(line, depth)
        else:
            value = self._mapping(line, depth)
        if event.anchor:
            self._anchors[event.anchor] = value
        return value

    def _sequence(self, line: int, depth: int) -> _Value:
        value = _Value([], line)
        for event in self._events:
            if type(event).__name__ == "SequenceEndEvent":
                break
            _add(value, len(value.entries), self._value(event, depth + 1))
        return value

    def _mapping(self, line: int, depth: int) -> _Value:
        value = _Value({}, line)
        merged: dict[str | int, _Value] = {}
        for event in self._events:
            if type(event).__name__ == "MappingEndEvent":
                break
            key = self._value(event, depth + 1)
            inner = self._value(next(self._events), depth + 1)
            if key.data == _MERGE:
                merged = {**_merged(inner), **merged}
                continue
            name = _key(key, event)
            if name in value.entries:
                value.size -= value.entries.pop(name).size
                value.repeated.add(name)
            _add(value, name, inner)
        for taken, inner in merged.items():
            if taken not in value.entries:
                _add(value, taken, inner)
        return value


def _add(value: _Value, key: str | int, inner: _Value) -> None:
    value.entries[key] = inner
    value.size += inner.size
    if value.size > MAX_VALUES:
        raise Unreadable(f"holds more than {MAX_VALUES:,} values, aliases repeated", inner.line)


def _merged(value: _Value) -> dict[str | int, _Value]:
    """Return what `<<` takes in: of one table, or of a list of tables, the first of which counts most."""
    if isinstance(value.data, dict):
        return value.entries
    if isinstance(value.data, list):
        tables = [inner.entries for inner in value.entries.values() if isinstance(inner.data, dict)]
        return {key: inner for table in reversed(tables) for key, inner in table.items()}
    raise Unreadable("<< needs a table", value.line)


def _key(key: _Value, event: Any) -> str:
    if isinstance(key.data, (dict, list)):
        raise Unreadable("a key has to be a text", key.line)
    return _own_text(event.value) if hasattr(event, "value") else str(key.data)


def _own_text(text: str) -> str:
    return whole_text(_HELD.sub(r"${env:\1}", text))


def _scalar(event: Any) -> Any:
    text = _own_text(event.value)
    if event.tag is not None and event.tag != "!":
        if event.tag.endswith(":str"):
            return text
    elif not event.implicit[0] or event.style is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _RADIX.fullmatch(text):
        return int(text, 0)
    if _NUMBER.fullmatch(text) and (number := number_of(text)) is not None:
        return number
    return text


def _plain(value: _Value, keys: Keys, lines: dict[Keys, int], repeated: list[Keys]) -> Any:
    """Return plain data; note the lines."""
    lines.setdefault(keys, value.line)
    repeated += [(*keys, name) for name in sorted(value.repeated)]
    if isinstance(value.data, dict):
        return {key: _plain(inner, (*keys, key), lines, repeated) for key, inner in value.entries.items()}
    if isinstance(value.data, list):
        return [_plain(inner, (*keys, key), lines, repeated) for key, inner in value.entries.items()]
    return value.data
