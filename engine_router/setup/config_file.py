"""The file `engines.toml`: tables are added to its text, and it is replaced as a whole, with a backup beside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import tomli
from attrs import frozen

from engine_router.config import Config, find_config, parse_config
from engine_router.config.environment import Environment
from engine_router.config.faults import quoted
from engine_router.config.load import candidates
from engine_router.config.places import excerpts, statements
from engine_router.config.syntax import syntax_fault
from engine_router.errors import ConfigError
from engine_router.guards.atomic_file import write_atomically
from engine_router.setup.toml_text import NAMED, comment_lines, entries, toml_text, toml_value
from engine_router.setup.toml_text import Path as Keys

HEAD: Final = """\
# engines.toml: which engines you have, which models they serve, and how they share your memory.
#
# engine-router check      says what is wrong with this file, and starts nothing
# engine-router presets    shows what can be added; engine-router add KIND adds it
# engine-router serve      runs the router
# README.md and engines.toml.example explain every key.
"""
"""The comment at the top of a new file."""

_BOM: Final = "\ufeff"
_MOST_BACKUPS: Final = 1000
_BY_HAND: Final = "is not written as a table that can be added to; nothing was changed. Add this by hand:"


@frozen
class Written:
    """What became of a file.

    Attributes:
        path: the file.
        backup: where its former text is; None where there was none, or nothing changed.
        config: what the file means now.
    """

    path: Path
    backup: Path | None
    config: Config


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


def read_text(path: Path) -> str:
    """Return the text of a file, byte order mark and line ends as they are.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise _fault(path, f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise _fault(path, f"is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


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


def write(
    path: Path,
    text: str,
    *,
    may_replace: bool,
    before: str | None = None,
    environment: Environment | None = None,
) -> Written:
    """Write a configuration, after the loader has found no fault in it.

    It is replaced as a whole: whatever interrupts this, the old file or the new one is there. Its former text stays
    beside it, its permissions stay too, and a symbolic link goes on to lead to it.

    Args:
        path: the file.
        text: what is in it then.
        may_replace: whether a file that is there may be replaced.
        before: the text that was changed: a file with another text by now stays as it is.
        environment: what `${env:NAME}` is taken from; the process's own when absent.

    Raises:
        ConfigError: the text has faults, or the file cannot be written; nothing was.
    """
    config = parse_config(text, source=str(path), environment=environment)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _fault(path, "a name in it is not UTF-8 text: rename the file or folder that has it") from None
    try:
        target = path.resolve()
        if not target.exists():
            write_atomically(target, text, mode=_mode_of_new(config))
            return Written(path, None, config)
        if not target.is_file():
            raise _fault(path, "is not a file that can be replaced")
        present = read_text(target)
        if not may_replace:
            raise _fault(path, "is there already, and was left as it is")
        if before is not None and present != before:
            raise _fault(path, "was changed by somebody else meanwhile, and was left as it is; try again")
        if present == text:
            return Written(path, None, config)
        status = target.stat()
        mode, owner = stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid)
        backup = backed_up(target, present, mode, owner)
        write_atomically(target, text, mode=mode, owner=owner)
    except OSError as error:
        raise _fault(
            path, f"cannot be written: {error.strerror or error}; --config names another file"
        ) from None
    except RuntimeError:  # links that lead in a circle, in Python before 3.13
        raise _fault(path, "cannot be written: its symbolic links lead in a circle") from None
    return Written(path, backup, config)


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


def backed_up(path: Path, text: str, mode: int, owner: tuple[int, int]) -> Path:
    """Keep the former text beside a file, and return where; an older one that differs is not overwritten."""
    for number in range(1, _MOST_BACKUPS):
        backup = path.with_name(f"{path.name}.bak" + (f".{number}" if number > 1 else ""))
        if not os.path.lexists(backup):
            write_atomically(backup, text, mode=mode, owner=owner)
            return backup
        if backup.is_file() and backup.read_bytes() == text.encode("utf-8"):
            return backup
    raise _fault(path, f"has {_MOST_BACKUPS} backups beside it: remove some")


def _mode_of_new(config: Config) -> int:
    """Return the permissions of a new file: for its owner alone where keys stand in it."""
    has_keys = bool(config.server.api_keys) or any(engine.headers for engine in config.engines.values())
    mask = os.umask(0)
    os.umask(mask)
    return 0o600 if has_keys else 0o666 & ~mask


def _fault(path: Path, words: str) -> ConfigError:
    return ConfigError(str(path), [("", words)])
