"""The file that an engine's output is appended to, besides the log kept in memory."""

from __future__ import annotations

from io import FileIO

import trio

from engine_router.config import StartedConfig
from engine_router.config.values import expanded
from engine_router.engines.started.resources import lacks_resources, out_of_resources
from engine_router.errors import EngineStartFailed


async def open_log_file(name: str, config: StartedConfig) -> FileIO | None:
    """Open the log file, if one is configured.

    Raises:
        EngineStartFailed: it cannot be written.
    """
    if config.log_file is None:
        return None
    path = expanded(config.log_file)
    try:
        # Unbuffered: what a full disk refused once must not be refused again by the closing.
        opened = await trio.open_file(path, "ab", buffering=0)
    except OSError as error:
        if lacks_resources(error):
            raise out_of_resources(name, error) from None
        message = f"cannot be started: its log_file {path} cannot be written: {error.strerror or error}"
        raise EngineStartFailed(name, message) from None
    return opened.wrapped
