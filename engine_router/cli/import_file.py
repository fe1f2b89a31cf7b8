"""`engine-router import FILE`: another router's configuration as one of this router, with a report of what became of it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tomli
from attrs import frozen

from engine_router.cli.exit_codes import BAD_USAGE, OK, CommandFailed
from engine_router.cli.formatting import counted
from engine_router.cli.terminal import is_terminal, say, show_json
from engine_router.config import parse_config
from engine_router.config.file import read_text, write
from engine_router.config.values import expanded
from engine_router.guards.documents import Unreadable
from engine_router.setup.config_file import HEAD, add_tables, place_to_change
from engine_router.setup.migrate.draft import Draft, Note
from engine_router.setup.migrate.migration import UnknownKind, fit_into, migrate
from engine_router.setup.migrate.recognise import KINDS, Kind
from engine_router.setup.migrate.render import comments_of, rendered, tables_of
from engine_router.setup.migrate.secrets import references_in, without_secrets
from engine_router.setup.migrate.sound import any_environment

_OUTCOMES: Final = ("carried over", "approximated", "lost")
_MOST_LINES: Final = 1000


@frozen
class _Result:
    """What there is to tell.

    Attributes:
        text: the configuration, or what was added to one; secrets are references in it.
        written: where it was written; None where it was only shown.
        left_out: tables and keys that the configuration had already.
        hidden: variables that stand for secrets in the text.
        missing: variables that it refers to and that are not set here.
    """

    text: str
    written: Path | None
    left_out: Sequence[str]
    hidden: Sequence[str]
    missing: Sequence[str]


def run(options: argparse.Namespace) -> int:
    """Read files, show or write what they become, and report what became of each key.

    Raises:
        ConfigError: the configuration that is to be added to has faults, or cannot be written.
        CommandFailed: a file cannot be read, or it is not clear whose it is, or nothing in it can be used.
    """
    draft, has_engines = _migrated(options)
    if not has_engines:
        if options.json:
            show_json(_as_json(draft, _Result("", None, (), (), ())))
        else:
            _report(draft, _Result("", None, (), (), ()), everything=False)
        raise CommandFailed(f"{options.folder[0]}: nothing in it can be carried over", BAD_USAGE)
    if options.write:
        path = place_to_change(options.config)
        before, left_out = _fitted(draft, path)
        result = _written(draft, path, before, _shown(draft, left_out))
    else:
        result = _shown(draft, ())
    if options.json:
        show_json(_as_json(draft, result))
        return OK
    if not options.write and not options.report:
        say(result.text.rstrip("\n"))
    _report(draft, result, everything=options.report)
    return OK


def _migrated(options: argparse.Namespace) -> tuple[Draft, bool]:
    paths = [expanded(name) for name in options.folder]
    if options.engine is not None:
        raise CommandFailed("--engine is for the models of folders; a file has its own engines", BAD_USAGE)
    kind: Kind | None = options.source
    try:
        return migrate(paths, kind, options.models_dir)
    except UnknownKind as fault:
        kind = _asked(str(fault))
    except Unreadable as fault:
        raise CommandFailed(str(fault), BAD_USAGE) from None
    try:
        return migrate(paths, kind, options.models_dir)
    except Unreadable as fault:
        raise CommandFailed(str(fault), BAD_USAGE) from None


def _asked(fault: str) -> Kind:
    """Ask the person whose configuration it is.

    Raises:
        CommandFailed: there is nobody to ask, or no answer.
    """
    choices = ", ".join(KINDS)
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise CommandFailed(f"{fault}; say --from with one of {choices}", BAD_USAGE)
    say(f"{fault}. Whose is it: {choices}? ", to=sys.stderr, end="")
    answer = sys.stdin.readline().strip().lower()
    for kind in KINDS:
        if answer == kind:
            return kind
    raise CommandFailed(f"that is none of {choices}", BAD_USAGE)


def _fitted(draft: Draft, path: Path) -> tuple[str | None, list[str]]:
    """Take out of a draft what the configuration has already; return its text, None where there is no file.

    Raises:
        ConfigError: it cannot be read.
    """
    if not path.exists():
        return None, []
    before = read_text(path)
    try:
        data = tomli.loads(before.removeprefix("\ufeff"))
    except (tomli.TOMLDecodeError, RecursionError, ValueError):
        parse_config(before, source=str(path))  # says where
        raise
    return before, fit_into(draft, data)


def _shown(draft: Draft, left_out: Sequence[str]) -> _Result:
    shown, hidden = without_secrets(draft)
    asked = dict.fromkeys(references_in(tables_of(draft)))
    missing = [name for name in asked if name not in os.environ]
    return _Result(rendered(shown), None, left_out, list(hidden), missing)


def _written(draft: Draft, path: Path, before: str | None, result: _Result) -> _Result:
    tables, comments = tables_of(draft), comments_of(draft)
    if not tables:
        return result
    if before is None:
        text = f"{HEAD}\n{rendered(draft)}"
    else:
        text = add_tables(before, tables, comments, source=str(path))
    write(path, text, may_replace=before is not None, before=before, environment=any_environment())
    return _Result(result.text, path, result.left_out, (), result.missing)


def _as_json(draft: Draft, result: _Result) -> Mapping[str, Any]:
    return {
        "from": draft.source,
        "toml": result.text,
        "written": None if result.written is None else str(result.written),
        "left_out": list(result.left_out),
        "hidden_secrets": list(result.hidden),
        "missing_variables": list(result.missing),
        **{outcome.replace(" ", "_"): _notes(draft, outcome) for outcome in _OUTCOMES},
    }


def _notes(draft: Draft, outcome: str) -> list[Mapping[str, Any]]:
    return [
        {"place": note.place, "line": note.line, "words": note.words, "remedy": note.remedy}
        for note in draft.notes
        if note.outcome == outcome
    ]


def _report(draft: Draft, result: _Result, *, everything: bool) -> None:
    """Tell what became of the keys, on standard error where the configuration is on standard output."""
    to = sys.stdout if everything else sys.stderr
    counts = ", ".join(f"{len(_notes(draft, outcome))} {outcome}" for outcome in _OUTCOMES)
    say(f"{draft.source}: {counts}", to=to)
    for outcome in _OUTCOMES:
        notes = [note for note in draft.notes if note.outcome == outcome]
        if notes and (everything or outcome != "carried over"):
            say(f"\n{outcome}:", to=to)
            _list(map(_line, notes), to)
    if result.left_out:
        say("\nthere already, and left as it is:", to=to)
        _list((f"  {place}" for place in result.left_out), to)
    if result.hidden:
        say(f"\nsecrets are not printed: --write puts them in; else set {', '.join(result.hidden)}", to=to)
    if result.missing:
        say(f"\nnot set here: {', '.join(result.missing)}; set them where the router is started", to=to)
    if result.written is not None:
        say(f"\n{result.written}: written. Next: engine-router check, then engine-router serve", to=to)
    elif not result.text.strip():
        say("\nnothing new is found: the configuration stays as it is", to=to)
    elif not everything:
        say(
            f"\nnothing is written; --write puts {counted(len(draft.engines) + len(draft.peers), 'engine')} into engines.toml",
            to=to,
        )


def _list(lines: Iterable[str], to: Any) -> None:
    listed = list(lines)
    for line in listed[:_MOST_LINES]:
        say(line, to=to)
    if len(listed) > _MOST_LINES:
        say(f"  and {len(listed) - _MOST_LINES} more; --json has them all", to=to)


def _line(note: Note) -> str:
    where = f"line {note.line}, {note.place}" if note.line is not None and note.place else note.place
    remedy = f" ({note.remedy})" if note.remedy else ""
    return f"  {where}: {note.words}{remedy}" if where else f"  {note.words}{remedy}"
