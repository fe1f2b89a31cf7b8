"""Faults of the command of an engine that the router starts: its program and its placeholders."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from engine_router.config.engines import ProcessConfig, StartedConfig
from engine_router.config.faults import Fault, close, quoted
from engine_router.config.filled import filled_words
from engine_router.config.model import ModelConfig
from engine_router.config.template import PLACEHOLDERS, is_template
from engine_router.config.values import shown

SLOT_SAVE_PATH: Final = "--slot-save-path"
"""The option of llama.cpp's server for the folder of saved conversations."""

_BRACES: Final = re.compile(r"\$?\{(\w+)\}|\$(\w+)|%(\w+)%")
_WHOLE_COMMAND: Final = re.compile(r"\s(-|.*\{port\})")
_OR_PORTS: Final = {"argv": "", "command": " or ports"}
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_]\w*)=")


def process_faults(
    name: str, engine: StartedConfig, models: Mapping[str, ModelConfig], named_models: Collection[str]
) -> Iterator[Fault]:
    """Yield what is wrong with the command of an engine, and with models that it cannot start.

    Args:
        models: those that name this engine.
        named_models: the ids of all that have a table of their own.
    """
    path = f"engines.{quoted(name)}"
    words = " ".join(filled_words(engine))
    if isinstance(engine, ProcessConfig):
        yield from _program_faults(engine, path)
        if engine.keep_context and any(word.partition("=")[0] == SLOT_SAVE_PATH for word in engine.argv):
            yield (
                f"{path}.argv",
                f"leave {SLOT_SAVE_PATH} out: keep_context adds it, with a folder of the router's own",
            )
    yield from _port_faults(engine, path, words)
    if engine.scan and "{path}" not in words:
        yield (
            f"{path}.scan",
            f"needs {{path}} in {command_key(engine)}, for the file of the model that is started",
        )
    if not is_template(engine):
        yield from _template_only_faults(name, engine, models)
    elif "{path}" in words:
        yield from _path_faults(name, engine, models, named_models)


def command_key(engine: StartedConfig) -> str:
    """Return the option in which the command of an engine stands."""
    return "argv" if isinstance(engine, ProcessConfig) else "command"


def _port_faults(engine: StartedConfig, path: str, words: str) -> Iterator[Fault]:
    """Yield what is wrong with where an engine listens."""
    has_port, key = "{port}" in words, command_key(engine)
    is_filed = engine.config_file is not None and engine.base_url is not None  # its models take turns
    if is_template(engine) and not has_port and not is_filed:
        yield f"{path}.{key}", "{model} or {path} start it once for each model, so it needs {port} too"
    elif engine.base_url is None and (mistaken := _mistaken(words, ("port",))) is not None:
        yield f"{path}.{key}", mistaken
    elif engine.base_url is None and not has_port:
        yield f"{path}.base_url", f"missing; say where it listens, or put {{port}} into {key}{_OR_PORTS[key]}"
    if engine.base_url is not None and has_port:
        yield (
            f"{path}.base_url",
            f"not allowed together with {{port}} in {key}{_OR_PORTS[key]}, which takes a free port",
        )


def _path_faults(
    name: str, engine: StartedConfig, models: Mapping[str, ModelConfig], named_models: Collection[str]
) -> Iterator[Fault]:
    """Yield the models that have no path for a command that asks for one."""
    for model in engine.models:
        if model not in named_models:
            yield (
                f"engines.{quoted(name)}.models",
                f"{shown(model)} has no path; add [models.{quoted(model)}] with its path",
            )
    for model_id, config in models.items():
        if config.path is None:
            yield (
                f"models.{quoted(model_id)}.path",
                f"missing; the {_where_path_stands(engine)} of engine {shown(name)} asks for {{path}}",
            )


def _where_path_stands(engine: StartedConfig) -> str:
    if isinstance(engine, ProcessConfig) and not any("{path}" in word for word in engine.argv):
        return "config_file"
    return command_key(engine)


def _template_only_faults(
    name: str, engine: StartedConfig, models: Mapping[str, ModelConfig]
) -> Iterator[Fault]:
    """Yield what is filled in for each model, in a command that is not started for each model."""
    for placeholder in ("{mmproj}", "{ctx}", "{args}"):
        if any(placeholder in word for word in filled_words(engine)):
            yield (
                f"engines.{quoted(name)}.{command_key(engine)}",
                f"{placeholder} is filled in only beside {{path}} or {{model}}, which start it once for each model",
            )
    for model_id, config in models.items():
        for key in ("args", "mmproj"):
            if getattr(config, key):
                yield (
                    f"models.{quoted(model_id)}.{key}",
                    f"without effect: the {command_key(engine)} of engine {shown(name)} has no {{model}} or {{path}}; write it into that {command_key(engine)}",
                )


def _program_faults(engine: ProcessConfig, path: str) -> Iterator[Fault]:
    """Yield faults where the first word is no program: a variable or a command of a shell, or a whole command."""
    names: list[str] = []
    for word in engine.argv:
        if (assignment := _ASSIGNMENT.match(word)) is None:
            break
        names.append(assignment[1])
    if names:
        table = ", ".join(f'{name} = "..."' for name in names)
        yield (
            f"{path}.argv",
            f"{names[0]}=... is no program, and no shell runs that would set it; write env = {{ {table} }}",
        )
    elif engine.argv and engine.argv[0] == "cd":
        yield (
            f"{path}.argv",
            'cd is a command of the shell, and no shell runs; write cwd = "..." and the program alone',
        )
    elif len(engine.argv) == 1 and _WHOLE_COMMAND.search(engine.argv[0]):
        yield (
            f"{path}.argv",
            'a list has one entry for each word: write ["program", "--option", ...], or one string without [ ]',
        )


def placeholder_hints(words: Sequence[str]) -> Iterator[str]:
    """Yield what looks like a placeholder in a command, but is none: `{ports}`, `${PORT}`, `{Model}`."""
    for word in words:
        if (mistaken := _mistaken(word, PLACEHOLDERS)) is not None:
            yield mistaken


def _mistaken(words: str, names: Sequence[str]) -> str | None:
    """Say which of the placeholders was meant by something else; None where nothing looks like one."""
    for found in _BRACES.finditer(words):
        name = next(group for group in found.groups() if group is not None)
        if found.group() == f"{{{name}}}" and name in PLACEHOLDERS:
            continue
        meant = name.lower() if name.lower() in names else close(name.lower(), names)
        if meant is not None:
            return f"{found.group()} is not filled in; write {{{meant}}}"
    return None
