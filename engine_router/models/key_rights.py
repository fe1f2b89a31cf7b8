"""The models that a key may use and see."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from fnmatch import translate

from engine_router.config import KeyConfig
from engine_router.guards.limits import REMEMBERED_PATTERNS
from engine_router.models.target import LATEST, Target

MayUse = Callable[[Target], bool]
"""Tells whether whoever asks may use and see a model."""


def may_use(key: KeyConfig | None, target: Target) -> bool:
    """Tell whether a key may use a model: where one of the model's names, in upper or lower case, is among its own.

    A model that costs money has to be named in full: no wildcard means it.

    Args:
        key: None for one who may do everything.
    """
    if key is None or key.models is None:
        return True
    matches = _pattern(key.models).match
    return any(name in key.models or (not target.is_paid and matches(name)) for name in _names(target))


def _names(target: Target) -> Iterator[str]:
    """Yield the names of a model, each with and without the tag that Ollama adds by default."""
    base = (target.variant_of,) if target.variant_of else ()
    for name in (target.model, *target.aliases, *base):
        yield name
        yield name.removesuffix(LATEST) if name.endswith(LATEST) else name + LATEST


@functools.lru_cache(REMEMBERED_PATTERNS)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, names)) or "(?!)", re.IGNORECASE)
