"""Commands of foreign configurations: their words, the port in them, and the container that they start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Final
from urllib.parse import urlsplit

from attrs import frozen

from engine_router.config.command_line import split_command

_PORT_OPTIONS: Final = ("--port", "--listen-port", "--http-port", "--server-port")
_PUBLISH: Final = ("-p", "--publish")
_SHELL: Final = re.compile(r"[|&;<>`$(){}*?~\n]")
_DETACH: Final = ("-d", "--detach", "--detach=true")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104 - read in other programs' files


def words_of(command: str) -> list[str]:
    """Return the words of a command; empty where a quote is not closed.

    >>> words_of("llama-server --port 1 -m 'a b.gguf' # the model")
    ['llama-server', '--port', '1', '-m', 'a b.gguf']
    """
    try:
        return split_command(command)
    except ValueError:
        return []


def shell_words(command: str) -> list[str]:
    """Return the words of a command that a shell ran: the shell itself, where it did more than split it.

    >>> shell_words("vllm serve m"), shell_words("cd x && ./serve.sh")
    (['vllm', 'serve', 'm'], ['sh', '-c', 'cd x && ./serve.sh'])
    """
    words = words_of(command)
    is_plain = words and _SHELL.search(command) is None and "=" not in words[0] and words[0] != "cd"
    return words if is_plain else ["sh", "-c", command]


def port_in(words: Sequence[str]) -> int | None:
    """Return the port that a command names, on this machine.

    >>> port_in(["sd-server", "--listen-port", "9999"]), port_in(["docker", "run", "-p", "5000:8080", "x"])
    (9999, 5000)
    """
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not equals:
            value = words[index + 1] if index + 1 < len(words) else ""
        if name in _PUBLISH and ":" in value:
            value = value.split(":")[-2]
        elif name not in _PORT_OPTIONS:
            continue
        if value.isascii() and value.isdigit() and 0 < int(value[:6]) < 65536:
            return int(value)
    return None


@frozen
class Container:
    """The container that a command starts.

    Attributes:
        runtime: docker or podman, as the command names it.
        name: its name; None where it gets any.
        words: the command, in the foreground.
        was_detached: the command left it in the background.
    """

    runtime: str
    name: str | None
    words: list[str]
    was_detached: bool


def container_of(words: Sequence[str]) -> Container | None:
    """Return the container that a command starts; None where it starts none.

    >>> container_of(["docker", "run", "-d", "--name", "a", "image"]).words
    ['docker', 'run', '--name', 'a', 'image']
    """
    start = 1 if words and words[0] == "sudo" else 0
    if (
        len(words) < start + 2
        or PurePath(words[start]).name not in ("docker", "podman")
        or words[start + 1] != "run"
    ):
        return None
    name = None
    for index, word in enumerate(words):
        if word == "--name" and index + 1 < len(words):
            name = words[index + 1]
        elif word.startswith("--name="):
            name = word.removeprefix("--name=")
        if name is not None:
            break
    # Behind the image stand the words of the program inside.
    end = next((i for i in range(start + 2, len(words)) if not _is_option(words, i)), len(words))
    kept = [word for index, word in enumerate(words) if index >= end or word not in _DETACH]
    return Container(" ".join(words[: start + 1]), name, kept, len(kept) < len(words))


def _is_option(words: Sequence[str], index: int) -> bool:
    """Tell, roughly, whether a word is an option of `docker run`, or the value of one."""
    if words[index].startswith("-"):
        return True
    before = words[index - 1]
    return (
        before.startswith("-")
        and "=" not in before
        and before not in (*_DETACH, "--rm", "--init", "-it", "-i", "-t")
    )


def base_url_of(proxy: str) -> tuple[str, str]:
    """Return where an engine listens, as `base_url` takes it, and the path that was behind it.

    >>> base_url_of("http://localhost:8080/v1/")
    ('http://localhost:8080', '/v1')
    """
    try:
        url = urlsplit(proxy.strip() if "://" in proxy else f"http://{proxy.strip()}")
    except ValueError:
        return proxy, ""
    return f"{url.scheme}://{url.netloc}", url.path.rstrip("/")


def is_loopback(url: str) -> bool:
    """Tell whether a URL leads to this machine."""
    try:
        return urlsplit(url).hostname in _LOOPBACK
    except ValueError:
        return False
