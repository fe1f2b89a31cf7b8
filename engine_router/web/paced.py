"""Long lists, made in pieces between which other tasks get their turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeVar

import trio

T = TypeVar("T")

_BATCH: Final = 100


async def paced(items: Sequence[T]) -> AsyncIterator[T]:
    """Yield items, with a checkpoint after each hundred of them."""
    for number, item in enumerate(items, start=1):
        yield item
        if number % _BATCH == 0:
            await trio.lowlevel.checkpoint()
