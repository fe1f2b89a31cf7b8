"""INI files as llama.cpp reads its presets: sections, keys, and comments behind `;` or `#`."""

from __future__ import annotations

import re
from typing import Any, Final

from engine_router.guards.documents import MAX_VALUES, Document, Keys, Unreadable, whole_text

_SECTION: Final = re.compile(r"\s*\[([^\]]+)\]\s*([;#].*)?")
_PAIR: Final = re.compile(r"\s*([A-Za-z_][\w.\-]*)\s*=\s*(.*)")
_COMMENT: Final = re.compile(r"\s*([;#].*)?")
_BEHIND: Final = re.compile(r"\s*[;#].*|\s+$")

FIRST: Final = "default"
"""The section of what stands ahead of the first one."""


def read_ini(text: str) -> Document:
    """Read an INI file; every value is a text.

    Raises:
        Unreadable: a line is neither a section nor a key with a value.
    """
    data: dict[str, dict[str, Any]] = {}
    lines: dict[Keys, int] = {(): 1}
    repeated: list[Keys] = []
    section = FIRST
    for number, line in enumerate(text.split("\n"), start=1):
        if _COMMENT.fullmatch(line):
            continue
        if (header := _SECTION.fullmatch(line)) is not None:
            section = whole_text(header[1].strip())
            data.setdefault(section, {})
            lines.setdefault((section,), number)
        elif (pair := _PAIR.fullmatch(line)) is not None:
            keys = (section, pair[1])
            table = data.setdefault(section, {})
            if pair[1] in table:
                repeated.append(keys)
                del table[pair[1]]
            table[pair[1]] = whole_text(_BEHIND.sub("", pair[2]))
            lines[keys] = number
            lines.setdefault((section,), number)
        else:
            raise Unreadable("is no INI file: this line is neither [SECTION] nor KEY = VALUE", number)
        if len(lines) > MAX_VALUES:
            raise Unreadable("holds more than any configuration", number)
    return Document(data, lines, tuple(repeated))
