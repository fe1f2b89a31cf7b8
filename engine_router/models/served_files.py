"""The files in which llama.cpp's router mode finds its models: an .ini file of presets, a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from engine_router.guards.limits import LISTED_MODELS, MAX_PRESET_BYTES, MAX_WEIGHT_FILES
from engine_router.guards.regular_file import open_regular
from engine_router.models.served_names import ServedModel, ServedModels, file_names, is_name

_SECTION: Final = re.compile(r"\[([^\]]*)\]")
_COMMON: Final = "*"
# By these keys a section names its model; the dashes of the option may stand before them.
_KEYS: Final = {
    "a": "alias", "alias": "alias", "LLAMA_ARG_ALIAS": "alias",
    "m": "model", "model": "model", "LLAMA_ARG_MODEL": "model",
    "hf": "repository", "hfr": "repository", "hf-repo": "repository", "LLAMA_ARG_HF_REPO": "repository",
}  # fmt: skip
# Files beside models, which llama.cpp does not list.
_COMPANION: Final = re.compile(r"mmproj|^mtp-", re.IGNORECASE)
_FURTHER_SHARD: Final = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_GGUF: Final = ".gguf"


def models_in_files(served: ServedModels, cwd: Path) -> tuple[ServedModel, ...]:
    """Return the models of a command's presets and folder, as llama.cpp names them.

    Blocks: call it in a thread.

    Raises:
        OSError: one of them cannot be read.
        ValueError: the presets are too long, or no text.
    """
    found: dict[str, ServedModel] = {}
    if served.presets is not None:
        for model in _preset_models(_text(cwd / Path(served.presets).expanduser())):
            found.setdefault(model.name, model)
    if served.folder is not None:
        for model in _folder_models(cwd / Path(served.folder).expanduser()):
            found.setdefault(model.name, model)
    return tuple(found.values())[:LISTED_MODELS]


def _text(path: Path) -> str:
    with open_regular(path) as file:
        found = file.read(MAX_PRESET_BYTES + 1)
    if len(found) > MAX_PRESET_BYTES:
        raise ValueError(f"{path}: not a file of at most {MAX_PRESET_BYTES} bytes")
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text in UTF-8") from None


def _preset_models(text: str) -> Iterator[ServedModel]:
    """Yield the models of presets: each section but `[*]`, which is common to all, is one."""
    section, values = _COMMON, dict[str, str]()
    for line in (*text.splitlines(), f"[{_COMMON}]"):
        words = line.strip()
        if (header := _SECTION.match(words)) is not None:
            yield from _preset_model(section, values)
            section, values = header[1].strip(), {}
        elif not words.startswith(("#", ";")):
            key, _, value = words.partition("=")
            if known := _KEYS.get(key.strip().lstrip("-")):
                values[known] = value.strip()


def _preset_model(section: str, values: dict[str, str]) -> Iterator[ServedModel]:
    if section == _COMMON or not is_name(section):
        return
    aliases = [_bare(alias) for alias in values.get("alias", "").split(",")]
    source = _bare(values.get("model") or values.get("repository") or "")
    yield _named(section, aliases, file_names(source) if values.get("model") else (source,))


def _bare(value: str) -> str:
    return value.strip().strip("\"'").strip()


def _folder_models(folder: Path) -> Iterator[ServedModel]:
    """Yield the models of a folder: each GGUF file, and each folder with one in it, by its own name."""
    with os.scandir(folder) as entries:
        found = sorted(islice(entries, MAX_WEIGHT_FILES), key=lambda entry: entry.name)
    for entry in found:
        if not is_name(entry.name):
            continue
        if entry.name.lower().endswith(_GGUF):
            if _is_model(entry.name):
                yield _named(entry.name.replace(_GGUF, ""), (), file_names(entry.path))
        elif entry.is_dir() and _holds_model(entry.path):
            yield _named(entry.name, (), ())


def _holds_model(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(_is_model(entry.name) for entry in islice(entries, MAX_WEIGHT_FILES))
    except OSError:  # a folder that may not be entered costs itself only
        return False


def _is_model(file: str) -> bool:
    return file.lower().endswith(_GGUF) and not _COMPANION.search(file) and not _FURTHER_SHARD.search(file)


def _named(name: str, aliases: list[str] | tuple[str, ...], spellings: tuple[str, ...]) -> ServedModel:
    others = tuple(alias for alias in dict.fromkeys(aliases) if alias != name and is_name(alias))
    return ServedModel(
        name=name,
        upstream=name,
        aliases=others,
        spellings=tuple(word for word in spellings if is_name(word) and word not in (name, *others)),
    )
