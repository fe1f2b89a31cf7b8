"""What keeps a command from being run, as far as the file system tells: seen before others are stopped for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine_router.engines.command_options import LLAMA_CPP, value_of


def missing(argv: Sequence[str], folder: str | None, environment: Mapping[str, str]) -> str | None:
    """Say which program, folder or model file of a command does not exist; None where all do.

    Blocks: call it in a thread.

    Args:
        argv: the command, its placeholders filled in.
        folder: where it is run; None for the router's own.
        environment: what is added to the router's own environment.
    """
    if folder is not None and not Path(folder).is_dir():
        return f"cannot be started: its cwd {folder} does not exist"
    here = Path(folder or "")
    program = argv[0]
    # Whether a path is relative to its cwd or to the router's depends on the platform: then the start will tell.
    if os.sep not in program and shutil.which(program, path=environment.get("PATH")) is None:
        # Some platforms look with the router's own PATH instead.
        if shutil.which(program) is None:
            return f"cannot be started: {program} was not found; give its full path in argv"
    elif Path(program).is_absolute() and not Path(program).exists():
        return f"cannot be started: {program} was not found; give its full path in argv"
    model = value_of(argv, LLAMA_CPP.model)
    if model is None or not model.lower().endswith(".gguf"):  # it may be a name that the engine resolves
        return None
    if not (here / model).exists():
        return f"cannot be started: its model file {here / model} does not exist"
    return None
