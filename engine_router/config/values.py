"""Strict readers of the values that a configuration holds.

A reader takes what TOML gave and returns the typed value, or raises ValueError with words for the person
who wrote the file: what was expected and what was found. Nothing is converted in silence: `"5"` is not a
number, `true` is not 1, NaN and infinity are not durations.
"""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from engine_router.config.command_line import split_command, with_home
from engine_router.guards.limits import MAX_NAME_CHARS, MODEL_NAME_CHARS
from engine_router.guards.masking import masked_text

T = TypeVar("T")

HOURS_PATTERN: Final = r"([01][0-9]|2[0-3]):([0-5][0-9])\s*-\s*([01][0-9]|2[0-3]):([0-5][0-9])"
"""Two times of day."""
SIZE_PATTERN: Final = r"([1-9][0-9]{0,15})([bkmgtBKMGT]?)[bB]?"
_SIZE_SHIFTS: Final = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
READY_CHECK_PATTERN: Final = r"port|model:\s*\S.*|[\w.\-]+\s*==\s*\S.*"
"""A readiness check, without the spaces around it."""

_HEADER_NAME: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEADER_VALUE: Final = r"[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?|"


class Unfit(ValueError):
    """A value that is not what was expected.

    Attributes:
        discreet: the message without the value, which may be a secret.
    """

    def __init__(self, discreet: str, value: object, hint: str = "") -> None:
        super().__init__(f"{discreet}, got {shown(value)}{hint}")
        self.discreet = f"{discreet}, got {_kind_of(value)} (not shown: it may be a secret)"


def _kind_of(value: object) -> str:
    match value:
        case str():
            return "a text"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case list() | tuple():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "something else"


