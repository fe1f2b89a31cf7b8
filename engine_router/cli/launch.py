"""`engine-router launch`: starts a client that finds the router, and its model, by itself."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine_router.cli.address import RouterAddress, locate
from engine_router.cli.chat.screen import note
from engine_router.cli.chat.session import find_model
from engine_router.cli.client import get, get_status
from engine_router.cli.clients.json_file import merged, read_json, replaced, write_json
from engine_router.cli.clients.rendered import Rendered, Values, render
from engine_router.cli.clients.table import CLIENTS, Client
from engine_router.cli.exit_codes import BAD_USAGE, FAILED, INTERRUPTED, OK, CommandFailed
from engine_router.cli.terminal import say
from engine_router.config import find_config, load_config
from engine_router.errors import ConfigError


def run(options: argparse.Namespace) -> int:
    """Start a client, or show what it would be told.

    Raises:
        CommandFailed: it is not installed, there is no router or model, or its file cannot be changed.
        ConfigError: the file named by `--config` has faults.
    """
    client = CLIENTS.get(options.client)
    if client is None:
        _list()
        return OK
    program = "" if options.print else _program(client)  # before anybody is asked which model
    address = locate(options)
    model = options.model or _model(address, options)
    context = find_model(address, model).get("context_length")
    values = Values(address.url, address.key or "any", model, context if isinstance(context, int) else None)
    rendered = render(client, values, options.arguments)
    if options.print:
        _show(rendered)
        return OK
    if rendered.path is not None and not _write_file(client, rendered, is_agreed=options.yes):
        return FAILED
    if rendered.set_up and not _set_up(client, program, rendered, is_agreed=options.yes):
        return FAILED
    if rendered.hint:
        note(f"engine-router: {rendered.hint}")
    note(f"engine-router: {client.title} with {model} at {address.url}")
    return _start(program, rendered)


def _list() -> None:
    width = max(map(len, CLIENTS)) + 2
    for name, client in CLIENTS.items():
        missing = "" if _found(client) else f"  (not installed: {client.page})"
        say(f"{name:{width}}{client.title}{missing}")
    say("\nengine-router launch CLIENT starts one; with --print it only shows how")


def _model(address: RouterAddress, options: argparse.Namespace) -> str:
    """Return the model that is meant without being named: the default one, the resident one, or the one that is chosen.

    Raises:
        CommandFailed: there is none, or nobody to choose.
    """
    entries = get(address, "/v1/models")["data"]
    names = [entry["id"] for entry in entries if "alias_of" not in entry]
    with contextlib.suppress(ConfigError):
        default = load_config(find_config(options.config)).server.default_model
        if default in [entry["id"] for entry in entries]:
            return str(default)
    loaded = [entry["id"] for entry in entries if entry.get("state") == "ready" and "alias_of" not in entry]
    engines = get_status(address)["engines"]
    if len(loaded) == 1 or (
        loaded and len({engines[_engine(entries, name)]["pool"] for name in loaded}) == 1
    ):
        return str(loaded[0])
    if len(names) == 1:
        return str(names[0])
    if not names:
        raise CommandFailed("the router knows no model yet: name one in engines.toml")
    if not sys.stdin.isatty():
        raise CommandFailed(f"which model? --model {' or --model '.join(names[:20])}", BAD_USAGE)
    return _chosen(names)


def _engine(entries: list[Mapping[str, Any]], name: str) -> str:
    return str(next(entry["engine"] for entry in entries if entry["id"] == name))


def _chosen(names: list[str]) -> str:
    for number, name in enumerate(names, 1):
        note(f"{number:4}  {name}")
    while True:
        say("which model? ", to=sys.stderr, end="")
        answer = sys.stdin.readline()
        if not answer:
            raise CommandFailed("no model was chosen", BAD_USAGE)
        answer = answer.strip()
        if answer in names:
            return answer
        if answer.isascii() and answer.isdigit() and 1 <= int(answer[:9]) <= len(names):
            return names[int(answer[:9]) - 1]


def _found(client: Client) -> str | None:
    """Return the path of a client's program; None where it is not installed."""
    elsewhere = os.pathsep.join(str(Path(folder).expanduser()) for folder in client.elsewhere)
    return shutil.which(client.program) or shutil.which(client.program, path=elsewhere)


