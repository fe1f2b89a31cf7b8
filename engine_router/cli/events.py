"""`engine-router events`."""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from engine_router import events as kinds
from engine_router.cli.address import locate
from engine_router.cli.client import Call
from engine_router.cli.event_text import EventLog
from engine_router.cli.exit_codes import INTERRUPTED, CommandFailed
from engine_router.cli.formatting import counted
from engine_router.cli.terminal import say
from engine_router.dialects.frames import EventFrames
from engine_router.guards.foreign_text import indented_values, printable_json

PIECE_BYTES = 65536
# The router says something at least every 15 s.
SILENCE_S = 60.0

_CLASSES = {
    kind.event_name(): kind
    for kind in vars(kinds).values()
    if isinstance(kind, type) and issubclass(kind, kinds.Event)
}


def run(options: argparse.Namespace) -> int:
    """Show what happens; raises as `Call.answer`. Ctrl-C and the router's own end are ordinary ends."""
    address = locate(options)
    call = Call(address, "GET", "/admin/events", None, SILENCE_S)
    log = EventLog()
    try:
        for data in _events(call):
            line = printable_json(json.dumps(data, ensure_ascii=False)) if options.json else _line(log, data)
            if line is not None:
                say(line, to=sys.stdout)
    except BrokenPipeError:  # whoever read our output has gone
        raise
    except (http.client.HTTPException, ConnectionError, TimeoutError):
        raise CommandFailed(f"the connection to {address.url} broke off") from None
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        call.close()
    return 0


def _events(call: Call) -> Iterator[dict[str, Any]]:
    frames = EventFrames()
    with call.answer() as answer:
        while piece := answer.read1(PIECE_BYTES):
            for data in frames.events(piece):
                event = json.loads(data)
                if isinstance(event, dict):
                    yield event


def _line(log: EventLog, data: Mapping[str, Any]) -> str | None:
    """Return what an event says to a person; None for a snapshot of the status."""
    if data.get("event") == "lost":
        return f"{counted(data['count'], 'event')} lost: they came faster than they were read"
    kind = _CLASSES.get(str(data.get("event")))
    if kind is None:
        return None
    known = {field.name for field in attrs.fields(kind)}
    fields = indented_values({name: value for name, value in data.items() if name in known})
    level, text = log.described(kind(**fields))
    tag = "" if level < logging.WARNING else f"{logging.getLevelName(level).lower()}: "
    return f"{time.strftime('%H:%M:%S', time.localtime(data['at']))} {tag}{text}"
