"""Secrets of a draft: what is printed has references to the environment in their place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Final

from engine_router.guards.masking import secrets_in
from engine_router.setup.migrate.draft import Draft, Entry

_REFERENCE: Final = re.compile(r"\$\{env:[^{}]*\}")
_COMMANDS: Final = ("argv", "stop_command", "kill_command", "command")
_SETTINGS: Final = ("env", "headers")
_CALLS: Final = ("load", "unload")


def without_secrets(draft: Draft) -> tuple[Draft, dict[str, str]]:
    """Return a draft that may be shown, and the secrets that it refers to, by the name of a variable each."""
    shown = deepcopy(draft)
    names: dict[str, str] = {}
    keys = [key for key in shown.server.values.get("api_keys", ()) if not _REFERENCE.fullmatch(key)]
    for number, key in enumerate(keys, start=1):
        names.setdefault(key, f"ROUTER_API_KEY_{number}")
    entries = [
        *shown.engines.values(),
        *shown.peers.values(),
        *shown.models.values(),
        *shown.families.values(),
        *shown.pools.values(),
    ]
    for secret in [one for entry in entries for one in _secrets_of(entry)]:
        if secret and not _REFERENCE.search(secret):
            names.setdefault(secret, f"ROUTER_SECRET_{len(names) - len(keys) + 1}")
    longest = sorted(names, key=len, reverse=True)
    for entry in (shown.server, *entries):
        for key, value in entry.values.items():
            if key in (*_COMMANDS, *_SETTINGS, *_CALLS, "api_key", "api_keys", "args"):
                entry.values[key] = _replaced(value, longest, names)
    return shown, {name: secret for secret, name in names.items()}


def references_in(value: Any) -> Iterator[str]:
    """Yield the names of the variables that a value refers to."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from references_in(key)
            yield from references_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from references_in(item)
    elif isinstance(value, str):
        yield from (found[6:-1] for found in _REFERENCE.findall(value))


def _secrets_of(entry: Entry) -> list[str]:
    values = entry.values
    tables = [values, *(values[key] for key in _CALLS if isinstance(values.get(key), Mapping))]
    commands = [values[key] for key in (*_COMMANDS, "args") if isinstance(values.get(key), list)]
    settings = [table[key] for table in tables for key in _SETTINGS if isinstance(table.get(key), Mapping)]
    keys = [values["api_key"]] if isinstance(values.get("api_key"), str) else []
    return [*keys, *secrets_in(commands=commands, settings=settings)]


def _replaced(value: Any, secrets: list[str], names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(item, secrets, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, secrets, names) for item in value]
    if isinstance(value, str):
        for secret in secrets:
            if secret in value:
                value = value.replace(secret, f"${{env:{names[secret]}}}")
    return value
