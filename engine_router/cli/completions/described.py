"""What can be completed, read from the parser: commands, their options, and what stands where."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from attrs import frozen

from engine_router.cli.command_parser import CommandParser, OneCommand
from engine_router.cli.completions import SHELLS

# What a value is, by the word that stands for it on help pages. Any other is text, which cannot be completed.
_KINDS = {
    "MODEL": "models",
    "MODEL|ENGINE": "names",
    "ENGINE": "engines",
    "FILE": "file",
    "DIR": "dir",
    "COMMAND": "commands",
    "SHELL": f"={','.join(SHELLS)}",
}
TEXT = "text"


@frozen
class Option:
    """An option.

    Attributes:
        flags: such as `-c`, `--config`.
        kind: of its value; None where it takes none.
    """

    flags: tuple[str, ...]
    kind: str | None
    about: str


@frozen
class Described:
    """A command.

    Attributes:
        names: its name, and its aliases.
        places: the kinds of its words, one after the other; the last one is repeated where `repeats`.
    """

    names: tuple[str, ...]
    about: str
    options: tuple[Option, ...]
    places: tuple[str, ...]
    repeats: bool

    def valued(self) -> Iterator[tuple[str, str]]:
        """Yield each flag that takes a value, with the value's kind."""
        for option in self.options:
            if option.kind is not None:
                yield from ((flag, option.kind) for flag in option.flags)


def describe_commands(parser: CommandParser) -> list[Described]:
    """Return the commands, in their order."""
    return [_described(names, command) for names, command in parser.each_command()]


def _described(names: tuple[str, ...], command: OneCommand) -> Described:
    actions = [action for action in command._actions if action.help != argparse.SUPPRESS]  # noqa: SLF001 - there is no other way
    words = [action for action in actions if not action.option_strings]
    return Described(
        names,
        command.summary,
        tuple(
            Option(
                tuple(action.option_strings),
                None if action.nargs == 0 else _kind(action),
                (action.help or "").split("; ")[0].replace("%%", "%"),
            )
            for action in actions
            if action.option_strings
        ),
        tuple(_kind(word) for word in words),
        bool(words) and words[-1].nargs in ("*", "+"),
    )


def _kind(action: argparse.Action) -> str:
    """Return the kind of a value: `=a,b` where it is one of a few words."""
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None and metavar not in _KINDS:
        return "=" + ",".join(map(str, action.choices))
    if "FILE" in metavar.split("|"):
        return "file"
    return _KINDS.get(metavar, TEXT)
