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
        found.insert(0, Program("llamacpp", (sys.executable, "-m", "engine_router.llamacpp"), False))
    return tuple(found)


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
