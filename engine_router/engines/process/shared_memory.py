"""Shared memory that a killed engine leaves behind: files in /dev/shm, which outlive the processes that made them.

On Linux shared memory that has a name is such a file (`shm_open`, Python's `multiprocessing.shared_memory`). Who
is killed cannot remove it, and it takes up memory until the machine is restarted. So what a process tree writes to is noted
while it lives, and removed when all of it is dead. One seam for what differs by platform.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

import trio
from attrs import frozen

from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import SHARED_MEMORY_FILES

logger = logging.getLogger(__name__)

FOLDER: Final = "/dev/shm"  # noqa: S108 - it is no place for temporary files here
# Seconds that a look at the process table may take; after that the end of a process tree is more important.
LOOK_S: Final = 2.0
# Files are dated by a clock that goes forward in steps, so that a new one may look a little older than it is.
CLOCK_STEP_S: Final = 0.05
SHOWN_FILES: Final = 8

Identity = tuple[int, int]  # of a file: its device and its inode


class SharedMemory(Protocol):
    """The shared memory of one process tree."""

    async def note(self, members: Callable[[], Iterable[int]]) -> None:
        """Note what the living members of a tree write to; takes `LOOK_S` seconds at most.

        Args:
            members: lists their process ids; called in a thread, and only where there is anything to note.
        """
        ...

    async def clear(self) -> Sequence[str]:
        """Remove what a dead tree left, as far as nobody else can use it; say in sentences what was done."""
        ...


class NoSharedMemory:
    """Shared memory where it ends with the processes that use it."""

    async def note(self, members: Callable[[], Iterable[int]]) -> None:
        """See `SharedMemory.note`."""

    async def clear(self) -> Sequence[str]:
        """See `SharedMemory.clear`."""
        return ()


@frozen
class _File:
    """A file in /dev/shm."""

    path: str
    status: os.stat_result

    @property
    def identity(self) -> Identity:
        return self.status.st_dev, self.status.st_ino

    @property
    def is_open_to_others(self) -> bool:
        return bool(self.status.st_mode & (stat.S_IRWXG | stat.S_IRWXO))

    def __str__(self) -> str:
        size_mb = self.status.st_blocks * 512 / 1e6
        return f"{shown(os.path.basename(self.path))} ({size_mb:.1f} MB)"  # noqa: PTH119 - it is text


class SharedMemoryFiles:
    """The shared memory of one process tree on Linux.

    Only what the tree writes to is its shared memory: model files that lie in /dev/shm are only read. Nor is it what
    was there before the tree, or what the engine's configuration names.

    Args:
        began: when the tree began, in seconds since 1970.
        configured: texts of the configuration in which a file may be named.
    """

    def __init__(self, began: float, configured: Iterable[str]) -> None:
        self._began = began
        self._configured = tuple(text for text in configured if FOLDER in text)
        self._noted: set[Identity] = set()

    async def note(self, members: Callable[[], Iterable[int]]) -> None:
        """See `SharedMemory.note`."""
        with trio.move_on_after(LOOK_S):
            self._noted |= await trio.to_thread.run_sync(self._written, members, abandon_on_cancel=True)

    async def clear(self) -> Sequence[str]:
        """See `SharedMemory.clear`."""
        if not self._noted:
            return ()
        found: list[tuple[_File, str]] = []
        with trio.move_on_after(LOOK_S):
            found = await trio.to_thread.run_sync(self._left, abandon_on_cancel=True)
        free = [file for file, objection in found if not objection]
        # In a thread, too: the kernel gives back hundreds of megabytes before it returns.
        removed = await trio.to_thread.run_sync(_removed, free) if free else []
        kept = [f"{file}: {objection}" for file, objection in found if objection]
        self._noted = set()
        return [
            *([f"removed what it left in {FOLDER}: {_listed(removed)}"] if removed else []),
            *([f"left behind in {FOLDER}: {_listed(kept)}"] if kept else []),
        ]

    def _written(self, members: Callable[[], Iterable[int]]) -> set[Identity]:
        candidates = {file.identity for file in self._files()}
        if not candidates:
            return set()
        with contextlib.suppress(OSError):  # who may not be looked at keeps what is theirs
            return {used for pid in members() for used in _used(pid, writing=True)} & candidates
        return set()

    def _left(self) -> list[tuple[_File, str]]:
        """Return what was noted and is still there, each with what speaks against its removal, or nothing."""
        files = [file for file in self._files() if file.identity in self._noted]
        if not files:
            return []
        users, is_complete = _users({file.identity for file in files})
        return [(file, _objection(file, users.get(file.identity), is_complete=is_complete)) for file in files]

    def _files(self) -> list[_File]:
        """List the files that may be a tree's: not what is older, has a second name, or is configured."""
        try:
            with os.scandir(FOLDER) as entries:
                files = [_file(entry) for entry in itertools.islice(entries, SHARED_MEMORY_FILES)]
        except OSError:
            return []
        return [
            file
            for file in files
            if file is not None
            and stat.S_ISREG(file.status.st_mode)
            and file.status.st_nlink == 1
            and file.status.st_ctime >= self._began - CLOCK_STEP_S
            and not any(file.path in text for text in self._configured)
        ]


