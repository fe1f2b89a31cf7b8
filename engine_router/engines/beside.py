"""Work with something else going on beside it, such as the reading of what a server writes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from engine_router.errors import EngineError

T = TypeVar("T")


async def beside(background: Callable[[], Awaitable[None]], work: Callable[[], Awaitable[T]]) -> T:
    """Do some work while something else goes on, which is cancelled at its end.

    Raises:
        EngineError: as the work raised it.
    """
    failure: EngineError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(background)
        try:
            result = await work()
        except EngineError as error:
            failure = error  # raised below: the nursery would put it into a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result
