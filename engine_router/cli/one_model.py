"""`engine-router models MODEL`: all that is known of one model."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

from engine_router.cli.address import RouterAddress
from engine_router.cli.client import get
from engine_router.cli.formatting import gigabytes, seconds
from engine_router.cli.terminal import Table, say

Answer = Mapping[str, Any]
SHOWN_STARTS: Final = 5


def get_model(address: RouterAddress, name: str) -> Any:
    """Ask the router for all that it knows of a model; raises as `get`."""
    return get(address, f"/admin/models/{quote(name)}")


def show_model(answer: Answer) -> None:
    """Show a model: what it is, what it needs, its settings that are no defaults, and its last starts."""
    say(f"{answer['id']}: {', '.join(_facts(answer))}\n")
    if answer["command"]:
        say(f"command: {shlex.join(answer['command'])}\n")
    rows = [
        (entry["name"], json.dumps(entry["value"], ensure_ascii=False), entry["from"])
        for entry in answer["settings"]
        if entry["from"] != "default"
    ]
    if rows:
        Table(("Setting", "Value", "From"), rows).show()
    else:
        say("all its settings are the defaults")
    for start in (answer["starts"] or [])[-SHOWN_STARTS:]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start["at"]))
        took = "" if start["took_s"] is None else f" after {seconds(start['took_s'])}"
        words = {"ok": "started", "error": "failed", "abandoned": "was given up"}
        say(f"{at} {words.get(start['result'], start['result'])}{took}")
    if answer["last_error"]:
        say(f"last error: {answer['last_error']}")


def _facts(answer: Answer) -> Iterator[str]:
    yield f"engine {answer['engine']}"
    yield answer["state"]
    if answer["aliases"]:
        yield f"also called {', '.join(answer['aliases'])}"
    if answer["need_bytes"] is not None:
        about = "about " if answer["need_is_estimated"] else ""
        yield f"needs {about}{gigabytes(answer['need_bytes'])}"
    if answer["context"]:
        yield f"{answer['context']:,} tokens of context"
    yield from answer["capabilities"]
    if answer["load_cost_s"] is not None:
        yield f"starts in {seconds(answer['load_cost_s'])}"
    if answer.get("reads_tokens_per_s") is not None:
        yield f"reads {answer['reads_tokens_per_s']:g} tokens/s"
    if answer.get("writes_tokens_per_s") is not None:
        yield f"writes {answer['writes_tokens_per_s']:g} tokens/s"
    if answer["file"]:
        yield answer["file"]
