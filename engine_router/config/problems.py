"""The faults of a configuration's text, each with its place in the text."""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

from engine_router.config.places import places
from engine_router.errors import ConfigError

_POSITION: Final = re.compile(r"\(line (\d+), column (\d+)\)$")


@frozen(kw_only=True)
class Problem:
    """A fault of a text.

    Attributes:
        path: such as `engines.llama.argv`; empty for a fault of the text itself.
        line, column: from 1 on; None where the fault has no place.
    """

    path: str
    message: str
    line: int | None = None
    column: int | None = None


def problems_of(error: ConfigError, text: str) -> list[Problem]:
    """Return the faults that the loader found in a text."""
    found = places(text, [path for path, _ in error.faults])
    problems: list[Problem] = []
    for (path, message), place in zip(error.faults, found, strict=True):
        line, column = place or _place_in(message) or (None, None)
        problems.append(Problem(path=path, message=message, line=line, column=column))
    return problems


def _place_in(message: str) -> tuple[int, int] | None:
    """Return the place that the words about a text name which is not TOML."""
    position = _POSITION.search(message)
    return None if position is None else (int(position[1]), int(position[2]))
