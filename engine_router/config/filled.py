"""What is filled in for one model besides a command: the values of a configuration file, of a drop-in, of a unit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final, Literal

from engine_router.config.engine_tables import ConfigFileConfig
from engine_router.config.engines import (
    ContainerConfig,
    EngineConfig,
    ProcessConfig,
    StartedConfig,
    SystemdConfig,
)

ModelSettings = Mapping[tuple[str, ...], object]
"""Values for a configuration file, each by the keys that lead to it; None where a model has none."""

NUMBERS: Final = ("{ctx}", "{port}")
"""What becomes a number where it is all of a value."""

_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")
_FORMATS: Final[Mapping[str, Literal["yaml", "toml", "json"]]] = {
    ".yml": "yaml",
    ".yaml": "yaml",
    ".toml": "toml",
    ".json": "json",
}
_OPTIONAL: Final = ("mmproj", "ctx")
_PLAIN_BYTES: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")


def format_of(config: ConfigFileConfig) -> Literal["yaml", "toml", "json"] | None:
    """Return the format of a configuration file, as it is given or as its name tells."""
    return config.format or _FORMATS.get(PurePath(config.path).suffix.lower())


def filled_words(engine: EngineConfig) -> Iterator[str]:
    """Yield the texts of an engine in which values of a model are filled in."""
    if isinstance(engine, ProcessConfig):
        yield from engine.argv
        yield from (value for value in engine.env.values() if "{gpus}" in value)
    elif isinstance(engine, ContainerConfig):
        yield from _container_words(engine)
    elif isinstance(engine, SystemdConfig):
        yield engine.unit
        if engine.drop_in is not None:
            yield from engine.drop_in.env.values()
            yield from engine.drop_in.exec_start or ()
    if isinstance(engine, (StartedConfig, SystemdConfig)) and engine.config_file is not None:
        yield from _strings(dict(engine.config_file.set))


def _container_words(engine: ContainerConfig) -> Iterator[str]:
    yield from (*(engine.entrypoint or ()), *(engine.command or ()))
    yield from (engine.image or "", *engine.env.values(), *engine.volumes, *engine.ports)
    yield from engine.gpus if isinstance(engine.gpus, tuple) else ()


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def filled_settings(config: ConfigFileConfig, values: Mapping[str, str]) -> ModelSettings:
    """Return the values of a configuration file for one model."""
    found: dict[tuple[str, ...], object] = {}
    for keys, value in leaves(config.set):
        found[keys] = _filled(value, values)
    return found


def leaves(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the values in nested tables, whose keys may be paths with dots, each with the keys that lead to it."""
    for key, value in table.items():
        keys = (*above, *key.split("."))
        if isinstance(value, dict) and value:
            yield from leaves(value, keys)
        else:
            yield keys, value


def _filled(value: object, values: Mapping[str, str]) -> object:
    """Fill in the strings within a value; None for one whose `{ctx}` or `{mmproj}` the model has not."""
    if isinstance(value, list):
        return [_filled(inner, values) for inner in value]
    if isinstance(value, dict):
        return {key: _filled(inner, values) for key, inner in value.items()}
    if not isinstance(value, str):
        return value
    text = filled_text(value, values)
    return int(text) if text is not None and value in NUMBERS and text.isdecimal() else text


def filled_text(text: str, values: Mapping[str, str]) -> str | None:
    """Fill in a text; None for one whose `{ctx}` or `{mmproj}` the model has not. Braces of other kinds stay."""
    if any(f"{{{name}}}" in text and name not in values for name in _OPTIONAL):
        return None
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


def unit_name(unit: str, values: Mapping[str, str]) -> str:
    r"""Return the name of a unit with a model's values in it, escaped as systemd-escape does.

    >>> unit_name("vllm@{model}.service", {"model": "Qwen/Qwen3-8B"})
    'vllm@Qwen-Qwen3\\x2d8B.service'
    """
    return _PLACEHOLDER.sub(lambda found: escaped(values[found[1]]) if found[1] in values else found[0], unit)


def escaped(text: str) -> str:
    r"""Escape a text for the name of a unit: `%I` in the unit is the text again.

    >>> escaped("/models/a b.gguf")
    '-models-a\\x20b.gguf'
    """
    words = []
    for index, byte in enumerate(text.encode("utf-8", "surrogateescape")):
        if byte == ord("/"):
            words.append("-")
        elif byte in _PLAIN_BYTES and not (index == 0 and byte == ord(".")):
            words.append(chr(byte))
        else:
            words.append(f"\\x{byte:02x}")
    return "".join(words)
