"""The server's own command within the command that starts it: behind `env`, a shell's `-c`, `docker run`.

Read, never run. What cannot be told without running it (a variable, a second program's output) is left out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs
from attrs import frozen

from engine_router.engines.command_options import program_at, program_name
from engine_router.engines.engine_programs import ENGINE_PROGRAMS, LLAMA_CPP, UNKNOWN, EngineProgram

_MOST_LAYERS: Final = 4  # a shell in a container in a shell
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")

_SHELLS: Final = frozenset(("sh", "bash", "dash", "zsh", "ksh", "ash", "fish"))
_SHELL_COMMAND: Final = re.compile(r"-[A-Za-z]*c")
_CHAINED: Final = re.compile(r"[;&|\n]+")
_REDIRECTION: Final = re.compile(r"(?<!\S)(?:\d?>{1,2}|&>{1,2}|<)(?:&\d|\s*[^\s;&|'\"<>]+)")
# What makes more of a script than a chain of plain commands.
_NOT_PLAIN: Final = ("`", "$(", "<<", "(", ")", "{ ", "case ", "for ", "while ", "if ")
_MOST_SCRIPT_CHARS: Final = 65536

_RUNTIMES: Final = frozenset(("docker", "podman", "nerdctl"))
# The options of `docker run` and `podman run` that stand alone; any other is followed by its value.
_FLAGS: Final = frozenset(
    [
        "--detach",
        "--disable-content-trust",
        "--env-host",
        "--help",
        "--http-proxy",
        "--init",
        "--interactive",
        "--no-healthcheck",
        "--no-hostname",
        "--no-hosts",
        "--oom-kill-disable",
        "--passwd",
        "--privileged",
        "--publish-all",
        "--quiet",
        "--read-only",
        "--read-only-tmpfs",
        "--replace",
        "--rm",
        "--rmi",
        "--rootfs",
        "--sig-proxy",
        "--tls-verify",
        "--tty",
        "--unsetenv-all",
    ]
)
_SHORT_FLAGS: Final = "ditPq"
_VARIABLE: Final = ("-e", "--env")
_ENTRYPOINT: Final = "--entrypoint"


@frozen(kw_only=True)
class ServerCommand:
    """The command of a server.

    Attributes:
        kind: the kind of engine; `UNKNOWN` where it is not known.
        words: those behind its program.
        variables: the environment that the command gives it.
        is_contained: it runs in a container, where the paths of files are others.
    """

    kind: EngineProgram
    words: tuple[str, ...]
    variables: Mapping[str, str]
    is_contained: bool = False


def server_command(argv: Sequence[str], env: Mapping[str, str]) -> ServerCommand | None:
    """Find the server's command in an engine's command; None where that cannot be told.

    Args:
        env: the variables that the engine gets besides the router's own.
    """
    return _server_command(tuple(argv), dict(env), layers=_MOST_LAYERS)


def _server_command(argv: Sequence[str], env: Mapping[str, str], *, layers: int) -> ServerCommand | None:
    """Find the server's command; the outermost shell, container or program that is known decides."""
    if layers == 0 or not argv:
        return None
    given = dict(env)
    for index, word in enumerate(argv):
        name = program_name(word)
        if name in _SHELLS and (script := _script(argv[index + 1 :])) is not None:
            return _in_script(script, given, layers=layers - 1)
        if name in _RUNTIMES and "run" in argv[index + 1 :]:
            run_at = argv.index("run", index + 1)
            return _in_container(argv[run_at + 1 :], given, layers=layers - 1)
        if (found := program_at(argv, index)) is not None:
            return _command(*found, given)
        if _ASSIGNMENT.match(word):
            variable, _, value = word.partition("=")
            given[variable] = value
    return _command(UNKNOWN, argv[1:], given)


def _command(
    kind: EngineProgram, words: Sequence[str], env: Mapping[str, str], *, is_contained: bool = False
) -> ServerCommand:
    if kind is UNKNOWN and any(name in LLAMA_CPP.variables for name in env):
        kind = LLAMA_CPP
    return ServerCommand(kind=kind, words=tuple(words), variables=env, is_contained=is_contained)


# Shells


def _script(words: Sequence[str]) -> str | None:
    """Return what a shell is told to run: the word behind `-c`, or behind `-lc`."""
    for index, word in enumerate(words):
        if not word.startswith("-"):
            return None
        if _SHELL_COMMAND.fullmatch(word):
            return words[index + 1] if index + 1 < len(words) else None
    return None


def _in_script(script: str, env: Mapping[str, str], *, layers: int) -> ServerCommand | None:
    """Find the server in a chain of plain commands, such as `cd /w && exec vllm serve x`: one that is known."""
    text = script.replace("\\\n", " ").strip()
    if len(text) > _MOST_SCRIPT_CHARS or any(mark in text for mark in _NOT_PLAIN):
        return None
    try:
        commands = list(_plain_commands(text))
    except ValueError:  # a quotation without an end
        return None
    found = [
        command for words in commands if (command := _server_command(words, env, layers=layers)) is not None
    ]
    known = [command for command in found if command.kind is not UNKNOWN or command.is_contained]
    return known[0] if known else found[0] if len(commands) == 1 and found else None


def _plain_commands(text: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(_REDIRECTION.sub("", text).replace("\n", " ; "), posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = ""
    command: list[str] = []
    for word in lexer:
        if not _CHAINED.fullmatch(word):
            command.append(word)
        elif command:
            yield command
            command = []
    if command:
        yield command


# Containers


def _in_container(words: Sequence[str], env: Mapping[str, str], *, layers: int) -> ServerCommand | None:
    """Find the server in what follows `docker run`: what stands behind the image, or what the image is known to run."""
    options, rest = split_run_options(words)
    if not rest:
        return None
    image, *command = rest
    given: dict[str, str] = {}
    for option, value in options:
        if option in _VARIABLE:
            name, equals, text = value.partition("=")
            if equals or name in env:
                given[name] = text if equals else env[name]
    entrypoint = [value for option, value in options if option == _ENTRYPOINT and value][-1:]
    if entrypoint or (command and not command[0].startswith("-")):
        inner = _server_command((*entrypoint, *command), given, layers=layers)
        if inner is not None and (entrypoint or inner.kind is not UNKNOWN):
            return attrs.evolve(inner, is_contained=True)
    kind = next(
        (kind for kind in ENGINE_PROGRAMS if any(mark in image.lower() for mark in kind.images)), None
    )
    return _command(kind or UNKNOWN, command, given, is_contained=True)


def split_run_options(words: Sequence[str]) -> tuple[list[tuple[str, str]], Sequence[str]]:
    """Return the options of `docker run` in front of the image, each with its value, and what begins with the image."""
    options: list[tuple[str, str]] = []
    index = 0
    while index < len(words) and words[index].startswith("-"):
        word = words[index]
        index += 1
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            name, value, is_whole = _short_option(word)
        else:
            is_whole = bool(equals) or name in _FLAGS
        if not is_whole and index < len(words):
            value = words[index]
            index += 1
        options.append((name, value))
    return options, words[index:]


def _short_option(word: str) -> tuple[str, str, bool]:
    """Return the last option of a word such as `-itp`, its value as in `-p80:80`, and whether nothing is missing."""
    for index, letter in enumerate(word[1:], start=1):
        if letter not in _SHORT_FLAGS:
            value = word[index + 1 :].removeprefix("=")
            return f"-{letter}", value, bool(value)
    return word, "", True
