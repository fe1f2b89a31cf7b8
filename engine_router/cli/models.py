"""`engine-router models`."""

from __future__ import annotations

import argparse

from engine_router.cli.client import get
from engine_router.cli.failure import CommandFailed
from engine_router.cli.terminal import Table, say, show_json
from engine_router.cli.where import locate


def run(options: argparse.Namespace) -> int:
    """List the models.

    Raises:
        CommandFailed: the router is not there, says no, or is none.
    """
    where = locate(options)
    listed = get(where, "/v1/models")
    if options.json:
        show_json(listed)
        return 0
    try:
        # An alias is in the list as a model of its own, for other clients.
        rows = [
            (entry["id"], entry["engine"], entry["state"], ", ".join(entry["aliases"]) or "-")
            for entry in listed["data"]
            if "alias_of" not in entry
        ]
    except (KeyError, TypeError):
        raise CommandFailed(f"what answers at {where.url} is not an engine-router") from None
    if not rows:
        say("no model is known yet: name some in engines.toml, or start an engine that lists its own")
        return 0
    Table(("Model", "Engine", "State", "Aliases"), rows).show()
    return 0
