"""`engine-router import`: writes the models of a folder into the configuration, where they stay whatever happens."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from engine_router.cli.exit_codes import OK, CommandFailed
from engine_router.cli.formatting import counted
from engine_router.cli.terminal import say
from engine_router.config import Config, ProcessConfig, find_config, load_config, parse_config
from engine_router.config.values import expanded
from engine_router.errors import ConfigError
from engine_router.guards.atomic_file import write_atomically
from engine_router.models.found import formats_of, taken_names
from engine_router.models.header_memory import HeaderMemory
from engine_router.models.scan import FoundModel, ScanRequest, ScanResult
from engine_router.models.scan.places import CACHES
from engine_router.models.scan.scanner import Scanner


def run(options: argparse.Namespace) -> int:
    """Show the models of folders as tables of the configuration, or write them into it.

    Raises:
        ConfigError: the configuration has faults, or would have some with them; nothing is written.
        CommandFailed: no engine can serve them, or a folder cannot be read.
    """
    path = find_config(options.config)
    config = load_config(path)
    engine = _engine(config, options.engine)
    result = _scan(config, engine, options.folder)
    models = [model for model in result.models if not _is_served(config, model)]
    for skipped in result.skipped:
        if skipped.is_fault:
            say(f"# {skipped.path}: {skipped.reason}", to=sys.stderr)
    text = "".join(f"\n{_table(model)}" for model in models)
    if not options.write:
        say(text.strip("\n") or "# nothing new is found")
        return OK
    if models:
        _append(path, text)
    say(
        f"{counted(len(models), 'model')} added to {path}"
        + ("; its last state is in the .bak" if models else "")
    )
    return OK


def _engine(config: Config, named: str | None) -> str:
    """Return the engine that is to serve them.

    Raises:
        CommandFailed: none can, or it is not clear which.
    """
    templates = [
        name
        for name, engine in config.engines.items()
        if isinstance(engine, ProcessConfig) and any("{path}" in word for word in engine.argv)
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
    assert isinstance(settings, ProcessConfig)  # noqa: S101 - it is a template
    places = tuple(folder if folder in CACHES else str(expanded(folder).absolute()) for folder in folders)
    request = ScanRequest(engine=engine, places=places, formats=formats_of(settings))
    result: ScanResult = trio.run(Scanner(HeaderMemory()).scan, (request,), taken_names(config))
    for place, state in result.places.items():
        if state.fault is not None:
            raise CommandFailed(f"{place}: {state.fault}")
    return result


def _is_served(config: Config, model: FoundModel) -> bool:
    """Tell whether the configuration has a model with this file already."""
    return any(
        entry.path is not None and expanded(entry.path) == model.path for entry in config.models.values()
    )


def _table(model: FoundModel) -> str:
    values: Mapping[str, object] = {
        "engine": model.engine,
        "path": str(model.path),
        **({} if model.mmproj is None else {"mmproj": str(model.mmproj)}),
        **({"aliases": list(model.aliases)} if model.aliases else {}),
    }
    # A string of JSON is one of TOML.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join([f"[models.{json.dumps(model.name, ensure_ascii=False)}]", *lines, ""])


def _append(path: Path, text: str) -> None:
    """Put tables at the end of a configuration; the file as it was stays beside it.

    Raises:
        ConfigError: it would have faults with them.
    """
    before = path.read_text("utf-8-sig")
    whole = f"{before.rstrip()}\n{text}"
    parse_config(whole, source=str(path))
    try:
        shutil.copy2(path, path.with_name(f"{path.name}.bak"))
        write_atomically(path, whole)
    except OSError as error:
        raise ConfigError(str(path), [("", f"cannot be written: {error.strerror or error}")]) from None
