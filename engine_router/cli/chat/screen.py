"""The answer on the screen: thoughts dimmed, or marked where there are no colours; text as it comes."""

from __future__ import annotations

import sys

from engine_router.cli.terminal import say, say_dimmed


class Screen:
    """The place of one answer on standard output.

    Args:
        shows_thoughts: else only the answer itself is shown.
        has_colours: else a line before the thoughts, and one behind them, sets them apart.
    """

    def __init__(self, *, shows_thoughts: bool, has_colours: bool) -> None:
        self._shows_thoughts = shows_thoughts
        self._has_colours = has_colours
        self._is_thinking = False
        self._last = "\n"

    def thought(self, text: str) -> None:
        """Show a piece of the model's thoughts."""
        if not self._shows_thoughts:
            return
        if not self._is_thinking:
            text = text.lstrip("\n")
            if not text:
                return
            self._is_thinking = True
            if not self._has_colours:
                self._write("[thinking]\n")
        if self._has_colours:
            say_dimmed(_lines(text))
            self._last = text[-1:]
        else:
            self._write(text)

    def text(self, text: str) -> None:
        """Show a piece of the answer."""
        if self._is_thinking:
            text = text.lstrip("\n")
            if not text:
                return
            self.end()
            self._write("\n" if self._has_colours else "[answer]\n")
        self._write(text)

    def end(self) -> None:
        """End the line that was begun."""
        self._is_thinking = False
        if self._last != "\n":
            self._write("\n")

    def _write(self, text: str) -> None:
        say(_lines(text), end="")
        self._last = text[-1:] or self._last


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n")


def note(text: str) -> None:
    """Tell the person something beside the answer."""
    say(text, to=sys.stderr)
