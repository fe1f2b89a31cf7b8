"""The models of one engine that its command names, beside those that are configured and those that it lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from attrs import define, field

from engine_router.config import Config, StartedConfig, is_template
from engine_router.models.served_names import ServedModel, ServedModels, served_models

_PATH: Final = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
_FOLDERS: Final = re.compile(r".*[/\\]", re.DOTALL)


@define(eq=False, repr=False)
class ServedByCommand:
    """The models that an engine's command names.

    Before the engine has listed anything, each of them can be asked for. Once it has, its list counts:

    - A listed name that the command has for a model, or the one that an engine of one model lists, is that model:
      its id stays what it was, and requests carry the name that the engine listed.
    - A model of which the engine lists no name is not known any more: a request for it would end in the engine's 404.
      It stays where the engine's list says nothing (an empty one, or one of all that is in a cache).
    - Whatever else the engine lists is a model of its own.

    Attributes:
        served: what the command says.

    Args:
        configured: the models that are configured for the engine, each with the names that a command may have for it.
    """

    served: ServedModels
    _configured: Mapping[str, Sequence[str]]
    _by_id: dict[str, ServedModel] = field(init=False, factory=dict)  # those that are not configured
    _by_shown: dict[str, ServedModel] = field(init=False, factory=dict)  # the same by id and alias
    _ids: dict[str, str] = field(init=False, factory=dict)  # by every name, configured or not
    _of_configured: dict[str, ServedModel] = field(init=False, factory=dict)
    _live: frozenset[str] = field(init=False, default=frozenset())

    def __attrs_post_init__(self) -> None:
        """Tell which of the models are configured under other names."""
        models = self.served.models
        known = [self._configured_as(model) for model in models]
        if models and self._configured and not any(known) and not self.served.in_files:
            known[0] = next(iter(self._configured))  # the model that it is started with
        for model, configured in zip(models, known, strict=True):
            if configured is None:
                self._by_id.setdefault(model.name, model)
            else:
                self._of_configured.setdefault(configured, model)
            for name in model.names:
                self._ids.setdefault(name, configured or model.name)
        for model in self._by_id.values():
            for name in (model.name, *model.aliases):
                self._by_shown.setdefault(name, model)
        self._live = frozenset(self._by_id)

    def _configured_as(self, model: ServedModel) -> str | None:
        names = set(model.names)
        return next((name for name, words in self._configured.items() if names.intersection(words)), None)

    def learn(self, listed: Sequence[str]) -> None:
        """Take in what the engine lists."""
        self._live = frozenset(self._by_id)
        if not listed or self.served.lists_others:
            return
        heard = {self.model_listed(name) for name in listed}
        if self.only(listed) is None:
            self._live = frozenset(name for name in self._by_id if name in heard)

    def only(self, listed: Sequence[str]) -> str | None:
        """Return the one model that there is, configured or not, where the engine lists one; None in any other case."""
        known = (*self._configured, *self._by_id)
        return known[0] if len(known) == len(listed) == 1 and not self.served.lists_others else None

    def models(self) -> Iterable[ServedModel]:
        """Return the models that can be asked for and are not configured."""
        return [model for name, model in self._by_id.items() if name in self._live]

    def shown(self, name: str) -> ServedModel | None:
        """Return the one of these models that has a name as its id or alias."""
        model = self._by_shown.get(name)
        return model if model is not None and model.name in self._live else None

    def shown_names(self) -> Iterator[str]:
        """Yield the ids and aliases of these models."""
        for model in self.models():
            yield from (model.name, *model.aliases)

    def model_called(self, name: str) -> str | None:
        """Return the model that has a name: its id, configured or not."""
        found = self._ids.get(name)
        return found if found in self._live or found in self._configured else None

    def model_listed(self, name: str) -> str | None:
        """Return the model that the engine lists under a name: one of its names, or a path of its file."""
        is_path = _PATH.match(name) is not None
        return self.model_called(name) or (self.model_called(_FOLDERS.sub("", name)) if is_path else None)

    def is_named(self, configured: str) -> bool:
        """Tell whether the command names a configured model."""
        return configured in self._of_configured

    def upstream_of(self, configured: str) -> str | None:
        """Return the name that the engine insists on for a configured model, where the command tells another."""
        model = self._of_configured.get(configured)
        if model is None or not self.served.is_strict or configured in (model.name, *model.aliases):
            return None
        return model.upstream


def served_by_commands(config: Config) -> dict[str, ServedModels]:
    """Return what the commands of engines say about their models, by engine; a template's says nothing."""
    return {
        name: served_models(engine.argv, engine.env)
        for name, engine in config.engines.items()
        if isinstance(engine, StartedConfig) and not is_template(engine)
    }
