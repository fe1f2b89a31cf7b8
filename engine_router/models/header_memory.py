"""Memory of the headers of model files: each is read once, and again when its file's size or time changes, across restarts too.

What is remembered is what facts, estimates and the scan of folders need: numbers, the lengths of arrays, short texts,
and of the chat template what it shows that the model can do. It lies in memory as a line of JSON, as in the file.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from attrs import define, field

from engine_router.guards.atomic_file import write_atomically
from engine_router.guards.limits import MAX_HEADER_MEMORY_BYTES, MAX_KEPT_KEYS, MAX_REMEMBERED_HEADERS
from engine_router.guards.regular_file import open_regular
from engine_router.models.gguf import GGUFHeader, read_part, split_parts, summed
from engine_router.models.pace import Pace
from engine_router.models.weights import Weights, gguf_capabilities, gguf_weights

NoteT = TypeVar("NoteT", int, list[str])
"""What is remembered of a file that is no GGUF file: a number, such as how long it has to be, or the files that it names."""

_VERSION: Final = 1
_FIRST_LINE: Final = f'{{"engine_router_headers":{_VERSION}}}'
_LONGEST_TEXT: Final = 200
_LONGEST_KEY: Final = 100
_LONGEST_LINE: Final = 65536
_GGUF: Final = ".gguf"
_VOCABULARY: Final = "tokenizer.ggml.tokens"
# Files that no scan and nothing else has asked for so long are forgotten: a disk may be away for a while.
_FORGET_AFTER_S: Final = 7 * 86400.0


_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered of one file's header."""

    numbers: dict[str, bool | int | float]
    texts: dict[str, str]
    arrays: dict[str, list[bool | int | float]]
    lengths: dict[str, _Count]
    tensor_bytes: _Count
    parameters: _Count
    tensor_count: _Count
    missing_bytes: _Count
    capabilities: list[str]


class _Line(msgspec.Struct, frozen=True, array_like=True):
    """A line of the file of remembered headers: a file, and its header or what is wrong with it."""

    path: str
    size: int
    mtime_ns: int
    used_at: int
    kept: msgspec.Raw
    fault: str = ""


@define
class _Entry:
    """What is remembered of one file. A header is kept as JSON: a tenth of the memory, and nothing to collect."""

    size: int
    mtime_ns: int
    used_at: int
    kept: bytes
    fault: str


_LINES: Final = msgspec.json.Decoder(_Line)
_HEADERS: Final = msgspec.json.Decoder(_Kept)
_NOTES: Final = msgspec.json.Decoder(int | list[str])


