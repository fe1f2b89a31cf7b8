"""JSON Merge Patch: the examples of RFC 7396, and that a patch restores what it was made of."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_router.web.merge_patch import apply, diff, known

NAMES = st.sampled_from("abcd")
SCALARS = st.booleans() | st.integers(0, 2) | st.sampled_from((0.0, 1.0, 0.5)) | st.sampled_from(("", "x"))
LISTS = st.lists(st.none() | SCALARS | st.dictionaries(NAMES, st.none() | SCALARS, max_size=2), max_size=3)
VALUES = st.recursive(SCALARS | LISTS, lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=12)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)


# The appendix of the RFC.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_patch_is_applied_as_the_rfc_says(target: Any, patch: Any, result: Any) -> None:
    assert apply(target, patch) == result


@given(OBJECTS, OBJECTS)
def test_a_patch_restores_what_it_was_made_of(before: Any, after: Any) -> None:
    kept = copy.deepcopy((before, after))
    patch = diff(before, after)
    # As JSON: to Python, 1 and True are the same.
    assert json.dumps(apply(before, patch), sort_keys=True) == json.dumps(after, sort_keys=True)
    assert bool(patch) == (json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True))
    assert (before, after) == kept


@given(OBJECTS)
def test_what_is_the_same_needs_no_patch(state: Any) -> None:
    assert diff(state, copy.deepcopy(state)) == {}


def test_a_patch_has_only_what_has_changed() -> None:
    before = {"models": {f"m{number}": {"state": "off"} for number in range(1000)}}
    after = {"models": {**before["models"], "m7": {"state": "ready"}}}
    assert diff(before, after) == {"models": {"m7": {"state": "ready"}}}


def test_what_passes_by_itself_is_no_change() -> None:
    before = {"uptime_s": 1, "swaps": [{"elapsed_s": 1, "phase": "stop"}]}
    later = {"uptime_s": 2, "swaps": [{"elapsed_s": 2, "phase": "stop"}]}
    assert diff(before, later, {"uptime_s", "elapsed_s"}) == {}
    next_phase = {"uptime_s": 3, "swaps": [{"elapsed_s": 3, "phase": "start"}]}
    assert diff(later, next_phase, {"uptime_s", "elapsed_s"}) == {"swaps": next_phase["swaps"]}


def test_what_is_null_is_left_out_but_in_arrays() -> None:
    assert known({"a": None, "b": {"c": None, "d": [None, {"e": None}]}}) == {"b": {"d": [None, {"e": None}]}}
