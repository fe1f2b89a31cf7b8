"""Masking of engines: neither their secrets nor what the configuration took from the environment is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import attrs
from attrs import define

from engine_router.config import (
    ConfigFileConfig,
    ContainerConfig,
    EngineConfig,
    HttpConfig,
    OllamaConfig,
    PeerConfig,
    ProcessConfig,
    StartedConfig,
    SystemdConfig,
)
from engine_router.config.filled import leaves
from engine_router.engines.base import Ended, Engine, EngineLogs, LogRing, ResidentId, Supervision
from engine_router.errors import EngineError, RouterError
from engine_router.guards.masking import HiddenValues, Mask, mask_of, own_environment


def engine_mask(config: EngineConfig) -> Mask:
    """Return what takes an engine's secrets out of its words: those of its configuration and of its environment."""
    return mask_of(commands=list(_commands(config)), settings=[config.headers, *_settings(config)])


def _commands(config: EngineConfig) -> Iterator[Sequence[str]]:
    match config:
        case ProcessConfig():
            yield config.argv
            yield config.stop_command or ()
            yield config.kill_command or ()
        case ContainerConfig():
            yield config.argv
        case OllamaConfig():
            yield config.stop_command or ()
        case PeerConfig():
            yield config.suspend_command or ()
        case SystemdConfig():
            yield config.prefix or ()
            if config.drop_in is not None:
                yield config.drop_in.exec_start or ()


def _settings(config: EngineConfig) -> Iterator[Mapping[str, str]]:
    match config:
        case ProcessConfig():
            yield own_environment()
            yield config.env
            yield from _file_settings(config.config_file)
        case ContainerConfig():
            yield config.env
            yield from _file_settings(config.config_file)
        case SystemdConfig():
            yield from _file_settings(config.config_file)
            if config.drop_in is not None:
                yield config.drop_in.env
        case HttpConfig():
            yield config.unload.headers
            if config.load is not None:
                yield config.load.headers
    if isinstance(config, (StartedConfig, HttpConfig, SystemdConfig)) and config.sleep is not None:
        yield config.sleep.headers


def _file_settings(config: ConfigFileConfig | None) -> Iterator[Mapping[str, str]]:
    """Yield the texts that are set in a configuration file, each by its last key."""
    if config is not None:
        yield {keys[-1]: value for keys, value in leaves(config.set) if isinstance(value, str)}


@define(eq=False, repr=False)
class MaskedEngine:
    """An engine without hidden values in its log, its errors and its findings.

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
        with self._hiding():
            ended = await self.engine.run_resident(resident, supervision, adopt=adopt)
        log_tail = tuple(map(self._hidden, ended.log_tail))
        return attrs.evolve(ended, message=self._hidden(ended.message), log_tail=log_tail)

    async def check(self, resident: ResidentId, *, used: bool = False) -> str | None:
        """See `Engine.check`."""
        with self._hiding():
            found = await self.engine.check(resident, used=used)
        return None if found is None else self._hidden(found)

    async def obstacle(self, resident: ResidentId) -> str | None:
        """See `Engine.obstacle`."""
        with self._hiding():
            found = await self.engine.obstacle(resident)
        return None if found is None else self._hidden(found)

    async def find(self) -> Sequence[ResidentId]:
        """See `Engine.find`."""
        with self._hiding():
            return await self.engine.find()

    async def list_models(self) -> Sequence[str] | None:
        """See `Engine.list_models`."""
        with self._hiding():
            return await self.engine.list_models()

    @contextlib.contextmanager
    def _hiding(self) -> Iterator[None]:
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