@define(eq=False, repr=False)
class HeaderMemory:
    """The headers of model files, read once and remembered. Any thread may use it; every method blocks.

    Args:
        now: tells the time in seconds since the epoch.
    """

    _now: Callable[[], float] = time.time
    _entries: dict[str, _Entry] = field(factory=dict)  # the one used last is last
    _lock: threading.Lock = field(factory=threading.Lock)

    def read(self, path: Path) -> GGUFHeader:
        """Return what is needed of a model's header; of a model in several files, any of them may be named.

        Raises:
            ValueError: it is not a GGUF file, or a damaged one; the text names the file and the fault.
            OSError: it, or one of its parts, cannot be read.
        """
        parts = split_parts(path)
        if not parts:
            raise ValueError(f"{path}: a model of no parts")
        return summed([self.read_part(part) for part in parts])

    def read_part(self, path: Path, rest: Callable[[], None] | None = None) -> GGUFHeader:
        """Return what is needed of the header of one file, be it a whole model or a part of one.

        Args:
            rest: called about every millisecond of work.

        Raises:
            ValueError, OSError: as `read` does.
        """
        return _header(*self._gguf(path, rest))

    def note(self, path: Path, read: Callable[[Path], NoteT], kind: type[NoteT]) -> NoteT:
        """Return what a reader makes of a file that is no GGUF file.

        Args:
            read: reads it; ValueError, for what is wrong with it, is remembered too.
            kind: what that returns.

        Raises:
            ValueError: what the reader raised; the text names the file and the fault.
            OSError: it cannot be read.
        """
        for _ in range(2):
            note = _NOTES.decode(self._known(path, lambda: msgspec.json.encode(read(path))).kept)
            if isinstance(note, kind):
                return note
            with self._lock:  # the file of remembered headers was damaged
                self._entries.pop(os.fspath(path), None)
        raise ValueError(f"{path}: it changes while it is read")

    def weights(self, path: Path) -> Weights:
        """Return a summary of the facts in a GGUF file: without its template, and without all that its header says.

        Raises:
            ValueError, OSError: as `read` does.
        """
        _entry, kept = self._gguf((split_parts(path) or (path,))[0])
        return gguf_weights(self.read(path), kept.capabilities)

    def __len__(self) -> int:
        return len(self._entries)

    def _gguf(self, path: Path, rest: Callable[[], None] | None = None) -> tuple[_Entry, _Kept]:
        """Return what is remembered of a GGUF file.

        Raises:
            ValueError, OSError: as `read` does.
        """
        entry = self._known(path, lambda: msgspec.json.encode(_reduced(read_part(path, rest))))
        return entry, _HEADERS.decode(entry.kept)

    def _known(self, path: Path, read: Callable[[], bytes]) -> _Entry:
        """Return what is remembered of a file, after reading it where that is needed.

        Raises:
            ValueError, OSError: as `read` does.
        """
        # What is read goes with the size and time from before: where it is written meanwhile, it is read again.
        found = path.stat()
        key = os.fspath(path)
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None and (entry.size, entry.mtime_ns) == (found.st_size, found.st_mtime_ns):
                entry.used_at = int(self._now())
                self._entries[key] = entry
            else:
                entry = None
        if entry is None:
            entry = _Entry(found.st_size, found.st_mtime_ns, int(self._now()), b"", "")
            try:
                entry.kept = read()
            except ValueError as error:
                entry.fault = str(error).removeprefix(f"{path}: ")[:_LONGEST_TEXT] or "damaged"
            with self._lock:
                self._entries[key] = entry
                while len(self._entries) > MAX_REMEMBERED_HEADERS:
                    del self._entries[next(iter(self._entries))]
        if entry.fault:
            raise ValueError(f"{path}: {entry.fault}")
        return entry

    # The file

    def load(self, file: Path) -> None:
        """Take in what was remembered when the router last ran; what is not understood is left out."""
        rest = Pace().rest
        for line in _lines(file):
            rest()
            try:
                read = _LINES.decode(line)
                if len(read.fault) > _LONGEST_TEXT or not read.fault.isprintable():
                    continue
                if not read.fault:
                    (_HEADERS if read.path.lower().endswith(_GGUF) else _NOTES).decode(read.kept)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            entry = _Entry(read.size, read.mtime_ns, read.used_at, bytes(read.kept), read.fault)
            with self._lock:
                if len(self._entries) < MAX_REMEMBERED_HEADERS:
                    self._entries.setdefault(read.path, entry)

    def save(self, file: Path) -> None:
        """Write all that is remembered, without files that nobody asked for in the last week.

        Raises:
            OSError: it cannot be written.
        """
        oldest = self._now() - _FORGET_AFTER_S
        with self._lock:
            self._entries = {path: entry for path, entry in self._entries.items() if entry.used_at >= oldest}
            entries = list(self._entries.items())
        lines = [_FIRST_LINE]
        size = len(_FIRST_LINE) + 1
        rest = Pace().rest
        for path, entry in reversed(entries):  # the last used first, and no more than are read again
            rest()
            kept = msgspec.Raw(entry.kept or b"null")
            line = _Line(path, entry.size, entry.mtime_ns, entry.used_at, kept, entry.fault)
            try:
                text = msgspec.json.encode(line).decode()
            except UnicodeEncodeError:  # the name is no text
                continue
            size += len(text.encode()) + 1
            if size > MAX_HEADER_MEMORY_BYTES:
                break
            lines.append(text)
        write_atomically(file, "\n".join([lines[0], *reversed(lines[1:])]) + "\n")


def _lines(file: Path) -> Iterator[bytes]:
    """Yield the lines of a file of remembered headers; none where it is not one of this version."""
    try:
        with open_regular(file) as opened:
            if os.fstat(opened.fileno()).st_size > MAX_HEADER_MEMORY_BYTES:
                return
            if opened.readline(_LONGEST_LINE).rstrip() != _FIRST_LINE.encode():
                return
            while line := opened.readline(_LONGEST_LINE):
                yield line
    except (OSError, ValueError):
        return


def _reduced(header: GGUFHeader) -> _Kept:
    """Return what is worth remembering of a header."""
    prefixes = ("general.", "split.", "adapter.", "imatrix.", f"{header.architecture}.")
    wanted = {
        sys.intern(key): value
        for key, value in header.metadata.items()
        if key.startswith(prefixes) and len(key) <= _LONGEST_KEY and _is_short(value)
    }
    arrays = {
        key: list(values)
        for key, values in header.arrays.items()
        if key.startswith(prefixes) and len(key) <= _LONGEST_KEY and all(map(math.isfinite, values))
    }
    lengths = {
        key: length
        for key, length in header.array_lengths.items()
        if key == _VOCABULARY or (key.startswith(prefixes) and len(key) <= _LONGEST_KEY)
    }
    return _Kept(
        numbers=_first({key: value for key, value in wanted.items() if not isinstance(value, str)}),
        texts=_first({key: value for key, value in wanted.items() if isinstance(value, str)}),
        arrays=_first(arrays),
        lengths=_first(lengths),
        tensor_bytes=header.tensor_bytes,
        parameters=header.parameters,
        tensor_count=header.tensor_count,
        missing_bytes=header.missing_bytes,
        capabilities=list(gguf_capabilities(header)),
    )


def _is_short(value: Any) -> bool:
    return len(value) <= _LONGEST_TEXT if isinstance(value, str) else math.isfinite(value)


def _first(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(list(values.items())[:MAX_KEPT_KEYS])


def _header(entry: _Entry, kept: _Kept) -> GGUFHeader:
    return GGUFHeader(
        metadata={**kept.numbers, **kept.texts},
        arrays={key: tuple(values) for key, values in kept.arrays.items()},
        array_lengths=kept.lengths,
        tensor_bytes=kept.tensor_bytes,
        parameters=kept.parameters,
        file_bytes=entry.size,
        modified_at=entry.mtime_ns / 1e9,
        tensor_count=kept.tensor_count,
        missing_bytes=kept.missing_bytes,
    )
