"""Command strings: a command in one string, split into words as a shell would split it. No shell runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_QUOTES: Final = "'\""
# What a backslash makes plain outside of quotes. Before anything else it stays: it is part of a path or a pattern.
_ESCAPABLE: Final = frozenset(" \t'\"\\$`#;&|<>()*?~!")
_ESCAPABLE_IN_PATH: Final = frozenset(" \t'\"\\")
_ESCAPABLE_IN_QUOTES: Final = frozenset('"\\$`')
_CONTINUATION: Final = re.compile(r"\\[ \t]*(\r?\n|$)")
_SHARE: Final = re.compile(r"\\\\[\w.$\-]+\\")
_DRIVE: Final = re.compile(r"(.*=)?[A-Za-z]:$", re.DOTALL)
_HOME: Final = re.compile(r"(-[\w\-]*=)?(~)([/\\].*)?", re.DOTALL)


def split_command(text: str) -> list[str]:
    r"""Split a command into its words.

    Quotes and backslashes mean what they mean to a POSIX shell. A line may go on behind a `\` at its end, or just
    end: a newline is a blank. `#` where a word could begin makes the rest of the line a comment. A backslash before
    an ordinary character stays, so that `C:\models\q.gguf` and `\\server\share` are what they look like.

    Raises:
        ValueError: a quote is not closed.
    """
    return _Splitter(text).words()


class _Splitter:
    """One pass over a command string."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._word: list[str] = []
        self._has_word = False
        self._is_path = False

    def words(self) -> list[str]:
        """Return all words."""
        found: list[str] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            if char.isspace():
                self._end_word(found)
                self._at += 1
            elif char == "#" and not self._has_word:
                newline = self._text.find("\n", self._at)
                self._at = len(self._text) if newline < 0 else newline
            elif char == "\\":
                self._backslash()
            elif char in _QUOTES:
                self._has_word = True
                self._quoted(char)
            else:
                self._take(char)
        self._end_word(found)
        return found

    def _take(self, char: str, length: int = 1) -> None:
        self._word.append(char)
        self._has_word = True
        self._at += length

    def _end_word(self, found: list[str]) -> None:
        if self._has_word:
            found.append("".join(self._word))
        self._word, self._has_word, self._is_path = [], False, False

    def _backslash(self) -> None:
        if not self._is_path:
            self._is_path = bool(_DRIVE.match("".join(self._word)))
        if (share := self._share()) is not None:
            self._take(share, len(share))
        elif (continued := _CONTINUATION.match(self._text, self._at)) is not None:
            self._at = continued.end()
        elif self._text[self._at + 1] in (_ESCAPABLE_IN_PATH if self._is_path else _ESCAPABLE):
            self._take(self._text[self._at + 1], 2)
        else:
            self._take("\\")

    def _quoted(self, quote: str) -> None:
        start = self._at
        self._at += 1
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == quote:
                self._at += 1
                return
            following = self._text[self._at + 1 : self._at + 2]
            if char != "\\" or quote == "'":
                self._take(char)
            elif (share := self._share()) is not None:
                self._take(share, len(share))
            elif following == "\n":
                self._at += 2
            elif following in _ESCAPABLE_IN_QUOTES and following:
                self._take(following, 2)
            else:
                self._take(char)
        name = "double" if quote == '"' else "single"
        line = self._text.count("\n", 0, start) + 1
        where = f" in line {line} of it" if "\n" in self._text.strip() else ""
        raise ValueError(f"a {name} quote{where} is not closed")

    def _share(self) -> str | None:
        r"""Return the beginning of a Windows share, `\\server\`, where a word begins with one."""
        share = None if self._word else _SHARE.match(self._text, self._at)
        if share is None:
            return None
        self._is_path = True
        return share.group()


def with_home(word: str) -> str:
    """Return a word with the `~/` at its beginning, or behind `--option=`, replaced by the home folder."""
    found = _HOME.fullmatch(word)
    if found is None:
        return word
    option, _, rest = found.groups(default="")
    try:
        return f"{option}{Path.home()}{rest}"
    except RuntimeError:  # nobody's home is known here
        return word
