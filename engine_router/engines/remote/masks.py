"""What each kind of engine is given of secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from engine_router.config import EngineConfig, HttpConfig, OllamaConfig, ProcessConfig, SystemdConfig
from engine_router.guards.masking import Mask, mask_of, own_environment


def engine_mask(config: EngineConfig) -> Mask:
    """Return what takes an engine's secrets out of its words: those of its configuration and of its environment."""
    return mask_of(commands=list(_commands(config)), settings=[config.headers, *_settings(config)])


def _commands(config: EngineConfig) -> Iterator[Sequence[str]]:
    match config:
        case ProcessConfig():
            yield config.argv
            yield config.stop_command or ()
            yield config.kill_command or ()
        case OllamaConfig():
            yield config.stop_command or ()
        case SystemdConfig():
            yield config.prefix or ()


def _settings(config: EngineConfig) -> Iterator[Mapping[str, str]]:
    match config:
        case ProcessConfig():
            yield own_environment()
            yield config.env
        case HttpConfig():
            yield config.unload.headers
            if config.load is not None:
                yield config.load.headers
    if isinstance(config, (ProcessConfig, HttpConfig, SystemdConfig)) and config.sleep is not None:
        yield config.sleep.headers
