"""`engine-router discover`: which engine has which models, and where each of them is known from."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from engine_router.cli.address import locate
from engine_router.cli.client import not_understood, post
from engine_router.cli.exit_codes import OK
from engine_router.cli.formatting import seconds
from engine_router.cli.terminal import Table, say, show_json
from engine_router.guards.foreign_text import indented_values

_NOTHING: Final = "-"
# Under a second, a list is from this very call.
_NOW_S: Final = 1.0


def run(options: argparse.Namespace) -> int:
    """Have every engine, or one, asked, and show what is known.

    Raises:
        CommandFailed: the router is not there, says no, or is none.
    """
    address = locate(options)
    answer = post(address, "/admin/discover", {} if options.name is None else {"engine": options.name})
    if options.json:
        show_json(answer)
        return OK
    try:
        _show(indented_values(answer["engines"]))
    except (KeyError, TypeError, AttributeError):
        raise not_understood(address) from None
    return OK


def _show(engines: Mapping[str, Any]) -> None:
    rows = [
        (
            model["id"],
            name,
            ", ".join(model["learned_from"]),
            _ago(model["last_seen"]),
            "yes" if model["served"] else f"no, {model['shadowed_by'] or 'an alias'} has it",
        )
        for name, engine in engines.items()
        for model in engine["models"]
    ]
    if rows:
        Table(("Model", "Engine", "Known from", "Last seen", "Served"), rows).show()
    lines = list(_remarks(engines))
    if rows and lines:
        say()
    for line in lines:
        say(line)


def _remarks(engines: Mapping[str, Any]) -> Iterator[str]:
    for name, engine in engines.items():
        for error in (engine["error"], engine["files_error"]):
            if error is not None:
                yield f"{name}: {error}"
        if not engine["models"]:
            yield f"{name}: no model is known; name some in engines.toml, or start it once (engine-router use {name})"


def _ago(at: float | None) -> str:
    if at is None:
        return _NOTHING
    past_s = time.time() - at
    return "now" if past_s < _NOW_S else f"{seconds(past_s)} ago"
