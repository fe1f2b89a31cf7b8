"""JSON files of other programs: members are put in, everything else stays, and the former file is kept beside it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from engine_router.cli.exit_codes import CommandFailed
from engine_router.config.file import backed_up
from engine_router.guards.atomic_file import write_atomically

MAX_FILE_BYTES: Final = 16_777_216


@frozen
class JsonFile:
    """A file as it is.

    Attributes:
        text: None where there is no file.
        data: empty where there is no file, or nothing in it.
        has_comments: it is JSON with comments, or commas before closing brackets: these would be lost if it were
            written anew.
    """

    text: str | None
    data: Any
    has_comments: bool = False


def read_json(path: Path, kind: type) -> JsonFile:
    """Return what a file holds.

    Raises:
        CommandFailed: it cannot be read, or is no JSON of that kind.
    """
    try:
        if not path.exists():
            return JsonFile(None, kind())
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CommandFailed(f"{path} is too large to be its settings")
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise CommandFailed(f"{path} is not UTF-8 text") from None
    has_comments = False
    try:
        data = json.loads(text) if text.strip() else kind()
    except (ValueError, RecursionError):
        data, has_comments = _with_comments(path, text, kind), True
    if not isinstance(data, kind):
        raise CommandFailed(f"{path} does not hold what its program wants: nothing was changed")
    return JsonFile(text, data, has_comments)


def _with_comments(path: Path, text: str, kind: type) -> Any:
    """Return the data of JSON with comments; empty where there is nothing else in it."""
    from engine_router.guards.documents import Unreadable  # noqa: PLC0415 - seldom needed
    from engine_router.setup.migrate.jsonc_reader import is_blank, read_jsonc  # noqa: PLC0415 - likewise

    if is_blank(text):
        return kind()
    try:
        return read_jsonc(text).data
    except Unreadable as fault:
        raise CommandFailed(f"{path} {fault}: nothing was changed. Correct it, and try again") from None


def merged(data: Any, content: Any, identity: str) -> Any:
    """Return data with content put in.

    Members are put in one by one, entries of lists by their identity; any other value replaces the one before.

    >>> merged({"a": 1, "b": [{"id": 1, "x": 1}, {"id": 2}]}, {"b": [{"id": 2, "y": 2}], "c": 3}, "id")
    {'a': 1, 'b': [{'id': 1, 'x': 1}, {'id': 2, 'y': 2}], 'c': 3}
    """
    if isinstance(data, dict) and isinstance(content, dict):
        return {**data, **{key: merged(data.get(key), value, identity) for key, value in content.items()}}
    if isinstance(data, list) and isinstance(content, list):
        result = list(data)
        for entry in content:
            at = next((at for at, old in enumerate(result) if _is_same(old, entry, identity)), None)
            if at is None:
                result.append(entry)
            else:
                result[at] = merged(result[at], entry, identity)
        return result
    return content


def _is_same(old: object, new: object, identity: str) -> bool:
    return isinstance(old, dict) and isinstance(new, dict) and old.get(identity) == new.get(identity)


def replaced(data: Any, content: Any, identity: str, place: str = "") -> list[str]:
    """Return the places of values that get another value, for a person who is asked."""
    if isinstance(data, dict) and isinstance(content, dict):
        return [
            found
            for key, value in content.items()
            if key in data
            for found in replaced(data[key], value, identity, f"{place}.{key}".lstrip("."))
        ]
    if isinstance(data, list) and isinstance(content, list):
        return [
            found
            for new in content
            for old in data
            if _is_same(old, new, identity)
            for found in replaced(old, new, identity, f"{place}[{new[identity]}]")
        ]
    return [] if data == content else [place]


def write_json(path: Path, data: Any, before: str | None) -> Path | None:
    """Replace a file; returns where its former text is, if there was any. A link goes on to lead to it.

    Raises:
        CommandFailed: it cannot be written.
        ConfigError: it has too many backups.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    try:
        target = path.resolve()
        if before is None:
            write_atomically(target, text)
            return None
        status = target.stat()
        mode, owner = stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid)
        backup = backed_up(target, before, mode, owner)
        write_atomically(target, text, mode=mode, owner=owner)
    except (OSError, RuntimeError) as error:
        raise CommandFailed(f"{path} cannot be written: {error}") from None
    return backup
