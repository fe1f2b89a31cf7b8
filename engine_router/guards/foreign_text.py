"""Foreign text: names, answers and output that somebody else wrote, made fit for a terminal, a log or a message.

A terminal obeys control characters: they move its cursor, set its title, write to the clipboard. A reader of a log
takes each line for an entry of its own. So whatever came from outside goes through one of these functions at
every outlet to people; JSON and HTML for programs keep it as it is, and escape by nature.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from engine_router.guards.limits import ENTRY_CHARS, MESSAGE_CHARS

# What Unicode calls a format character and belongs to ordinary words: two joiners (Persian, Hindi, emoji) and the
# soft hyphen. The others turn the direction of writing around, or are invisible.
_HARMLESS: Final = frozenset("\t\u00ad\u200c\u200d")
# A whole sequence for a terminal: colours and cursor (CSI), titles and clipboard (OSC, DCS, SOS, PM, APC), the rest.
_SEQUENCE: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,16}[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]{0,16}[0-OQ-WYZ\\`-~]"
)


def printable(text: str, *, keep_lines: bool = False) -> str:
    r"""Return a text in one line that a terminal only shows: control characters stand in it as `\x1b` or `\u2028`.

    Args:
        text: what somebody else wrote.
        keep_lines: leave line feeds, and nothing else that ends a line, as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        char if _is_shown(char) or (keep_lines and char == "\n") else _escaped(char) for char in text
    )


def indented(text: str) -> str:
    """Return a printable text whose further lines are indented, so that none of them looks like an entry of its own."""
    first, *others = printable(text, keep_lines=True).split("\n")
    return "\n".join(
        [first, *(line if line.startswith("  ") or not line else f"  {line}" for line in others)]
    )


def shortened(text: str, limit: int = ENTRY_CHARS) -> str:
    """Return the beginning of a text, with its length where it was longer than `limit` characters.

    >>> shortened("qwen3", 3), shortened("qwen3", 5)
    ('qwe... (5 characters)', 'qwen3')
    """
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def shown(name: str, limit: int = ENTRY_CHARS) -> str:
    """Return a name or a value as it may stand in a sentence: printable and short."""
    return printable(shortened(name, limit))


def message(text: str, limit: int = MESSAGE_CHARS) -> str:
    """Return the text of an error: printable, its lines kept, and bounded."""
    return printable(shortened(text, limit), keep_lines=True)


def output_line(text: str) -> str:
    """Return a line that a program wrote for a terminal: without its colours and the like, and printable."""
    return text if text.isprintable() else printable(_SEQUENCE.sub("", text))


def one_line(text: str, limit: int) -> str:
    r"""Return what another program said as one line of a sentence: without its layout, printable, and short.

    >>> one_line("no such\n  image", 40)
    'no such image'
    """
    return shortened(output_line(" ".join(text.split())), limit)


def indented_values(data: Any) -> Any:
    """Return what was read from JSON with each of its strings, keys too, as `indented` makes them."""
    if isinstance(data, str):
        return indented(data)
    if isinstance(data, Mapping):
        return {indented_values(key): indented_values(value) for key, value in data.items()}
    if isinstance(data, list):
        return [indented_values(value) for value in data]
    return data


def printable_json(text: str) -> str:
    """Return JSON that means the same, and in which a terminal finds nothing to obey."""
    return re.sub(
        r"[^\x20-\x7e\n]",
        lambda found: found[0] if _is_shown(found[0]) and found[0] != "\t" else _json_escaped(found[0]),
        text,
    )


def _is_shown(char: str) -> bool:
    # `isprintable` says no to every space but one, also to those that only keep words together.
    return char.isprintable() or char in _HARMLESS or (char.isspace() and char not in _LINE_ENDS)


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escaped(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


_LINE_ENDS: Final = frozenset("\n\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029")
