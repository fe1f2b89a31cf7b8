"""The wait for the first of several things."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


async def first_of(**waits: Callable[[], Awaitable[object]]) -> str:
    """Wait for several things at once and return the name of the first that finished; the others are cancelled.

    When two finish in the same step, the one named first wins. A wait must not raise: whatever it raises
    arrives in an exception group. Cancellation cancels all of them.
    """
    finished: set[str] = set()

    async def run(name: str, wait: Callable[[], Awaitable[object]], scope: trio.CancelScope) -> None:
        await wait()
        finished.add(name)
        # One step more, so that who is about to finish in this one does, instead of being cancelled.
        await trio.lowlevel.cancel_shielded_checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for name, wait in waits.items():
            nursery.start_soon(run, name, wait, nursery.cancel_scope)
    return next(name for name in waits if name in finished)
