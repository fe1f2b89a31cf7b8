"""`engine-router unload`."""

from __future__ import annotations

import argparse

from engine_router.cli.client import get_status
from engine_router.cli.terminal import say, show_json
from engine_router.cli.use import Named, find, interrupted
from engine_router.cli.waiting import wait_for
from engine_router.cli.where import locate
from engine_router.guards.foreign_text import indented_values


def run(options: argparse.Namespace) -> int:
    """Unload a model, an engine, or everything; raises as `wait_for`."""
    where = locate(options)
    status = get_status(where)
    named = Named({}, None) if options.name is None else find(status, options.name)
    try:
        answer = wait_for(where, "/admin/unload", named.body, named.pool, quiet=options.json)
    except KeyboardInterrupt:
        return interrupted("not waited for any more; the router goes on with it")
    if options.json:
        show_json(answer)
    elif answer["unloaded"]:
        say(f"unloaded {', '.join(indented_values(answer['unloaded']))}")
    else:
        say("nothing is resident" if options.name is None else f"{options.name} is not resident")
    return 0
