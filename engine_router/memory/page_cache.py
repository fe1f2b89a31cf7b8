"""The page cache around a swap: the next model's files read ahead into it, the last one's dropped from it.

While an engine drains and stops, the disk is idle, and the next engine will read gigabytes from it. What is
read meanwhile into memory that is free anyway, the next engine finds there. Where the page cache counts as
used memory (CUDA on unified memory), the opposite helps: what the outgoing model has left there is dropped.

It is read in several streams, from the request on until the next engine is ready: an engine that maps its file reads
little at a time, and waits for each. It is read, not announced: POSIX_FADV_WILLNEED and readahead(2) fetch no more than a device's window for each
call. Of a file of 1 GiB that was announced in pieces of 2, 8 and 32 MiB, 19 to 65 % came.

On Linux. Elsewhere nothing is done: there is no way to drop a file without the right to drop them all, and
none to tell free memory from memory that only caches files.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import trio
from attrs import define

from engine_router.memory.host import MeminfoGauge
from engine_router.memory.reading import GaugeUnreadable

SLICE_BYTES: Final = 8 * 2**20
"""The size of a read between two looks at free memory, and between two chances to be cancelled."""

STREAMS: Final = 4
"""Slices that are read at the same time: many disks, and all that lie elsewhere, are faster so."""

DROP_SLICE_BYTES: Final = 2**30

RESERVE_BYTES: Final = 2**30
"""Free memory that is left alone."""

IS_SUPPORTED: Final = sys.platform == "linux"


def free_bytes() -> int:
    """Return the memory that nobody uses, not even for caches; 0 where that cannot be told."""
    try:
        return MeminfoGauge("MemFree").read_now().available_bytes
    except GaugeUnreadable:
        return 0


async def read_ahead(
    paths: Sequence[Path],
    limit_bytes: int,
    *,
    reserve_bytes: int = RESERVE_BYTES,
    free: Callable[[], int] = free_bytes,
    streams: int = STREAMS,
) -> int:
    """Read files into the page cache, one after the other, as long as there is free memory for them.

    What cannot be read is skipped: this is only meant to help.

    Args:
        paths: files, in the order in which they will be wanted.
        limit_bytes: no more is read.
        reserve_bytes: free memory that is left alone.
        free: tells how much memory is free; asked before each slice, in a thread.
        streams: slices that are read at the same time.

    Returns:
        the bytes that were read, or were found there.

    Cancellation is noticed after each slice, which takes milliseconds, or on a slow disk tenths of a second.
    """
    total = 0
    if not IS_SUPPORTED:
        return 0
    nowhere = await trio.to_thread.run_sync(os.open, os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for path in paths:
            descriptor = await trio.to_thread.run_sync(_open, path)
            if descriptor is None:
                continue
            try:
                size = min(os.fstat(descriptor).st_size, limit_bytes - total)
                file = _FileInSlices(descriptor, size, nowhere, reserve_bytes, free)
                async with trio.open_nursery() as nursery:
                    for _ in range(streams):
                        nursery.start_soon(file.read)
                total += file.done_bytes
            finally:
                os.close(descriptor)
    finally:
        os.close(nowhere)
    return total


@define(eq=False, repr=False)
class _FileInSlices:
    """A file that several streams read, each of which takes the next slice.

    Attributes:
        done_bytes: what was read, or found in the cache.
    """

    _descriptor: int
    _size: int
    _nowhere: int
    _reserve_bytes: int
    _free: Callable[[], int]
    done_bytes: int = 0
    _next: int = 0

    async def read(self) -> None:
        """Read slices until there are none, or there is no memory for them."""
        while (offset := self._next) < self._size:
            self._next += SLICE_BYTES
            got = await trio.to_thread.run_sync(_quietly, self._read_slice, offset)
            self.done_bytes += got
            if got == 0:
                self._next = self._size

    def _read_slice(self, offset: int) -> int:
        end = min(offset + SLICE_BYTES, self._size)
        if self._free() - self._reserve_bytes < end - offset:
            return 0
        place = offset
        while place < end and (got := _fetch(self._descriptor, self._nowhere, place, end - place)):
            place += got
        return place - offset


def _fetch(descriptor: int, nowhere: int, offset: int, size: int) -> int:
    """Have a part of a file in the page cache; a fifth of the work of copying it from there. Returns its size."""
    try:
        return os.sendfile(nowhere, descriptor, offset, size)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return len(os.pread(descriptor, size, offset))  # a file system that cannot do that


async def drop(paths: Sequence[Path]) -> None:
    """Drop files from the page cache, as far as nobody has them mapped or has not written them to disk yet.

    Needs no right but to read them. What cannot be dropped is skipped. Cancellation is noticed after each GiB.
    """
    for path in paths if IS_SUPPORTED else ():
        descriptor = await trio.to_thread.run_sync(_open, path)
        if descriptor is None:
            continue
        try:
            size = os.fstat(descriptor).st_size
            for offset in range(0, size, DROP_SLICE_BYTES):
                await trio.to_thread.run_sync(_quietly, functools.partial(_drop_slice, descriptor), offset)
        finally:
            os.close(descriptor)


def _open(path: Path) -> int | None:
    """Open a regular file; None for anything else, such as a pipe that would wait for its writer."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _drop_slice(descriptor: int, offset: int) -> int:
    os.posix_fadvise(descriptor, offset, DROP_SLICE_BYTES, os.POSIX_FADV_DONTNEED)
    return DROP_SLICE_BYTES


def _quietly(work: Callable[[int], int], offset: int) -> int:
    """Do something with a slice of a file; 0 where the disk does not let us."""
    try:
        return work(offset)
    except OSError:
        return 0
