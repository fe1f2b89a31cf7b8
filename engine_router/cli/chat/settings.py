"""The settings of a chat: what is sent with each request, and how the answer is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define, field, frozen

from engine_router.dialects.openai.members import thinking_members

Value = float | int | bool | str


@frozen
class Setting:
    """A setting that can be made: how its value is read, and what it does.

    Attributes:
        read: raises ValueError, with what it wants, for anything else.
        is_sent: it is a member of the request, of the same name.
    """

    read: Callable[[str], Value]
    about: str
    is_sent: bool = True


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("a number")
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


def _positive(text: str) -> int:
    value = _whole(text) if text.strip().lstrip("+").isdigit() else 0
    if value < 1:
        raise ValueError("a whole number from 1 on")
    return value


def _switch(text: str) -> bool:
    words = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    if text.lower() not in words:
        raise ValueError("on or off")
    return words[text.lower()]


def _thinking(text: str) -> Value:
    if text.lower() in ("low", "medium", "high"):
        return text.lower()
    try:
        return _switch(text)
    except ValueError:
        raise ValueError("on, off, low, medium or high") from None


SETTINGS: Final[Mapping[str, Setting]] = {
    "system": Setting(str, "what the model is told before everything else", is_sent=False),
    "think": Setting(_thinking, "whether, and how hard, a reasoning model thinks", is_sent=False),
    "temperature": Setting(_number, "how freely it chooses; 0 takes the likeliest token"),
    "top_p": Setting(_number, "choose among the likeliest tokens that together have this probability"),
    "top_k": Setting(_whole, "choose among so many of the likeliest tokens"),
    "min_p": Setting(_number, "leave out tokens less likely than this part of the likeliest"),
    "max_tokens": Setting(_positive, "the longest answer"),
    "seed": Setting(_whole, "the same seed gives the same answer, where the engine can"),
    "stop": Setting(str, "the text at which the answer ends"),
    "presence_penalty": Setting(_number, "against what was said already"),
    "frequency_penalty": Setting(_number, "against what was said often"),
    "thoughts": Setting(_switch, "show what a reasoning model thinks", is_sent=False),
    "verbose": Setting(_switch, "show tokens and speed after each answer", is_sent=False),
}


@define(eq=False)
class Settings:
    """The settings that were made; all others are the engine's own."""

    values: dict[str, Value] = field(factory=dict)

    def put(self, name: str, text: str) -> None:
        """Make a setting; an empty text takes it away.

        Raises:
            ValueError: there is none of that name, or it cannot have that value.
        """
        if name not in SETTINGS:
            raise ValueError(f"there is no setting {name}; there are {', '.join(SETTINGS)}")
        if not text:
            self.values.pop(name, None)
            return
        try:
            self.values[name] = SETTINGS[name].read(text)
        except ValueError as wanted:
            raise ValueError(f"{name} must be {wanted}") from None

    def is_on(self, name: str, *, default: bool) -> bool:
        """Tell whether a switch is on."""
        return bool(self.values.get(name, default))

    def members(self) -> dict[str, Any]:
        """Return the members of a request that say all this, but for the system's message."""
        sent: dict[str, Any] = {name: value for name, value in self.values.items() if SETTINGS[name].is_sent}
        think = self.values.get("think")
        if think is not None:
            effort = think if isinstance(think, str) else "medium" if think else "none"
            sent |= thinking_members(effort, enabled=think is not False)
        return sent

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages before all others."""
        system = self.values.get("system")
        return [] if system is None else [{"role": "system", "content": system}]