def shared_memory(began: float, configured: Iterable[str]) -> SharedMemory:
    """Return the shared memory of a tree that began at a time, in seconds since 1970; see `SharedMemoryFiles`."""
    return SharedMemoryFiles(began, configured) if sys.platform == "linux" else NoSharedMemory()


def _file(entry: os.DirEntry[str]) -> _File | None:
    try:
        return _File(entry.path, entry.stat(follow_symlinks=False))
    except OSError:
        return None


def _listed(files: Sequence[object]) -> str:
    more = f" and {len(files) - SHOWN_FILES} more" if len(files) > SHOWN_FILES else ""
    return ", ".join(str(file) for file in files[:SHOWN_FILES]) + more


def _objection(file: _File, user: int | None, *, is_complete: bool) -> str:
    """Say what speaks against the removal of a file, or nothing."""
    if file.status.st_uid != os.geteuid():
        return f"it belongs to user {file.status.st_uid}"
    if user is not None:
        return f"process {user} uses it"
    if not is_complete and file.is_open_to_others:
        return "other users may use it"
    return ""


def _removed(files: Iterable[_File]) -> list[_File]:
    """Remove files; return those that are gone by that."""
    return [file for file in files if _is_removed(file)]


def _is_removed(file: _File) -> bool:
    """Remove a file, unless another has taken its name. Returns whether it is gone by that."""
    try:
        status = os.lstat(file.path)
        if (status.st_dev, status.st_ino) != file.identity:
            return False
        os.unlink(file.path)  # noqa: PTH108 - like the rest of it
    except OSError as error:
        logger.warning("%s cannot be removed: %s", shown(file.path), error.strerror or error)
        return False
    return True


def _users(files: set[Identity]) -> tuple[dict[Identity, int], bool]:
    """Return a process that uses it for each file that is used, and whether all processes could be looked at."""
    users: dict[Identity, int] = {}
    is_complete = True
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        try:
            users.update((identity, pid) for identity in _used(pid, writing=False) if identity in files)
        except PermissionError:
            is_complete = False
    return users, is_complete


def _used(pid: int, *, writing: bool) -> Iterator[Identity]:
    """Yield the files in /dev/shm that a process maps or holds open; with `writing` those that it may write to.

    Raises:
        PermissionError: it may not be looked at.
    """
    try:
        yield from _mapped(pid, writing=writing)
        yield from _held_open(pid, writing=writing)
    except (FileNotFoundError, ProcessLookupError):
        return  # it has just ended


def _mapped(pid: int, *, writing: bool) -> Iterator[Identity]:
    with open(f"/proc/{pid}/maps", "rb") as lines:  # noqa: PTH123 - it is asked of every process
        for line in lines:
            if f" {FOLDER}/".encode() in line:
                _, rights, _, device, inode, _ = line.split(maxsplit=5)
                if not writing or (b"w" in rights and b"s" in rights):
                    major, minor = (int(part, 16) for part in device.split(b":"))
                    yield os.makedev(major, minor), int(inode)


def _held_open(pid: int, *, writing: bool) -> Iterator[Identity]:
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if not os.readlink(entry.path).startswith(f"{FOLDER}/"):  # noqa: PTH115 - likewise
                    continue
                if not writing or _is_open_for_writing(pid, entry.name):
                    status = os.stat(entry.path)  # noqa: PTH116 - likewise
                    yield status.st_dev, status.st_ino


def _is_open_for_writing(pid: int, descriptor: str) -> bool:
    with open(f"/proc/{pid}/fdinfo/{descriptor}", "rb") as lines:  # noqa: PTH123 - likewise
        flags = next(int(line.split()[1], 8) for line in lines if line.startswith(b"flags:"))
    return flags & os.O_ACCMODE != os.O_RDONLY
