"""`engine-router load`."""

from __future__ import annotations

import argparse
from typing import Any

from engine_router.cli.client import get_status, post
from engine_router.cli.terminal import say, show_json
from engine_router.cli.use import find, interrupted, told
from engine_router.cli.waiting import wait_for
from engine_router.cli.where import locate


def run(options: argparse.Namespace) -> int:
    """Make a model or an engine resident; raises as `wait_for`."""
    where = locate(options)
    named = find(get_status(where), options.name)
    body: dict[str, Any] = {**named.body, "wait": not options.no_wait}
    if options.keep_alive is not None:
        body["keep_alive"] = _time(options.keep_alive)
    if options.no_wait:
        job = post(where, "/admin/load", body)
        if options.json:
            show_json(job)
        else:
            say(
                f"{options.name} is being loaded (job {job['job']}; engine-router cancel {job['job']} ends it)"
            )
        return 0
    try:
        answer = wait_for(where, "/admin/load", body, named.pool, quiet=options.json)
    except KeyboardInterrupt:
        return interrupted("given up; the router ends the start too, unless somebody else waits for it")
    if options.json:
        show_json(answer)
    else:
        say(told(options.name, answer))
    return 0


def _time(text: str) -> float | str:
    """Return seconds as a number, and anything else as it is: the router says what it makes of that."""
    try:
        return float(text)
    except ValueError:
        return text
