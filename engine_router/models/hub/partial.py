"""A file that is being downloaded: what is there of it, its hash, and the room on its disk. Everything here blocks."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn, Protocol

from engine_router.errors import DiskFull, HubError

Usage = Callable[[Path], tuple[int, int]]
"""Returns the free and all bytes of the disk that a folder is on."""

HASH_SLICE_BYTES: Final = 64 * 2**20
"""Bytes that are hashed between two chances to be cancelled."""

SYNC_BYTES: Final = 64 * 2**20
"""Bytes after which they are written to the disk for good.

A download that pauses must leave the disk idle, and not a backlog of gigabytes.
"""

LOOK_BYTES: Final = 4 * 2**20
"""Bytes between two looks at the free space of the disk, which others fill, too."""

_READ_BYTES: Final = 4 * 2**20
_NO_ROOM: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
_RESERVE_BYTES: Final = 2**30
# A small disk is not kept empty for the sake of the reserve.
_RESERVE_SHARE: Final = 0.05


class Hash(Protocol):
    """A hash under way."""

    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the hash of all bytes so far."""
        ...


def disk_usage(folder: Path) -> tuple[int, int]:
    """Return the free and all bytes of the disk that a folder is on, or will be on.

    Raises:
        OSError: that cannot be told.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.free, usage.total


def reserve_bytes(total_bytes: int) -> int:
    """Return the bytes of a disk that downloads leave free."""
    return min(_RESERVE_BYTES, int(total_bytes * _RESERVE_SHARE))


def check_room(folder: Path, need_bytes: int, usage: Usage = disk_usage) -> None:
    """See that a disk has room.

    Raises:
        DiskFull: it has not.
    """
    try:
        free, total = usage(folder)
    except OSError:
        return  # what cannot be told is noticed when it is written
    reserve = reserve_bytes(total)
    if need_bytes > 0 and need_bytes + reserve > free:
        raise DiskFull(
            f"{_amount(need_bytes)} are to be fetched, and the disk of {folder} has {_amount(free)} free, of which "
            f"{_amount(reserve)} stay so; make room (engine-router rm removes a model), or name another folder (HF_HOME)"
        )


def sha256() -> Hash:
    """Begin a sha256."""
    return hashlib.sha256()


def git_hash(size_bytes: int) -> Hash:
    """Begin Git's hash of a file of that size."""
    started = hashlib.sha1(usedforsecurity=False)
    started.update(b"blob %d\0" % size_bytes)
    return started


class PartialFile:
    """A file that grows as its bytes come.

    Attributes:
        path: where it grows.
        size_bytes: how many bytes are there, of which the first `hashed_bytes` are in its hash.
    """

    def __init__(self, path: Path, new_hash: Callable[[], Hash], usage: Usage = disk_usage) -> None:
        self.path = path
        self._new_hash = new_hash
        self._usage = usage
        self._hash = new_hash()
        self._descriptor = -1
        self._synced_bytes = 0
        self._looked_at_bytes = -LOOK_BYTES
        self.size_bytes = self.hashed_bytes = 0

    def open(self, most_bytes: int | None) -> None:
        """Open it, with what an earlier try has left there.

        Args:
            most_bytes: a longer one is something else, and is begun anew.

        Raises:
            HubError: it cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, flags, 0o666)
            self.size_bytes = self._synced_bytes = os.fstat(self._descriptor).st_size
            if most_bytes is not None and self.size_bytes > most_bytes:
                self.restart()
        except OSError as error:
            self._fail(error)

    def hash_slice(self) -> None:
        """Take in a part of what was there already into the hash."""
        end = min(self.size_bytes, self.hashed_bytes + HASH_SLICE_BYTES)
        try:
            os.lseek(self._descriptor, self.hashed_bytes, os.SEEK_SET)
            while self.hashed_bytes < end:
                data = os.read(self._descriptor, min(_READ_BYTES, end - self.hashed_bytes))
                if not data:  # somebody else made it shorter
                    self.restart()
                    return
                self._hash.update(data)
                self.hashed_bytes += len(data)
        except OSError as error:
            self._fail(error)

    def append(self, pieces: Sequence[bytes]) -> None:
        """Write more bytes at its end.

        Raises:
            DiskFull: there is no room, or soon would not be; what was written stays.
            HubError: it cannot be written.
        """
        try:
            if self.size_bytes - self._looked_at_bytes >= LOOK_BYTES:
                self._check_reserve()
            os.lseek(self._descriptor, self.size_bytes, os.SEEK_SET)
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    written = os.write(self._descriptor, rest)
                    self._hash.update(bytes(rest[:written]))
                    self.size_bytes += written
                    self.hashed_bytes += written
                    rest = rest[written:]
            if self.size_bytes - self._synced_bytes >= SYNC_BYTES:
                self.sync()
        except OSError as error:
            self._fail(error)

    def sync(self) -> None:
        """Have everything written to the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._fail(error)
        self._synced_bytes = self.size_bytes

    def restart(self) -> None:
        """Throw away what is there."""
        try:
            os.ftruncate(self._descriptor, 0)
        except OSError as error:
            self._fail(error)
        self.size_bytes = self.hashed_bytes = self._synced_bytes = 0
        self._looked_at_bytes = -LOOK_BYTES
        self._hash = self._new_hash()

    def hexdigest(self) -> str:
        """Return the hash of everything that is there."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close it; what is there stays for the next time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _check_reserve(self) -> None:
        self._looked_at_bytes = self.size_bytes
        free, total = self._usage(self.path.parent)
        if free < reserve_bytes(total):
            raise DiskFull(
                f"the disk of {self.path.parent} is almost full: {_amount(free)} are left; what was fetched stays for the next time"
            )

    def _fail(self, error: OSError) -> NoReturn:
        if error.errno in _NO_ROOM:
            reason = "is full" if error.errno == errno.ENOSPC else "has no room left in your quota"
            raise DiskFull(
                f"the disk of {self.path.parent} {reason}; what was fetched stays for the next time"
            ) from None
        raise HubError(f"{self.path} cannot be written: {error.strerror or error}") from None


def _amount(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
