"""Folders of safetensors: whether one is a model, and whether all of it is there."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec

from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import (
    MAX_CONFIG_BYTES,
    MAX_SAFETENSORS_HEADER_BYTES,
    MAX_SAFETENSORS_INDEX_BYTES,
)
from engine_router.guards.regular_file import open_regular
from engine_router.models.header_memory import HeaderMemory, NoteT
from engine_router.models.scan.listing import SAFETENSORS, Folder, FoundFile, why

CONFIG: Final = "config.json"
_INDEX: Final = "model.safetensors.index.json"
_ADAPTER: Final = "adapter_config.json"
_PIPELINE: Final = "model_index.json"
_PART: Final = re.compile(
    r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.safetensors", re.IGNORECASE | re.DOTALL
)
_ENCODER_PART: Final = re.compile(r"\d+_[A-Z]\w*")  # of sentence-transformers: `1_Pooling`, `2_Dense`
_LENGTH: Final = struct.Struct("<Q")


class _Tensor(msgspec.Struct):
    data_offsets: tuple[int, int] = (0, 0)


class _Index(msgspec.Struct):
    weight_map: dict[str, str] = {}


_HEADERS: Final = msgspec.json.Decoder(dict[str, _Tensor])
_INDEXES: Final = msgspec.json.Decoder(_Index)
_NOT_UNDERSTOOD: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class NoModel(Exception):
    """A folder is no model, or not a whole one; the message says why."""

    def __init__(self, reason: str, *, is_fault: bool) -> None:
        super().__init__(reason)
        self.is_fault = is_fault


def has_safetensors(folder: Folder) -> bool:
    """Tell whether a folder has safetensors at all."""
    return any(file.path.suffix.lower() == SAFETENSORS for file in folder.files)


def model_files(folder: Folder, memory: HeaderMemory) -> list[FoundFile]:
    """Return the files of the model in a folder.

    Blocks: it reads small files, and the beginnings of large ones that are not remembered.

    Raises:
        NoModel: it is none, or not a whole one.
    """
    files = {file.path.name: file for file in folder.files if file.path.suffix.lower() == SAFETENSORS}
    if _ADAPTER in folder.beside:
        raise NoModel("is an adapter, not a model", is_fault=False)
    if _PIPELINE in folder.beside:
        raise NoModel("is a pipeline that makes images, not a language model", is_fault=False)
    if CONFIG not in folder.beside or _ENCODER_PART.fullmatch(folder.path.name):
        raise NoModel(f"holds safetensors without a model's {CONFIG} beside them", is_fault=False)
    if not _remembered(memory, folder.path / CONFIG, _names_kind, int):
        raise NoModel(f"its {CONFIG} names neither a model_type nor architectures", is_fault=False)
    names = _wanted(folder, files, memory)
    for name in names:
        if name not in files:
            raise NoModel(f"{shown(name)} is missing: its download may not have ended", is_fault=True)
    for name in names:
        file = files[name]
        missing = _remembered(memory, file.path, _needed_bytes, int) - file.size
        if missing > 0:
            raise NoModel(f"{shown(name)} is truncated: {missing} bytes are missing", is_fault=True)
    return [files[name] for name in names]


def _wanted(folder: Folder, files: Collection[str], memory: HeaderMemory) -> Sequence[str]:
    """Return the names of the files that the model consists of."""
    if _INDEX in folder.beside and (named := _remembered(memory, folder.path / _INDEX, _named_files, list)):
        return named
    sets = [match for name in files if (match := _PART.fullmatch(name)) is not None]
    if not sets:
        return sorted(files)
    stem, parts = sets[0]["stem"], sets[0]["parts"]
    if int(parts) > len(files):
        present = {int(match["part"]) for match in sets if match["parts"] == parts}
        part = next(number for number in range(1, int(parts) + 1) if number not in present)
        raise NoModel(f"part {part} of {int(parts)} is missing", is_fault=True)
    return [f"{stem}-{part:05}-of-{parts}{SAFETENSORS}" for part in range(1, int(parts) + 1)]


def _remembered(memory: HeaderMemory, path: Path, read: Callable[[Path], NoteT], kind: type[NoteT]) -> NoteT:
    """Return what is read in a file, or remembered of it.

    Raises:
        NoModel: it cannot be read, or is damaged.
    """
    try:
        return memory.note(path, read, kind)
    except OSError as error:
        raise NoModel(f"{shown(path.name)} cannot be read: {why(error)}", is_fault=True) from None
    except ValueError as error:
        fault = str(error).removeprefix(f"{path}: ")
        raise NoModel(f"{shown(path.name)} {fault}", is_fault=True) from None


def _names_kind(path: Path) -> int:
    """Tell whether a config.json says what model it is of: 1 or 0."""
    try:
        config = msgspec.json.decode(_beginning(path, MAX_CONFIG_BYTES))
    except _NOT_UNDERSTOOD:
        raise ValueError("is not JSON") from None
    if not isinstance(config, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004 - it is the file that is wrong
    return int(isinstance(config.get("model_type"), str) or isinstance(config.get("architectures"), list))


def _named_files(path: Path) -> list[str]:
    """Return the files that an index names."""
    try:
        return sorted(set(_INDEXES.decode(_beginning(path, MAX_SAFETENSORS_INDEX_BYTES)).weight_map.values()))
    except _NOT_UNDERSTOOD:
        raise ValueError("is not an index of safetensors") from None


def _needed_bytes(path: Path) -> int:
    """Return how long a file has to be to hold all its tensors."""
    with open_regular(path) as file:
        beginning = file.read(_LENGTH.size)
        length = _LENGTH.unpack(beginning)[0] if len(beginning) == _LENGTH.size else 0
        if not 0 < length <= MAX_SAFETENSORS_HEADER_BYTES:
            raise ValueError("is not a safetensors file")
        header = file.read(length)
    try:
        tensors = _HEADERS.decode(header)
    except _NOT_UNDERSTOOD:
        raise ValueError("has a header that is damaged, or not all there") from None
    end = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    return int(_LENGTH.size + length + end)


def _beginning(path: Path, most_bytes: int) -> bytes:
    """Return what is in a file.

    Raises:
        ValueError: it is too long.
    """
    with open_regular(path) as file:
        text = file.read(most_bytes + 1)
    if len(text) > most_bytes:
        raise ValueError(f"has more than {most_bytes} bytes")
    return text
