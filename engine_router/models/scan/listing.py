"""What lies in one folder: files of models, other folders, what says more of them. A walk counts what it looks at."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import Final

import msgspec
from attrs import define, field, frozen

from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MAX_SCAN_ENTRIES
from engine_router.models.gguf import SPLIT
from engine_router.models.scan.results import Skipped

MAX_SCAN_S: Final = 600.0
"""Seconds that the scan of a place may take; a slow disk with thousands of headers needs some minutes once."""

GGUF: Final = ".gguf"
SAFETENSORS: Final = ".safetensors"
_SUFFIXES: Final = (GGUF, SAFETENSORS)
_COUNTED_AT_ONCE: Final = 100
# What stands beside weights and says what they are.
_BESIDE: Final = frozenset(
    ("config.json", "model.safetensors.index.json", "adapter_config.json", "model_index.json", "modules.json")
)
# The notes that llama.cpp makes of its downloads: `manifest=user=repo=tag.json`.
_MANIFEST: Final = "manifest="
# Names of downloads that have not ended, by their ends.
UNFINISHED: Final = (
    ".part", ".incomplete", ".tmp", ".temp", ".download", ".partial", ".crdownload", ".downloadinprogress", ".aria2",
)  # fmt: skip
ABSENT: Final = frozenset((errno.ENOENT, errno.ENOTDIR))


class FoundFile(msgspec.Struct, frozen=True, gc=False):
    """A file of a model.

    Attributes:
        path: under which it was found.
        size: in bytes.
        modified_at: in seconds since the epoch.
        identity: device and number of the file, the same under each of its names; None where the system gives none.
        is_link: it was found by a link.
    """

    path: Path
    size: int
    modified_at: float
    identity: tuple[int, int] | None
    is_link: bool


@frozen
class Folder:
    """A folder with files of models.

    Attributes:
        path: where it is.
        files: the models' files in it.
        beside: names of other files that say what these are.
        unfinished: names of downloads that have not ended.
        repository: `user/repo`, where that is known.
        scope: the folder whose projectors are its models' projectors: itself, or its repository.
        within: its path in its repository's revision, with a slash behind; empty elsewhere.
    """

    path: Path
    files: tuple[FoundFile, ...]
    beside: frozenset[str] = frozenset()
    unfinished: tuple[str, ...] = ()
    repository: str = ""
    scope: Path = Path()
    within: str = ""


class TooMuch(Exception):
    """The walk came to a limit; the message says to which."""


@define(eq=False, repr=False)
class Listing:
    """What lies directly in one folder."""

    folders: list[tuple[str, bool]] = field(factory=list)  # with whether it is a link
    files: list[FoundFile] = field(factory=list)
    dangling: list[str] = field(factory=list)
    beside: set[str] = field(factory=set)
    unfinished: list[str] = field(factory=list)


Mark = tuple[int, int] | None
"""The time and size of a file or folder; None where it is not there."""


def mark_of(path: Path) -> Mark:
    """Return what a file or folder looks like now."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def missing_part(names: Iterable[str]) -> str | None:
    """Return which part is missing of a model whose files' names are given; None where none is.

    The names are those of one file, or of parts of one set. No list is made of all parts: a name may promise 99,999.
    """
    found = [split for name in names if (split := SPLIT.fullmatch(name)) is not None]
    if not found:
        return None
    total, present = int(found[0]["parts"]), {int(split["part"]) for split in found}
    part = next(number for number in range(1, len(present) + 2) if number not in present)
    if part <= total:
        return f"part {part} of {total} is missing"
    return None if max(present) <= total else f"part {max(present)} of {total} is one too many"


def why(error: OSError) -> str:
    """Return what an error of the system says, without the path."""
    return (error.strerror or type(error).__name__).lower()


