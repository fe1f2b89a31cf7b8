"""Engines that tell nothing of what the configuration took from the environment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import attrs
from attrs import define

from engine_router.engines.base import Ended, Engine, EngineLogs, LogRing, ResidentId, Supervision
from engine_router.errors import EngineError, RouterError
from engine_router.guards.masking import HiddenValues


@define(eq=False)
class MaskedEngine:
    """An engine whose words, in its log, its errors and its findings, are told without hidden values.

    Attributes:
        engine: the engine itself.
    """

    engine: Engine
    _hidden: HiddenValues

    def __attrs_post_init__(self) -> None:
        self.engine.logs.hide(self._hidden)

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return self.engine.name

    @property
    def logs(self) -> EngineLogs:
        """See `Engine.logs`."""
        return self.engine.logs

    @property
    def log(self) -> LogRing:
        """The engine's own log."""
        return self.logs.engine

    def resident_of(self, model: str) -> ResidentId:
        """See `Engine.resident_of`."""
        return self.engine.resident_of(model)

    def command(self, resident: ResidentId) -> Sequence[str] | None:
        """See `Engine.command`."""
        return self.engine.command(resident)

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        """See `Engine.run_resident`."""
        with self._discreet():
            ended = await self.engine.run_resident(resident, supervision, adopt=adopt)
        log_tail = tuple(map(self._hidden, ended.log_tail))
        return attrs.evolve(ended, message=self._hidden(ended.message), log_tail=log_tail)

    async def check(self, resident: ResidentId, *, used: bool = False) -> str | None:
        """See `Engine.check`."""
        with self._discreet():
            found = await self.engine.check(resident, used=used)
        return None if found is None else self._hidden(found)

    async def obstacle(self, resident: ResidentId) -> str | None:
        """See `Engine.obstacle`."""
        with self._discreet():
            found = await self.engine.obstacle(resident)
        return None if found is None else self._hidden(found)

    async def find(self) -> Sequence[ResidentId]:
        """See `Engine.find`."""
        with self._discreet():
            return await self.engine.find()

    async def list_models(self) -> Sequence[str] | None:
        """See `Engine.list_models`."""
        with self._discreet():
            return await self.engine.list_models()

    @contextlib.contextmanager
    def _discreet(self) -> Iterator[None]:
        """Hide the values in the errors of a block."""
        try:
            yield
        except RouterError as error:
            error.message = self._hidden(error.message)
            error.args = (error.message,)
            if isinstance(error, EngineError):
                error.summary = self._hidden(error.summary)
                error.log_tail = tuple(map(self._hidden, error.log_tail))
            raise
