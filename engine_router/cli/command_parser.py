"""The parsers of the whole command line, and of one command."""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from engine_router.guards.foreign_text import printable

EXIT_CODES = """\
exit codes:
  0    ok
  1    failed
  2    bad configuration or usage
  3    router not reachable
  130  interrupted (143 after a second SIGTERM)"""

# What other programs of this kind call a command, where that has not quite the same meaning here.
_ELSEWHERE = {
    "start": "serve", "up": "serve", "stop": "unload", "show": "models", "chat": "run", "ask": "run",
    "validate": "check", "test": "check", "log": "logs", "restart": "reload", "switch": "use", "swap": "use",
    "download": "pull", "fetch": "pull", "get": "pull", "remove": "rm", "delete": "rm", "man": "help",
}  # fmt: skip

# The variables that stand for options, by the options' names in the parsed command line.
_VARIABLES: Final = {
    "url": ("ENGINE_ROUTER_URL", "where the router is, instead of --url"),
    "api_key": ("ENGINE_ROUTER_API_KEY", "the key that is sent, instead of --api-key"),
    "config": ("ENGINE_ROUTER_CONFIG", "the configuration, instead of --config"),
    "json": ("NO_COLOR", "set to anything: no colours"),
}


class PageFormatter(argparse.RawDescriptionHelpFormatter):
    """The formatter of help pages: paragraphs are as wide as the terminal, indented lines stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=max(60, min(shutil.get_terminal_size().columns, 100) - 2))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            paragraph
            if "\n  " in paragraph
            else textwrap.fill(
                " ".join(paragraph.split()), width, initial_indent=indent, subsequent_indent=indent
            )
            for paragraph in paragraphs
        )


class OneCommand(argparse.ArgumentParser):
    """The parser of one command, with the examples, variables and exit codes of its help page.

    Args:
        summary: what it does, in a few words.
        examples: command lines, without the program's name where they begin with it.
        variables: of the environment, each with what it does, beside those that stand for options.
        words: the name under which all words are gathered that are no options, wherever they stand.
        rest: the name under which all that stands behind `--` is gathered, for another program.
    """

    def __init__(
        self,
        *,
        summary: str = "",
        examples: Sequence[str] = (),
        variables: Sequence[tuple[str, str]] = (),
        words: str | None = None,
        rest: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(formatter_class=PageFormatter, allow_abbrev=False, **more)
        self.summary = summary
        self._examples = examples
        self._own_variables = variables
        self._words = words
        self._rest = rest

    def format_help(self) -> str:
        """Return the help page."""
        heading = "example" if len(self._examples) == 1 else "examples"
        shown = [text if "engine-router " in text else f"engine-router {text}" for text in self._examples]
        parts = ["\n".join([f"{heading}:", *(f"  {line}" for line in shown)])]
        if variables := self.variables():
            width = max(len(name) for name, _ in variables) + 2
            lines = [f"  {name:{width}}{about}" for name, about in variables]
            parts.append("\n".join(["environment:", *lines]))
        self.epilog = "\n\n".join([*parts, EXIT_CODES])
        return super().format_help()

    def variables(self) -> list[tuple[str, str]]:
        """Return the variables of the environment that it reads, each with what it does."""
        names = [action.dest for action in self._actions]
        return [*(_VARIABLES[name] for name in _VARIABLES if name in names), *self._own_variables]

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the command's words, those behind `--` as they are."""
        before, behind = list(args or ()), []
        if "--" in before and (self._words or self._rest):
            at = before.index("--")
            before, behind = before[:at], before[at + 1 :]
        found, unknown = super().parse_known_args(before, namespace)
        if self._words:
            # argparse takes words for the first place where they may stand, and leaves over what comes later.
            late = [word for word in unknown if not word.startswith("-")]
            unknown = [word for word in unknown if word.startswith("-")]
            setattr(found, self._words, [*vars(found)[self._words], *late, *behind])
        if self._rest:
            if unknown:
                self.error(f"unrecognized: {' '.join(unknown)}; what is for the client goes behind --")
            setattr(found, self._rest, behind)
        return found, unknown


class CommandParser(argparse.ArgumentParser):
    """The whole command line: lists the commands where none is given, and knows what was meant by another word.

    Attributes:
        commands: the commands, by name.
    """

    commands: Mapping[str, OneCommand] = MappingProxyType({})

    def each_command(self) -> Iterator[tuple[tuple[str, ...], OneCommand]]:
        """Yield each command: its name and aliases, and its parser."""
        for parser in dict.fromkeys(self.commands.values()):
            yield tuple(name for name, same in self.commands.items() if same is parser), parser

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse a command line; exits with code 2 where there is no command in it."""
        words = sys.argv[1:] if args is None else list(args)
        if not words:
            self.print_help(sys.stderr)
            self.exit(2)
        if not words[0].startswith("-") and words[0] not in self.commands:
            near = _ELSEWHERE.get(words[0]) or next(
                iter(difflib.get_close_matches(words[0][:40], list(self.commands), n=1)), None
            )
            hint = f"; did you mean {near}?" if near else ""
            self.error(
                f"there is no command {printable(words[0][:40])}{hint}\nengine-router --help lists them"
            )
        return super().parse_args(words, namespace)
