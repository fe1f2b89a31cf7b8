"""The warnings about remotes: what costs money without being asked for by name, and keys that are not safe on their way."""

from __future__ import annotations

from collections.abc import Iterator

from engine_router.config import AnyEngineConfig, Config, RemoteConfig, rights_of
from engine_router.config.faults import quoted
from engine_router.config.peers import place_of
from engine_router.config.preload import owners_of
from engine_router.config.remote import is_near
from engine_router.config.routes import models_of
from engine_router.config.values import expanded, shown
from engine_router.models.name_warnings import Warned

_PATTERN = frozenset("*?[")


def remote_warnings(config: Config) -> Iterator[Warned]:
    """Yield the warnings, as (place in the file, words)."""
    remotes = {name: e for name, e in config.engines.items() if isinstance(e, RemoteConfig)}
    for name, remote in remotes.items():
        yield from _address_warnings(place_of(name, remote), remote)
    for model_id, model in config.models.items():
        given = (model.pools, model.memory_gb, model.group, model.pinned, model.evict_cost)
        if model.engine in remotes and any(given):
            yield (
                f"models.{quoted(model_id)}",
                "pools, memory_gb, group, pinned and evict_cost are without effect: it is a remote's",
            )
    if config.paid_engines:
        yield from _cost_warnings(config)


def _address_warnings(place: str, remote: RemoteConfig) -> Iterator[Warned]:
    if remote.api_key is not None and remote.base_url.startswith("http:") and not is_near(remote.base_url):
        yield f"{place}.base_url", "its key goes over http, where others on the way can read it; use https"
    if remote.ca_file is not None and not expanded(remote.ca_file).is_file():
        yield f"{place}.ca_file", f"there is no file {expanded(remote.ca_file)}"


def _cost_warnings(config: Config) -> Iterator[Warned]:
    """Yield the ways to what costs money, and what is none, though it looks like one."""
    owners = owners_of(config.engines, config.models, config.aliases)

    def is_paid(name: str | None) -> bool:
        return name is not None and owners.get(name) in config.paid_engines

    default = config.server.default_model
    if default is not None and is_paid(default):
        owner = config.engines[owners[default]]
        allowed = isinstance(owner, RemoteConfig) and owner.allow_default
        yield (
            "server.default_model",
            f"every request without a model goes to {shown(default)}, which costs money"
            if allowed
            else f"{shown(default)} costs money, so no request without a model goes there; allow_default = true of its engine "
            "lets them",
        )
    for alias, model in config.aliases.items():
        if is_paid(model):
            yield f"aliases.{quoted(alias)}", f"whoever asks for it gets {shown(model)}, which costs money"
    for name, route in config.routes.items():
        for model in filter(is_paid, models_of(route)):
            yield (
                f"routes.{quoted(name)}",
                f"whoever asks for it may get {shown(model)}, which costs money"
                if route.allow_paid
                else f"{shown(model)} costs money, so it is never chosen; allow_paid = true lets it be",
            )
    for key in rights_of(config.server.api_keys):
        if key.models is not None and any(_PATTERN.intersection(name) for name in key.models):
            named = set(key.models)
            if any(engine in config.paid_engines and model not in named for model, engine in owners.items()):
                words = "no wildcard means a model that costs money: name those that it may use"
                yield f"server.api_keys ({key.name})", words


def are_remotes(*engines: AnyEngineConfig) -> bool:
    """Tell whether all of some engines are remotes, which may well share a host."""
    return all(isinstance(engine, RemoteConfig) for engine in engines)
