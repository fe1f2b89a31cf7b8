"""Variants: more names of a model, each with changes of its own in requests. They share the model's resident."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from engine_router.config.faults import Fault, quoted
from engine_router.config.kinds import JsonValue, ModelName, Name
from engine_router.config.options import option, table
from engine_router.config.values import shown

if TYPE_CHECKING:
    from engine_router.config.model import ModelConfig


@frozen(kw_only=True, repr=False)
class VariantConfig:
    """`[models."ID".variants.NAME]`: the model under the name `ID:NAME`, asked with other settings of its requests."""

    set: Mapping[str, JsonValue] = table(dict, "As for the model; over the model's own.")
    defaults: Mapping[str, JsonValue] = table(dict, "As for the model; over the model's own.")
    strip: tuple[Name, ...] = option((), "As for the model; added to the model's own.")
    aliases: tuple[ModelName, ...] = option((), "Other names that clients may use for it.")
    unlisted: bool = option(False, "Hidden from model lists, but served to requests that name it.")


@frozen(kw_only=True)
class Variant:
    """A variant of a model.

    Attributes:
        of: the model's id.
    """

    of: str
    config: VariantConfig


def variants_of(models: Mapping[str, ModelConfig]) -> dict[str, Variant]:
    """Return the variants of all models, by their names."""
    return {
        f"{name}:{variant}": Variant(of=name, config=config)
        for name, model in models.items()
        for variant, config in model.variants.items()
    }


def variant_faults(models: Mapping[str, ModelConfig], owners: dict[str, str]) -> Iterator[Fault]:
    """Yield each variant whose name means something else already; note in `owners` where each name was found."""
    for model_id, model in models.items():
        for variant in model.variants:
            name, place = f"{model_id}:{variant}", f"models.{quoted(model_id)}.variants.{quoted(variant)}"
            if variant == "latest":
                yield (
                    place,
                    'may not be called "latest": Ollama\'s clients add that to the name of every model',
                )
            elif name in owners:
                yield place, f"{shown(name)} is the id of a model already: see {owners[name]}"
            owners.setdefault(name, place)
