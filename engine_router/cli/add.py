"""`engine-router add`: puts an engine into the configuration, from a preset."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import tomli

from engine_router.cli.exit_codes import BAD_USAGE, OK, CommandFailed
from engine_router.cli.folders import absent_folders, lasting
from engine_router.cli.own_router import running_router
from engine_router.cli.terminal import say
from engine_router.config import Config, parse_config
from engine_router.config.environment import Environment
from engine_router.config.faults import quoted
from engine_router.config.file import read_text, write
from engine_router.config.peers import place_of
from engine_router.config.template import PLACEHOLDERS
from engine_router.config.values import expanded
from engine_router.errors import ConfigError
from engine_router.models.config_warnings import warnings
from engine_router.models.scan.places import CACHES
from engine_router.setup.clouds import clouds_in, way_to_add
from engine_router.setup.config_file import HEAD, add_block, place_to_change
from engine_router.setup.elsewhere import router_at
from engine_router.setup.installed import with_installed
from engine_router.setup.presets import (
    Block,
    Preset,
    PresetError,
    PresetValues,
    filled,
    machine_traits,
    missing,
    preset_for,
)
from engine_router.setup.programs import find_programs
from engine_router.setup.twins import twin_of

# What means something else in a configuration than in a name.
_FILLED_IN: Final = re.compile(rf"\{{({'|'.join(PLACEHOLDERS)})\}}|\$\{{env:[^{{}}]*\}}")
_QUESTIONS: Final = {
    "path": "File, folder or repository of the model",
    "model": "What clients call the model",
    "scan": "Folder with models",
    "url": "Base URL of the server",
}


def run(options: argparse.Namespace) -> int:
    """Add an engine, and say what to type next.

    Raises:
        ConfigError: the configuration has faults, or would have some, or cannot be written; nothing was.
        CommandFailed: there is no such preset, or something is missing or does not fit.
    """
    if options.kind is None:
        raise CommandFailed(
            "add needs a KIND of engine, such as llama.cpp: engine-router presets lists them", BAD_USAGE
        )
    if options.port == 0:
        raise CommandFailed(
            "--port 0: an engine has no free port of its own choice; leave --port out", BAD_USAGE
        )
    path = place_to_change(options.config)
    before = read_text(path) if path.exists() else None
    text = HEAD if before is None else before
    block = _block(options, text)
    whole = add_block(text, block.text, source=str(path))
    environment = Environment(may_be_unset=True)
    config = parse_config(whole, source=str(path), environment=environment)
    if options.name is None and (there := twin_of(block.engine, config)) is not None:
        raise CommandFailed(f"{there}; nothing was changed. --name NAME adds another one", BAD_USAGE)
    if options.dry_run:
        shown = block.text
        for key in block.keys:
            shown = shown.replace(key, "***")
        say(shown, end="")
        _say_notes(block, config, to_stderr=True)
        return OK
    written = write(path, whole, may_replace=before is not None, before=before, environment=environment)
    backup = f"; its former state is in {written.backup.name}" if written.backup else ""
    say(
        f"engine {block.engine} {'added to' if before is not None else 'written to the new file'} {path}{backup}"
    )
    _say_notes(block, written.config, to_stderr=False)
    _say_next(options.config, path, block)
    return OK


def _block(options: argparse.Namespace, text: str) -> Block:
    kind, url = options.kind, None
    if "://" in options.kind:
        kind, url = ("remote" if router_at(options.kind) is None else "peer"), options.kind
    given = PresetValues(
        name=options.name,
        model=options.model,
        path=options.path,
        port=options.port,
        scan=tuple(options.scan),
        url=options.url or url,
    )
    for option, value in (("name", given.name), ("model", given.model), ("path", given.path)):
        if value is not None and (found := _FILLED_IN.search(value)) is not None:
            raise CommandFailed(f"--{option} {value}: the router would fill in {found[0]}", BAD_USAGE)
    try:
        data: Mapping[str, Any] = tomli.loads(text.removeprefix("\ufeff"))
    except (tomli.TOMLDecodeError, RecursionError, ValueError):
        data = {}  # whoever adds to it says what is wrong
    try:
        preset, given = preset_for(kind, given)
        given = _completed(preset, given)
        _check_folders(given.scan)
        given = attrs.evolve(given, scan=tuple(map(lasting, given.scan)))
        block = filled(
            preset, given, taken=[*_keys(data, "engines"), *_keys(data, "peers")], traits=machine_traits()
        )
    except PresetError as error:
        raise CommandFailed(str(error), BAD_USAGE) from None
    if block.model is not None and block.model in _ids(data):
        raise CommandFailed(
            f"a model '{block.model}' is there already; give this one another id with --model", BAD_USAGE
        )
    return with_installed(block, find_programs())


def _check_folders(folders: Iterable[str]) -> None:
    """See that folders that are to be scanned are there.

    Raises:
        PresetError: one is not, or is a file.
    """
    for name in absent_folders(folders):
        raise PresetError(f"--scan {name}: there is no such folder; nothing was changed")
    for name in folders:
        if name not in CACHES and not expanded(name).is_dir():
            raise PresetError(f"--scan {name}: that is a file, not a folder; --path takes it")


def _completed(preset: Preset, given: PresetValues) -> PresetValues:
    """Ask for what is missing, where there is somebody to ask.

    Raises:
        PresetError: nobody is there, or gives no answer.
    """
    for option in missing(preset, given):
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            break
        say(f"{_QUESTIONS[option]} (such as {_example(preset, option)}): ", to=sys.stderr, end="")
        answer = sys.stdin.readline().strip()
        if not answer:
            break
        value: object = (answer,) if option == "scan" else answer
        given = attrs.evolve(given, **{option: value})  # type: ignore[arg-type] # the option's own type
    lacking = missing(preset, given)
    if lacking:
        examples = " ".join(f"--{option} {_example(preset, option)}" for option in lacking)
        keys = "".join(
            f"; {cloud.variable} is set: {way_to_add(cloud)}"
            for cloud in (clouds_in(os.environ) if "url" in lacking else ())
        )
        raise PresetError(f"{preset.kind} needs {examples.partition(' ')[0]}: for example {examples}{keys}")
    return given


def _example(preset: Preset, option: str) -> str:
    return preset.sample_model or "my-model" if option == "model" else preset.sample


def _keys(data: Mapping[str, Any], table: str) -> list[str]:
    entries = data.get(table)
    return [*entries] if isinstance(entries, dict) else []


def _ids(data: Mapping[str, Any]) -> set[str]:
    """Return the ids and aliases that mean something already, in a file that may have faults."""
    return {
        *_keys(data, "models"),
        *_keys(data, "aliases"),
        *_listed(data, "engines", "models"),
        *_listed(data, "peers", "models"),
        *_listed(data, "models", "aliases"),
    }


def _listed(data: Mapping[str, Any], table: str, key: str) -> Iterator[str]:
    for name in _keys(data, table):
        entry = data[table][name]
        found = entry.get(key) if isinstance(entry, dict) else None
        yield from (one for one in found or () if isinstance(one, str)) if isinstance(found, list) else ()


def _say_notes(block: Block, config: Config, *, to_stderr: bool) -> None:
    """Say what is to be known of the engine, and what will hardly work on this machine."""
    places = (place_of(block.engine, config.engines[block.engine]), f"models.{quoted(block.model or '')}")
    lines = [f"note: {note}" for note in block.notes]
    lines += [
        f"warning: {place}: {words}"
        for place, words in warnings(config)
        if any(place == own or place.startswith(f"{own}.") for own in places)
    ]
    if lines:
        say("\n".join(lines), to=sys.stderr if to_stderr else None)


def _say_next(explicit: str | None, path: Path, block: Block) -> None:
    named = f" --config {shlex.quote(str(path))}" if explicit else ""
    router = argparse.Namespace(url=None, api_key=None, config=str(path), no_router=False)
    try:
        runs = running_router(router) is not None
    except (CommandFailed, ConfigError):
        runs = False
    then = f"; then engine-router use {shlex.quote(block.model)}{named}" if runs and block.model else ""
    say(f"next: engine-router {'reload' if runs else 'serve'}{named}{then}")
