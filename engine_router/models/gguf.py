"""The header of a GGUF file: what a model is and how large its weights are, without reading the weights.

The files are other people's. Whatever is in one, reading takes bounded time and memory: each length is checked
against what is left of the file, what is not needed is sought over, and counts that no model has are refused.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from attrs import define, evolve, field, frozen

from engine_router.guards.limits import (
    MAX_GGUF_KEPT_BYTES,
    MAX_GGUF_KEPT_ITEMS,
    MAX_GGUF_KEY_BYTES,
    MAX_GGUF_KEYS,
    MAX_GGUF_TENSORS,
    MAX_GGUF_TEXT_BYTES,
    MAX_GGUF_WALKED,
)
from engine_router.guards.regular_file import open_regular
from engine_router.models.ggml_types import BLOCKS, FILE_TYPES, GUESSED
from engine_router.models.pace import Pace

Scalar = int | float | bool | str

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)  # 1 had other lengths, and has not been written since August 2023
SPLIT: Final = re.compile(
    r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})(?P<suffix>\.(?i:gguf))", re.DOTALL
)
_ALIGNMENT: Final = 32  # where the header says no other

_ITEM_BYTES: Final = 40  # what a number takes in a tuple
_BLOCK_BYTES: Final = 4096
_MOST_BLOCK_BYTES: Final = 65536
# So many texts in a row that are shorter than 32 bytes, each behind its length. Tokens mostly are; to match them
# takes a quarter of the time that to unpack each length takes. The most frequent lengths come first.
_AT_ONCE: Final = 16
_LENGTHS: Final = (6, 5, 7, 4, 8, 3, 9, 2, 10, 11, 12, 1, *range(13, 32), 0)
_SHORT_TEXTS: Final = re.compile(
    b"(?:%s){%d}"
    % (b"|".join(re.escape(struct.pack("<Q", size)) + b".{%d}" % size for size in _LENGTHS), _AT_ONCE),
    re.DOTALL,
)
_NO_TEXTS: Final = re.compile(b"(?!)")
_TENSORS_AT_ONCE: Final = 128
_MAX_DIMENSIONS: Final = 4
_MAX_NESTING: Final = 4
_MAX_ELEMENTS: Final = (1 << 63) - 1

_STRING: Final = 8
_ARRAY: Final = 9
# The codes of `struct` for the value types that are numbers.
_NUMBERS: Final[Mapping[int, str]] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@frozen(kw_only=True, repr=False)
class GGUFHeader:
    """The header of a model; of a model in several files the first one's, with all of them summed up.

    Attributes:
        metadata: the values that are no arrays; texts of more than a mebibyte are left out.
        arrays: the arrays of up to 1024 numbers, such as the number of KV heads of each layer.
        array_lengths: how long each array is, be it in `arrays` or not.
        tensor_bytes: size of the weights, in bytes, as they are in the file and so in memory.
        parameters: number of weights.
        file_bytes: size of the file, or of all of them, in bytes.
        modified_at: when it, or one of them, was written last, in seconds since the epoch.
        tensor_count: number of tensors.
        missing_bytes: what the file lacks of the weights that its header promises: it is truncated, or being written.
    """

    metadata: Mapping[str, Scalar]
    arrays: Mapping[str, tuple[int | float | bool, ...]]
    array_lengths: Mapping[str, int]
    tensor_bytes: int
    parameters: int
    file_bytes: int
    modified_at: float
    tensor_count: int = 0
    missing_bytes: int = 0

    @property
    def architecture(self) -> str:
        """Such as "llama"; empty where the header does not say."""
        return self.text("general.architecture")

    @property
    def context_length(self) -> int | None:
        """Tokens of context that the model was made for."""
        return self.number("context_length")

    @property
    def block_count(self) -> int | None:
        """Number of layers."""
        return self.number("block_count")

    @property
    def embedding_length(self) -> int | None:
        """Numbers in an embedding."""
        return self.number("embedding_length")

    @property
    def file_type(self) -> int | None:
        """llama.cpp's number for the mixture of quantizations."""
        value = self.metadata.get("general.file_type")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def quantization(self) -> str:
        """Label of the quantization, such as "Q4_K_M"; "unknown" where the header does not say."""
        return "unknown" if self.file_type is None else FILE_TYPES.get(self.file_type & ~GUESSED, "unknown")

    def text(self, key: str) -> str:
        """Return the text at a key, empty where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | None:
        """Return a positive whole number of the architecture: `number("context_length")`, without its prefix."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def split_parts(path: Path) -> tuple[Path, ...]:
    """Return the files of a model, of which `path` is one: itself, or `NAME-00001-of-00003.gguf` and the others."""
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return (path,)
    stem, parts, suffix = match["stem"], match["parts"], match["suffix"]
    return tuple(path.with_name(f"{stem}-{part:05}-of-{parts}{suffix}") for part in range(1, int(parts) + 1))


