"""The start of an engine's process, and the reasons why a command cannot be started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from engine_router.config import ProcessConfig
from engine_router.config.values import expanded
from engine_router.engines.command_options import value_of
from engine_router.engines.engine_programs import LLAMA_CPP
from engine_router.engines.process.process_tree import RETRY_S, Guardian, ProcessTree, start_tree
from engine_router.engines.settings_file import settings_obstacle
from engine_router.engines.started.resources import lacks_resources, out_of_resources
from engine_router.errors import EngineStartFailed

# Seconds for which a start that lacks descriptors, processes or memory is tried again.
RETRY_FOR_S = 5.0


async def spawn(
    name: str, config: ProcessConfig, argv: Sequence[str], guardian: Guardian | None
) -> tuple[trio.Process, ProcessTree]:
    """Start a command.

    Raises:
        EngineStartFailed: it cannot be started.
        OutOfResources: not now.

    Cancellation: either nothing was started, or the process tree is returned.
    """
    cwd = None if config.cwd is None else str(expanded(config.cwd))
    give_up_at = trio.current_time() + min(RETRY_FOR_S, config.start_timeout_s)
    while True:
        try:
            return await start_tree(argv, env=config.env, cwd=cwd, watcher=guardian)
        except (OSError, ValueError) as error:
            if not lacks_resources(error):
                words = f"cannot be started: {_refusal(argv[0], cwd, error)}"
                raise EngineStartFailed(name, words) from None
            if trio.current_time() >= give_up_at:
                raise out_of_resources(name, error) from None
        await trio.sleep(RETRY_S)


def _refusal(program: str, cwd: str | None, error: OSError | ValueError) -> str:
    """Say why the system would not start a program."""
    if not isinstance(error, OSError):
        return f"{program}: {error}"
    if cwd is not None and error.filename == cwd:
        is_missing = isinstance(error, FileNotFoundError)
        return f"its cwd {cwd} {'does not exist' if is_missing else f'cannot be used: {error.strerror}'}"
    if isinstance(error, FileNotFoundError):
        return f"{program} was not found; give its full path in argv"
    hint = "; is it a program, and executable?" if isinstance(error, PermissionError) else ""
    return f"{program}: {error.strerror or error}{hint}"


async def start_obstacle(config: ProcessConfig, argv: Sequence[str], values: Mapping[str, str]) -> str | None:
    """Say what of a command, or its configuration file, is missing or of no use; None where a start may succeed.

    Args:
        config: the engine's.
        argv: the command, its placeholders filled in.
        values: what they are filled in with.
    """
    cwd = None if config.cwd is None else str(expanded(config.cwd))
    lacking = await trio.to_thread.run_sync(missing, argv, cwd, config.env, abandon_on_cancel=True)
    return lacking or await settings_obstacle(config.config_file, values)


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
