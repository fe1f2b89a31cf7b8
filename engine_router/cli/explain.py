"""`engine-router explain`: which model would answer a request now, and why."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine_router.cli.address import locate
from engine_router.cli.client import not_understood, post
from engine_router.cli.exit_codes import OK, CommandFailed
from engine_router.cli.formatting import seconds
from engine_router.cli.terminal import say, show_json
from engine_router.guards.foreign_text import indented_values


def run(options: argparse.Namespace) -> int:
    """Ask the router, and show what it says.

    Raises:
        CommandFailed: the file cannot be read, or the router is not there, says no, or is none.
    """
    headers = dict(_header(text) for text in options.header)
    asked = {"request": _request(options.file), "path": options.path, "headers": headers}
    address = locate(options)
    answer = post(
        address, "/admin/explain", asked if options.key_name is None else {**asked, "key": options.key_name}
    )
    if options.json:
        show_json(answer)
        return OK
    try:
        _show(indented_values(dict(answer)))
    except (KeyError, TypeError, ValueError):
        raise not_understood(address) from None
    return OK


def _show(answer: Mapping[str, Any]) -> None:
    say(answer["reason"])
    if answer["model"] is None:
        return
    begins_s = answer["begins_in_s"]
    when = f", begins in about {seconds(begins_s)}" if begins_s else ""
    say(f"engine {answer['engine']}, {answer['state']}{when}")
    if others := answer["order"][1:]:
        say(f"if it cannot be started or reached: {', '.join(others)}")


def _request(name: str) -> Any:
    """Return the body of a request.

    Raises:
        CommandFailed: it cannot be read, or is no JSON.
    """
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
    except FileNotFoundError:
        bare = json.dumps({"model": name})
        raise CommandFailed(
            f"there is no file {name}: explain reads the body of a request from one, or from standard input; for a "
            f"request that is nothing but a name: echo {shlex.quote(bare)} | engine-router explain -"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{name} cannot be read: {error}") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandFailed(f"{name} is no JSON: {error}") from None


def _header(text: str) -> tuple[str, str]:
    """Return the name and value of a header.

    Raises:
        CommandFailed: it is none.
    """
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise CommandFailed(f"{text!r} is no header: write NAME:VALUE")
    return name.strip(), value.strip()
