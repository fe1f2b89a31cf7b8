"""Secrets: what looks like one in commands, environments, headers and URLs, and texts in which it is masked.

A secret is known by the name that it stands under (`--api-key`, `HF_TOKEN`, `Authorization`), or by its place in a
URL. Commands are masked wherever they are shown; what an engine itself writes is searched for the values.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import field, frozen

MASK: Final = "***"
# A shorter value would be found in words that have nothing to do with it.
_SEARCHED_CHARS: Final = 6
_OWN_PREFIX: Final = "ENGINE_ROUTER_"

_SECRET_WORDS: Final = frozenset(
    [
        "key",
        "keys",
        "apikey",
        "apikeys",
        "token",
        "secret",
        "secrets",
        "password",
        "passwords",
        "passwd",
        "passphrase",
        "authorization",
        "auth",
        "credential",
        "credentials",
        "cookie",
        "hft",
    ]
)
# What tells about a secret without being one: `--api-key-file`, `--ssl-keyfile`, `KEY_ID`, `--token-count`.
_ABOUT: Final = frozenset(
    [
        "file",
        "path",
        "dir",
        "folder",
        "id",
        "name",
        "type",
        "count",
        "length",
        "len",
        "size",
        "limit",
        "url",
        "env",
        "sock",
    ]
)
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_NAME: Final = re.compile(r"-{0,2}[A-Za-z_][\w.-]*")
_URL_LOGIN: Final = re.compile(r"(?<=://)[^/\s@\"']+@")
# A name, and what stands between it and its value. A word that looks like an option is a name, never the value of the
# word ahead of it. A name begins where its word does: to begin anywhere would take a time that grows with the square.
_SETTING: Final = re.compile(
    r"""(?<![\w.-])(?P<name>[\w.-]+)"""
    r"""(?P<between>["']?\s*[=:]\s*|\s+(?!--?[A-Za-z])|["']\s*,\s*(?=["'](?!-)))(?=[^\s&,;])"""
)
_VALUE: Final = re.compile(r"""\[[^\]]*\]?|"[^"]*"|'[^']*'|(?:(?:Bearer|Basic)\s+)?[^\s"'&,;]+""")


def is_secret_name(name: str) -> bool:
    """Tell whether what stands under a name (an option, a variable, a header) is a secret."""
    words = [word.lower() for word in _WORD.findall(name)]
    return bool(words) and words[-1] not in _ABOUT and not _SECRET_WORDS.isdisjoint(words)


def masked_text(text: str) -> str:
    """Return a piece of a command, a header or a URL without the secrets in it."""
    return _masked(text, [])


def masked_argv(argv: Sequence[str]) -> list[str]:
    """Return a command as it may be shown.

    >>> masked_argv(["llama-server", "--api-key", "secret", "--port", "8080"])
    ['llama-server', '--api-key', '***', '--port', '8080']
    """
    return _masked_words(argv, [])


def own_environment() -> dict[str, str]:
    """Return the environment for programs that the router starts: its own without what is meant for it alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OWN_PREFIX)}


def _longest_first(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({value for value in values if len(value) >= _SEARCHED_CHARS}, key=len, reverse=True))


@frozen
class Mask:
    """The secrets that one engine was given, taken out of whatever it says."""

    _values: tuple[str, ...] = field(default=(), converter=_longest_first, repr=False)

    def __call__(self, text: str) -> str:
        """Return a text without them."""
        for value in self._values:
            if value in text:
                text = text.replace(value, MASK)
        return text


class HiddenValues:
    """Values that references such as `${env:NAME}` gave, each hidden behind its reference in whatever is told.

    What was hidden once stays so: logs and errors outlive the configuration that they are about.
    """

    def __init__(self) -> None:
        self._references: dict[str, str] = {}  # the longest value first

    def add(self, references: Mapping[str, str]) -> None:
        """Hide more values, each given with its reference. Short ones are part of ordinary words, and stay."""
        found = dict(self._references)
        for value, reference in references.items():
            # Whoever repeats a value may write it as JSON does, or a line at a time.
            for text in (value, *value.splitlines()):
                for spelling in (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]):
                    if len(spelling) >= _SEARCHED_CHARS:
                        found[spelling] = reference
        self._references = dict(sorted(found.items(), key=lambda pair: len(pair[0]), reverse=True))

    def __call__(self, text: str) -> str:
        """Return a text without them."""
        for value, reference in self._references.items():
            if value in text:
                text = text.replace(value, reference)
        return text


def mask_of(*, commands: Sequence[Sequence[str]] = (), settings: Sequence[Mapping[str, str]] = ()) -> Mask:
    """Return the mask for what commands, and settings such as an environment or headers, hold of secrets."""
    return Mask(secrets_in(commands=commands, settings=settings))


def secrets_in(
    *, commands: Sequence[Sequence[str]] = (), settings: Sequence[Mapping[str, str]] = ()
) -> list[str]:
    """Return the secrets that commands, and settings such as an environment or headers, hold."""
    secrets: list[str] = []
    for argv in commands:
        _masked_words(argv, secrets)
    for mapping in settings:
        for name, value in mapping.items():
            if is_secret_name(name):
                secrets += (
                    value,
                    value.rpartition(" ")[2],
                )  # a header may come back without its word `Bearer`
            else:
                _masked(value, secrets)
    return secrets


def _masked_words(argv: Sequence[str], secrets: list[str]) -> list[str]:
    """Return a command as it may be shown; note its secrets."""
    shown: list[str] = []
    is_value = False
    for word in argv:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            is_value = not equals and is_secret_name(word)
        if is_value and not word.startswith("-"):  # some options take more than one
            secrets.append(word)
            shown.append(MASK)
        elif equals and _NAME.fullmatch(name) and is_secret_name(name):
            secrets += (value, (value.split() or [""])[0].strip("\"'"))  # it may begin a line for a shell
            shown.append(f"{name}={MASK}")
        else:
            shown.append(_masked(word, secrets))
    return shown


def _masked(text: str, secrets: list[str]) -> str:
    """Return a text without the secrets that it names; note them."""

    def login(found: re.Match[str]) -> str:
        secrets.append(found[0].rpartition("@")[0].rpartition(":")[2])
        return f"{MASK}@"

    text = _URL_LOGIN.sub(login, text)
    shown: list[str] = []
    done = 0
    while (found := _SETTING.search(text, done)) is not None:
        name, between, begin = found["name"], found["between"], found.end()
        shown.append(text[done:begin])
        done = begin  # what was taken for a value may itself be the name of one: `-e KEY=x`
        is_named = name.startswith("-") or "=" in between or ":" in between
        if is_named and is_secret_name(name) and (value := _VALUE.match(text, begin)) is not None:
            secrets.append(value[0].strip("\"'").rpartition(" ")[2])
            shown.append(MASK)
            done = value.end()
    return "".join((*shown, text[done:]))
