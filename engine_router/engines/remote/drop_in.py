"""A drop-in of a unit: a file beside it in which a model's values are, so that the unit itself stays as it is."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from engine_router.config import SystemdConfig
from engine_router.config.filled import filled_text
from engine_router.config.template import ModelArguments, model_command
from engine_router.config.values import expanded
from engine_router.guards.atomic_file import write_atomically

NAME: Final = "50-engine-router.conf"
_HEAD: Final = (
    "# Written by engine-router before each start of the unit; what is changed here is lost.\n[Service]\n"
)
_SYSTEM: Final = Path("/run/systemd/system")


def drop_in_path(config: SystemdConfig, unit: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the drop-in of a unit belongs."""
    folder = "run" if config.drop_in is None else config.drop_in.folder
    if config.scope == "system":
        base = _SYSTEM
    elif folder == "config":
        base = expanded(environ.get("XDG_CONFIG_HOME") or "~/.config") / "systemd" / "user"
    else:
        user = 0 if sys.platform == "win32" else os.getuid()
        base = Path(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{user}") / "systemd" / "user"
    return base / f"{unit}.d" / NAME


def drop_in_text(config: SystemdConfig, arguments: ModelArguments, values: Mapping[str, str]) -> str | None:
    """Return the drop-in for one model; None where the engine has none.

    A variable whose `{ctx}` or `{mmproj}` the model has not is left out: then the unit's own counts.
    """
    if config.drop_in is None:
        return None
    lines = []
    for name, template in config.drop_in.env.items():
        value = filled_text(template, values)
        if value is not None:
            lines.append(f"Environment={_quoted(f'{name}={value}')}")
    if config.drop_in.exec_start is not None:
        words = model_command(config.drop_in.exec_start, arguments, values)
        # An empty one first: it takes back the unit's own.
        lines += ["ExecStart=", "ExecStart=" + " ".join(_quoted(word).replace("$", "$$") for word in words)]
    return _HEAD + "".join(line + "\n" for line in lines)


def _quoted(word: str) -> str:
    """Quote a word for a unit file: a percent sign would begin a specifier, and a backslash an escape."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return '"' + word.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def write_drop_in(path: Path, text: str) -> bool:
    """Put a drop-in there; return whether that changed anything. Blocks.

    Raises:
        OSError: it cannot be written.
    """
    if is_drop_in(path, text):
        return False
    write_atomically(path, text)  # for the router's user alone: it may hold a key
    return True


def is_drop_in(path: Path, text: str) -> bool:
    """Tell whether a drop-in with this text is there. Blocks."""
    try:
        return path.read_text("utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def remove_drop_in(path: Path) -> bool:
    """Take a drop-in away, and its folder where nothing else is in it; return whether it was there. Blocks.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):
        path.parent.rmdir()
    return True


def folder_fault(path: Path) -> str | None:
    """Say so where the drop-in could not be written; None where it can be. Blocks."""
    folder = next(each for each in path.parents if each.exists() or each == each.parent)
    return None if os.access(folder, os.W_OK) else f"the router's user may not write to {folder}"
