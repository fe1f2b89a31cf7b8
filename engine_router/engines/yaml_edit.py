"""Values set in the text of a YAML file: they are exchanged where they stand, and all else stays as it is.

A parser says where each value begins and ends. Comments, order, quotes and blank lines of a file that somebody
wrote by hand are kept, as a dump of the data would not keep them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

import yaml
from attrs import frozen

from engine_router.engines.nested_values import Keys, has_setting, with_settings

_NULL: Final = "tag:yaml.org,2002:null"
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_WORDS: Final = frozenset(("true", "false", "yes", "no", "on", "off", "null", "y", "n"))  # no strings to YAML


@frozen
class _Edit:
    """One piece of the text, and what takes its place."""

    start: int
    end: int
    text: str


def set_in_yaml(text: str, settings: Mapping[Keys, object]) -> str:
    """Return a YAML text with values set, each by the keys that lead to it; None empties a value.

    Raises:
        ValueError: the text is no YAML of one document that is a mapping, or it cannot be changed in place.
    """
    try:
        before = yaml.safe_load(text)
        settings = {keys: value for keys, value in settings.items() if not has_setting(before, keys, value)}
        wanted = with_settings(before, settings)
    except yaml.YAMLError as error:
        raise ValueError(f"is no YAML: {_where(error)}") from None
    try:
        for keys, value in settings.items():
            text = _set_one(text, keys, value)
        is_so = yaml.safe_load(text) == wanted
    except yaml.YAMLError:
        is_so = False
    if not is_so:  # an alias, for example: what is exchanged here would change elsewhere
        raise ValueError("cannot be changed in place: an anchor or alias stands where a value is to be set")
    return text


def _where(error: yaml.YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f"line {mark.line + 1}" if mark is not None else " ".join(str(error).split())[:200]


def _set_one(text: str, keys: Keys, value: object) -> str:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        return _with_lines(text, len(text), _lines(keys, value, ""))
    edit = _edit(text, node, keys, value)
    return text[: edit.start] + edit.text + text[edit.end :]


def _edit(text: str, table: yaml.Node, keys: Keys, value: object) -> _Edit:
    """Find what is to be exchanged, in a mapping, for the value that some keys lead to."""
    if not isinstance(table, yaml.MappingNode):
        raise ValueError("is no mapping of keys to values")  # noqa: TRY004 - of the text, not of an argument
    entries = [(key, inner) for key, inner in table.value if isinstance(key, yaml.ScalarNode)]
    found = next(((key, inner) for key, inner in reversed(entries) if key.value == keys[0]), None)
    if found is None:
        return _added(text, table, keys, value)
    key, inner = found
    if len(keys) == 1:
        return _exchanged(text, key, inner, value)
    if inner.tag == _NULL:
        if table.flow_style or inner.start_mark.index < inner.end_mark.index:
            return _exchanged(text, key, inner, _nested(keys[1:], value))
        return _insertion(text, _end(inner), _lines(keys[1:], value, " " * (key.start_mark.column + 2)))
    return _edit(text, inner, keys[1:], value)


def _exchanged(text: str, key: yaml.Node, inner: yaml.Node, value: object) -> _Edit:
    """Exchange a value. One that begins below its key gives way to one beside it."""
    colon = text.index(":", key.end_mark.index) + 1
    start, end = max(colon, inner.start_mark.index), _end(inner)
    between = text[colon:start]
    if "\n" in between or start == end:
        after = between.rstrip() if "\n" in between else between
        return _Edit(colon, max(end, colon), f" {_flow(value)}{after}")
    is_block = isinstance(inner, yaml.ScalarNode) and inner.style in ("|", ">")
    kept = text[start:end]
    return _Edit(start, end, _flow(value) + ("\n" if is_block and kept.endswith("\n") else ""))


def _added(text: str, table: yaml.MappingNode, keys: Keys, value: object) -> _Edit:
    """Add a key to a mapping, behind its others."""
    if table.flow_style:
        end = table.end_mark.index - 1
        start = _end(table.value[-1][1]) if table.value else end
        is_closed = text[start:end].strip().startswith(",")
        entry = f"{json.dumps(keys[0], ensure_ascii=False)}: {_flow(_nested(keys[1:], value))}"
        if is_closed:
            return _Edit(end, end, f" {entry}")
        return _Edit(start, start, f", {entry}" if table.value else entry)
    return _insertion(text, _end(table), _lines(keys, value, " " * table.start_mark.column))


def _insertion(text: str, end: int, lines: Sequence[str]) -> _Edit:
    """Put lines below the line in which something ends."""
    at = end if text[:end].endswith("\n") else text.find("\n", end) + 1 or len(text)
    return _Edit(at, at, _with_lines(text[:at], at, lines)[at:])


def _with_lines(text: str, at: int, lines: Sequence[str]) -> str:
    line_end = "\r\n" if "\r\n" in text else "\n"
    before = text[:at]
    start = line_end if before and not before.endswith("\n") else ""
    return before + start + "".join(line + line_end for line in lines)


def _lines(keys: Keys, value: object, indent: str) -> list[str]:
    """Return the lines of a key and what it leads to."""
    *outer, last = (
        key if _PLAIN_KEY.fullmatch(key) and key.lower() not in _WORDS else _flow(key) for key in keys
    )
    lines = [f"{indent}{'  ' * depth}{key}:" for depth, key in enumerate(outer)]
    return [*lines, f"{indent}{'  ' * len(outer)}{last}: {_flow(value)}"]


def _nested(keys: Keys, value: object) -> object:
    for key in reversed(keys):
        value = {key: value}
    return value


def _end(node: yaml.Node) -> int:
    """Return where a value ends: the parser counts what follows a block, comments included, as part of it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _flow(value: object) -> str:
    """Return a value as it stands in one line: JSON is YAML, too."""
    return json.dumps(value, ensure_ascii=False)