def read_gguf(path: Path) -> GGUFHeader:
    """Read the header of a model; of a model in several files, any of them may be named.

    Blocks: call it in a thread. Takes milliseconds, or a second on a slow disk, whatever the size.

    Raises:
        ValueError: it is not a GGUF file, or a damaged one; the text names the file and the fault.
        OSError: it, or one of its parts, cannot be read.
    """
    parts = split_parts(path)
    if not parts:
        raise ValueError(f"{path}: a model of no parts")
    return summed([read_part(part) for part in parts])


def summed(parts: Sequence[GGUFHeader]) -> GGUFHeader:
    """Return the header of a model in several files: the first one's, with the sizes of all."""
    return evolve(
        parts[0],
        tensor_bytes=sum(part.tensor_bytes for part in parts),
        parameters=sum(part.parameters for part in parts),
        file_bytes=sum(part.file_bytes for part in parts),
        modified_at=max(part.modified_at for part in parts),
        tensor_count=sum(part.tensor_count for part in parts),
        missing_bytes=sum(part.missing_bytes for part in parts),
    )


def read_part(path: Path, rest: Callable[[], None] | None = None) -> GGUFHeader:
    """Read the header of one file, be it a whole model or a part of one.

    Blocks, and raises, as `read_gguf` does.

    Args:
        rest: called about every millisecond of work; by default the thread has a pace of its own.
    """
    with open_regular(path) as file:
        found = os.fstat(file.fileno())
        try:
            return _Reader(file, found.st_size, rest or Pace().rest).header(found.st_mtime)
        except _Fault as fault:
            raise ValueError(f"{path}: {fault}") from None


class _Fault(Exception):
    """A file that is not understood; the message says why in one clause."""


