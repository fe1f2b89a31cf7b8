"""The progress of a download: one line that changes on a terminal, and few lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from engine_router.cli.formatting import gigabytes, seconds
from engine_router.cli.terminal import is_terminal, say
from engine_router.guards.foreign_text import indented_values

Show = Callable[[Mapping[str, Any]], None]

_STEP_PERCENT: Final = 10


def line_of(progress: Mapping[str, Any]) -> str:
    """Return how far a download is, in words.

    >>> line_of({"step": "downloading", "note": None, "file": "a/x.gguf", "done_bytes": 1_200_000_000,
    ...          "total_bytes": 4_800_000_000, "bytes_per_s": 45_000_000, "left_s": 80.0, "files": 1, "files_done": 0})
    'x.gguf: 1.2 GB of 4.8 GB (25 %), 45 MB/s, 80 s left'
    """
    if progress["note"]:
        return str(progress["note"])
    if progress["step"] == "asking":
        return "asking what there is"
    total, done = progress["total_bytes"], progress["done_bytes"]
    parts = [
        gigabytes(done) if not total else f"{gigabytes(done)} of {gigabytes(total)} ({percent(progress)} %)"
    ]
    if progress["bytes_per_s"]:
        parts.append(f"{gigabytes(progress['bytes_per_s'])}/s")
    if progress["left_s"] is not None:
        parts.append(f"{seconds(progress['left_s'])} left")
    file = str(progress["file"] or "").rpartition("/")[2]
    if progress["files"] > 1:
        file = f"{file} ({min(progress['files_done'] + 1, progress['files'])} of {progress['files']})"
    return f"{file}: {', '.join(parts)}".removeprefix(": ")


def percent(progress: Mapping[str, Any]) -> int:
    """Return how much is there of a download."""
    return int(100 * progress["done_bytes"] / progress["total_bytes"]) if progress["total_bytes"] else 0


@contextlib.contextmanager
def shown(*, quiet: bool) -> Iterator[Show]:
    """Return what shows the progress on standard error, until the block ends."""
    if quiet:
        yield lambda _progress: None
    elif is_terminal(sys.stderr):
        from rich.console import Console  # noqa: PLC0415 - slow to import, and not needed in a pipe
        from rich.text import Text  # noqa: PLC0415 - likewise

        with Console(stderr=True).status("") as line:
            yield lambda progress: line.update(Text(line_of(indented_values(progress))))
    else:
        yield _Lines().show


class _Lines:
    """Tells of each file, each reason to wait, and each tenth of the whole, once."""

    def __init__(self) -> None:
        self._last: tuple[Any, ...] = ()

    def show(self, progress: Mapping[str, Any]) -> None:
        tenth = percent(progress) // _STEP_PERCENT
        # A wait that is told with its seconds is the same wait a moment later.
        said = (progress["file"], progress["step"] if progress["note"] else "", tenth)
        if progress["step"] in ("asking", "done") or said == self._last:
            return
        self._last = said
        say(line_of(indented_values(progress)), to=sys.stderr)
