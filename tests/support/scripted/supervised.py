"""One resident of an engine in a task of its own, held as the supervisor holds it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from engine_router.engines.base import Ended, Endpoint, Engine, Supervision
from engine_router.errors import EngineError


class SupervisedResident:
    """A call of `Engine.run_resident`, and what has come of it so far.

    Attributes:
        ready: set by `Supervision.ready`; `endpoint` is what it was given.
        over: set when `run_resident` has returned (`ended`) or raised (`error`).
    """

    def __init__(self, engine: Engine, model: str, *, adopt: bool) -> None:
        self.engine, self.resident, self.adopt = engine, engine.resident_of(model), adopt
        self.ready, self.over = trio.Event(), trio.Event()
        self.endpoint: Endpoint | None = None
        self.ended: Ended | None = None
        self.error: EngineError | None = None
        self.supervision = Supervision(self._on_ready)

    @property
    def stopped(self) -> bool:
        """Whether it ended because it was asked to."""
        return self.ended is not None and self.ended.stopped

    @property
    def died(self) -> bool:
        """Whether it ended by itself."""
        return self.ended is not None and not self.ended.stopped

    def _on_ready(self, endpoint: Endpoint) -> None:
        if self.ready.is_set():
            raise AssertionError("ready() was called twice")
        self.endpoint = endpoint
        self.ready.set()

    async def run(self) -> None:
        """Call `run_resident` and note how it went."""
        try:
            self.ended = await self.engine.run_resident(self.resident, self.supervision, adopt=self.adopt)
        except EngineError as error:
            self.error = error
        self.over.set()

    async def stop(self) -> None:
        """Ask it to end and wait until it has."""
        self.supervision.stop()
        await self.over.wait()


@asynccontextmanager
async def supervised(engine: Engine, model: str, *, adopt: bool = False) -> AsyncIterator[SupervisedResident]:
    """Begin a life now, and cancel it at the end of the block."""
    resident = SupervisedResident(engine, model, adopt=adopt)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resident.run)
        yield resident
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Wait, by looking every 5 ms, until a condition holds."""
    while not condition():
        await trio.sleep(0.005)
