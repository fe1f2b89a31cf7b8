"""The file `engines.toml`: tables are added to its text, and it is replaced as a whole, with a backup beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import tomli

from engine_router.config import find_config
from engine_router.config.faults import quoted
from engine_router.config.load import candidates
from engine_router.config.places import excerpts, statements
from engine_router.config.syntax import syntax_fault
from engine_router.errors import ConfigError
from engine_router.setup.toml_text import NAMED, comment_lines, entries, toml_text, toml_value
from engine_router.setup.toml_text import Path as Keys

HEAD: Final = """\
# engines.toml: which engines you have, which models they serve, and how they share your memory.
#
# engine-router check      says what is wrong with this file, and starts nothing
# engine-router presets    shows what can be added; engine-router add KIND adds it
# engine-router serve      runs the router
# docs/configuration.md and engines.toml.example explain every key.
"""
"""The comment at the top of a new file."""

_BOM: Final = "\ufeff"
_BY_HAND: Final = "is not written as a table that can be added to; nothing was changed. Add this by hand:"


def place_for_new(explicit: str | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return where a configuration is made: where the user says, or in the user's configuration folder."""
    places = candidates(explicit, environ)
    return places[min(1, len(places) - 1)]


def place_to_change(explicit: str | None) -> Path:
    """Return the configuration in use, or where one is to be made."""
    try:
        return find_config(explicit)
    except ConfigError:
        return place_for_new(explicit)


def add_tables(
    text: str,
    tables: Mapping[str, object],
    comments: Mapping[Keys, str] | None = None,
    *,
    source: str = "engines.toml",
) -> str:
    """Return a configuration's text with more tables in it; every line that was there stays, in its order.

    Args:
        text: the configuration; it may be empty.
        tables: what is added, such as `{"engines": {"llama": {"type": "process", ...}}, "aliases": {"a": "b"}}`.
        comments: words for the lines above a table or a key, by its path, such as `("engines", "llama")`.
        source: the file, for errors.

    Raises:
        ConfigError: the text is not TOML; what is added is there already, or cannot be added.
    """
    try:
        block = toml_text(tables, comments)
    except ValueError as error:
        raise ConfigError(source, [("", str(error))]) from None
    return add_block(text, block, comments, source=source)


def add_block(
    text: str, block: str, comments: Mapping[Keys, str] | None = None, *, source: str = "engines.toml"
) -> str:
    """Return a configuration's text with a block of tables and comments at its end.

    Where TOML does not allow that, what is in the block goes into the tables that are there; then only those of its
    comments come along that are given by path. See `add_tables`.

    Raises:
        ConfigError: the text or the block is not TOML; what is added is there already, or cannot be added.
    """
    mark, plain = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
    is_crlf = "\r\n" in plain and plain.count("\r\n") == plain.count("\n")
    plain = plain.replace("\r\n", "\n") if is_crlf else plain
    data, tables = _data(plain, source), _data(block, "what is added")
    wanted = _merged(data, tables, plain, source)
    whole = _at_end(plain, block)
    if not _means(whole, wanted):
        whole = _piece_by_piece(plain, data, tables, comments or {})
        if not _means(whole, wanted):
            raise ConfigError(source, [(", ".join(tables), f"{_BY_HAND}\n\n{block}")])
    return mark + (whole.replace("\n", "\r\n") if is_crlf else whole)


def _data(text: str, source: str) -> dict[str, Any]:
    try:
        return tomli.loads(text.removeprefix(_BOM))
    except tomli.TOMLDecodeError as error:
        fault, line = syntax_fault(str(error), text)
        raise ConfigError(source, [("", fault)], [line]) from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(source, [("", f"cannot be read: {error}")]) from None


def _parts(tables: Mapping[str, object]) -> Iterator[tuple[Keys, object]]:
    """Yield what must not be there yet: an entry with a name, or a key of a table whose keys are fixed."""
    for path, value in entries(tables):
        if len(path) == 1 and isinstance(value, Mapping):
            yield from (((*path, key), inner) for key, inner in value.items())
        else:
            yield path, value


def _merged(data: Mapping[str, Any], tables: Mapping[str, object], text: str, source: str) -> dict[str, Any]:
    """Return what the text has to mean.

    Raises:
        ConfigError: something is there already; each with its place.
    """
    merged: dict[str, Any] = deepcopy(dict(data))
    there: list[str] = []
    for path, value in _parts(tables):
        parent: Any = merged
        for key in path[:-1]:
            parent = parent.setdefault(key, {})
        if not isinstance(parent, dict):
            raise ConfigError(source, [(path[0], "is not a table, so that nothing can be added to it")])
        if path[-1] in parent:
            there.append(".".join([path[0], *map(quoted, path[1:])]))
        parent[path[-1]] = value
    if there:
        raise ConfigError(
            source,
            [(place, "is there already; nothing was changed") for place in there],
            excerpts(text, there),
        )
    return merged


def _at_end(text: str, block: str) -> str:
    before = text.rstrip("\n")
    return f"{before}\n\n{block}" if before else block


def _means(text: str, wanted: Mapping[str, object]) -> bool:
    try:
        return tomli.loads(text) == wanted
    except (tomli.TOMLDecodeError, RecursionError, ValueError):
        return False


def _piece_by_piece(
    text: str, data: Mapping[str, Any], tables: Mapping[str, object], comments: Mapping[Keys, str]
) -> str:
    """Add each entry for itself: at the end, or else behind the others of its table."""
    for path, value in entries(tables):
        nested: dict[str, object] = {path[-1]: value}
        for key in reversed(path[:-1]):
            nested = {key: nested}
        data = _merged(data, nested, text, "")
        whole = _at_end(text, toml_text(nested, comments))
        if _means(whole, data):
            text = whole
        else:
            text = _below_others(text, data, nested, comments) or _inserted(text, nested, comments)
    return text


def _below_others(
    text: str, wanted: Mapping[str, Any], tables: Mapping[str, object], comments: Mapping[Keys, str]
) -> str | None:
    """Put keys below the last key of their table, ahead of the comments that follow; None where that is no table."""
    found, lines = [*statements(text)], text.split("\n")
    headers = [index for index, one in enumerate(found) if one.value == len(one.text)]
    (section,) = tables
    start = next((index for index in headers if found[index].keys == (section,)), None)
    if start is None or section in NAMED:
        return None
    end = next((index for index in headers if index > start), len(found))
    new = toml_text(tables, comments).rstrip("\n").split("\n")
    new = new[next(index for index, line in enumerate(new) if line.startswith("[")) + 1 :]
    # A value may go on for some lines; within it, what comes out is no TOML, or means something else.
    last = found[end].line if end < len(found) else len(lines) + 1
    for line in range(found[end - 1].line, last):
        whole = "\n".join([*lines[:line], *new, *lines[line:]])
        if _means(whole, wanted):
            return whole
    return None


def _inserted(text: str, tables: Mapping[str, object], comments: Mapping[Keys, str]) -> str:
    """Put entries into the tables that are there, or a key above all tables."""
    import tomlkit  # noqa: PLC0415 - slow to import, and seldom needed
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415 - likewise

    try:
        document = tomlkit.parse(text)
        for path, value in _parts(tables):
            table: Any = document
            for key in path[:-1]:
                table = table[key]
            if not isinstance(table, tomlkit.items.InlineTable):
                for line in comment_lines(comments.get(path, "")):
                    table.add(tomlkit.comment(line.removeprefix("# ")))
            table[path[-1]] = tomlkit.value(toml_value(value))
        return tomlkit.dumps(document)
    except (TOMLKitError, KeyError, TypeError, ValueError):
        return text
