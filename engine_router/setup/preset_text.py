"""The texts of presets: their placeholders, what is filled in for them, and the notes ahead of a block."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from engine_router.setup.toml_text import comment_lines, toml_key, toml_value

PLACEHOLDERS: Final[Mapping[str, str]] = {
    "NAME": "the engine's name",
    "MODEL": "the id under which clients ask for the model",
    "PATH": "file, folder or repository of the model",
    "FILE": "its file, where it is one",
    "DIR": "its folder, where it is one",
    "REPO": "its repository, where it is one",
    "FOLDER": "the folder from which the engine is started",
    "URL": "the base URL of a server elsewhere",
    "KEY_VARIABLE": "the variable of the environment that has its key, where it is a cloud's",
    "DIALECT": "the dialect that it speaks, where that is not OpenAI's",
    "DISCOVER": "false where its model is named",
    "PAID": "true where it is a cloud",
    "SCAN": "folders in which models are looked for",
    "PORT": "a port that the user gave, or the usual one of an engine that runs already, or {port}",
    "FIXED_PORT": "a port that the user gave",
    "API_KEY": "the engine's key for clients",
    "ADMIN_KEY": "the engine's key for those that load models",
    "DOWNLOAD_S": "seconds that a download may take, where the engine makes one",
}
"""What is filled in within a block, in angle brackets."""

PLACEHOLDER: Final = re.compile(rf'"<({"|".join(PLACEHOLDERS)})>"|<({"|".join(PLACEHOLDERS)})>')
"""A placeholder, in quotes of its own or not."""


def with_notes(block: str, notes: Sequence[str]) -> str:
    """Put notes behind the comment at the head of a block."""
    lines = block.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("["))
    shown = [line for note in notes for line in comment_lines(_wrapped(note))]
    return "\n".join([*lines[:header], *shown, *lines[header:]])


def _wrapped(text: str) -> str:
    import textwrap  # noqa: PLC0415 - for a block that is made only

    return textwrap.fill(text, 116, break_on_hyphens=False, break_long_words=False)


def filled_lines(lines: Sequence[str], values: Mapping[str, object]) -> str:
    """Return a block with its values; a line whose placeholder has none is left out, with the comment above it."""
    kept: list[str] = []
    for line in lines:
        names = {found[1] or found[2] for found in PLACEHOLDER.finditer(line)}
        if names <= values.keys():
            kept.append(PLACEHOLDER.sub(lambda found: _value(found, values), line))
            continue
        while kept and kept[-1].startswith("#"):
            kept.pop()
    return "\n".join(kept).strip("\n") + "\n"


def _value(found: re.Match[str], values: Mapping[str, object]) -> str:
    if found[2] is not None:
        return toml_value(str(values[found[2]]))[1:-1]
    value = values[found[1]]
    is_key = found[1] in ("NAME", "MODEL") and found.string.startswith("[")
    return toml_key(str(value)) if is_key else toml_value(value)
