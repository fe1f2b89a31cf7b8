"""`engine-router completion`: a script for a shell, and the names that such scripts ask for."""

from __future__ import annotations

import argparse
from typing import Any, Final

from engine_router.cli.address import locate
from engine_router.cli.client import Call
from engine_router.cli.completions import LIVE
from engine_router.cli.completions.bash import bash_script
from engine_router.cli.completions.described import describe_commands
from engine_router.cli.completions.fish import fish_script
from engine_router.cli.completions.zsh import zsh_script
from engine_router.cli.exit_codes import OK, CommandFailed
from engine_router.cli.parser import build_parser
from engine_router.cli.terminal import say
from engine_router.errors import ConfigError
from engine_router.guards.foreign_text import printable

NAMES_TIMEOUT_S: Final = 1.0
"""A person who pressed the Tab key waits for it."""
_SCRIPTS: Final = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}


def run(options: argparse.Namespace) -> int:
    """Print a script, or names; names that cannot be had are none, whatever the reason."""
    if options.shell in LIVE:
        for name in _names(options):
            say(printable(name))
        return OK
    say(_SCRIPTS[options.shell](describe_commands(build_parser())), end="")
    return OK


def _names(options: argparse.Namespace) -> list[str]:
    call = None
    try:
        call = Call(locate(options), "GET", "/v1/models", None, NAMES_TIMEOUT_S)
        entries: Any = call.read()["data"]
        models = [str(entry["id"]) for entry in entries]
        engines = sorted({str(entry["engine"]) for entry in entries})
    except (CommandFailed, ConfigError, KeyError, TypeError):
        return []
    finally:
        if call is not None:
            call.close()
    if options.shell == "models":
        return models
    return (
        engines
        if options.shell == "engines"
        else [*models, *(name for name in engines if name not in models)]
    )
