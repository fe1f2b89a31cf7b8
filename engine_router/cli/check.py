"""`engine-router check`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from engine_router.cli.exit_codes import BAD_CONFIG, FAILED
from engine_router.cli.formatting import counted
from engine_router.cli.one_call import show_broken, show_folders
from engine_router.cli.scanned_folders import scanned
from engine_router.cli.terminal import Table, say, show_json
from engine_router.config import (
    AnyEngineConfig,
    Config,
    ServerConfig,
    StartedConfig,
    find_config,
    is_template,
    load_config,
)
from engine_router.config.environment import Environment
from engine_router.errors import ConfigError
from engine_router.guards.masking import masked_argv
from engine_router.models.config_warnings import warnings
from engine_router.models.found import with_found
from engine_router.models.served_names import served_models
from engine_router.web.scan_entries import scan_entry


def run(options: argparse.Namespace) -> int:
    """Check the configuration and say what is in it.

    Raises:
        ConfigError: it has faults, and they are not to be printed as JSON.
    """
    try:
        path = find_config(options.config)
        environment = Environment()
        config = load_config(path, environment)
    except ConfigError as error:
        if not options.json:
            raise
        faults = [
            {"path": place, "message": message, "excerpt": excerpt}
            for (place, message), excerpt in zip(error.faults, error.excerpts, strict=True)
        ]
        show_json({"ok": False, "file": error.source, "faults": faults, "more_faults": error.more})
        return BAD_CONFIG
    scans = trio.run(scanned, config)
    config = with_found(config, scans.result.models)
    found = [(place, environment.masked(message)) for place, message in warnings(config, has_scanned=True)]
    commands = {
        name: [environment.masked(word) for word in masked_argv(engine.argv)]
        for name, engine in config.engines.items()
        if isinstance(engine, StartedConfig)
    }
    if options.json:
        show_json({**_plain(config, path, found, commands), "scan": scan_entry(scans)})
    else:
        _show(config, path, found, commands)
        _show_scan(scan_entry(scans))
        _show_warnings(found, strict=options.strict)
    return FAILED if found and options.strict else 0


def models_of(config: Config) -> dict[str, str]:
    """Return the configured models and the engine of each."""
    models: dict[str, str] = {
        str(model): name for name, engine in config.engines.items() for model in engine.models
    }
    return {**models, **{str(model): str(entry.engine) for model, entry in config.models.items()}}


def _pools(config: Config) -> list[str]:
    return sorted({"default", *config.pools}, key=lambda name: (name != "default", name))


def _aliases(config: Config) -> dict[str, str]:
    of_models = {str(alias): name for name, model in config.models.items() for alias in model.aliases}
    return {**of_models, **config.aliases}


def _listens(server: ServerConfig) -> str:
    """Return where a router listens, for people: each address with the port."""
    hosts = [f"[{host}]" if ":" in host else host for host in server.host]
    return ", ".join(f"{host}:{server.port}" for host in hosts)


def _plain(
    config: Config, path: Path, found: Sequence[tuple[str, str]], commands: Mapping[str, Sequence[str]]
) -> dict[str, object]:
    return {
        "ok": True,
        "file": str(path),
        "listens": _listens(config.server),
        "engines": {
            name: {
                "type": engine.type,
                "pool": engine.memories[0],
                "pools": list(engine.memories),
                "base_url": engine.base_url,
                **({"argv": list(commands[name])} if name in commands else {}),
            }
            for name, engine in config.engines.items()
        },
        "models": models_of(config),
        "aliases": _aliases(config),
        "pools": _pools(config),
        "warnings": [{"path": place, "message": message} for place, message in found],
    }


def _show(
    config: Config, path: Path, found: Sequence[tuple[str, str]], commands: Mapping[str, Sequence[str]]
) -> None:
    models, pools = models_of(config), _pools(config)
    counts = ", ".join(
        (
            counted(len(config.engines), "engine"),
            counted(len(models), "model"),
            counted(len(pools), "pool"),
        )
    )
    verdict = f"has no faults, but {counted(len(found), 'warning')}" if found else "is fine"
    say(f"{path} {verdict}: {counts}; listens on {_listens(config.server)}\n")
    rows = [
        (
            name,
            engine.type,
            ", ".join(engine.memories),
            engine.base_url or "a free port",
            ", ".join(model for model, owner in models.items() if owner == name) or _otherwise_known(engine),
        )
        for name, engine in config.engines.items()
    ]
    Table(("Engine", "Type", "Pool", "Listens at", "Models"), rows).show()
    if aliases := _aliases(config):
        say("\naliases: " + ", ".join(f"{alias} = {model}" for alias, model in aliases.items()))
    if commands:
        say("\ncommands:")
        for name, argv in commands.items():
            say(f"  {name}: {shlex.join(argv)}")


def _otherwise_known(engine: AnyEngineConfig) -> str:
    """Return the models that nothing but an engine's command names; where it names none, how they become known."""
    if isinstance(engine, StartedConfig) and not is_template(engine):
        names = [model.name for model in served_models(engine.argv, engine.env).models]
        if names:
            return f"{', '.join(names)} (by argv)"
    return "found when it runs" if engine.discover else "-"


def _show_scan(entry: Mapping[str, Any]) -> None:
    if entry["folders"]:
        say()
        show_folders(entry["folders"])
        show_broken(entry["broken"], entry["broken_total"])


def _show_warnings(found: Sequence[tuple[str, str]], *, strict: bool) -> None:
    if not found:
        return
    say(f"\n{counted(len(found), 'warning')}:")
    for place, message in found:
        say(f"  {place}: {message}")
    if strict:
        say("\n--strict: warnings count as failures")
    else:
        say("\nthe router starts all the same; with --strict, warnings count as failures (exit code 1)")
