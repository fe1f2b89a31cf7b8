"""`engine-router use`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from engine_router.cli.client import get_status
from engine_router.cli.terminal import say, show_json
from engine_router.cli.units import seconds
from engine_router.cli.waiting import wait_for
from engine_router.cli.where import locate
from engine_router.guards.foreign_text import indented_values

INTERRUPTED = 130
# What takes longer than this was not there yet.
AT_ONCE_S = 0.05


@frozen
class Named:
    """What a name on the command line means to the router.

    Attributes:
        body: what is posted.
        pool: its pool; None where that is not known yet.
    """

    body: dict[str, str]
    pool: str | None


def run(options: argparse.Namespace) -> int:
    """Make a model or an engine resident; raises as `wait_for`."""
    where = locate(options)
    named = find(get_status(where), options.name)
    try:
        answer = wait_for(where, "/admin/swap", named.body, named.pool, quiet=options.json)
    except KeyboardInterrupt:
        return interrupted("given up; the router ends the start too, unless somebody else waits for it")
    if options.json:
        show_json(answer)
    else:
        say(told(options.name, answer))
    return 0


def told(name: str, answer: Mapping[str, Any]) -> str:
    """Say what came of a load."""
    answer = indented_values(answer)
    resident, was = answer["resident"], answer["was"]
    subject = name if name == resident else f"{name} (engine {answer['engine']})"
    if was == resident and answer["duration_s"] < AT_ONCE_S:
        return f"{subject} was resident already"
    instead = f", instead of {was}" if was not in (None, resident) else ""
    return f"{subject} is resident after {seconds(answer['duration_s'])}{instead}"


def find(status: dict[str, Any], name: str) -> Named:
    """Find what a name means: a model, an alias or an engine; else the router finds it, or says that it cannot."""
    for model in status["models"]:
        if name == model["id"] or name in model["aliases"]:
            return Named({"model": name}, status["engines"][model["engine"]]["pool"])
    if name in status["engines"]:
        return Named({"engine": name}, status["engines"][name]["pool"])
    return Named({"model": name}, None)


def interrupted(text: str) -> int:
    """Say what becomes of a call that is not waited for any more; return the exit code."""
    say(text, to=sys.stderr)
    return INTERRUPTED
