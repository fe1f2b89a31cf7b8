"""The settings in force for a model, each with where it comes from; secrets are masked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from engine_router.config import Config, EngineConfig, ModelConfig
from engine_router.config.families import MODEL
from engine_router.config.options import default_of, options_of
from engine_router.guards.masking import MASK, HiddenValues, is_secret_name, masked_argv, masked_text
from engine_router.models.target import Target
from engine_router.models.weights import model_config

_DEFAULT: Final = "default"
_FOLDER: Final = "folder"
_SCHEDULING: Final = "scheduling"
# What a model may have itself, and has from its engine where it has not.
_SHARED: Final = ("memory_gb", "group", "pinned", "evict_cost")
_ABOUT_OTHERS: Final = frozenset(("engine", "models"))


@attrs.frozen(kw_only=True)
class Setting:
    """A setting of a model.

    Attributes:
        name: of the option; that of its engine in words of its own, such as `engine.argv`.
        value: as plain data, for JSON.
        origin: where it comes from: the model, a family, its engine, a folder, `scheduling`, or the default.
    """

    name: str
    value: object
    origin: str


def settings_in_force(config: Config, target: Target) -> list[Setting]:
    """Return the settings of a model: its own, and those of its engine."""
    engine = config.engines[target.engine]
    model = config.models.get(target.variant_of or target.model) or model_config(
        config, target.engine, target.upstream
    )
    hidden = _hidden(config)
    model = model or ModelConfig(engine=target.engine)
    found = [*_of_model(model, engine), *_of_engine(engine, config)]
    return [
        attrs.evolve(setting, value=_shown(setting.name.rpartition(".")[2], setting.value, hidden))
        for setting in found
    ]


def shown_command(config: Config, command: Sequence[str]) -> list[str]:
    """Return a command without what nobody is told."""
    hidden = _hidden(config)
    return [hidden(word) for word in masked_argv(command)]


def _hidden(config: Config) -> HiddenValues:
    hidden = HiddenValues()
    hidden.add(config.hidden)
    return hidden


def _of_model(model: ModelConfig, engine: EngineConfig) -> Iterator[Setting]:
    for field in options_of(ModelConfig):
        name, value = field.name, getattr(model, field.name)
        if name in _ABOUT_OTHERS:
            continue
        if name == "set":
            for key, member in model.set.items():
                place = f"set.{key}"
                yield Setting(name=place, value=member, origin=model.givers.get(place, MODEL))
        elif value != default_of(field):
            own = _FOLDER if model.found and name in ("path", "mmproj") else MODEL
            yield Setting(name=name, value=value, origin=model.givers.get(name, own))
        elif name in _SHARED:
            yield _given(name, getattr(engine, name), type(engine), "engine")
        else:
            yield Setting(name=name, value=value, origin=_DEFAULT)


def _of_engine(engine: EngineConfig, config: Config) -> Iterator[Setting]:
    for field in options_of(type(engine)):
        if field.name in _SHARED or field.name in _ABOUT_OTHERS:
            continue
        place = f"engine.{field.name}"
        if field.name == "idle_timeout_s" and engine.idle_timeout_s is None:
            scheduling = config.scheduling
            found = _given(field.name, scheduling.idle_timeout_s, type(scheduling), _SCHEDULING)
        else:
            found = _given(field.name, getattr(engine, field.name), type(engine), "engine")
        yield attrs.evolve(found, name=place)


def _given(name: str, value: object, cls: type[Any], place: str) -> Setting:
    """Return a setting that comes from a table, unless it is the default."""
    default = default_of(attrs.fields_dict(cls)[name])
    return Setting(name=name, value=value, origin=_DEFAULT if value == default else place)


def _shown(name: str, value: object, hidden: HiddenValues) -> object:
    """Return a value as plain data that may be shown."""
    if attrs.has(type(value)):
        fields = attrs.asdict(value, recurse=False)  # type: ignore[arg-type]
        return {key: _shown(key, inner, hidden) for key, inner in fields.items()}
    if isinstance(value, Mapping):
        is_private = name == "headers"
        return {
            key: MASK if is_private or is_secret_name(key) else _shown(key, inner, hidden)
            for key, inner in value.items()
        }
    if isinstance(value, (tuple, list)):
        if all(isinstance(word, str) for word in value):
            return [hidden(word) for word in masked_argv(value)]
        return [_shown(name, inner, hidden) for inner in value]
    if isinstance(value, str):
        return MASK if is_secret_name(name) else hidden(masked_text(value))
    return value
