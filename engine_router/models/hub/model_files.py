"""The files of a model, by whatever name: what goes when it is removed, and which other models use them. Blocks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from engine_router.config import Config
from engine_router.config.values import expanded
from engine_router.errors import HubError
from engine_router.guards.foreign_text import shown
from engine_router.models.hub.names import FileUrl, is_hub_name, parse_name
from engine_router.models.hub.removal import Removal, plan_file_removal, plan_hub_removal
from engine_router.models.hub.settings import HubSettings
from engine_router.models.weights import launch_of


def names_download(name: str) -> bool:
    """Tell whether a name is that of a download, and not of a model that an engine serves."""
    return is_hub_name(name) or name.lower().startswith(("hf:", "http://", "https://"))


def plan_download_removal(name: str, settings: HubSettings) -> Removal:
    """Return what goes with a model that is named as it was downloaded.

    Raises:
        BadRequest: it is no such name.
        HubError: it is not there.
    """
    parsed = parse_name(name, endpoint=settings.endpoint)
    if isinstance(parsed, FileUrl):
        return plan_file_removal(str(parsed), settings.url_folder / parsed.name)
    return plan_hub_removal(settings.cache, parsed)


def plan_model_removal(config: Config, model: str, *, engine: str, upstream: str) -> Removal:
    """Return what goes with a model that an engine serves.

    Args:
        upstream: the name that the engine knows it by.

    Raises:
        HubError: its files are not known here, or not there.
    """
    path = launch_of(config, engine, upstream).path
    if path is None:
        raise HubError(
            f"the files of model '{shown(model)}' are not known here: engine '{engine}' has them, not the configuration"
        )
    own = config.models.get(model)
    projector = None if own is None or own.mmproj is None else expanded(own.mmproj)
    return plan_file_removal(model, path, projector)


def users_of(removal: Removal, config: Config) -> list[str]:
    """Return the models that are started by files that go."""
    going = {_located(file) for file in (*removal.files, *removal.blobs)}
    going.update([folder for file in going for folder in file.parents])
    return [
        model for model, path in _paths(config) if not going.isdisjoint((_located(path), _contents(path)))
    ]


def _located(path: Path) -> Path:
    """Return where a file is, or a link itself: without links among its folders."""
    return _contents(path.parent) / path.name


def _contents(path: Path) -> Path:
    return Path(
        os.path.realpath(path)
    )  # unlike `Path.resolve`, it raises nothing where links lead in a circle


def _paths(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield the models of which the configuration says where they are."""
    for name, model in config.models.items():
        if model.path is not None:
            yield name, expanded(model.path)
    for engine, settings in config.engines.items():
        for name in settings.models:
            own = config.models.get(name)
            if (own is None or own.path is None) and (
                path := launch_of(config, engine, name).path
            ) is not None:
                yield name, path
