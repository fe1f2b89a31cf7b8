"""`engine-router rm`: shows what goes, asks, and removes it; through the running router, or by itself where none runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any, Final

import trio

from engine_router.cli.address import RouterAddress
from engine_router.cli.client import Call, not_understood, post
from engine_router.cli.exit_codes import BAD_USAGE, FAILED, OK, CommandFailed
from engine_router.cli.formatting import counted, gigabytes
from engine_router.cli.own_router import running_router
from engine_router.cli.scanned_folders import scanned
from engine_router.cli.terminal import say, show_json
from engine_router.config import Config, find_config, load_config
from engine_router.config.environment import Environment
from engine_router.errors import ConfigError, RouterError
from engine_router.guards.foreign_text import indented_values
from engine_router.models.found import with_found
from engine_router.models.hub.model_files import (
    names_download,
    plan_download_removal,
    plan_model_removal,
    users_of,
)
from engine_router.models.hub.removal import Removal, remove
from engine_router.models.hub.settings import HubSettings

REMOVAL_S: Final = 600.0
"""Seconds that the removal may take: file systems free a large file slowly."""

_SHOWN: Final = 20


def run(options: argparse.Namespace) -> int:
    """Remove a model's files.

    Raises:
        CommandFailed: they are not known, are in use, or cannot be removed; or the person was not asked.
    """
    address = running_router(options)
    try:
        if address is not None:
            return _remove_there(address, options)
        return _remove_here(options)
    except RouterError as error:
        raise CommandFailed(str(error)) from None


def _remove_there(address: RouterAddress, options: argparse.Namespace) -> int:
    planned = post(address, "/admin/rm", {"name": options.name, "dry_run": True})
    try:
        if not _is_wanted(planned, options):
            return FAILED
    except (KeyError, TypeError):
        raise not_understood(address) from None
    call = Call(address, "POST", "/admin/rm", {"name": options.name}, REMOVAL_S)
    try:
        _tell(call.read(), options)
    finally:
        call.close()
    return OK


def _remove_here(options: argparse.Namespace) -> int:
    settings = HubSettings.from_environment()
    removal, used_by = _planned(options, settings)
    planned = {**removal.as_dict(), "used_by": used_by}
    if not _is_wanted(planned, options):
        return FAILED
    remove(removal)
    _tell({**planned, "removed": True}, options)
    return OK


def _planned(options: argparse.Namespace, settings: HubSettings) -> tuple[Removal, list[str]]:
    """Return what goes, and the models that use it.

    Raises:
        CommandFailed: nobody knows the model.
        RouterError: it is not there.
    """
    name, config = options.name, _config(options)
    if names_download(name):
        removal = plan_download_removal(name, settings)
    else:
        models = {} if config is None else config.models
        model = next(
            (each for each, own in models.items() if name in (each, *own.aliases, *own.other_names)), None
        )
        if config is None or model is None:
            raise CommandFailed(
                f"no model '{name}' is configured or found here; engine-router check shows those that are; or name "
                "hf:user/repo:QUANT",
                BAD_USAGE,
            )
        own = models[model]
        removal = plan_model_removal(config, model, engine=own.engine, upstream=own.upstream or model)
    return removal, [] if config is None else users_of(removal, config)


def _config(options: argparse.Namespace) -> Config | None:
    """Return the configuration with the models of its folders; None where there is none, or one with faults.

    Raises:
        ConfigError: the one that was named has faults.
    """
    try:
        config = load_config(find_config(options.config), Environment(may_be_unset=True))
    except ConfigError:
        if options.config is not None:
            raise
        return None
    return with_found(config, trio.run(scanned, config).result.models)


def _is_wanted(planned: Mapping[str, Any], options: argparse.Namespace) -> bool:
    """Show what goes, and ask.

    Raises:
        CommandFailed: there is nobody to ask.
    """
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise CommandFailed("there is no terminal to ask on: --yes removes without a question", BAD_USAGE)
    plain = indented_values(dict(planned))
    lines = [*plain["files"][:_SHOWN]]
    if plain["count"] > len(lines):
        lines.append(f"and {counted(plain['count'] - len(lines), 'other')}")
    lines += [f"model {model} uses them" for model in plain["used_by"] if model != options.name]
    say("\n".join(f"  {line}" for line in lines), to=sys.stderr)
    question = f"Remove {counted(plain['count'], 'file')}, {gigabytes(plain['size_bytes'])}? [y/N] "
    say(question, to=sys.stderr, end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _tell(answer: Mapping[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        show_json(answer)
        return
    plain = indented_values(dict(answer))
    say(f"{plain['name']}: {counted(plain['count'], 'file')} removed, {gigabytes(plain['size_bytes'])}")
