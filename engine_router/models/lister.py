"""The lists of models that engines give: asked for in a task of the router's own, which belongs to no client."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import trio

from engine_router.engines.base import Engine
from engine_router.engines.first_of import first_of
from engine_router.errors import EngineError
from engine_router.events import EventHub, ResidentReady, Subscription
from engine_router.guards.limits import LISTED_MODELS
from engine_router.models.rounds import Rounds

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 30.0
TIMEOUT_S: Final = 3.0


class ModelLister:
    """A task that asks in rounds: every half minute, when a resident became ready, and when a request needs to know.

    A request waits for a round, and may leave without ending it for the others.

    Args:
        engines: returns the engines to ask, by name.
        learn: takes in the list of one; None where it did not give any.
        read_files: reads what engines' commands name, beside the asking; waited for as long as an engine.
        round_over: is told when all of them were asked.

    Attributes:
        silent: the engines that did not list anything when they were asked last.
        errors: why, for those that run but do not answer sensibly.
    """

    def __init__(
        self,
        hub: EventHub,
        engines: Callable[[], Mapping[str, Engine]],
        learn: Callable[[str, Engine, Sequence[str] | None], None],
        read_files: Callable[[], Awaitable[None]],
        round_over: Callable[[], None],
    ) -> None:
        self._engines = engines
        self._learn = learn
        self._read_files = read_files
        self._round_over = round_over
        self.silent: frozenset[str] = frozenset()
        self.errors: dict[str, str] = {}
        self._events: Subscription = hub.subscribe(ResidentReady)
        self._rounds = Rounds()
        self._cut: set[str] = set()  # engines whose lists are too long, which is logged once
        self._logged: dict[str, str] = {}  # what was logged last of each that gave none

    async def run(self) -> None:
        """Ask again and again; runs until cancelled."""
        try:
            while True:
                await self._round()
                await first_of(wanted=self._rounds.until_wanted, ready=self._until_ready, due=_pause)
        finally:
            self._rounds.close()

    async def ask(self) -> None:
        """Have a whole round begun and wait for its end. Cancellation ends only the wait."""
        await self._rounds.whole()

    async def ask_if_due(self) -> bool:
        """Wait for a round, where one is due; see `Rounds.if_due`."""
        return await self._rounds.if_due()

    async def _round(self) -> None:
        self._rounds.begin()
        async with trio.open_nursery() as nursery:
            for name, engine in self._engines().items():
                nursery.start_soon(self.ask_one, name, engine)
            with trio.move_on_after(TIMEOUT_S):
                await self._read_files()
        self._round_over()
        self._rounds.end()

    async def ask_one(self, name: str, engine: Engine) -> None:
        """Ask one engine and take in its list. Cancellation leaves what was known."""
        models, failure = None, f"did not say within {TIMEOUT_S:g} s which models it has"
        with trio.move_on_after(TIMEOUT_S):
            try:
                models, failure = await engine.list_models(), ""
            except EngineError as error:
                if self._logged.get(name) != str(
                    error
                ):  # it is asked again in seconds: told once for each change
                    logger.info("%s", error)
                self._logged[name] = str(error)
                failure = error.summary
            except Exception:
                # A defect in reading one engine's list must not end the router.
                logger.exception("engine %s: unexpected error", name)
                failure = "could not be asked, by a fault of the router's own; its log has it"
        self.errors.pop(name, None)
        if not failure:
            self._logged.pop(name, None)
        if models is not None:
            self.silent -= {name}
            self._learn(name, engine, self._within_bounds(name, models))
            return
        self.silent |= {name}
        if failure:
            self.errors[name] = failure
        self._learn(name, engine, None)

    def _within_bounds(self, name: str, models: Sequence[str]) -> Sequence[str]:
        """Return the models of a list that are to be known; says so when these are not all."""
        is_too_long = len(models) > LISTED_MODELS
        if is_too_long and name not in self._cut:
            logger.warning(
                "engine %s lists %d models; only the first %d of them are known, "
                "and what [models] in engines.toml names",
                name,
                len(models),
                LISTED_MODELS,
            )
        (self._cut.add if is_too_long else self._cut.discard)(name)
        return models[:LISTED_MODELS]

    async def _until_ready(self) -> None:
        async for _ in self._events:
            return


async def _pause() -> None:
    await trio.sleep(INTERVAL_S)
