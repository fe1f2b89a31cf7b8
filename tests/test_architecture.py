"""The house: rooms, layers and sizes, as docs/architecture.md says, and the names that no code has any more."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "engine_router"
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
FILES = sorted(PACKAGE.rglob("*.py"))
FRONT_DOORS = {"__init__", "__main__", "llamacpp"}

# Private names of the past, in snake case. They mean nothing to a stranger; the standard name is beside each.
PRIVATE_WORDS = {
    "answerer": "handler",
    "bury": "mark_dead",
    "dormitory": "sleep_registry",
    "ebb": "stop_group",
    "forge": "engine_factory",
    "happenings": "event_stream",
    "lives": "tasks",
    "occupancy": "memory_budget",
    "passage": "exchange",
    "residence": "state",
    "residences": "states",
    "slumber": "remote_sleep",
    "strangers": "csrf",
    "think_times": "idle_gaps",
    "tide": "memory_attribution",
    "undead": "unstopped",
    "wishes": "preload",
}
# Words that are English elsewhere, but not as the whole name of something here.
PRIVATE_NAMES = {
    "Bed", "Books", "Course", "Courses", "Family", "Habits", "Layout", "Life", "Lives", "Manner", "Passing",
    "Patience", "Rest", "State", "Way", "asking", "news", "put_down", "standing", "told",
}  # fmt: skip


def layers_in_contract() -> list[set[str]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [
        {name.strip().removeprefix("engine_router.") for name in re.split("[:|]", layer)} for layer in layers
    ]


def layers_on_page() -> list[set[str]]:
    block = PAGE.partition("```\n")[2].partition("```")[0]
    lines = [re.split(r"\s{2,}", line)[0] for line in block.splitlines()]
    return [{name.strip() for name in re.split("[:|]", line)} for line in lines]


def modules_and_rooms() -> tuple[set[str], set[str]]:
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return modules, rooms


def names_in(tree: ast.AST) -> Iterator[str]:
    """Yield every name that a module gives, or uses, in code."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg is not None:
            yield node.arg


def words_of(name: str) -> list[str]:
    """Split a name into its words: `_is_readyNow` has `is`, `ready` and `now`."""
    return re.findall("[a-z0-9]+", re.sub("([A-Z])", r"_\1", name).lower())


def test_the_page_shows_the_layers_of_the_import_contract() -> None:
    assert layers_on_page() == layers_in_contract()
    assert len(layers_in_contract()) <= 14


def test_the_page_shows_every_room_and_module_of_the_root() -> None:
    modules, rooms = modules_and_rooms()
    assert set[str]().union(*layers_on_page()) == (modules | rooms) - FRONT_DOORS
    assert len(modules) <= 10
    assert len(rooms) <= 15


def test_every_file_that_the_page_names_is_there() -> None:
    for name in re.findall(r"`([\w/]+\.(?:py|md|toml|example))`", PAGE):
        places = (ROOT, PACKAGE, PACKAGE / "residency", PACKAGE / "server", ROOT / "tests")
        assert any((place / name).exists() for place in places), name
    for folder in re.findall(r"`([\w/]+)/`", PAGE):
        assert (PACKAGE / folder).is_dir() or (ROOT / folder).is_dir(), folder


def test_every_class_that_the_page_names_is_there() -> None:
    classes = {
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    assert set(re.findall("`((?:[A-Z][a-z]+){2,})`", PAGE)) <= classes


def test_no_file_is_longer_than_a_reader_takes_in() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_every_room_says_what_it_is_for() -> None:
    rooms = sorted({path.parent for path in FILES})
    docstrings = {
        room: ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))) for room in rooms
    }
    assert [room for room, text in docstrings.items() if text is None or len(text) < 20] == []


def test_nothing_that_shows_state_looks_into_the_ledger() -> None:
    for path in FILES:
        if path.is_relative_to(PACKAGE / "residency"):
            continue
        attributes = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Attribute)
        }
        assert attributes.isdisjoint({"ledger", "swap_tracker"}), path


def test_no_private_name_of_the_past_is_left() -> None:
    left = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in FILES
        for name in names_in(ast.parse(path.read_text("utf-8")))
        if name.strip("_") in PRIVATE_NAMES or not PRIVATE_WORDS.keys().isdisjoint(words_of(name))
    }
    assert left == set()