def shown(value: object) -> str:
    """Show a value in a message as the file's author would recognise it, but for a login in a URL and the like."""
    text = masked_text(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 60 else text[:57] + "..."


def unfit(expected: str, value: object) -> Unfit:
    """Return the error of a value that is not what was expected."""
    return Unfit(f"expected {expected}", value)


# Numbers.


def number(expected: str, *, positive: bool = False) -> Callable[[Any], float]:
    """Return a reader of numbers that are finite, and not negative, or above zero."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise unfit(expected, value)
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise unfit(f"{expected} that is finite", value)
        if found < 0 or (positive and found == 0):
            raise unfit(f"{expected} {'above zero' if positive else 'of zero or more'}", value)
        return found

    return read


def read_ratio(value: Any) -> float:
    """Read a share, from 0 to 1."""
    expected = "a number from 0 to 1"
    found = number(expected)(value)
    if found > 1:
        raise unfit(expected, value)
    return found


def whole_number(expected: str, least: float = -math.inf, most: float = math.inf) -> Callable[[Any], int]:
    """Return a reader of whole numbers within bounds."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise unfit(expected, value)
        return value

    return read


def read_bool(value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise unfit("true or false", value)
    return value


def read_bool_or_auto(value: Any) -> bool | Literal["auto"]:
    """Read true, false, or the word `auto`."""
    if isinstance(value, bool):
        return value
    if value == "auto":
        return "auto"
    raise unfit('true, false or "auto"', value)


def or_auto(read: Callable[[Any], T]) -> Callable[[Any], T | Literal["auto"]]:
    """Return a reader that takes the word `auto`, too."""

    def read_either(value: Any) -> T | Literal["auto"]:
        return "auto" if value == "auto" else read(value)

    return read_either


# Texts.


def read_string(value: Any) -> str:
    """Read a string."""
    if not isinstance(value, str):
        raise unfit("a string in quotes", value)
    return value


def read_name(value: Any) -> str:
    """Read a name: at least one visible character, and no control characters."""
    if not isinstance(value, str):
        raise unfit("a name in quotes", value)
    if not value.strip() or any(ord(char) < 32 for char in value):
        raise unfit("a name with at least one visible character", value)
    if len(value) > MAX_NAME_CHARS:
        raise unfit(f"a name of at most {MAX_NAME_CHARS:,} characters", value)
    return value


def read_model_name(value: Any) -> str:
    """Read the name of a model, as clients may send it."""
    if len(name := read_name(value)) > MODEL_NAME_CHARS:
        raise unfit(f"a model's name, of at most {MODEL_NAME_CHARS} characters", value)
    return name


def matching(pattern: str, expected: str) -> Callable[[Any], str]:
    """Return a reader of strings that match a pattern as a whole."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise unfit(expected, value)
        return value

    return read


read_path = matching(r"/[^\s\x00-\x1f]*", "a path that begins with / and has no spaces")
read_path_or_empty = matching(r"(/[^\s\x00-\x1f]*)?", 'a path that begins with / and has no spaces, or ""')
read_header_name = matching(_HEADER_NAME, "the name of an HTTP header")
_read_printable = matching(
    _HEADER_VALUE, "the value of an HTTP header: printable ASCII on one line, without spaces around it"
)


def read_header_value(value: Any) -> str:
    """Read the value of an HTTP header."""
    return _read_printable(read_string(value))


def read_variable(value: Any) -> str:
    """Read the value of an environment variable; `~/` at its beginning is the home folder."""
    return with_home(read_string(value))


def read_size(value: Any) -> int:
    """Read a size in bytes: a whole number, or a text such as `16g`, in the units of 1024 that Docker uses."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, str) and (found := re.fullmatch(SIZE_PATTERN, value)):
        return int(found[1]) << _SIZE_SHIFTS[found[2].lower()]
    raise unfit('a size such as "16g" or "512m"', value)


def read_gigabytes_or_shares(value: Any) -> float | dict[str, float]:
    """Read an amount of memory in GB, or a table of such by the names of pools."""
    read = number("a number of GB", positive=True)
    if isinstance(value, Mapping) and value:
        return {read_name(pool): read(amount) for pool, amount in value.items()}
    return read(value)


def read_gpus(value: Any) -> int | str | tuple[str, ...]:
    """Read which GPUs a container gets: all, a number of them, or those of a list."""
    if value == "all":
        return "all"
    if value == "{gpus}":
        return (value,)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, list) and value:
        return tuple(read_name(item) for item in value)
    raise unfit('"all", a number of GPUs, or a list of their ids', value)


def read_signal(value: Any) -> str:
    """Read the name of a signal that this platform has (SIGTERM and SIGINT are accepted everywhere)."""
    known = {member.name for member in signal.Signals} | {"SIGTERM", "SIGINT"}
    if not isinstance(value, str) or value not in known:
        raise unfit("the name of a signal such as SIGTERM or SIGINT", value)
    return value


def read_ready_check(value: Any) -> str:
    """Read a readiness check, and return it without the spaces around it."""
    if isinstance(value, str) and re.fullmatch(READY_CHECK_PATTERN, text := value.strip()):
        return text
    raise unfit(
        'a check such as "status == 200", "status==ok" for a JSON key, "model:my-model", or "port"', value
    )


def read_hours(value: Any) -> tuple[int, int]:
    """Read a part of the day, which may go on over midnight; return the minutes at which it begins and ends."""
    match = re.fullmatch(HOURS_PATTERN, value) if isinstance(value, str) else None
    if match is None:
        raise unfit('two times of day such as "22:00-06:00"', value)
    begin_h, begin_m, end_h, end_m = map(int, match.groups())
    return begin_h * 60 + begin_m, end_h * 60 + end_m


# Lists.


def read_names_or_all(value: Any) -> tuple[str, ...] | Literal["all"]:
    """Read a list of names, or the word `all`."""
    if value == "all":
        return "all"
    if not isinstance(value, (list, tuple)):
        raise unfit('a list of names, or "all"', value)
    return tuple(read_name(item) for item in value)


def read_one_or_more(value: Any) -> tuple[str, ...]:
    """Read a list of names that is not empty, or one name."""
    if isinstance(value, str):
        return (read_name(value),)
    if not isinstance(value, (list, tuple)) or not value:
        raise unfit("a name, or a list of names", value)
    return tuple(read_name(item) for item in value)


def read_argv(value: Any) -> tuple[str, ...]:
    """Read a command, as a list of strings or as one string that is split as a shell would."""
    if isinstance(value, str):
        try:
            words = split_command(value)
        except ValueError as error:
            raise Unfit(f"expected a command that can be split into words ({error})", value) from None
    elif isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value):
        words = list(value)
    else:
        raise unfit("a command: a list of strings, or one string", value)
    if not words or not words[0]:
        raise unfit("a command with at least the program", value)
    if any("\x00" in word for word in words):
        raise unfit("a command without NUL characters", value)
    return tuple(with_home(word) for word in words)


def expanded(path: str) -> Path:
    """Return a configured path with its `~` replaced by the home folder, where there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~somebody` who is not known here
        return Path(path)
