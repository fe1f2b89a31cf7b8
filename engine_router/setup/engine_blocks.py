"""Tables that are proposed for the engines that run, or are installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from engine_router.guards.foreign_text import shown
from engine_router.guards.masking import masked_argv
from engine_router.models.fixed_models import fixed_models
from engine_router.models.served_names import served_models
from engine_router.setup.blocks import (
    KIND_NAMES,
    Block,
    EngineNames,
    call_options,
    commented,
    start_options,
    toml_string,
    toml_strings,
)
from engine_router.setup.detection import Detection
from engine_router.setup.listeners import Listener
from engine_router.setup.toml_text import toml_key

# Engines that load and unload when told, and so go on running; with a comment that they need.
_LOADING: Final[Mapping[str, Sequence[str]]] = {
    "lmstudio": (),
    "llamacpp-router": (),
    "tabbyapi": ("# Put in TabbyAPI's keys (api_tokens.yml), and list its models: models = [...].",),
}


def block_for_running(listener: Listener, names: EngineNames) -> Block | str:
    """Return the table of an engine that runs; why there is none, where there is none."""
    kind = listener.kind or "openai"
    said = f"{KIND_NAMES.get(kind, kind)} at {listener.base_url}"
    if (obstacle := _obstacle(listener, kind)) is not None:
        return f"{said} {obstacle}"
    if kind == "ollama":
        return _as_ollama(listener, names, said)
    if kind in _LOADING:
        return _as_loading(listener, names, kind, said)
    make = _as_process if listener.unit is None else _as_unit
    return make(listener, names, kind, said)


def _obstacle(listener: Listener, kind: str) -> str | None:
    """Return why an engine that runs is not proposed."""
    if kind == "engine-router":
        return "serves its own models, and shall have a port of its own"
    if kind == "ollama" or kind in _LOADING:
        return None
    if listener.container is not None:
        return f"runs in container {listener.container}: the router cannot start and stop that yet"
    if listener.unit is None and not listener.argv:
        return "belongs to another user, so its command is not known"
    if kind == "openai":
        return f"is of no kind that is known, so how it is started is not (its command: {_command(listener)})"
    return None


def _as_loading(listener: Listener, names: EngineNames, kind: str, said: str) -> Block:
    name = names.new(kind)
    lines = [
        f"[engines.{name}]",
        'type = "http"',
        f"base_url = {toml_string(listener.base_url)}",
        *_LOADING[kind],
        *call_options(kind),
    ]
    return Block(
        name, f"{said}: told what to load", commented(f"{said}, which loads and unloads when told.", lines)
    )


def _as_ollama(listener: Listener, names: EngineNames, said: str) -> Block:
    name = names.new("ollama")
    lines = [f"[engines.{name}]", 'type = "ollama"', f"base_url = {toml_string(listener.base_url)}"]
    return Block(
        name,
        f"{said}: all of its models",
        commented(f"{said}: the router loads and unloads its models.", lines),
    )


def _as_unit(listener: Listener, names: EngineNames, kind: str, said: str) -> Block:
    name = names.new(kind)
    scope = "user" if listener.is_user_unit else "system"
    lines = [
        f"[engines.{name}]",
        'type = "systemd"',
        f"unit = {toml_string(listener.unit or '')}",
        f"scope = {toml_string(scope)}",
        *(
            []
            if listener.is_user_unit
            else [
                "# Where your user may not start and stop it, and sudo asks for no password:",
                '#prefix = ["sudo", "-n"]',
            ]
        ),
        f"base_url = {toml_string(listener.base_url)}",
        *start_options(kind),
        *_model_of_unit(listener, names, name),
    ]
    return Block(
        name, f"{said}: unit {listener.unit}", commented(f"{said}. The unit is started and stopped.", lines)
    )


def _model_of_unit(listener: Listener, names: EngineNames, name: str) -> list[str]:
    """Return the table of the one model whose file a unit's command names, so that no folder's model is that one."""
    models = served_models(listener.argv, {}).models
    paths = fixed_models(listener.argv, {}, listener.cwd or None).paths
    if not (len(models) == len(paths) == 1 and names.new_models([models[0].name])):
        return []
    return [
        f"[models.{toml_key(models[0].name)}]",
        f"engine = {toml_string(name)}",
        f"path = {toml_string(next(iter(paths)))}",
    ]


def _as_process(listener: Listener, names: EngineNames, kind: str, said: str) -> Block:
    name = names.new(kind)
    ids = names.new_models([model.name for model in served_models(listener.argv, {}).models])
    lines = [
        f"[engines.{name}]",
        'type = "process"',
        f"argv = {toml_strings(listener.argv)}",
        f"base_url = {toml_string(listener.base_url)}",
        *([f"cwd = {toml_string(listener.cwd)}"] if listener.cwd else []),
        *([f"models = {toml_strings(ids)}"] if ids else []),
        *start_options(kind),
    ]
    what = (
        f"{said}. It is taken over as it runs, stopped to make room, and started again by the same command."
    )
    return Block(name, f"{said}: {', '.join(ids) or 'its model'}", commented(what, lines))


def _command(listener: Listener) -> str:
    return shown(" ".join(masked_argv(listener.argv)), 60)


def blocks_for_installed(detection: Detection, names: EngineNames) -> Iterator[Block]:
    """Yield what is installed, does not run, and needs no more than to be named."""
    running = {listener.kind for listener in detection.listeners.engines}
    if detection.has("ollama") is not None and "ollama" not in running:
        name = names.new("ollama")
        lines = [f"[engines.{name}]", 'type = "ollama"']
        yield Block(
            name,
            "Ollama: installed, does not run now",
            commented("Ollama, once it runs (ollama serve).", lines),
        )
