"""Questions to the person at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable

from attrs import frozen

from engine_router.cli.exit_codes import CommandFailed
from engine_router.cli.terminal import say


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


@frozen
class Questions:
    """Questions that are answered by yes or no.

    Attributes:
        assume_yes: nobody is asked; the answer is the one that is proposed.
        has_terminal: tells whether somebody can be asked.
        read: reads a line.
    """

    assume_yes: bool = False
    has_terminal: Callable[[], bool] = _has_terminal
    read: Callable[[], str] = input

    def yes(self, question: str, *, default: bool) -> bool:
        """Ask until there is an answer; an empty line is the default.

        Raises:
            CommandFailed: there is nobody to ask.
        """
        if self.assume_yes:
            return default
        if not self.has_terminal():
            raise CommandFailed("there is no terminal to ask on: --yes takes what is proposed", 2)
        while True:
            say(f"{question} {'[Y/n]' if default else '[y/N]'} ", end="")
            sys.stdout.flush()
            try:
                answer = self.read().strip().lower()
            except EOFError:
                say()
                raise CommandFailed("no answer; nothing was written", 2) from None
            except KeyboardInterrupt:
                say()
                raise
            if answer in ("", "y", "yes", "n", "no"):
                return default if not answer else answer.startswith("y")
            say("Please answer y or n.")