def _program(client: Client) -> str:
    program = _found(client)
    if program is None:
        raise CommandFailed(
            f"{client.title} is not installed (there is no {client.program} on the PATH); how to install it: {client.page}"
        )
    return program


def _show(rendered: Rendered) -> None:
    """Show what a shell would have to do."""
    for name, value in rendered.variables.items():
        say(f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}")
    if rendered.path is not None:
        content = json.dumps(rendered.content, indent=2, ensure_ascii=False)
        say("\n".join([f"# in {rendered.path}:", *(f"#   {line}" for line in content.splitlines())]))
    if rendered.set_up:
        say(shlex.join(rendered.set_up))
    say(shlex.join(rendered.command))
    if rendered.hint:
        say(f"# {rendered.hint}")


def _write_file(client: Client, rendered: Rendered, *, is_agreed: bool) -> bool:
    """Put what the client has to know into its file; returns False where the person does not want that."""
    path, file = rendered.path, client.file
    assert path is not None  # noqa: S101 - it was asked before
    assert file is not None  # noqa: S101 - likewise
    found = read_json(path, type(rendered.content))
    data = found.data
    whole = merged(data, rendered.content, file.identity)
    if whole == data:
        return True
    content = json.dumps(rendered.content, indent=2, ensure_ascii=False)
    if found.has_comments:
        raise CommandFailed(
            f"{path} has comments, which would be lost: nothing was changed. Put this into it by hand, then launch "
            f"{client.title} again:\n{content}"
        )
    note(f"{client.title} reads {path}, where this has to stand:\n{content}")
    if changed := replaced(data, rendered.content, file.identity):
        note(f"these have another value now: {', '.join(changed)}")
    if not is_agreed and not _agreed(
        "put it there? Everything else in it stays, and the file is kept as .bak [y/N] "
    ):
        return False
    backup = write_json(path, whole, found.text)
    note(f"written: {path}" + ("" if backup is None else f"; as it was: {backup}"))
    return True


def _set_up(client: Client, program: str, rendered: Rendered, *, is_agreed: bool) -> bool:
    """Have the client write its own settings; returns False where that is not wanted, or fails."""
    note(
        f"{client.title} keeps its provider in settings of its own, which this changes:\n{shlex.join(rendered.set_up)}"
    )
    if not is_agreed and not _agreed("run it? [y/N] "):
        return False
    done = subprocess.run([program, *rendered.set_up[1:]], check=False, env=_environment(rendered))  # noqa: S603
    if done.returncode:
        note(f"engine-router: {client.title} could not be set up (exit code {done.returncode})")
    return done.returncode == 0


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CommandFailed(
            "nobody is there to be asked: --yes does it without a question, --print shows it", BAD_USAGE
        )
    say(question, to=sys.stderr, end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _environment(rendered: Rendered) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in rendered.variables}
    return {**kept, **{name: value for name, value in rendered.variables.items() if value is not None}}


def _start(program: str, rendered: Rendered) -> int:
    """Become the client, where the system can; else run it, and return its exit code.

    Raises:
        CommandFailed: it cannot be started.
    """
    arguments, environment = rendered.command[1:], _environment(rendered)
    sys.stdout.flush()
    try:
        if os.name == "posix":
            signal.signal(
                signal.SIGPIPE, signal.SIG_DFL
            )  # Python ignores it, and a program would inherit that
            os.execve(program, [program, *arguments], environment)  # noqa: S606 - what the person asked for
        return subprocess.run([program, *arguments], check=False, env=environment).returncode  # noqa: S603 - likewise
    except KeyboardInterrupt:
        return INTERRUPTED
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{program} cannot be started: {error}") from None
