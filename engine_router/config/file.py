"""The file `engines.toml` as a whole: read, checked and replaced, with a backup beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from attrs import frozen

from engine_router.config.environment import Environment
from engine_router.config.load import parse_config
from engine_router.config.model import Config
from engine_router.errors import ConfigError
from engine_router.guards.atomic_file import write_atomically

_MOST_BACKUPS: Final = 1000


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
    has_keys = bool(config.server.api_keys) or any(
        holder.headers for holder in (*config.engines.values(), *config.tenants)
    )
    mask = os.umask(0)
    os.umask(mask)
    return 0o600 if has_keys else 0o666 & ~mask


def _fault(path: Path, words: str) -> ConfigError:
    return ConfigError(str(path), [("", words)])
