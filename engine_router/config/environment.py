"""`${env:NAME}`: values of the environment in a configuration, wherever a string stands, and never in a message."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field

from engine_router.config.command_line import split_command
from engine_router.config.faults import Fault, quoted

_REFERENCE: Final = re.compile(r"\$\{env:([^{}]*)\}")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_()]*")
# The strings that are split into words: a value with blanks in it stays one word.
COMMANDS: Final = frozenset(
    {
        ("engines", "argv"),
        ("engines", "command"),
        ("engines", "entrypoint"),
        ("engines", "prefix"),
        ("engines", "stop_command"),
        ("engines", "kill_command"),
        ("pools", "command"),
    }
)
# Where a value is no secret: names and addresses are what clients ask for, and what the router is asked about.
_TABLES: Final = ("engines", "models", "families", "pools", "routes")  # of tables that have names
_PUBLIC: Final = frozenset(
    (
        *(
            "models",
            "aliases",
            "upstream",
            "engine",
            "pool",
            "group",
            "unit",
            "image",
            "default_model",
            "preload",
            "prefer",
        ),
        *("base_url", "host"),
    )
)
# What passes for a value that is not known, where it is more than a word.
_STAND_INS: Final = {"base_url": "http://127.0.0.1:1", "stop_signal": "SIGTERM", "ready_path": "/"}
# Values shorter than this are no secrets, and would blot out parts of ordinary words.
_SHORTEST_HIDDEN: Final = 4


@define(eq=False, repr=False)
class Environment:
    """The variables that a configuration may ask for, and those that it asked for.

    Attributes:
        variables: the environment, by default the process's own.
        may_be_unset: a variable that is not set is no fault, and has a value that stands in for it: for commands that
            read or change the file, and do not serve by it.
    """

    variables: Mapping[str, str] = field(factory=lambda: os.environ)
    may_be_unset: bool = field(default=False, kw_only=True)
    _used: dict[str, str] = field(factory=dict)
    _public: set[str] = field(factory=set)

    def filled(self, data: Any) -> tuple[Any, list[Fault]]:
        """Return TOML data with every `${env:NAME}` replaced, and a fault for each that cannot be."""
        faults: list[Fault] = []
        return self._fill(data, (), "", faults), faults

    def masked(self, text: str) -> str:
        """Return a text with the values that came from the environment hidden behind their references."""
        for value, reference in sorted(self._used.items(), key=lambda pair: -len(pair[0])):
            for spelling in dict.fromkeys((json.dumps(value, ensure_ascii=False)[1:-1], value)):
                text = _without_beginning(text.replace(spelling, reference), spelling, reference)
        return text

    def hidden(self) -> dict[str, str]:
        """Return the values, each with its reference, that a running router tells nobody."""
        return {value: name for value, name in self._used.items() if value not in self._public}

    def _fill(self, data: Any, keys: tuple[str, ...], place: str, faults: list[Fault]) -> Any:
        if isinstance(data, str):
            return self._fill_string(data, keys, place, faults)
        if isinstance(data, list):
            # An item of a list is a word already, also where the list is a command: it has keys of its own.
            return [
                self._fill(item, (*keys, str(index)), f"{place}[{index}]", faults)
                for index, item in enumerate(data)
            ]
        if not isinstance(data, dict):
            return data
        filled: dict[Any, Any] = {}
        for key, value in data.items():
            inner = f"{place}.{quoted(str(key))}".lstrip(".")
            name = self._replace(key, (*keys, ""), inner, faults) if isinstance(key, str) else key
            if name in filled:
                faults.append((inner, "two keys of this table are the same once the environment is read"))
            filled[name] = self._fill(value, (*keys, str(key)), inner, faults)
        return filled

    def _fill_string(self, text: str, keys: tuple[str, ...], place: str, faults: list[Fault]) -> Any:
        if "${env" not in text:
            return text
        if len(keys) == 3 and (keys[0], keys[2]) in COMMANDS:
            try:
                return [self._replace(word, keys, place, faults) for word in split_command(text)]
            except ValueError:  # its reader says what is wrong with it
                return text
        return self._replace(text, keys, place, faults)

    def _replace(self, text: str, keys: tuple[str, ...], place: str, faults: list[Fault]) -> str:
        def value(reference: re.Match[str]) -> str:
            name = reference[1]
            if not _NAME.fullmatch(name):
                faults.append((place, f"{reference[0]} names no environment variable; write ${{env:NAME}}"))
            elif name not in self.variables and self.may_be_unset:
                return _STAND_INS.get(keys[-1], "1") if reference[0] == text.strip() else "1"
            elif name not in self.variables:
                remedy = "set it where the router is started (a service has an environment of its own)"
                faults.append((place, f"the environment variable {name} is not set; {remedy}"))
            else:
                found = self.variables[name]
                if len(found) >= _SHORTEST_HIDDEN:
                    self._used[found] = reference[0]
                    if _is_public(keys):
                        self._public.add(found)
                return found
            return reference[0]

        return _REFERENCE.sub(value, text)


def _is_public(keys: tuple[str, ...]) -> bool:
    """Tell whether what stands under these keys, or the last of them where it is empty, is a name or an address."""
    table, *inner = keys
    if table in _TABLES:
        if len(inner) == 1:  # the name of an entry
            return True
        inner = inner[1:]
    return table == "aliases" or (bool(inner) and inner[0] in _PUBLIC)


def _without_beginning(text: str, value: str, reference: str) -> str:
    """Hide the beginning of a value where a long text was cut short with three dots."""
    end = text.find("...")
    while end >= 0:
        longest = min(len(value), end)
        length = next(
            (
                size
                for size in range(longest, _SHORTEST_HIDDEN - 1, -1)
                if text.endswith(value[:size], 0, end)
            ),
            0,
        )
        text = text[: end - length] + (reference if length else "") + text[end:]
        end = text.find("...", end - length + (len(reference) if length else 0) + 3)
    return text
