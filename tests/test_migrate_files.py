"""Files of other routers: those that cannot be read, what the loader refuses, and the page that names every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.foreign_configs import (
    EXAMPLES,
    OWN_NAMES,
    key_of,
)
from support.migration import imported

from engine_router.guards.documents import Unreadable
from engine_router.setup.migrate.migration import UnknownKind

APPROXIMATED, LOST = "approximated", "lost"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no settings"),
        ("just words", "holds no settings"),
        ("a: [1", "line 1"),
        ("a: &x [*y]", "undefined alias|is used before"),
        ("a: !!python/object:os.system x", "tag"),
        ('{\n  "a": 1,\n  "b" 2\n}', "line 3.*colon"),
        ('{"a": "x', "no JSON"),
        ("models: {a: {cmd: '\"'}}\nmacros: {b: *c}", "line 2"),
        ("\x00\x01", "no text"),
    ],
)
def test_files_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        imported(text)


def test_a_file_of_nobody() -> None:
    with pytest.raises(UnknownKind, match="not clear whose"):
        imported("colour: blue")
    with pytest.raises(Unreadable, match="one file at a time"):
        imported("macros: {}", "macros: {}")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '*a'] * 9)}]\n" for n in range(9)),
        "models:\n" + "".join(f"  {'  ' * n}a:\n" for n in range(90)) + "  " * 92 + "b: 1",
        "[" * 5000,
        '{"a":' * 5000,
        "{" * 5000,
        "- " * 5000,
    ],
)
def test_bombs_are_refused(text: str) -> None:
    with pytest.raises(Unreadable, match=r"values|deeper|YAML|JSON"):
        imported(text)


def test_a_key_that_stands_twice_is_told() -> None:
    found = imported("models:\n  a: {cmd: 's --port ${PORT}', ttl: 1, ttl: 2}\n")
    assert found.process("a").idle_timeout_s == 2
    assert found.outcome("models.a.ttl") == APPROXIMATED


def test_what_the_loader_refuses_is_left_out_and_told() -> None:
    found = imported(
        """
        models:
          a: {cmd: "s --port ${PORT}", checkEndpoint: "/a b"}
          b: {cmd: "s --port ${PORT}", aliases: [a]}
          c: {cmd: "s", proxy: "ftp://x"}
          d: {cmd: "A=1 s --port ${PORT}"}
        """
    )
    assert found.config.engines.keys() == {"a", "b"}
    assert found.process("a").ready_path == "/health"
    lost = [note.place for note in found.draft.notes if note.outcome == LOST]
    assert {"engines.a.ready_path", "models.b.aliases", "engines.c.base_url", "engines.d.argv"} <= set(lost)


# The page of documentation.


def page_rows() -> dict[str, dict[str, set[str]]]:
    """Return the outcomes of each key, by the sections of docs/migrate.md."""
    page = (Path(__file__).parents[1] / "docs" / "migrate.md").read_text("utf-8")
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    return {
        name: {
            key: set(outcomes.split(", "))
            for key, outcomes in re.findall(r"^\| `([^`]+)` \| ([a-z, ]+) \|", text, re.MULTILINE)
        }
        for name, text in sections.items()
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_says_what_becomes_of_each_key(name: str) -> None:
    found: dict[str, set[str]] = {}
    for texts in EXAMPLES[name]:
        for note in imported(*texts).draft.notes:
            if note.place and key_of(note.place) not in OWN_NAMES:
                found.setdefault(key_of(note.place), set()).add(note.outcome)
    assert page_rows()[name] == found
