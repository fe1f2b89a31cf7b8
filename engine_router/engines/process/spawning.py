"""The start of an engine's process: the family that it begins, or the reason in words why it cannot be started."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from engine_router.config import ProcessConfig
from engine_router.config.values import expanded
from engine_router.engines.process.descriptors import lacks_resources
from engine_router.engines.process.process_tree import RETRY_S, Guardian, ProcessTree, start_tree
from engine_router.errors import EngineStartFailed, OutOfResources

# Seconds for which a start that lacks descriptors, processes or memory is tried again.
PATIENCE_S = 5.0


async def spawn(
    name: str, config: ProcessConfig, argv: Sequence[str], guardian: Guardian | None
) -> tuple[trio.Process, ProcessTree]:
    """Start a command.

    Raises:
        EngineStartFailed: it cannot be started.
        OutOfResources: not now.

    Cancellation: either nothing was started, or the family is returned.
    """
    cwd = None if config.cwd is None else str(expanded(config.cwd))
    give_up_at = trio.current_time() + min(PATIENCE_S, config.start_timeout_s)
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


def out_of_resources(name: str, error: BaseException) -> OutOfResources:
    """Return the error for what this machine had too little of."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OutOfResources(
        name,
        f"cannot be started just now: {reason}; let the router have more open files and processes "
        "(ulimit -n, LimitNOFILE= of its service), or fewer connections",
    )


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
