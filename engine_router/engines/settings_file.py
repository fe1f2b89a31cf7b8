"""The configuration file of an engine, in which a model's values are set before the engine is started.

It is the owner's file: its former text is kept beside it once, what is not set stays as it is, comments included, and
it is replaced as a whole, so that an interruption leaves the old file or the new one.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import tomli
import trio

from engine_router.config import ConfigFileConfig
from engine_router.config.filled import ModelSettings, filled_settings, format_of
from engine_router.config.values import expanded
from engine_router.engines.nested_values import Keys, has_setting, with_settings
from engine_router.errors import EngineStartFailed
from engine_router.guards.atomic_file import write_atomically
from engine_router.guards.limits import MAX_ENGINE_FILE_BYTES

BACKUP_SUFFIX: Final = ".engine-router.bak"
"""What is added to the name of a file for the copy of its text as it was before the router first wrote to it."""

_INDENT: Final = re.compile(r"^\{\r?\n([ \t]+)")
_BOM: Final = "\ufeff"


class SettingsFileError(Exception):
    """The configuration file of an engine cannot be used. The message is a clause that begins with the file."""


async def set_values(engine: str, config: ConfigFileConfig | None, values: Mapping[str, str]) -> None:
    """Set a model's values in the configuration file of an engine that is about to be started, if it has one.

    Raises:
        EngineStartFailed: that cannot be done.

    Cancellation: the file is the old one or the new one.
    """
    if config is None:
        return
    try:
        await trio.to_thread.run_sync(write_settings, config, filled_settings(config, values))
    except SettingsFileError as error:
        raise EngineStartFailed(engine, f"cannot be started: its config_file {error}") from None


async def settings_obstacle(config: ConfigFileConfig | None, values: Mapping[str, str]) -> str | None:
    """Say what keeps a configuration file from being used; None where nothing does, or there is none."""
    if config is None:
        return None
    try:
        await trio.to_thread.run_sync(
            has_settings, config, filled_settings(config, values), abandon_on_cancel=True
        )
    except SettingsFileError as error:
        return f"cannot be started: its config_file {error}"
    return None


def write_settings(config: ConfigFileConfig, settings: ModelSettings) -> bool:
    """Set values in an engine's configuration file; return whether that changed it. Blocks.

    Raises:
        SettingsFileError: it cannot be read, changed or written; then it is as it was.
    """
    path = expanded(config.path)
    text = _read(path)
    new = _changed(config, text, settings)
    if new == text:
        return False
    try:
        target = path.resolve()
        status = target.stat()
        owner = None if sys.platform == "win32" else (status.st_uid, status.st_gid)
        backup = target.with_name(target.name + BACKUP_SUFFIX)
        if not backup.exists():
            write_atomically(backup, text, mode=status.st_mode & 0o777, owner=owner)
        write_atomically(target, new, mode=status.st_mode & 0o777, owner=owner)
    except OSError as error:
        remedy = "let the router's user write to it and its folder"
        raise SettingsFileError(f"{path} cannot be written: {error.strerror or error}; {remedy}") from None
    return True


def has_settings(config: ConfigFileConfig, settings: ModelSettings) -> bool:
    """Tell whether a file holds these values already. Blocks.

    Raises:
        SettingsFileError: it cannot be read, or is not what it should be.
    """
    text = _read(expanded(config.path))
    return _changed(config, text, settings) == text


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_ENGINE_FILE_BYTES + 1)
        if len(raw) > MAX_ENGINE_FILE_BYTES:
            raise SettingsFileError(
                f"{path} is larger than {MAX_ENGINE_FILE_BYTES} bytes: is it the right file?"
            )
        return raw.decode("utf-8")
    except FileNotFoundError:
        raise SettingsFileError(f"{path} does not exist; make it, or correct the path") from None
    except OSError as error:
        raise SettingsFileError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SettingsFileError(f"{path} is not UTF-8 text; save it as UTF-8") from None


def _changed(config: ConfigFileConfig, text: str, settings: ModelSettings) -> str:
    form = format_of(config)
    try:
        if form == "toml":
            return set_in_toml(text, settings)
        if form == "json":
            return set_in_json(text, settings)
        from engine_router.engines.yaml_edit import set_in_yaml  # noqa: PLC0415 - seldom needed

        return set_in_yaml(text, settings)
    except (ValueError, RecursionError) as error:
        raise SettingsFileError(f"{expanded(config.path)} {error}") from None


def set_in_toml(text: str, settings: Mapping[Keys, object]) -> str:
    """Return a TOML text with values set, each by the keys that lead to it; None takes a value out.

    Raises:
        ValueError: the text is no TOML, or it cannot be changed in place.
    """
    import tomlkit  # noqa: PLC0415 - slow to import, and seldom needed
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415 - likewise

    mark, plain = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
    try:
        before = tomli.loads(plain)
    except tomli.TOMLDecodeError as error:
        raise ValueError(f"is no TOML: {error}") from None
    settings = {keys: value for keys, value in settings.items() if not has_setting(before, keys, value)}
    wanted = _without_none(with_settings(before, settings))
    if repr(wanted) == repr(tomli.loads(plain)):
        return text
    try:
        document = tomlkit.parse(plain)
        for keys, value in settings.items():
            table: Any = document
            for key in keys[:-1]:
                table = table[key] if key in table else table.setdefault(key, tomlkit.table())
            if value is None:
                table.pop(keys[-1], None)
            else:
                table[keys[-1]] = _without_none(value)
        new = tomlkit.dumps(document)
        is_so = _without_empty(tomli.loads(new)) == _without_empty(wanted)
    except (TOMLKitError, tomli.TOMLDecodeError, KeyError, TypeError, AttributeError):
        is_so = False
    if not is_so:
        raise ValueError("cannot be changed in place; write what is to be set as [tables] with keys")
    return mark + new


def set_in_json(text: str, settings: Mapping[Keys, object]) -> str:
    """Return a JSON text with values set, each by the keys that lead to it, indented as it was.

    Raises:
        ValueError: the text is no JSON.
    """
    mark, plain = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
    try:
        data = json.loads(plain)
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from None
    if all(has_setting(data, keys, value) for keys, value in settings.items()):
        return text
    new = with_settings(data, settings)
    indent = _INDENT.match(plain.lstrip())
    whole = json.dumps(new, ensure_ascii=False, indent=indent[1] if indent else None)
    end = plain[len(plain.rstrip()) :]
    return mark + (whole.replace("\n", "\r\n") if "\r\n" in plain else whole) + end


def _without_none(value: Any) -> Any:
    """Return a value without what TOML has not."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value if inner is not None]
    return value


def _without_empty(value: Any) -> Any:
    """Return tables without those that are empty: a key taken out may leave one."""
    if not isinstance(value, dict):
        return value
    found = {key: _without_empty(inner) for key, inner in value.items()}
    return {key: inner for key, inner in found.items() if inner != {}}
