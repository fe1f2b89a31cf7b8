"""Found models: what a scan looks for on behalf of a configuration, and the configuration with what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import attrs

from engine_router.config import Config, EngineConfig, ModelConfig, StartedConfig, SystemdConfig, is_template
from engine_router.config.families import with_family
from engine_router.config.values import expanded
from engine_router.engines.command_options import model_options
from engine_router.models.fixed_models import fixed_models_of
from engine_router.models.scan import Format, FoundModel, ScanRequest

# The programs that read folders of safetensors; all others read GGUF files.
_READ_SAFETENSORS: Final = frozenset(("vLLM", "SGLang", "MLX", "MAX", "transformers", "infinity"))


def scan_requests(config: Config) -> tuple[ScanRequest, ...]:
    """Return what is to be looked for: one request for each engine with `scan`, in the configuration's order."""
    return tuple(
        ScanRequest(engine=name, places=engine.scan, formats=formats_of(engine))
        for name, engine in config.engines.items()
        if isinstance(engine, StartedConfig) and engine.scan
    )


def formats_of(engine: StartedConfig) -> frozenset[Format]:
    """Return the formats that a template reads: those that are configured, else those of its program."""
    if engine.scan_formats:
        return frozenset(engine.scan_formats)
    reads_folders = model_options(engine.argv).kind.name in _READ_SAFETENSORS
    return frozenset(("safetensors",) if reads_folders else ("gguf",))


def taken_names(config: Config) -> frozenset[str]:
    """Return the names that mean something in the file already, and so no found model."""
    names: set[str] = set(config.aliases)
    for engine in config.engines.values():
        names.update(engine.models)
    for name, model in config.models.items():
        if not model.found:
            names.update((name, *model.aliases))
    return frozenset(names)


def served_by_file(config: Config) -> Callable[[FoundModel], bool]:
    """Return what tells whether the configuration's file has a found model already.

    The same engine serves its file under a name of the file's own, or the command or the unit of another engine does.
    """
    written = [model for model in config.models.values() if not model.found and model.path is not None]
    own = {(model.engine, expanded(model.path or "")) for model in written}
    units = {expanded(model.path or "") for model in written if _is_one_unit(config.engines[model.engine])}
    fixed = fixed_models_of(config)
    return lambda one: (one.engine, one.path) in own or one.path in units or fixed.have(one)


def _is_one_unit(engine: EngineConfig) -> bool:
    """Tell whether an engine is a unit that always serves the same models."""
    return isinstance(engine, SystemdConfig) and not is_template(engine)


def with_found(config: Config, found: Iterable[FoundModel]) -> Config:
    """Return a configuration with the models that were found, and no others of that kind.

    The file counts more: a model is left out whose engine does not look for any now, and one that the file has already.
    """
    written = {name: model for name, model in config.models.items() if not model.found}
    scanned = {request.engine for request in scan_requests(config)}
    taken, is_served = taken_names(config), served_by_file(config)
    models: dict[str, ModelConfig] = dict(written)
    for one in found:
        if one.engine in scanned and one.name not in taken and not is_served(one):
            models[one.name] = with_family(one.name, _as_model(one, taken), config.families)
    return attrs.evolve(config, models=models)


def _as_model(one: FoundModel, taken: frozenset[str]) -> ModelConfig:
    return ModelConfig(
        engine=one.engine,
        path=str(one.path),
        mmproj=None if one.mmproj is None else str(one.mmproj),
        other_names=tuple(alias for alias in one.aliases if alias not in taken),
        found=True,
    )


def moved(before: Mapping[str, ModelConfig], after: Mapping[str, ModelConfig]) -> list[tuple[str, str]]:
    """Return the engine and name of each found model that is gone, or has other files or words than before."""
    return [
        (model.engine, name)
        for name, model in before.items()
        if model.found and _start(model) != _start(after.get(name))
    ]


def _start(model: ModelConfig | None) -> object:
    return model and (model.engine, model.path, model.mmproj, model.context_length, model.args)
