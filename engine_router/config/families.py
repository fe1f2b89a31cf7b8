"""Families: settings for every model whose name matches, so that a folder of models needs no table for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import attrs

from engine_router.config.any_engine import AnyEngineConfig
from engine_router.config.model import FamilyConfig, ModelConfig, ModelSettings
from engine_router.config.options import default_of, options_of

_ADDED = ("args", "strip")
_MERGED = ("set", "defaults", "reasoning_effort", "variants")

MODEL: Final = "model"
"""Where a setting comes from that a model has itself."""


def with_families(
    models: Mapping[str, ModelConfig],
    families: Mapping[str, FamilyConfig],
    engines: Mapping[str, AnyEngineConfig],
) -> dict[str, ModelConfig]:
    """Return the models with the settings of their families; those that engines name gain an entry of their own."""
    named = {model: name for name, engine in [*engines.items()][::-1] for model in engine.models}
    whole = dict(models)
    for name, engine in named.items():
        if name not in whole and any(matches(family, name, ()) for family in families.values()):
            whole[name] = ModelConfig(engine=engine)
    return {name: with_family(name, model, families) for name, model in whole.items()}


def with_family(name: str, model: ModelConfig, families: Mapping[str, FamilyConfig]) -> ModelConfig:
    """Return a model with the settings of all families that it belongs to.

    What the model has itself counts most, then the family that stands last in the file. `args` and `strip` are
    joined, those of the families first; so are tables such as `set`, member by member.
    """
    own = {
        place: family
        for place, family in families.items()
        if matches(family, name, (*model.aliases, *model.other_names))
    }
    if not own:
        return model
    values, givers = _joined([*own.values(), model], [*(f"family {place}" for place in own), MODEL])
    return attrs.evolve(model, **values, givers=givers)


def matches(family: FamilyConfig, name: str, aliases: tuple[str, ...]) -> bool:
    """Tell whether a model belongs to a family by one of its names; upper and lower case are the same."""
    return named_by(family.match, (name, *aliases))


def named_by(patterns: Iterable[str], names: Iterable[str]) -> bool:
    """Tell whether one of some names matches one of some patterns; upper and lower case are the same."""
    known = [name.lower() for name in names]
    return any(fnmatchcase(name, pattern.lower()) for pattern in patterns for name in known)


def _joined(sources: Sequence[ModelSettings], places: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return each setting, of the last source that says something, and which that was."""
    values: dict[str, Any] = {}
    givers: dict[str, str] = {}
    for field in options_of(ModelSettings):
        default = default_of(field)
        said = [
            (place, value)
            for place, source in zip(places, sources, strict=True)
            if (value := getattr(source, field.name)) != default
        ]
        if field.name in _ADDED:
            values[field.name] = tuple(word for _, words in said for word in words)
            givers[field.name] = ", ".join(place for place, _ in said)
        elif field.name in _MERGED:
            values[field.name] = {key: value for _, members in said for key, value in members.items()}
            givers.update({f"{field.name}.{key}": place for place, members in said for key in members})
        else:
            values[field.name] = said[-1][1] if said else default
            givers[field.name] = said[-1][0] if said else ""
    return values, {name: place for name, place in givers.items() if place}
