"""Regular files, opened so that nothing else is: to open a named pipe waits for a writer, and a device may never end."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

# Between a look at what a path is and its opening, it may become something else; so it is opened first.
_AT_ONCE = 0 if sys.platform == "win32" else os.O_NONBLOCK


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Never waits for whoever is at the other end of something that is none.

    Raises:
        ValueError: it is not a file; the text names it.
        OSError: it cannot be opened.
    """
    file = open(path, "rb", opener=_opener)  # noqa: SIM115 - the caller closes it; Path.open takes no opener
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path}: not a file")
    return file


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | _AT_ONCE)