@define(eq=False, repr=False)
class _Reader:
    """A reader of one file from its beginning; each method leaves it after what it has read."""

    _file: BinaryIO
    _size: int
    _rest: Callable[[], None]
    _position: int = 0
    _order: str = "<"
    _length: struct.Struct = field(default=struct.Struct("<Q"))
    _kept: int = 0
    _walked: int = 0
    _metadata: dict[str, Scalar] = field(factory=dict)
    _arrays: dict[str, tuple[int | float | bool, ...]] = field(factory=dict)
    _array_lengths: dict[str, int] = field(factory=dict)

    def header(self, modified_at: float) -> GGUFHeader:
        self._preamble()
        tensors, keys = self._count(), self._count()
        if tensors > MAX_GGUF_TENSORS or keys > MAX_GGUF_KEYS:
            raise _Fault(f"has {tensors} tensors and {keys} keys, more than any model")
        for _ in range(keys):
            self._pair()
        tensor_bytes, parameters, data_bytes = self._tensors(tensors)
        return GGUFHeader(
            metadata=self._metadata,
            arrays=self._arrays,
            array_lengths=self._array_lengths,
            tensor_bytes=tensor_bytes,
            parameters=parameters,
            file_bytes=self._size,
            modified_at=modified_at,
            tensor_count=tensors,
            missing_bytes=max(0, self._data_start() + data_bytes - self._size) if data_bytes else 0,
        )

    def _data_start(self) -> int:
        alignment = self._metadata.get("general.alignment")
        if not isinstance(alignment, int) or alignment <= 0:
            alignment = _ALIGNMENT
        return -(-self._position // alignment) * alignment

    def _preamble(self) -> None:
        if self._size < len(_MAGIC) or self._take(len(_MAGIC)) != _MAGIC:
            raise _Fault("not a GGUF file")
        raw = self._take(4)
        version = int.from_bytes(raw, "little")
        if version & 0xFFFF == 0:  # a small number, the other way round
            version = int.from_bytes(raw, "big")
            self._order = ">"
            self._length = struct.Struct(">Q")
        if version not in _VERSIONS:
            raise _Fault(f"GGUF version {version} is not known (2 and 3 are)")

    def _pair(self) -> None:
        """Read a key and its value."""
        key = self._text(MAX_GGUF_KEY_BYTES)
        if key is None:
            raise _Fault("a key is too long")
        if key in self._metadata or key in self._array_lengths:
            raise _Fault(f"the key {key[:80]!r} comes twice")
        kind = self._number("I")
        if kind == _ARRAY:
            self._array_lengths[key] = self._array(key)
        elif kind == _STRING:
            text = self._text(MAX_GGUF_TEXT_BYTES)
            if text is not None:
                self._metadata[key] = text
        else:
            self._metadata[key] = self._number(self._code(kind))

    def _array(self, key: str | None, depth: int = 1) -> int:
        """Read an array that has few numbers, go over any other; return its length."""
        kind, length = int(self._number("I")), self._count()
        if kind in (_STRING, _ARRAY):
            self._walked += length
            if self._walked > MAX_GGUF_WALKED or depth > _MAX_NESTING:
                raise _Fault("its arrays are larger than any model's")
            if kind == _STRING:
                self._walk(length)
            else:
                for _ in range(length):
                    self._array(None, depth + 1)
            return length
        code = self._code(kind)
        if key is None or length > MAX_GGUF_KEPT_ITEMS:
            self._skip(length * struct.calcsize(f"{self._order}{code}"))
        else:
            self._keep(length * _ITEM_BYTES)
            self._arrays[key] = self._numbers(f"{length}{code}")
        return length

    def _walk(self, count: int) -> None:
        """Go over texts. A tokenizer has hundreds of thousands: they are met in blocks, and short ones many at once."""
        length_at, many = self._length.unpack_from, _SHORT_TEXTS if self._order == "<" else _NO_TEXTS
        block, at, block_bytes, singles = b"", 0, _BLOCK_BYTES, 0
        while count:
            if at + 8 > len(block):
                # Of texts that are longer than a block, no more is read than their beginning.
                block_bytes = min(4 * block_bytes, _MOST_BLOCK_BYTES) if at < len(block) + 8 else _BLOCK_BYTES
                self._move(at)
                self._rest()
                block, at = self._file.read(block_bytes), 0
                if len(block) < 8:
                    raise _Fault(f"truncated: a text should begin at {self._position} of {self._size}")
            if not singles and count >= _AT_ONCE:
                if (found := many.match(block, at)) is not None:
                    at = found.end()
                    count -= _AT_ONCE
                    continue
                singles = _AT_ONCE  # one of the next is long, or not in the block
            at += 8 + length_at(block, at)[0]
            count -= 1
            singles -= singles > 0
        self._move(at)

    def _tensors(self, count: int) -> tuple[int, int, int]:
        """Go over the descriptions of the tensors.

        Return their size in bytes, the number of weights, and where, behind the header, the last of them ends.
        """
        total_bytes = parameters = end = 0
        all_known = True
        for number in range(count):
            if number % _TENSORS_AT_ONCE == 0:
                self._rest()
            self._skip(self._count())  # its name
            dimensions = int(self._number("I"))
            if dimensions > _MAX_DIMENSIONS:
                raise _Fault(f"a tensor has {dimensions} dimensions")
            *shape, kind, offset = self._numbers(f"{dimensions}QIQ")
            elements = int(math.prod(shape))
            parameters += elements
            if parameters > _MAX_ELEMENTS:
                raise _Fault("its tensors are larger than any model's")
            block = BLOCKS.get(int(kind))
            if block is None:
                all_known = False
                continue
            row = shape[0] if shape else 1
            if row % block[0]:
                raise _Fault(f"a tensor of type {kind} has rows of {row} weights, no multiple of {block[0]}")
            size = elements // block[0] * block[1]
            total_bytes += size
            end = max(end, int(offset) + size)
        # A type from after this was written: all that follows the header is tensors, up to some padding.
        return total_bytes if all_known else self._size - self._position, parameters, end

    def _code(self, kind: float | bool) -> str:
        code = _NUMBERS.get(int(kind))
        if code is None:
            raise _Fault(f"a value is of type {kind}, which is not known")
        return code

    def _text(self, longest: int) -> str | None:
        """Read a text; None, and go over it, where it is longer than `longest` bytes."""
        length = self._count()
        if length > longest:
            self._skip(length)
            return None
        self._keep(length + _ITEM_BYTES)
        return self._take(length).decode("utf-8", "replace")

    def _number(self, code: str) -> int | float | bool:
        return self._numbers(code)[0]

    def _numbers(self, codes: str) -> tuple[int | float | bool, ...]:
        fields = f"{self._order}{codes}"
        return struct.unpack(fields, self._take(struct.calcsize(fields)))

    def _count(self) -> int:
        number: int = self._length.unpack(self._take(8))[0]
        return number

    def _keep(self, size: int) -> None:
        self._kept += size
        if self._kept > MAX_GGUF_KEPT_BYTES:
            raise _Fault("its metadata are larger than any model's")

    def _take(self, size: int) -> bytes:
        self._advance(size)
        data = self._file.read(size)
        if len(data) < size:
            raise _Fault("it became shorter while it was read")
        return data

    def _skip(self, size: int) -> None:
        self._advance(size)
        self._file.seek(size, os.SEEK_CUR)

    def _move(self, size: int) -> None:
        """Skip, wherever the file was read meanwhile."""
        self._advance(size)
        self._file.seek(self._position)

    def _advance(self, size: int) -> None:
        if size > self._size - self._position:
            raise _Fault(f"truncated or damaged: {size} bytes are wanted at {self._position} of {self._size}")
        self._position += size
