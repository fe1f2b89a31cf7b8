"""Folders of safetensors: whether one is a model, and whether all of it is there."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import (
    MAX_CONFIG_BYTES,
    MAX_SAFETENSORS_HEADER_BYTES,
    MAX_SAFETENSORS_INDEX_BYTES,
)
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


_HEADERS: Final = msgspec.json.Decoder(dict[str, _Tensor])


class NoModel(Exception):
    """A folder is no model, or not a whole one; the message says why."""

    def __init__(self, reason: str, *, is_fault: bool) -> None:
        super().__init__(reason)
        self.is_fault = is_fault


def has_safetensors(folder: Folder) -> bool:
    """Tell whether a folder has safetensors at all."""
    return any(file.path.suffix.lower() == SAFETENSORS for file in folder.files)


def model_files(folder: Folder) -> list[FoundFile]:
    """Return the files of the model in a folder.

    Blocks: it reads small files, and the beginnings of large ones.

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
    config = _object(folder.path / CONFIG)
    if not isinstance(config.get("model_type"), str) and not isinstance(config.get("architectures"), list):
        raise NoModel(f"its {CONFIG} names neither a model_type nor architectures", is_fault=False)
    names = _wanted(folder, files)
    for name in names:
        if name not in files:
            raise NoModel(f"{shown(name)} is missing: its download may not have ended", is_fault=True)
    for name in names:
        if (missing := _missing_bytes(files[name])) > 0:
            raise NoModel(f"{shown(name)} is truncated: {missing} bytes are missing", is_fault=True)
    return [files[name] for name in names]


def _wanted(folder: Folder, files: Mapping[str, FoundFile]) -> Sequence[str]:
    """Return the names of the files that the model consists of."""
    if _INDEX in folder.beside:
        weight_map = _object(folder.path / _INDEX, MAX_SAFETENSORS_INDEX_BYTES).get("weight_map")
        if isinstance(weight_map, dict) and weight_map:
            return sorted({str(name) for name in weight_map.values()})
    sets = [match for name in files if (match := _PART.fullmatch(name)) is not None]
    if not sets:
        return sorted(files)
    stem, parts = sets[0]["stem"], sets[0]["parts"]
    if int(parts) > len(files):
        present = {int(match["part"]) for match in sets if match["parts"] == parts}
        part = next(number for number in range(1, int(parts) + 1) if number not in present)
        raise NoModel(f"part {part} of {int(parts)} is missing", is_fault=True)
    return [f"{stem}-{part:05}-of-{parts}{SAFETENSORS}" for part in range(1, int(parts) + 1)]


def _missing_bytes(file: FoundFile) -> int:
    """Return how much of its tensors a file lacks."""
    try:
        with file.path.open("rb") as opened:
            beginning = opened.read(_LENGTH.size)
            length = _LENGTH.unpack(beginning)[0] if len(beginning) == _LENGTH.size else 0
            if not 0 < length <= MAX_SAFETENSORS_HEADER_BYTES:
                raise NoModel(f"{shown(file.path.name)} is not a safetensors file", is_fault=True)
            header = opened.read(length)
        tensors = _HEADERS.decode(header)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NoModel(f"{shown(file.path.name)} cannot be read, or is damaged", is_fault=True) from None
    end = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    return int(_LENGTH.size + length + end - file.size)


def _object(path: Path, most_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        NoModel: it is none.
    """
    try:
        with path.open("rb") as file:
            text = file.read(most_bytes + 1)
        found = None if len(text) > most_bytes else msgspec.json.decode(text)
    except OSError as error:
        raise NoModel(f"its {path.name} cannot be read: {why(error)}", is_fault=True) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NoModel(f"its {path.name} is not JSON", is_fault=True) from None
    if not isinstance(found, dict):
        raise NoModel(f"its {path.name} is no JSON object of at most {most_bytes} bytes", is_fault=True)
    return found
