"""The models that commands without placeholders serve: so that a scan does not list them once more."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen

from engine_router.config import Config, ProcessConfig, is_template
from engine_router.config.values import expanded
from engine_router.engines.command_options import model_options
from engine_router.models.scan import FoundModel
from engine_router.models.served_names import served_models


@frozen
class FixedModels:
    """What commands name: files and folders by their whole paths, and names of repositories."""

    paths: frozenset[str] = frozenset()
    repositories: frozenset[str] = frozenset()

    def __or__(self, other: FixedModels) -> FixedModels:
        return FixedModels(self.paths | other.paths, self.repositories | other.repositories)

    def have(self, found: FoundModel) -> bool:
        """Tell whether a command serves what was found."""
        names = (found.name, *found.aliases)
        return str(found.path) in self.paths or any(name.lower() in self.repositories for name in names)


def fixed_models(argv: Sequence[str], env: Mapping[str, str], cwd: str | None) -> FixedModels:
    """Return what one command serves. Looks at nothing but its words.

    Args:
        cwd: the folder in which it runs; None where that is not known.
    """
    word = model_options(argv).model
    paths = set[str]()
    if word is not None:
        path = (Path() if cwd is None else expanded(cwd)) / expanded(word)
        if path.is_absolute():
            paths.add(os.path.normpath(path))
    repositories = {
        served.upstream.lower() for served in served_models(argv, env).models if "/" in served.upstream
    }
    return FixedModels(frozenset(paths), frozenset(repositories))


def fixed_models_of(config: Config) -> FixedModels:
    """Return what all commands of a configuration serve that are no templates."""
    found = FixedModels()
    for engine in config.engines.values():
        if isinstance(engine, ProcessConfig) and not is_template(engine):
            found |= fixed_models(engine.argv, engine.env, engine.cwd)
    return found
