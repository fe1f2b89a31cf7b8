"""Registry of models: by each name that a client may send, the engine, the resident, and the name that the engine knows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from engine_router.config import Config, OllamaConfig
from engine_router.dialects.model_names import close_names
from engine_router.dialects.routed import checked_name
from engine_router.engines.base import Engine, ResidentId
from engine_router.errors import UnknownModel
from engine_router.models.last_seen import SeenModels, engine_mark
from engine_router.models.served_by_command import ServedByCommand, served_by_commands
from engine_router.models.served_names import ServedModel, ServedModels
from engine_router.models.target import KnownId, Origin, Target, spellings
from engine_router.models.weights import weights_file_names

__all__ = ["ModelRegistry", "Target"]


class ModelRegistry:
    """All models: the configured ones, those that engines' commands name, and those that engines list.

    The configuration always wins over what an engine says, and of two engines that have the same id the one
    that comes first in the configuration.

    A command's name for a configured model is one more name of that. Where a command names a model that is not
    configured, the model is known by it before the engine has ever run; see `ServedByCommand` for what becomes of
    it once the engine has given its own list, which counts more.
    """

    def __init__(self, config: Config, engines: Mapping[str, Engine]) -> None:
        self._config = config
        self._engines = engines
        self._listed: dict[str, dict[str, None]] = {}  # in their order; looked up by name
        self._aliases: dict[str, str] = dict(config.aliases)
        self._aliases.update({a: name for name, v in config.variants.items() for a in v.config.aliases})
        self._unlisted_names: dict[str, str] = {}  # those of models in folders
        self._configured: dict[str, Target] = {}
        self._resolved: dict[str, Target] = {}
        self._of_ollama: dict[str, dict[ResidentId, str]] = {}
        # Configured models that engines list under names of their own: the model by engine and name, the name by model.
        self._own_names: dict[str, dict[str, str]] = {}
        self._upstream_names: dict[str, str] = {}
        for name, engine in config.engines.items():
            for model in engine.models:  # a peer may have what another engine has, too
                self._configured.setdefault(model, self._target(model, name))
        for model_id, entry in config.models.items():
            self._configured[model_id] = self._target(model_id, entry.engine, entry.upstream)
            self._aliases.update(dict.fromkeys(entry.aliases, model_id))
            self._unlisted_names.update(dict.fromkeys(entry.other_names, model_id))
        self._of_engine: dict[str, list[Target]] = {name: [] for name in config.engines}
        for target in self._configured.values():
            self._of_engine[target.engine].append(target)
        # What each engine calls its configured models, and their residents: engines may list very many.
        self._known_to: dict[str, set[str | ResidentId]] = {
            name: {known for target in targets for known in (target.upstream, target.resident)}
            for name, targets in self._of_engine.items()
        }
        self._files = weights_file_names(config, self._configured.values())
        self._is_live: dict[str, bool] = {}
        self._seen_at: dict[str, float] = {}
        self._by_command: dict[str, ServedByCommand] = {}
        commands = served_by_commands(config)
        for name in config.engines:
            self.set_served(name, commands.get(name, ServedModels()))

    def learn(self, lists: Mapping[str, SeenModels], now: float | None = None) -> None:
        """Take in the remembered lists of engines, by name, as far as these are configured to be asked for them.

        Left out are lists that are too old, and those of an engine that is configured to be another server now.

        Args:
            now: seconds since the epoch.
        """
        for name, seen in lists.items():
            config = self._config.engines.get(name)
            if config is None or not config.discover or seen.is_old(time.time() if now is None else now):
                continue
            if seen.engine in ("", engine_mark(config)):
                self.set_listed(name, seen.names, at=seen.at, is_live=seen.is_live)

    def forget(self, engine: str) -> None:
        """Forget what an engine listed."""
        self.set_listed(engine, (), is_live=False)
        del self._listed[engine], self._seen_at[engine]

    def learn_files(self, served: Mapping[str, ServedModels]) -> None:
        """Take in what the files say that engines' commands name, by engine, as far as these are still the same files."""
        for engine, models in served.items():
            if self.served(engine).are_in_files_of(models):
                self.set_served(engine, models)

    def served(self, engine: str) -> ServedModels:
        """Return what an engine's command says of its models, with what its files say as far as that was learned."""
        found = self._by_command.get(engine)
        return ServedModels() if found is None else found.served

    def set_served(self, engine: str, served: ServedModels) -> None:
        """Take in which models an engine's command names."""
        configured = {
            target.model: self._names_of(target) if served.models else ()
            for target in self._of_engine[engine]
        }
        self._by_command[engine] = ServedByCommand(served, configured)
        self._learn_own_names(engine, tuple(self._listed.get(engine, ())))
        self._resolved.clear()

    def set_silent(self, engine: str) -> None:
        """Note that an engine did not list anything when it was asked last; what it listed before stays."""
        if self._is_live.get(engine):
            self._is_live[engine] = False
            self._resolved.clear()

    def remembered(self, name: str) -> Target | None:
        """Return the model to which a name has led before; None where it has to be resolved."""
        return self._resolved.get(name)

    def resolve(self, name: str) -> Target:
        """Find a model by id, alias, with or without Ollama's `:latest`, or by any name that Ollama knows it by.

        Raises:
            BadRequest: it is longer than any name of a model.
            UnknownModel: nobody serves it; close matches are named.
        """
        if (target := self.find(name)) is not None:
            return target
        raise UnknownModel(name, close_names(name, self._candidates(), self._is_offered))

    def find(self, name: str) -> Target | None:
        """Return what `resolve` returns; None where nobody serves it."""
        return self._resolved.get(name) or self._known(checked_name(name))

    def targets(self) -> list[Target]:
        """Return every known model, the configured ones first, each once."""
        found = dict(self._configured)
        taken = {*self._aliases, *self._config.variants}  # names that lead to a model further up
        for engine in self._config.engine_order:
            for model in self._by_command[engine].models():
                if model.name not in found and model.name not in taken:
                    found[model.name] = self._target_served(engine, model)
            for name in self._listed.get(engine, ()):
                if name not in found and name not in taken and not self._is_known_upstream(engine, name):
                    found[name] = self._target_listed(engine, name)
            taken.update(self._own_names.get(engine, ()), self._by_command[engine].shown_names())
        variants = (self._find(name) for name in self._config.variants)
        return [*map(self._with_aliases, found.values()), *filter(None, variants)]

    def offered(self) -> list[Target]:
        """Return the models that clients are shown: every known one, but not those that are `unlisted`."""
        hidden = {name for name, model in self._config.models.items() if model.unlisted}
        hidden |= {n for n, v in self._config.variants.items() if v.config.unlisted or v.of in hidden}
        return [target for target in self.targets() if target.model not in hidden]

    def set_listed(
        self, engine: str, models: Iterable[str], *, at: float | None = None, is_live: bool = True
    ) -> None:
        """Take in what an engine listed.

        Args:
            at: when, in seconds since the epoch; now when absent.
            is_live: it did so when it was asked last.
        """
        listed = tuple(self._shown_name(engine, model) for model in models)
        self._listed[engine] = dict.fromkeys(listed)
        self._is_live[engine], self._seen_at[engine] = is_live, time.time() if at is None else at
        if isinstance(self._config.engines[engine], OllamaConfig):
            resident_of = self._engines[engine].resident_of
            self._of_ollama[engine] = {resident_of(model): model for model in reversed(listed)}
        elif engine not in self._config.peers:
            self._learn_own_names(engine, listed)
        self._resolved.clear()

    def _learn_own_names(self, engine: str, listed: Sequence[str]) -> None:
        """Find the models that are known already in what an engine lists under names of its own.

        These are the paths of their files, the names in its command, and, where an engine serves one model and lists
        one, whatever it lists.
        """
        served = self._by_command[engine]
        served.learn(listed)
        models = self._of_engine[engine]
        own = {name: files for name in listed if (files := self._files.get((engine, name)))}
        for name in listed:
            if name not in own and (model := served.model_listed(name)) is not None:
                own[name] = (model,)
        only = served.only(listed)
        if only is not None and self._is_one_resident(engine):
            own.setdefault(listed[0], (only,))
        known = {spelling for target in models for spelling in spellings(target.upstream)}
        own = {name: found for name, found in own.items() if name not in known}
        for target in models:
            self._upstream_names.pop(target.model, None)
            if not listed and (upstream := served.upstream_of(target.model)) is not None:
                self._upstream_names[target.model] = upstream
        for name, found in own.items():
            self._upstream_names.update(dict.fromkeys(found, name))
        self._own_names[engine] = {name: found[0] for name, found in own.items()}

    def _is_one_resident(self, engine: str) -> bool:
        return self._engines[engine].resident_of("").model is None

    def _names_of(self, target: Target) -> tuple[str, ...]:
        """Return the names by which a command may speak of a configured model."""
        aliases = (alias for alias, model in self._aliases.items() if model == target.model)
        files = (
            name
            for (engine, name), found in self._files.items()
            if engine == target.engine and target.model in found
        )
        return (target.model, target.upstream, *aliases, *files)

    def listed(self, engine: str) -> Sequence[str]:
        """Return what an engine listed last."""
        return tuple(self._listed.get(engine, ()))

    def is_name(self, name: str) -> bool:
        """Tell whether a model is called so, letter for letter."""
        return name in self._aliases or self._is_exact(name)

    def known_ids(self, engine: str) -> Iterator[KnownId]:
        """Yield every model of which an engine is known to have it, each once, with where that is known from."""
        listed = self._listed.get(engine, {})
        own = {model: name for name, model in self._own_names.get(engine, {}).items()}
        heard: Origin = "live" if self._is_live.get(engine) else "last seen"
        served, at = self._by_command[engine], self._seen_at.get(engine)
        implied = [self._target_served(engine, model) for model in served.models()]
        found: set[str] = set()
        for target in map(self._with_aliases, (*self._of_engine[engine], *implied)):
            is_heard = target.model in own or target.upstream in listed or target.model in listed
            origins: list[Origin] = [target.origin]
            if target.origin != "argv" and served.is_named(target.model):
                origins.append("argv")
            yield KnownId(target, (*origins, *((heard,) if is_heard else ())), at if is_heard else None)
            found.add(target.model)
        for name in listed:
            if name not in found and not self._is_known_upstream(engine, name):
                yield KnownId(self._with_aliases(self._target_listed(engine, name)), (heard,), at)

    def shadowed(self) -> dict[tuple[str, str], list[str]]:
        """Return the ids that two engines have, by the engine that is asked for them and the one that is not."""
        owners = {model: target.engine for model, target in self._configured.items()}
        found: dict[tuple[str, str], list[str]] = {}
        for engine in self._config.engine_order:
            own = self._own_names.get(engine, ())
            names = (*own, *self._by_command[engine].shown_names(), *self._listed.get(engine, ()))
            for name in dict.fromkeys(names):
                if (owner := owners.setdefault(name, engine)) != engine and engine not in self._config.peers:
                    found.setdefault((owner, engine), []).append(name)
        return found

    def _known(self, name: str) -> Target | None:
        for candidate in spellings(name):
            model = self._aliases.get(candidate) or self._unlisted_names.get(candidate, candidate)
            for spelling in spellings(model):
                if (target := self._find(spelling)) is not None:
                    self._resolved[name] = target = self._with_places(target)
                    return target
        for candidate in spellings(name):
            if (target := self._find_in_commands(candidate)) is not None:
                self._resolved[name] = target
                return target
        return self._as_ollama_finds(name)  # not remembered: there are endless ways to write it

    def _candidates(self) -> Iterator[str]:
        """Yield what may be meant by an unknown name. Costs next to nothing for each: engines may list very many."""
        yield from (*self._configured, *self._config.variants, *self._aliases)
        for engine in self._config.engine_order:
            yield from self._by_command[engine].shown_names()
            yield from self._listed.get(engine, ())

    def _is_offered(self, name: str) -> bool:
        """Tell whether a name leads to a model that clients are shown, and is not one that only its engine uses."""
        target = self._known(name)
        if target is None or ((entry := self._config.models.get(target.model)) and entry.unlisted):
            return False
        if target.is_listed_only:
            return not self._is_known_upstream(target.engine, target.model)
        return name == target.model or name in self._aliases or name in target.aliases

    def _find(self, model: str) -> Target | None:
        if (target := self._configured.get(model)) is not None:
            return self._with_aliases(target)
        if (variant := self._config.variants.get(model)) is not None:
            base, names = self._find(variant.of), tuple(a for a, m in self._aliases.items() if m == model)
            return base and attrs.evolve(base, model=model, aliases=names, variant_of=base.model, places=())
        for engine in self._config.engine_order:
            if (own := self._own_names.get(engine, {}).get(model)) is not None:
                return self._with_aliases(self._target_of(engine, own))
            if (served := self._by_command[engine].shown(model)) is not None:
                return self._with_aliases(self._target_served(engine, served))
            if model in self._listed.get(engine, ()):
                return self._with_aliases(self._target_listed(engine, model))
        return None

    def _find_in_commands(self, name: str) -> Target | None:
        """Find a model by what it may be called because of its engine's command, such as its file's name."""
        for engine, served in self._by_command.items():
            if (model := served.model_called(name)) is not None:
                return self._with_aliases(self._target_of(engine, model))
        return None

    def _target_of(self, engine: str, model: str) -> Target:
        served = self._by_command[engine].shown(model)
        return self._configured[model] if served is None else self._target_served(engine, served)

    def _as_ollama_finds(self, name: str) -> Target | None:
        """Find a model of an Ollama daemon as that daemon would: `OA` and `library/oa` are `oa`."""
        for engine, config in self._config.engines.items():
            if not isinstance(config, OllamaConfig):
                continue
            resident = self._engines[engine].resident_of(name)
            for target in self._of_engine[engine]:
                if target.resident == resident:
                    return self._with_aliases(target)
            if (model := self._of_ollama.get(engine, {}).get(resident)) is not None:
                return self._find(model)
        return None

    def _target(self, model: str, engine: str, upstream: str | None = None) -> Target:
        known = upstream or self._own_name(engine, model)
        entry = self._config.models.get(model)
        origin: Origin = "folder" if entry is not None and entry.found else "configured"
        resident, is_paid = self._engines[engine].resident_of(known), engine in self._config.paid_engines
        return Target(model, engine, resident, known, (), origin, is_paid, engine in self._config.peers)

    def _target_served(self, engine: str, model: ServedModel) -> Target:
        aliases = tuple(alias for alias in model.aliases if alias not in self._configured)
        resident = self._engines[engine].resident_of(model.upstream)
        return Target(model.name, engine, resident, model.upstream, aliases, "argv")

    def _target_listed(self, engine: str, name: str) -> Target:
        own, is_paid = self._own_name(engine, name), engine in self._config.paid_engines
        origin: Origin = "live" if self._is_live.get(engine) else "last seen"
        resident, is_peers = self._engines[engine].resident_of(own), engine in self._config.peers
        return Target(name, engine, resident, own, (), origin, is_paid, is_peers)

    def _shown_name(self, engine: str, model: str) -> str:
        """Return the id of a model here, by the name that its engine lists."""
        peer = self._config.peers.get(engine)
        return model if peer is None else peer.shown_name(model)

    def _own_name(self, engine: str, model: str) -> str:
        """Return the name that an engine knows of a model, by its id here."""
        peer = self._config.peers.get(engine)
        return model if peer is None else peer.own_name(model)

    def _with_aliases(self, target: Target) -> Target:
        meant = tuple(alias for alias, model in self._aliases.items() if self._is_meant(target, model))
        own = (alias for alias in target.aliases if alias not in self._aliases)
        aliases = tuple(dict.fromkeys((*meant, *own)))
        upstream = (
            self._upstream_names.get(target.model, target.upstream)
            if self._may_rename(target)
            else target.upstream
        )
        if aliases == target.aliases and upstream == target.upstream:
            return target
        return attrs.evolve(target, upstream=upstream, aliases=aliases)

    def _with_places(self, target: Target) -> Target:
        """Return a model with the peers that have one of the same name, in the order of the configuration."""
        others = [engine for engine in self._config.peers if engine != target.engine and not target.is_paid]
        found = [self._target_listed(e, target.model) for e in others if self._has(e, target.model)]
        return attrs.evolve(target, places=tuple(found)) if found else target

    def _has(self, engine: str, model: str) -> bool:
        return model in self._listed.get(engine, ()) or model in self._config.engines[engine].models

    def _may_rename(self, target: Target) -> bool:
        """Tell whether the engine's own name is to be used: the file says none."""
        entry = self._config.models.get(target.model)
        return not target.is_listed_only and (entry is None or entry.upstream is None)

    def _is_meant(self, target: Target, name: str) -> bool:
        """Tell whether a name, as an alias gives it, leads to a target: exactly, or for want of another by its tag."""
        if name == target.model:
            return True
        return name in spellings(target.model) and not self._is_exact(name)

    def _is_exact(self, name: str) -> bool:
        return (
            name in self._configured
            or name in self._config.variants
            or any(name in listed for listed in self._listed.values())
            or any(served.shown(name) is not None for served in self._by_command.values())
        )

    def _is_known_upstream(self, engine: str, listed: str) -> bool:
        """Tell whether what an engine lists is a configured model under another name."""
        known = self._known_to[engine]
        own = spellings(self._own_name(engine, listed))
        if listed in self._own_names.get(engine, {}) or any(name in known for name in own):
            return True
        is_ollama = isinstance(self._config.engines[engine], OllamaConfig)
        return is_ollama and self._engines[engine].resident_of(listed) in known