@define(eq=False, repr=False)
class Walk:
    """One walk through the folders of a place.

    Args:
        rest: called at each folder and file: other threads get their turn, and it is a sign of life.

    Attributes:
        skipped: what was passed over.
        marks: time and size of what shows that there may be something new: each folder, each file with a fault.
    """

    rest: Callable[[], None]
    skipped: list[Skipped] = field(factory=list)
    marks: dict[Path, Mark] = field(factory=dict)
    _entries: int = 0
    _began: float = field(factory=monotonic)
    _entered: set[tuple[int, int]] = field(factory=set)

    def skip(self, path: Path, reason: str, *, is_fault: bool = True) -> None:
        """Note that something is passed over."""
        self.skipped.append(Skipped(path, reason, is_fault))
        if is_fault:
            self.mark(path)

    def mark(self, path: Path) -> None:
        """Note what a file or folder looks like now."""
        self.marks[path] = mark_of(path)

    def list(self, path: Path, *, by_link: bool = False) -> Listing:
        """Return what lies in a folder; nothing, and note it, where it cannot be entered.

        Raises:
            TooMuch: a limit is reached.
        """
        listing = Listing()
        self.rest()
        self.mark(path)
        try:
            with os.scandir(path) as entries:
                found = []
                for entry in entries:
                    self._count()
                    if not entry.name.startswith("."):
                        found.append(entry)
        except OSError as error:
            if error.errno not in ABSENT:  # it went meanwhile
                self.skip(path, f"cannot be entered: {why(error)}")
            return listing
        for entry in sorted(found, key=lambda entry: entry.name):
            self._sort(path, entry, listing, by_link=by_link)
        return listing

    def _sort(self, folder: Path, entry: os.DirEntry[str], listing: Listing, *, by_link: bool) -> None:
        """Put a name of a folder where it belongs."""
        name = entry.name
        lower = name.lower()
        try:
            is_link, is_folder = entry.is_symlink(), _is_folder(entry)
        except OSError as error:
            self.skip(folder, f"{shown(name)} cannot be looked at: {why(error)}")
            return
        if is_folder:
            if _is_text(name):
                listing.folders.append((name, is_link))
            else:
                self.skip(folder, f"holds a folder whose name is no text: {shown(name)}")
            return
        if lower in _BESIDE or lower.startswith(_MANIFEST):
            if os.path.isfile(entry.path):  # noqa: PTH113 - an entry has its path as a text
                listing.beside.add(name)
            return
        if lower.endswith(UNFINISHED) and any(suffix in lower for suffix in _SUFFIXES):
            if _is_text(name):
                listing.unfinished.append(name)
        elif lower.endswith(_SUFFIXES):
            if _is_text(name):
                self._file(folder / name, listing, is_link=is_link, by_link=by_link)
            else:
                self.skip(folder, f"holds a file whose name is no text: {shown(name)}")

    def _file(self, path: Path, listing: Listing, *, is_link: bool, by_link: bool) -> None:
        self.rest()
        try:
            found = path.stat()
        except OSError as error:
            if is_link and error.errno in (*ABSENT, errno.ELOOP):
                listing.dangling.append(path.name)
            elif error.errno not in ABSENT:
                self.skip(path, f"cannot be looked at: {why(error)}")
            return
        if not stat.S_ISREG(found.st_mode):
            self.skip(path, "is not a file")
            return
        identity = (found.st_dev, found.st_ino) if found.st_ino else None
        listing.files.append(FoundFile(path, found.st_size, found.st_mtime, identity, is_link or by_link))

    def _count(self) -> None:
        self._entries += 1
        if self._entries > MAX_SCAN_ENTRIES:
            raise TooMuch(f"holds more than {MAX_SCAN_ENTRIES} names: the rest was not looked at")
        if self._entries % _COUNTED_AT_ONCE == 0:
            self.rest()
            self.check_time()

    def check_time(self) -> None:
        """Raises TooMuch where the walk has taken too long."""
        if monotonic() - self._began > MAX_SCAN_S:
            raise TooMuch(f"took more than {MAX_SCAN_S:g} s: the rest was not looked at")

    def is_new(self, path: Path) -> bool:
        """Tell whether a folder was not entered before, by whatever name, and note that it is now."""
        try:
            found = path.stat()
        except OSError as error:
            if error.errno not in ABSENT:
                self.skip(path, f"cannot be entered: {why(error)}")
            return False
        identity = (found.st_dev, found.st_ino)
        if identity in self._entered:
            return False
        if found.st_ino:
            self._entered.add(identity)
        return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself
            return False
        raise


def _is_text(name: str) -> bool:
    """Tell whether a name can be written in JSON; that of a file in another encoding cannot."""
    return name.isascii() or not any("\ud800" <= char <= "\udfff" for char in name)
