"""Names of models that clients send: their length has a bound, and suggestions ignore the case."""

from __future__ import annotations

import pytest

from engine_router.dialects.base import model_in
from engine_router.discovery import _close_matches
from engine_router.errors import BadRequest


def test_a_name_of_absurd_length_is_refused_and_cut() -> None:
    with pytest.raises(BadRequest) as refused:
        model_in({"model": "x" * 16_000_000})
    assert len(str(refused.value)) < 200


def test_a_name_of_absurd_length_has_no_close_matches() -> None:
    assert _close_matches("b" * 513, ["b" * 513]) == []


def test_suggestions_ignore_the_case() -> None:
    assert _close_matches("BIG", ["big", "other"]) == ["big"]
