"""The engines' programs that are installed on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from engine_router.guards.commands import CommandResult, run_command

STAND_IN_WORDS: Final = ("-m", "engine_router.llamacpp")
"""What follows Python's name in the command of the llama.cpp that the extra brings."""

# By the kind that the presets call it: the names of its program, and folders of the home folder in which it lies
# where it is on nobody's PATH.
_PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "llamacpp": ("llama-server",),
    "vllm": ("vllm",),
    "sglang": ("sglang",),
    "ollama": ("ollama",),
    "lmstudio": ("lms",),
    "koboldcpp": ("koboldcpp",),
    "mlx": ("mlx_lm.server",),
    "ramalama": ("ramalama",),
    "localai": ("local-ai",),
    "max": ("max",),
    "tabbyapi": ("tabbyapi", "tabbyAPI"),
    "transformers": ("transformers",),
    "infinity": ("infinity_emb",),
}
_FOLDERS: Final = (
    "llama.cpp/build/bin", ".local/bin", ".lmstudio/bin", "tabbyAPI", "vllm/bin", ".venv/bin", "/opt/homebrew/bin",
    "/usr/local/bin", "/opt/llama.cpp/bin",
)  # fmt: skip
_STAND_IN: Final = "xllamacpp"


@frozen
class Program:
    """An installed program.

    Attributes:
        kind: the kind of engine that it is.
        argv: the words that begin its command.
        is_on_path: it is found by its name alone.
    """

    kind: str
    argv: tuple[str, ...]
    is_on_path: bool


def find_programs(
    which: Callable[[str], str | None] = shutil.which,
    home: Path | None = None,
    has_module: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
) -> tuple[Program, ...]:
    """Return the engines' programs that are installed; nothing is run for it.

    Args:
        which: finds a program by its name.
        home: the home folder, in which programs may lie that are on nobody's PATH.
        has_module: tells whether a module of Python can be imported.
    """
    home = Path(os.path.expanduser("~")) if home is None else home  # noqa: PTH111 - never raises
    found: list[Program] = []
    for kind, names in _PROGRAMS.items():
        if (program := _find(kind, names, which, home)) is not None:
            found.append(program)
    if not any(program.kind == "llamacpp" for program in found) and has_module(_STAND_IN):
        found.insert(0, Program("llamacpp", (sys.executable, *STAND_IN_WORDS), False))
    return tuple(found)


def missing_for(argv: Sequence[str], done: CommandResult) -> str:
    """Return what the llama.cpp of the extra lacks to run, with the remedy behind a colon; empty for nothing.

    Args:
        argv: the command of an engine.
        done: what `ask_version` had of it.
    """
    if tuple(argv[1:3]) != STAND_IN_WORDS or done.code != 1:
        return ""
    return done.complaint.partition("error: ")[2]


async def ask_version(argv: Sequence[str], *, timeout_s: float) -> CommandResult:
    """Run the program of a command with `--version`: where it is Python with llama.cpp's wheel, that is asked.

    Args:
        argv: the command, or its beginning.
        timeout_s: limit in seconds.
    """
    words = STAND_IN_WORDS if tuple(argv[1:3]) == STAND_IN_WORDS else ()
    return await run_command([argv[0], *words, "--version"], timeout_s=timeout_s, own_session=True)


def _find(kind: str, names: Sequence[str], which: Callable[[str], str | None], home: Path) -> Program | None:
    for name in names:
        if which(name) is not None:
            return Program(kind, (name,), True)
    for folder in _FOLDERS:
        for name in names:
            path = home / folder / name
            if path.is_file() and os.access(path, os.X_OK):
                return Program(kind, (str(path),), False)
    return None
