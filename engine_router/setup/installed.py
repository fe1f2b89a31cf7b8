"""The program of a block, where it is installed under another name or at a place that PATH does not lead to."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import attrs

from engine_router.setup.presets import Block
from engine_router.setup.programs import Program
from engine_router.setup.toml_text import toml_value

_PROGRAM: Final = re.compile(r'^(argv = \[\s*)"([^"]+)"', re.MULTILINE)
_LLAMA_SERVER: Final = "llama-server"
_STAND_IN: Final = "engine_router.llamacpp"
_DOWNLOADS: Final = '"-hf"'
_NO_DOWNLOAD: Final = (
    "llama-server is not installed, and the llama.cpp of engine-router[llamacpp] downloads nothing: engine-router pull "
    "does, and then engine-router add takes the file with --path"
)


def with_installed(
    block: Block, programs: Sequence[Program], which: Callable[[str], str | None] = shutil.which
) -> Block:
    """Return a block that starts the program that is installed; as it is where there is none, or PATH leads to it."""
    found = _PROGRAM.search(block.text)
    if found is None or which(found[2]) is not None:
        return block
    words = _words(found[2], programs, which)
    if not words:
        return block
    if found[2] == _LLAMA_SERVER and _STAND_IN in words and _DOWNLOADS in block.text:
        return attrs.evolve(block, notes=(*block.notes, _NO_DOWNLOAD))
    argv = found[1] + ", ".join(map(toml_value, words))
    return attrs.evolve(block, text=block.text[: found.start()] + argv + block.text[found.end() :])


def _words(name: str, programs: Sequence[Program], which: Callable[[str], str | None]) -> Sequence[str]:
    if name == "python":
        return ("python3",) if which("python3") is not None else ()
    for program in programs:
        is_stand_in = name == _LLAMA_SERVER and program.kind == "llamacpp"
        if not program.is_on_path and (is_stand_in or Path(program.argv[0]).name == name):
            return program.argv
    return ()
