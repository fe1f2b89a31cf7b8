"""Registry of models: by each name that a client may send, the engine, the resident, and the name that the engine knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen

from engine_router.config import Config, OllamaConfig
from engine_router.dialects.model_names import close_names
from engine_router.dialects.routed import checked_name
from engine_router.engines.base import Engine, ResidentId
from engine_router.errors import UnknownModel
from engine_router.models.weights import launch_of

LATEST = ":latest"


@frozen
class Target:
    """The place of a model.

    Attributes:
        model: the id under which the router lists it.
        engine: the engine's name.
        resident: what has to be resident for it.
        upstream: the name that the engine knows it by.
        aliases: other names that clients may use.
        discovered: the engine listed it; it is not in the configuration.
    """

    model: str
    engine: str
    resident: ResidentId
    upstream: str
    aliases: tuple[str, ...] = ()
    discovered: bool = False


class ModelRegistry:
    """All models: the configured ones, and those that running engines list.

    The configuration always wins over what an engine says, and of two engines that list the same id the one
    that comes first in the configuration.
    """

    def __init__(self, config: Config, engines: Mapping[str, Engine]) -> None:
        self._config = config
        self._engines = engines
        self._listed: dict[str, dict[str, None]] = {}  # in their order; looked up by name
        self._aliases: dict[str, str] = dict(config.aliases)
        self._unlisted_names: dict[str, str] = {}  # those of models in folders
        self._configured: dict[str, Target] = {}
        self._resolved: dict[str, Target] = {}
        self._of_ollama: dict[str, dict[ResidentId, str]] = {}
        # Configured models that engines list under names of their own: the model by engine and name, the name by model.
        self._own_names: dict[str, dict[str, str]] = {}
        self._upstream_names: dict[str, str] = {}
        for name, engine in config.engines.items():
            for model in engine.models:
                self._configured[model] = self._target(model, name)
        for model_id, entry in config.models.items():
            self._configured[model_id] = self._target(model_id, entry.engine, entry.upstream)
            self._aliases.update(dict.fromkeys(entry.aliases, model_id))
            self._unlisted_names.update(dict.fromkeys(entry.other_names, model_id))
        self._files = _files(config, self._configured.values())

    def learn(self, lists: Mapping[str, Sequence[str]]) -> None:
        """Take in the lists of engines, by name, as far as these are configured to be asked for them."""
        for name, models in lists.items():
            if name in self._config.engines and self._config.engines[name].discover:
                self.set_listed(name, models)

    def remembered(self, name: str) -> Target | None:
        """Return the model to which a name has led before; None where it has to be resolved."""
        return self._resolved.get(name)

    def resolve(self, name: str) -> Target:
        """Find a model by id, alias, with or without Ollama's `:latest`, or by any name that Ollama knows it by.

        Raises:
            BadRequest: it is longer than any name of a model.
            UnknownModel: nobody serves it; close matches are named.
        """
        if (known := self._resolved.get(name)) is not None:
            return known
        if (target := self._known(checked_name(name))) is not None:
            return target
        raise UnknownModel(name, close_names(name, self._candidates(), self._is_offered))

    def targets(self) -> list[Target]:
        """Return every known model, the configured ones first, each once."""
        found = dict(self._configured)
        for engine in self._config.engines:
            for model in self._listed.get(engine, ()):
                if model not in found and not self._is_known_upstream(engine, model):
                    found[model] = self._target(model, engine, discovered=True)
        return [self._with_aliases(target) for target in found.values()]

    def offered(self) -> list[Target]:
        """Return the models that clients are shown: every known one, but not those that are `unlisted`."""
        hidden = {name for name, model in self._config.models.items() if model.unlisted}
        return [target for target in self.targets() if target.model not in hidden]

    def set_listed(self, engine: str, models: Iterable[str]) -> None:
        """Take in what an engine listed."""
        listed = tuple(models)
        self._listed[engine] = dict.fromkeys(listed)
        if isinstance(self._config.engines[engine], OllamaConfig):
            resident_of = self._engines[engine].resident_of
            self._of_ollama[engine] = {resident_of(model): model for model in reversed(listed)}
        else:
            self._learn_own_names(engine, listed)
        self._resolved.clear()

    def _learn_own_names(self, engine: str, listed: Sequence[str]) -> None:
        """Find the configured models in what an engine lists under names of its own.

        These are the paths of their files, and, where an engine serves one model and lists one, whatever it lists.
        """
        models = [target for target in self._configured.values() if target.engine == engine]
        own = {name: files for name in listed if (files := self._files.get((engine, name)))}
        only = models[0] if len(models) == 1 else None
        if only is not None and only.resident.model is None and len(listed) == 1:
            own.setdefault(listed[0], (only.model,))
        known = {spelling for target in models for spelling in _spellings(target.upstream)}
        own = {name: found for name, found in own.items() if name not in known}
        for target in models:
            self._upstream_names.pop(target.model, None)
        for name, found in own.items():
            self._upstream_names.update(dict.fromkeys(found, name))
        self._own_names[engine] = {name: found[0] for name, found in own.items()}

    def listed(self, engine: str) -> Sequence[str]:
        """Return what an engine listed last."""
        return tuple(self._listed.get(engine, ()))

    def is_name(self, name: str) -> bool:
        """Tell whether a model is called so, letter for letter."""
        return name in self._aliases or self._is_exact(name)

    def _known(self, name: str) -> Target | None:
        for candidate in _spellings(name):
            model = self._aliases.get(candidate) or self._unlisted_names.get(candidate, candidate)
            for spelling in _spellings(model):
                if (target := self._find(spelling)) is not None:
                    self._resolved[name] = target
                    return target
        return self._as_ollama_finds(name)  # not remembered: there are endless ways to write it

    def _candidates(self) -> Iterator[str]:
        """Yield what may be meant by an unknown name. Costs next to nothing for each: engines may list very many."""
        yield from self._configured
        yield from self._aliases
        for engine in self._config.engines:
            yield from self._listed.get(engine, ())

    def _is_offered(self, name: str) -> bool:
        """Tell whether a name leads to a model that clients are shown, and is not one that only its engine uses."""
        target = self._known(name)
        if target is None or ((entry := self._config.models.get(target.model)) and entry.unlisted):
            return False
        if target.discovered:
            return not self._is_known_upstream(target.engine, target.model)
        return name == target.model or name in self._aliases

    def _find(self, model: str) -> Target | None:
        if (target := self._configured.get(model)) is not None:
            return self._with_aliases(target)
        for engine in self._config.engines:
            if (configured := self._own_names.get(engine, {}).get(model)) is not None:
                return self._with_aliases(self._configured[configured])
            if model in self._listed.get(engine, ()):
                return self._with_aliases(self._target(model, engine, discovered=True))
        return None

    def _as_ollama_finds(self, name: str) -> Target | None:
        """Find a model of an Ollama daemon as that daemon would: `OA` and `library/oa` are `oa`."""
        for engine, config in self._config.engines.items():
            if not isinstance(config, OllamaConfig):
                continue
            resident = self._engines[engine].resident_of(name)
            for target in self._configured.values():
                if target.resident == resident:
                    return self._with_aliases(target)
            if (model := self._of_ollama.get(engine, {}).get(resident)) is not None:
                return self._find(model)
        return None

    def _target(
        self, model: str, engine: str, upstream: str | None = None, *, discovered: bool = False
    ) -> Target:
        known = upstream or model
        return Target(model, engine, self._engines[engine].resident_of(known), known, (), discovered)

    def _with_aliases(self, target: Target) -> Target:
        aliases = tuple(alias for alias, model in self._aliases.items() if self._is_meant(target, model))
        upstream = (
            self._upstream_names.get(target.model, target.upstream)
            if self._may_rename(target)
            else target.upstream
        )
        if not aliases and upstream == target.upstream:
            return target
        return Target(target.model, target.engine, target.resident, upstream, aliases, target.discovered)

    def _may_rename(self, target: Target) -> bool:
        """Tell whether the engine's own name is to be used: the file says none."""
        entry = self._config.models.get(target.model)
        return not target.discovered and (entry is None or entry.upstream is None)

    def _is_meant(self, target: Target, name: str) -> bool:
        """Tell whether a name, as an alias gives it, leads to a target: exactly, or for want of another by its tag."""
        if name == target.model:
            return True
        return name in _spellings(target.model) and not self._is_exact(name)

    def _is_exact(self, name: str) -> bool:
        return name in self._configured or any(name in listed for listed in self._listed.values())

    def _is_known_upstream(self, engine: str, listed: str) -> bool:
        """Tell whether what an engine lists is a configured model under another name."""
        is_ollama = isinstance(self._config.engines[engine], OllamaConfig)
        if listed in self._own_names.get(engine, {}):
            return True
        names, resident = _spellings(listed), self._engines[engine].resident_of(listed) if is_ollama else None
        return any(
            target.engine == engine and (target.upstream in names or target.resident == resident)
            for target in self._configured.values()
        )


def _files(config: Config, targets: Iterable[Target]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the configured models by engine and by what an engine may call the file of their weights."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for target in targets:
        entry = config.models.get(target.model)
        if isinstance(config.engines[target.engine], OllamaConfig) or (entry is not None and entry.found):
            continue  # what was found has the names that it has
        path = launch_of(config, target.engine, target.upstream).path
        for name in () if path is None else dict.fromkeys((str(path), path.name)):
            found[target.engine, name] = (*found.get((target.engine, name), ()), target.model)
    return found


def _spellings(name: str) -> tuple[str, ...]:
    """Return a name and the same with, or without, the tag that Ollama adds by default."""
    if name.endswith(LATEST):
        return (name, name.removesuffix(LATEST))
    return (name,) if ":" in name else (name, name + LATEST)
