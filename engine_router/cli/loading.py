"""`engine-router use`, `load` and `unload`: the commands that wait for a swap, and show how far it is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from engine_router.cli.address import locate
from engine_router.cli.client import get_status, post
from engine_router.cli.exit_codes import INTERRUPTED, OK
from engine_router.cli.formatting import seconds
from engine_router.cli.progress import wait_for
from engine_router.cli.terminal import say, show_json
from engine_router.guards.foreign_text import indented_values

# A model that took longer than this was not resident before.
AT_ONCE_S = 0.05


@frozen
class Subject:
    """The model or engine that a name on the command line means.

    Attributes:
        body: the members of a request's body that name it.
        pool: its pool; None where that is not known yet.
    """

    body: dict[str, str]
    pool: str | None


def run(options: argparse.Namespace) -> int:
    """Make a model or an engine resident, or unload it; raises as `wait_for`."""
    address = locate(options)
    status = get_status(address)
    subject = Subject({}, None) if options.name is None else find_subject(status, options.name)
    is_unload = options.command == "unload"
    path, body = f"/admin/{'swap' if options.command == 'use' else options.command}", {**subject.body}
    if options.command == "load":
        body = _load_body(subject, options)
        if options.no_wait:
            _show_job(post(address, path, body), options)
            return OK
    try:
        answer = wait_for(address, path, body, subject.pool, quiet=options.json)
    except KeyboardInterrupt:
        outcome = (
            "not waited for any more; the router goes on with it"
            if is_unload
            else "given up; the router ends the start too, unless somebody else waits for it"
        )
        say(outcome, to=sys.stderr)
        return INTERRUPTED
    if options.json:
        show_json(answer)
    else:
        say(_unloaded(options.name, answer) if is_unload else _loaded(options.name, answer))
    return OK


def _load_body(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    body: dict[str, Any] = {**subject.body, "wait": not options.no_wait}
    if options.keep_alive is not None:
        try:
            body["keep_alive"] = float(options.keep_alive)
        except ValueError:
            body["keep_alive"] = options.keep_alive  # the router says what it makes of that
    return body


def _show_job(job: Mapping[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        show_json(job)
    else:
        say(f"{options.name} is being loaded (job {job['job']}; engine-router cancel {job['job']} ends it)")


def _unloaded(name: str | None, answer: Mapping[str, Any]) -> str:
    """Return the outcome of an unload, in words."""
    if answer["unloaded"]:
        return f"unloaded {', '.join(indented_values(answer['unloaded']))}"
    return "nothing is resident" if name is None else f"{name} is not resident"


def _loaded(name: str, answer: Mapping[str, Any]) -> str:
    """Return the outcome of a load, in words."""
    answer = indented_values(answer)
    resident, was = answer["resident"], answer["was"]
    subject = name if name == resident else f"{name} (engine {answer['engine']})"
    if was == resident and answer["duration_s"] < AT_ONCE_S:
        return f"{subject} was resident already"
    instead = f", instead of {was}" if was not in (None, resident) else ""
    return f"{subject} is resident after {seconds(answer['duration_s'])}{instead}"


def find_subject(status: dict[str, Any], name: str) -> Subject:
    """Return the subject of a name: a model, an alias or an engine; else the router finds it, or says that it cannot."""
    for model in status["models"]:
        if name == model["id"] or name in model["aliases"]:
            return Subject({"model": name}, status["engines"][model["engine"]]["pool"])
    if name in status["engines"]:
        return Subject({"engine": name}, status["engines"][name]["pool"])
    return Subject({"model": name}, None)
