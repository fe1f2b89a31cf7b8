"""Files of the router's own that are replaced as a whole."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path


def write_atomically(
    path: Path, text: str, *, mode: int | None = None, owner: tuple[int, int] | None = None
) -> None:
    """Replace a file as a whole, so that a reader, or a crash, never meets half of it.

    Args:
        path: the file; a symbolic link is replaced, not followed.
        text: what is in it then, its line ends as they are.
        mode: its permissions; None for the owner alone.
        owner: its user and group, as far as they may be given.

    Raises:
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if owner is not None and sys.platform != "win32":
            with contextlib.suppress(PermissionError):
                os.chown(temporary, *owner)
        if mode is not None:
            Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
