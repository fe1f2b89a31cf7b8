"""The parser of the whole command line, which knows what was meant by a command that there is not."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Collection, Sequence

from engine_router.guards.foreign_text import printable

# What other programs of this kind call a command.
_ELSEWHERE = {
    "list": "models", "ls": "models", "ps": "residents", "run": "serve", "start": "serve", "stop": "unload",
    "validate": "check", "test": "check", "log": "logs", "restart": "reload", "switch": "use", "swap": "use",
    "download": "pull", "fetch": "pull", "get": "pull", "remove": "rm", "delete": "rm",
}  # fmt: skip


class CommandParser(argparse.ArgumentParser):
    """The whole command line: lists the commands where none is given, and knows what was meant by another word.

    Attributes:
        commands: the commands, by name.
    """

    commands: Collection[str] = ()

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
