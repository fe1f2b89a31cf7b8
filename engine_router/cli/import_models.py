"""`engine-router import DIR`: writes the models of a folder into the configuration, where they stay whatever happens."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from engine_router.cli.exit_codes import BAD_USAGE, OK, CommandFailed
from engine_router.cli.folders import absent_folders
from engine_router.cli.formatting import counted
from engine_router.cli.terminal import say
from engine_router.config import Config, StartedConfig, find_config, load_config
from engine_router.config.environment import Environment
from engine_router.config.file import read_text, write
from engine_router.config.filled import filled_words
from engine_router.config.values import expanded
from engine_router.models.fixed_models import fixed_models_of
from engine_router.models.found import formats_of, taken_names
from engine_router.models.header_memory import HeaderMemory
from engine_router.models.scan import FoundModel, ScanRequest, ScanResult
from engine_router.models.scan.places import CACHES
from engine_router.models.scan.scanner import Scanner
from engine_router.setup.config_file import add_tables
from engine_router.setup.toml_text import toml_text


def run(options: argparse.Namespace) -> int:
    """Show the models of folders as tables of the configuration, or write them into it; files go to `import_file`.

    Raises:
        ConfigError: the configuration has faults, or would have some with them; nothing is written.
        CommandFailed: no engine can serve them, or a folder cannot be read.
    """
    if options.source is not None or any(_is_file(name) for name in options.folder):
        from engine_router.cli import import_file  # noqa: PLC0415 - another router's configuration

        return import_file.run(options)
    if options.models_dir is not None or options.report or options.json:
        raise CommandFailed("--models-dir, --report and --json are for another router's FILE", BAD_USAGE)
    for name in absent_folders(options.folder):
        raise CommandFailed(f"{name}: there is no such file or folder")
    path = find_config(options.config)
    config = load_config(path, Environment(may_be_unset=True))
    engine = _engine(config, options.engine)
    result = _scan(config, engine, options.folder)
    models = [model for model in result.models if not _is_served(config, model)]
    for skipped in result.skipped:
        if skipped.is_fault:
            say(f"# {skipped.path}: {skipped.reason}", to=sys.stderr)
    tables = {"models": {model.name: _table(model) for model in models}}
    if not options.write:
        say(toml_text(tables).strip("\n") or "# nothing new is found")
        return OK
    if not models:
        say(f"nothing new is found; {path} stays as it is")
        return OK
    say(f"{counted(len(models), 'model')} added to {path}{_add(path, tables)}\nnext: engine-router reload")
    return OK


def _is_file(name: str) -> bool:
    try:
        return name not in CACHES and expanded(name).is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        return False


def _engine(config: Config, named: str | None) -> str:
    """Return the engine that is to serve them.

    Raises:
        CommandFailed: none can, or it is not clear which.
    """
    templates = [
        name
        for name, engine in config.engines.items()
        if isinstance(engine, StartedConfig) and any("{path}" in word for word in filled_words(engine))
    ]
    if named is not None and named not in templates:
        raise CommandFailed(f"engine '{named}' cannot serve them: its argv needs {{path}}", 2)
    if named is None and len(templates) != 1:
        which = (
            f"which engine? --engine {' or --engine '.join(templates)}"
            if templates
            else ("no engine can serve them: add one whose argv has {path}, {model} and {port}")
        )
        raise CommandFailed(which, 2)
    return named or templates[0]


def _scan(config: Config, engine: str, folders: Sequence[str]) -> ScanResult:
    settings = config.engines[engine]
    assert isinstance(settings, StartedConfig)  # noqa: S101 - it is a template
    places = tuple(folder if folder in CACHES else str(expanded(folder).absolute()) for folder in folders)
    request = ScanRequest(engine=engine, places=places, formats=formats_of(settings))
    result: ScanResult = trio.run(Scanner(HeaderMemory()).scan, (request,), taken_names(config))
    for place, state in result.places.items():
        if state.fault is not None:
            raise CommandFailed(f"{place}: {state.fault}")
    return result


def _is_served(config: Config, model: FoundModel) -> bool:
    """Tell whether the configuration has a model with this file already, or a command that serves it."""
    return fixed_models_of(config).have(model) or any(
        entry.path is not None and expanded(entry.path) == model.path for entry in config.models.values()
    )


def _table(model: FoundModel) -> Mapping[str, object]:
    return {
        "engine": model.engine,
        "path": str(model.path),
        **({} if model.mmproj is None else {"mmproj": str(model.mmproj)}),
        **({"aliases": list(model.aliases)} if model.aliases else {}),
    }


def _add(path: Path, tables: Mapping[str, object]) -> str:
    """Put tables into a configuration, and return words about the file as it was."""
    before = read_text(path)
    added = add_tables(before, tables, source=str(path))
    environment = Environment(may_be_unset=True)
    written = write(path, added, may_replace=True, before=before, environment=environment)
    return "" if written.backup is None else f"; its former state is in {written.backup.name}"
