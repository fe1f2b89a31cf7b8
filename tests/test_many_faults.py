"""Configurations with very many faults: the first are told, all are counted, and the work grows as the text does."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import pytest
from support.call_count import calls_in

from engine_router.config import parse_config
from engine_router.errors import ConfigError
from engine_router.guards.limits import MOST_FAULTS
from engine_router.web import configuration

ENGINE = '[engines.e]\ntype = "process"\nargv = ["x", "{port}", "{path}"]\n'


def unknown_keys(count: int) -> str:
    return "[server]\n" + "".join(f"prot_{number} = 1\n" for number in range(count))


def unknown_tables(count: int) -> str:
    return "".join(f"[pool_{number}]\n" for number in range(count))


def faulty_engines(count: int) -> str:
    return "".join(f'[engines.e{number}]\ntype = "process"\nargvs = 1\n' for number in range(count))


def models_of_nobody(count: int) -> str:
    return ENGINE + "".join(f'[models.m{number}]\nengine = "x{number}"\n' for number in range(count))


def many_engines_and_models(count: int) -> str:
    engines = "".join(
        f'[engines.e{number}]\ntype = "process"\nargv = ["x", "{{port}}", "{{path}}"]\npool = "none"\n'
        for number in range(count)
    )
    return engines + "".join(f'[models.m{number}]\nengine = "e{number}"\n' for number in range(count))


def twice_listed(count: int) -> str:
    return ENGINE + f"models = {[f'm{number // 2}' for number in range(count)]}\n"


KINDS = [
    unknown_keys,
    unknown_tables,
    faulty_engines,
    models_of_nobody,
    many_engines_and_models,
    twice_listed,
]


def fault_of(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return caught.value


def test_ten_thousand_unknown_keys_are_counted_and_the_first_are_told() -> None:
    error = fault_of(unknown_keys(10_000))
    assert len(error.faults) == len(error.excerpts) == MOST_FAULTS
    assert error.more == 10_001 - MOST_FAULTS  # no engine is configured, too
    assert error.faults[0] == ("server.prot_0", "unknown key; did you mean port?")
    said = str(error)
    assert "10,001 faults" in said
    assert said.endswith(f"and {error.more:,} more")
    assert len(said) < 100_000
    few = fault_of(unknown_keys(3))
    assert (len(few.faults), few.more) == (4, 0)
    assert "more" not in str(few)


def test_the_check_over_http_is_bounded_too() -> None:
    told = configuration._checked("", unknown_keys(10_000), may_edit=True)
    assert len(told["problems"]) == MOST_FAULTS
    assert told["more_problems"] == 10_001 - MOST_FAULTS
    assert told["problems"][0]["line"] == 2
    assert (told["warnings"], told["more_warnings"]) == ([], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_meant_is_looked_for_a_few_times(
    kind: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    look = difflib.get_close_matches

    def counted(*given: Any, **more: Any) -> Any:
        looks.append(given)
        return look(*given, **more)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    error = fault_of(kind(1000))
    assert len(error.faults) == MOST_FAULTS
    assert len(looks) <= MOST_FAULTS
    before = len(looks)
    fault_of(kind(2))  # another text has looks of its own
    assert before == 0 or len(looks) > before


@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_faults_are_twice_the_work(kind: Callable[[int], str]) -> None:
    fault_of(kind(10))  # what is made once for all
    once, twice = (calls_in(lambda n=n: fault_of(kind(n))) for n in (1000, 2000))  # type: ignore[misc]
    assert twice < 2.3 * once


def test_a_comparison_of_many_equal_lines_does_not_try_all_pairs() -> None:
    before = "\n".join(f"k{number % 150}" for number in range(8000))
    after = "\n".join(f"k{number * 7 % 150}" for number in range(8000))
    looked: list[int] = []

    def compare() -> None:
        looked.append(len(configuration._diff(before, after).splitlines()))

    assert calls_in(compare) < 500_000
    assert looked == [16_002]
    # An edit of an ordinary file is shown as that, however long the file.
    lines = [f'[models.m{number}]\nengine = "e"\n' for number in range(3000)]
    lines[10] = lines[10].replace('"e"', '"f"')
    diff = configuration._diff("".join(lines).replace('"f"', '"e"'), "".join(lines))
    assert '+engine = "f"' in diff
    assert len(diff.splitlines()) < 20
