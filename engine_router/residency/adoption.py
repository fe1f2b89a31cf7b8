"""What runs already when the router starts: found, and taken over as far as its memory has room for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import trio

from engine_router.engines.base import Engine, ResidentId
from engine_router.errors import EngineError

logger = logging.getLogger(__name__)

# Seconds that one engine may take to say what it has running.
ADOPTION_TIMEOUT_S = 5.0


async def find_running(
    engines: Mapping[str, Engine], notice: Callable[[str], None]
) -> dict[str, list[ResidentId]]:
    """Ask every engine what it has running. Returns that by the engine's name, in the order of the engines.

    Args:
        engines: by name.
        notice: told of those that could not be asked; what they have running is not taken over.
    """
    found: dict[str, list[ResidentId]] = {name: [] for name in engines}

    async def look(engine: Engine) -> None:
        found[engine.name].extend(await _find(engine, notice))

    async with trio.open_nursery() as nursery:
        for engine in engines.values():
            nursery.start_soon(look, engine)
    return found


async def _find(engine: Engine, notice: Callable[[str], None]) -> Sequence[ResidentId]:
    with trio.move_on_after(ADOPTION_TIMEOUT_S):
        try:
            return await engine.find()
        except EngineError as error:
            notice(f"{error}; whatever it has running is not taken over")
            return ()
        except Exception as error:
            logger.exception("engine %s: unexpected error", engine.name)
            notice(f"engine '{engine.name}': {error!r}; whatever it has running is not taken over")
            return ()
    notice(f"engine '{engine.name}' did not say within {ADOPTION_TIMEOUT_S:g} s what it has running")
    return ()
