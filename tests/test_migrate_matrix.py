"""llama-swap's `matrix`: after the import the same models may run together, and the same ones go for another."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import yaml
from support.llama_swap_matrices import SOLVED, Solved
from support.migration import Imported, imported

from engine_router.engines.base import ResidentId
from engine_router.residency import messages
from engine_router.residency.ledger import Ledger, Profile, Rules
from engine_router.residency.measurements import Measurement
from engine_router.residency.messages import Ticket
from engine_router.residency.settings import traits_of
from engine_router.setup.migrate.matrix import BadExpression, read_matrix

CARRIED, APPROXIMATED, LOST = "carried over", "approximated", "lost"
IDS = ["; ".join(case.sets.values()) for case in SOLVED]


def matrix_of(case: Solved) -> dict[str, Any]:
    return {"vars": {**case.variables}, "evict_costs": {**case.costs}, "sets": {**case.sets}}


def swap(models: Iterable[str], matrix: dict[str, Any], *, is_routing: bool = True) -> Imported:
    """Import a file with some models and a matrix, where newer versions or older ones have it."""
    data: dict[str, Any] = {"models": {name: {"cmd": "s --port ${PORT}"} for name in models}}
    if is_routing:
        data["routing"] = {"router": {"use": "matrix", "settings": {"matrix": matrix}}}
    else:
        data["matrix"] = matrix
    return imported(yaml.safe_dump(data, sort_keys=False), kind="llama-swap")


def ledger_of(found: Imported) -> Ledger:
    def profile(resident: ResidentId) -> Profile:
        return traits_of(found.config, resident).profile(Measurement())

    assert "default" not in found.config.pools  # one model at a time, or one group
    return Ledger(Rules(), profile=profile)


def stopped_for(ledger: Ledger, model: str) -> set[str]:
    """Ask for a model, let it come and be idle; return those that were stopped for it."""
    ticket, gone = Ticket(ResidentId(model)), set[str]()
    effects = ledger.apply(messages.Acquire(ticket), 0.0)
    while effects:
        match effects.pop(0):
            case messages.CheckStart(resident):
                effects += ledger.apply(messages.Checked(resident, None), 0.0)
            case messages.Stop(resident=resident):
                gone.add(resident.engine)
                effects += ledger.apply(messages.HasEnded(resident, None), 0.0)
            case messages.Settle(resident=resident):
                effects += ledger.apply(messages.Settled(resident), 0.0)
            case messages.Start(resident=resident):
                effects += ledger.apply(messages.BecameReady(resident), 0.0)
            case messages.Grant():
                ledger.apply(messages.Release(ticket), 0.0)
    return gone


@pytest.mark.parametrize("case", SOLVED, ids=IDS)
def test_the_same_models_may_run_together(case: Solved) -> None:
    found = swap(case.models, matrix_of(case))
    assert found.outcome("routing.router.settings.matrix.sets") == CARRIED
    together = {frozenset(one) for one in case.together.split()}
    for size in range(2, min(len(case.models), 4) + 1):
        for models in itertools.combinations(case.models, size):
            ledger = ledger_of(found)
            stopped = [stopped_for(ledger, model) for model in models]
            assert any(stopped) == (frozenset(models) not in together), models


@pytest.mark.parametrize("case", SOLVED, ids=IDS)
def test_the_same_models_go_for_another(case: Solved) -> None:
    found = swap(case.models, matrix_of(case))
    for eviction in case.evictions.split():
        running, wanted, gone = eviction.replace("+", ":").split(":")
        ledger = ledger_of(found)
        assert not set[str]().union(*(stopped_for(ledger, model) for model in running))
        assert stopped_for(ledger, wanted) == set(gone), eviction


@pytest.mark.parametrize("is_routing", [True, False])
def test_what_a_matrix_becomes(is_routing: bool) -> None:
    sets = {"base": "(x | b) & c", "pair": "d & c", "alone": "e", "within": "d", "bad": "a & nobody"}
    costs = {"x": 5, "nobody": 2, "b": 0}
    found = swap("abcde", {"vars": {"x": "a"}, "evict_costs": costs, "sets": sets}, is_routing=is_routing)
    groups = {name: engine.group for name, engine in found.config.engines.items()}
    assert groups == {
        "a": ("base-1",),
        "b": ("base-2",),
        "c": ("base-1", "base-2", "pair"),
        "d": ("pair",),
        "e": None,
    }
    assert {name: e.evict_cost for name, e in found.config.engines.items() if e.evict_cost != 1} == {"a": 5}
    outcomes = {
        "vars": CARRIED,
        "sets": CARRIED,
        "sets.bad": LOST,
        "evict_costs": APPROXIMATED,
        "evict_costs.nobody": LOST,
        "evict_costs.b": LOST,
    }
    place = "routing.router.settings.matrix" if is_routing else "matrix"
    assert {key: found.outcome(f"{place}.{key}") for key in outcomes} == outcomes


def test_sets_have_names_of_their_own() -> None:
    names = {name: name for name in "abcde"}
    sets = read_matrix({"s": "(a | b) & c", "s-1": "d & e", "t": "+s | b & c"}, names).sets
    assert sets == {"s-2": frozenset("ac"), "s-3": frozenset("bc"), "s-1": frozenset("de")}


@pytest.mark.parametrize("bad", ["a &", "(a", "a b", "+x", "a & ?", "+self", "", "x", "(" * 99])
def test_an_expression_that_cannot_be_read(bad: str) -> None:
    with pytest.raises(BadExpression):
        read_matrix({"self": bad}, {name: name for name in "abcde"})


def test_sets_that_are_too_many_are_a_budget() -> None:
    models = [f"m{number}" for number in range(20)]
    pairs = " & ".join(f"(m{number} | m{number + 1})" for number in range(0, 20, 2))
    found = swap([*models, "x", "y", "z"], {"sets": {"all": pairs, "two": "x & y"}})
    assert found.config.pools["default"].mode == "budget"
    groups = [engine.group for engine in found.config.engines.values()]
    assert groups == [("matrix-1",)] * 20 + [("matrix-2",)] * 2 + [("alone: z",)]
    assert found.outcome("routing.router.settings.matrix.sets") == APPROXIMATED


def test_a_server_that_nobody_starts_has_no_group() -> None:
    matrix = {"sets": {"s": "a & far"}, "evict_costs": {"far": 3}}
    models = {"a": {"cmd": "s --port ${PORT}"}, "far": {"proxy": "http://10.0.0.9:8080"}}
    found = imported(yaml.safe_dump({"models": models, "matrix": matrix}), kind="llama-swap")
    assert {found.outcome(f"engines.far.{key}") for key in ("group", "evict_cost")} == {LOST}


def test_a_set_that_cannot_be_read_takes_only_those_along_that_refer_to_it() -> None:
    sets: dict[str, object] = {
        "one": "a & b",
        "more": "+one & c",
        "circle": "+circle | d",
        "lost": "+circle & a",
    }
    sets |= {"large": " & ".join(["d"] * 10_001), "number": 7, "late": "c & d"}
    costs = {"a": True, "b": "9", "c": float("nan"), "d": 4}
    found = swap("abcd", {"vars": {"x": 3, "y": ["a"]}, "evict_costs": costs, "sets": sets})
    place = "routing.router.settings.matrix"
    lost = {"sets.circle", "sets.lost", "sets.large", "sets.number", "vars.x", "vars.y"}
    lost |= {f"evict_costs.{name}" for name in "abc"}
    asked = {*lost, *(f"sets.{name}" for name in sets)}
    assert {key for key in asked if found.outcome(f"{place}.{key}") == LOST} == lost
    groups = {name: engine.group for name, engine in found.config.engines.items()}
    assert groups == {"a": ("more",), "b": ("more",), "c": ("more", "late"), "d": ("late",)}
    assert [engine.evict_cost for engine in found.config.engines.values()] == [1, 1, 1, 4]
