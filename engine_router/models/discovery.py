"""Discovery: what engines list, and what their commands' files say, is taken into the registry and remembered."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import attrs
import trio
from attrs import define, field

from engine_router.config import Config, ProcessConfig
from engine_router.config.values import expanded
from engine_router.engines.base import Engine
from engine_router.guards.foreign_text import shown
from engine_router.models.last_seen import SeenModels, engine_mark
from engine_router.models.learned import Learned
from engine_router.models.registry import ModelRegistry
from engine_router.models.served_files import models_in_files
from engine_router.models.served_names import ServedModel, ServedModels

_SHOWN_IDS: Final = 5
_MOST_REPORTED: Final = 10_000


class InForce(Protocol):
    """The configuration in force, with what is derived from it."""

    @property
    def config(self) -> Config:
        """The configuration."""
        ...

    @property
    def engines(self) -> Mapping[str, Engine]:
        """Its engines, by name."""
        ...

    @property
    def registry(self) -> ModelRegistry:
        """Its models."""
        ...


class Remembered(Protocol):
    """The memory of a router between two runs, as far as it is one of lists."""

    @property
    def models(self) -> Mapping[str, SeenModels]:
        """The list that each engine gave last."""
        ...

    def set_models(self, engine: str, seen: SeenModels) -> None:
        """Remember what an engine listed."""
        ...

    def set_silent(self, engine: str) -> None:
        """Note that an engine did not list anything when it was asked last."""
        ...

    def forget_models(self, now: float) -> Sequence[str]:
        """Forget the lists that are too old. Returns whose they were."""
        ...


@define(eq=False, repr=False)
class Discovery:
    """The models that engines are found to have.

    Args:
        snapshot: returns the configuration in force.
        state: remembers lists between runs.
        learned: remembers what files say from one configuration to the next.
        note: tells the person who runs the router something.
        clock: returns seconds since the epoch.

    Attributes:
        faults: the files of engines' commands that cannot be read, by engine.
    """

    _snapshot: Callable[[], InForce]
    _state: Remembered
    _learned: Learned
    _note: Callable[[str], None]
    clock: Callable[[], float] = time.time
    faults: dict[str, str] = field(init=False, factory=dict)
    _readers: defaultdict[str, trio.CapacityLimiter] = field(
        init=False, factory=lambda: defaultdict(lambda: trio.CapacityLimiter(1))
    )
    _reported: set[tuple[str, str, str]] = field(init=False, factory=set)
    _is_news: bool = field(init=False, default=True)
    _registry: ModelRegistry | None = field(init=False, default=None)  # whose ids were compared last

    def asked(self) -> Mapping[str, Engine]:
        """Return the engines that are asked for their models, by name."""
        snapshot = self._snapshot()
        return {
            name: engine
            for name, engine in snapshot.engines.items()
            if snapshot.config.engines[name].discover
        }

    def learn(self, name: str, engine: Engine, models: Sequence[str] | None) -> None:
        """Take in what an engine lists, unless it was exchanged or taken out meanwhile.

        Args:
            models: its list; None where it gave none: then the last one stays for a while.
        """
        snapshot = self._snapshot()
        if snapshot.engines.get(name) is not engine:
            return
        if models is None:
            snapshot.registry.set_silent(name)
            self._state.set_silent(name)
            return
        before = self._state.models.get(name)
        seen = SeenModels(
            tuple(models), self.clock(), engine_mark(snapshot.config.engines[name]), is_live=True
        )
        self._is_news |= before is None or before.names != seen.names
        self._state.set_models(name, seen)
        snapshot.registry.set_listed(name, seen.names, at=seen.at)

    def round_over(self) -> None:
        """Forget lists that are too old, and tell of each id that two engines have, once."""
        registry = self._snapshot().registry
        for name in self._state.forget_models(self.clock()):
            if name in self._snapshot().engines:
                registry.forget(name)
        if self._is_news or registry is not self._registry:
            self._is_news, self._registry = False, registry
            self._tell_shadowed(registry)

    def _tell_shadowed(self, registry: ModelRegistry) -> None:
        for (owner, other), ids in registry.shadowed().items():
            new = [model for model in ids if (owner, other, model) not in self._reported]
            if not new or len(self._reported) > _MOST_REPORTED:
                continue
            self._reported.update((owner, other, model) for model in new)
            names = ", ".join(f"'{shown(model)}'" for model in new[:_SHOWN_IDS])
            more = f" and {len(new) - _SHOWN_IDS} more" if len(new) > _SHOWN_IDS else ""
            self._note(
                f"engines '{owner}' and '{other}' both serve {names}{more}: requests go to '{owner}' (configured models "
                f"first, then the order of engines.toml); to use '{other}', give its model an id of its own in [models]"
            )

    # Files that engines' commands name

    async def read_files(self) -> None:
        """Read the files in which llama.cpp's router mode finds its models. What cannot be read is told once.

        Cancellation gives up the wait; what was known stays.
        """
        config = self._snapshot().config
        registry = self._snapshot().registry
        async with trio.open_nursery() as nursery:
            for name, engine in config.engines.items():
                served = registry.served(name)
                # A folder on a network may hang: then its thread is left alone, and no second one follows it.
                is_idle = served.in_files and self._readers[name].available_tokens > 0
                if isinstance(engine, ProcessConfig) and is_idle:
                    nursery.start_soon(self._read, name, served, expanded(engine.cwd or ""))

    async def _read(self, name: str, served: ServedModels, cwd: Path) -> None:
        found = await trio.to_thread.run_sync(
            _read, served, cwd, abandon_on_cancel=True, limiter=self._readers[name]
        )
        fault = found if isinstance(found, str) else None
        if fault is not None and fault != self.faults.get(name):
            self._note(f"engine '{name}': its models are not known before it runs: {fault}")
        if fault is not None:
            self.faults[name] = fault
            return
        self.faults.pop(name, None)
        models = attrs.evolve(served, models=() if isinstance(found, str) else found)
        if models != served:
            self._is_news = True
            self._learned.served[name] = models
            self._snapshot().registry.learn_files({name: models})


def _read(served: ServedModels, cwd: Path) -> tuple[ServedModel, ...] | str:
    """Return the models, or what is wrong with their files. Blocks."""
    try:
        return models_in_files(served, cwd)
    except OSError as error:
        return f"{shown(str(error.filename))}: {error.strerror}"
    except ValueError as error:
        return shown(str(error))
