"""Names of models that clients send: their length has a bound, and suggestions ignore the case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine_router.dialects.model_names import close_names
from engine_router.dialects.multipart import FormReader
from engine_router.dialects.routed import model_in
from engine_router.errors import BadRequest
from engine_router.guards.limits import MAX_CANDIDATES
from engine_router.proxy.routes import model_in_query


def any_name(name: str) -> bool:
    return True


def test_a_name_of_absurd_length_is_refused_and_cut() -> None:
    with pytest.raises(BadRequest) as refused:
        model_in({"model": "x" * 16_000_000})
    assert len(str(refused.value)) < 200


def test_a_name_of_absurd_length_has_noclose_names() -> None:
    assert close_names("b" * 513, ["b" * 513], any_name) == []


def test_suggestions_ignore_the_case() -> None:
    assert close_names("BIG", ["big", "other"], any_name) == ["big"]


def test_ids_that_differ_only_in_case_are_all_suggested() -> None:
    known = ["Qwen3", "other", "QWEN3", "qWen3", "Qwen3-30b", "Qwen3"]
    assert close_names("qwen3", known, any_name) == ["Qwen3", "QWEN3", "qWen3"]
    assert close_names("qwen3", known, lambda name: "Q" not in name) == ["qWen3"]


def test_suggestions_look_at_a_bounded_number_of_names() -> None:
    seen = 0

    def endless() -> Iterator[str]:
        nonlocal seen
        while True:
            seen += 1
            yield f"model-{seen}"

    assert len(close_names("model", endless(), any_name)) == 3
    assert seen == MAX_CANDIDATES


def test_the_best_of_many_candidates_is_found() -> None:
    known = [f"org/some-other-model-{number}" for number in range(200)] + ["org/qwen3-30b"]
    assert close_names("qwen3-30b", known, any_name)[0] == "org/qwen3-30b"


@pytest.mark.parametrize("query", [b"model=" + b"x" * 513, b"a=b&model=" + b"%41" * 513])
def test_a_name_of_absurd_length_in_a_query_is_refused(query: bytes) -> None:
    with pytest.raises(BadRequest, match=r'"model" has 513 characters, more than 512'):
        model_in_query(query)


def test_a_forms_model_of_absurd_length_is_refused_before_its_end() -> None:
    reader = FormReader("multipart/form-data; boundary=x")
    reader.feed(b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n')
    for _ in range(3):
        reader.feed(b"m" * 16_384)
    with pytest.raises(BadRequest, match="far too long"):
        reader.feed(b"m" * 65_536)
