"""Faults of what a model fills in besides a command: configuration files, drop-ins and units, which models take in turns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from engine_router.config.any_engine import AnyEngineConfig
from engine_router.config.engine_tables import ConfigFileConfig, DropInConfig
from engine_router.config.engines import ProcessConfig, StartedConfig, SystemdConfig
from engine_router.config.faults import Fault, quoted
from engine_router.config.filled import filled_words, format_of, leaves, unit_name
from engine_router.config.model import ModelConfig
from engine_router.config.pools import PoolConfig
from engine_router.config.template import NO_ARGUMENTS, ModelArguments, is_template
from engine_router.config.values import shown

_MODELS_OWN: Final = re.compile(r"\{(?:model|path|mmproj|ctx|args)\}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PREFIXES: Final = "@-:+!"
_UNIT_CHARS: Final = 255


def turn_faults(
    name: str, engine: AnyEngineConfig, models: Mapping[str, ModelConfig], pool: PoolConfig
) -> Iterator[Fault]:
    """Yield what is wrong with an engine's `config_file`, `drop_in` and `unit`, and with what models share there.

    Args:
        pool: whose memory the engine uses.
    """
    if not isinstance(engine, (StartedConfig, SystemdConfig)):
        return
    path = f"engines.{quoted(name)}"
    if engine.config_file is not None:
        yield from _file_faults(engine.config_file, f"{path}.config_file")
    if isinstance(engine, SystemdConfig):
        yield from _unit_faults(name, engine, models)
        if engine.drop_in is not None:
            yield from _drop_in_faults(engine.drop_in, f"{path}.drop_in", scope=engine.scope)
    if _take_turns(engine):
        yield from _sharing_faults(name, engine, models, pool)


def _take_turns(engine: StartedConfig | SystemdConfig) -> bool:
    """Tell whether the models of an engine use one thing, so that no two of them can be there at a time."""
    return is_template(engine) and (isinstance(engine, SystemdConfig) or engine.config_file is not None)


def _sharing_faults(
    name: str, engine: StartedConfig | SystemdConfig, models: Mapping[str, ModelConfig], pool: PoolConfig
) -> Iterator[Fault]:
    path = f"engines.{quoted(name)}"
    shared = "config_file" if isinstance(engine, StartedConfig) else "base_url"
    if pool.mode == "budget" and pool.max_resident != 1:
        yield (
            f"{path}.pool",
            f'its models take turns, as they share its {shared}: use a pool with mode = "exclusive" or max_resident = 1',
        )
    if engine.group is not None:
        yield f"{path}.group", f"not allowed: its models take turns, as they share its {shared}"
    for model_id, model in models.items():
        if model.engine == name and model.group is not None:
            yield (
                f"models.{quoted(model_id)}.group",
                f"not allowed: the models of engine {shown(name)} take turns, as they share its {shared}",
            )
    if engine.sleep is not None and engine.base_url is not None:
        yield (
            f"{path}.sleep",
            "not allowed: its models share its base_url, and one that sleeps would keep the others from it",
        )


def _file_faults(config: ConfigFileConfig, path: str) -> Iterator[Fault]:
    if format_of(config) is None:
        yield (
            f"{path}.format",
            'missing; the name of the file does not tell whether it is "yaml", "toml" or "json"',
        )
    if found := _MODELS_OWN.search(config.path):
        yield (
            f"{path}.path",
            f"{found[0]} is not filled in: it is one file for all models; with one for each, put {{path}} into argv",
        )
    if not config.set:
        yield f"{path}.set", 'empty; name what is to be set, such as "model.model_name" = "{model}"'
    paths = [keys for keys, _ in leaves(config.set)]
    for key in config.set:
        if "" in key.split("."):
            yield f"{path}.set.{quoted(key)}", "expected names with single dots between them"
    for keys in dict.fromkeys(paths):
        if any(other[: len(keys)] == keys for other in paths if other != keys) or paths.count(keys) > 1:
            yield f"{path}.set", f"{shown('.'.join(keys))} is set twice"
    if any("{args}" in word for word in filled_words(_only(config))):
        yield f"{path}.set", "{args} is filled in within a command only"


def _only(config: ConfigFileConfig) -> ProcessConfig:
    return ProcessConfig(argv=(), config_file=config)


def _unit_faults(name: str, engine: SystemdConfig, models: Mapping[str, ModelConfig]) -> Iterator[Fault]:
    path = f"engines.{quoted(name)}"
    found = _MODELS_OWN.search(engine.unit)
    if found and found[0] not in ("{model}", "{path}"):
        yield f"{path}.unit", f"{found[0]} is not filled in here; {{model}} and {{path}} are"
    elif found and "@" not in engine.unit[: found.start()]:
        stem = engine.unit[: found.start()].rstrip("-_.") or "vllm"
        yield (
            f"{path}.unit",
            f"{found[0]} makes an instance of a template unit: write {stem}@{found[0]}.service",
        )
    words = list(filled_words(engine))
    if any("{port}" in word for word in words):
        yield f"{path}", "{port} is not filled in for a unit; it has to listen at base_url"
    if not is_template(engine):
        loose = next((one[0] for one in map(_MODELS_OWN.search, words) if one), None)
        if loose is not None and (found is None or loose != found[0]):
            yield (
                path,
                f"{loose} is filled in only beside {{model}} or {{path}}, which start it once for each model",
            )
        return
    if any("{path}" in word for word in words):
        yield from _missing_paths(name, engine, models)
    yield from _long_names(name, engine, models)
    if engine.drop_in is None or engine.drop_in.exec_start is None:
        for model_id, model in models.items():
            if model.engine == name and model.args:
                yield (
                    f"models.{quoted(model_id)}.args",
                    f"without effect: engine {shown(name)} has no drop_in with exec_start that could take them",
                )


def _long_names(name: str, engine: SystemdConfig, models: Mapping[str, ModelConfig]) -> Iterator[Fault]:
    """Yield the models for which systemd would not take the name of the unit."""
    own = {key: model for key, model in models.items() if model.engine == name}
    values = {key: ModelArguments.of(model).values(model.upstream or key) for key, model in own.items()}
    values |= {key: NO_ARGUMENTS.values(key) for key in engine.models if key not in own}
    for key, filled in values.items():
        if len(unit_name(engine.unit, filled)) > _UNIT_CHARS:
            yield (
                f"engines.{quoted(name)}.unit",
                f"too long for systemd with {shown(key)} in it: at most {_UNIT_CHARS} characters, escaped",
            )


def _missing_paths(name: str, engine: SystemdConfig, models: Mapping[str, ModelConfig]) -> Iterator[Fault]:
    for model in engine.models:
        if model not in models:
            yield (
                f"engines.{quoted(name)}.models",
                f"{shown(model)} has no path; add [models.{quoted(model)}] with its path",
            )
    for model_id, config in models.items():
        if config.engine == name and config.path is None:
            yield f"models.{quoted(model_id)}.path", f"missing; engine {shown(name)} asks for {{path}}"


def _drop_in_faults(config: DropInConfig, path: str, *, scope: str) -> Iterator[Fault]:
    if not config.env and config.exec_start is None:
        yield path, "empty; give it env or exec_start"
    if config.folder == "config" and scope == "system":
        yield (
            f"{path}.folder",
            'not allowed with scope = "system": the router puts nothing into /etc; use "run"',
        )
    for key, value in config.env.items():
        if not _VARIABLE.fullmatch(key):
            yield f"{path}.env.{quoted(key)}", "expected the name of a variable: letters, digits and _"
        if "{args}" in value:
            yield f"{path}.env.{quoted(key)}", "{args} is filled in within a command only"
    if config.exec_start and config.exec_start[0][:1] in _PREFIXES:
        yield (
            f"{path}.exec_start",
            f"expected a program, got {shown(config.exec_start[0])}; write its full path",
        )
