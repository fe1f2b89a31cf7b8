"""The names of found models: what they are, that each is unique, and that they stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_router.guards.limits import MODEL_NAME_CHARS
from engine_router.models.scan.llama_cache import name_in_repository
from engine_router.models.scan.naming import Candidate, Wanted, base_name, name_models, plain, split_name


def candidate(path: str, repository: str = "", quantization: str | None = None) -> Candidate:
    """Return what the scan makes of a file."""
    place = Path(path)
    base, found = split_name(place.name)
    return Candidate(
        path=place,
        format="gguf",
        size_bytes=1,
        base=base_name(base, repository, place),
        quantization=found if quantization is None else quantization,
        repository=repository,
        file_name=place.name,
    )


def named(*candidates: Candidate, taken: tuple[str, ...] = (), engine: str = "llama") -> dict[str, str]:
    models, skipped = name_models([Wanted(engine, "~/models", each) for each in candidates], taken)
    assert skipped == []
    return {str(model.path): model.name for model in models}


def aliases(*candidates: Candidate, taken: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    models, _skipped = name_models([Wanted("llama", "~/models", each) for each in candidates], taken)
    return [model.aliases for model in models]


def test_a_model_that_the_file_has_already_keeps_no_alias_from_another() -> None:
    found = [candidate("/m/Qwen3-8B-Q4_K_M.gguf"), candidate("/m/Qwen3-8B-Q8_0.gguf")]
    assert not any("qwen3-8b" in names for names in aliases(*found))
    wanted = [Wanted("llama", "~/models", each) for each in found]
    models, _skipped = name_models(wanted, is_served=lambda one: "Q4" in one.path.name)
    assert [("qwen3-8b" in model.aliases, model.name) for model in models] == [
        (False, "qwen3-8b:q4_k_m"),
        (True, "qwen3-8b:q8_0"),
    ]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/m/Qwen3-8B-Q4_K_M.gguf", "qwen3-8b:q4_k_m"),
        ("/m/Qwen3-8B-UD-Q4_K_XL.gguf", "qwen3-8b:ud-q4_k_xl"),
        ("/m/Mistral-7B-Instruct-v0.3.IQ2_XXS.gguf", "mistral-7b-instruct-v0.3:iq2_xxs"),
        ("/m/gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b:mxfp4"),
        ("/m/Llama-3.2-1B-Instruct-Q4_K_M-imat.gguf", "llama-3.2-1b-instruct-imat:q4_k_m"),
        ("/m/Model.i1-Q6_K.gguf", "model.i1:q6_k"),
        ("/m/DeepSeek-R1-BF16-00001-of-00030.gguf", "deepseek-r1:bf16"),
        ("/m/phi-2.gguf", "phi-2"),
        ("/m/Phi-2-GGUF/Q4_K_M.gguf", "phi-2:q4_k_m"),
        ("/m/Phi-2-GGUF/q8_0/ggml-model.gguf", "phi-2"),
        ("/m/Phi-2-GGUF/BF16/model-bf16-00001-of-00002.gguf", "phi-2:bf16"),
        ("/m/Größe (v2)__X-Q4_0.GGUF", "größe-v2-_x:q4_0"),
        ("/m/a:b/c@d-Q4_0.gguf", "c-d:q4_0"),
        ("/m/Q4ever-7B.gguf", "q4ever-7b"),
        ("/m/...gguf", "m"),
    ],
)
def test_a_name_is_what_people_type(path: str, name: str) -> None:
    assert named(candidate(path)) == {path: name}


def test_the_repository_names_what_its_file_does_not() -> None:
    found = candidate("/hub/snapshots/1/model-q4_k_m.gguf", "user/Phi-2-GGUF")
    assert named(found) == {"/hub/snapshots/1/model-q4_k_m.gguf": "phi-2:q4_k_m"}


def test_aliases_are_what_the_hub_and_ollama_call_it() -> None:
    found = candidate("/x/Qwen3-8B-Q4_K_M.gguf", "unsloth/Qwen3-8B-GGUF")
    assert aliases(found) == [
        (
            "unsloth/Qwen3-8B-GGUF:Q4_K_M",
            "hf.co/unsloth/Qwen3-8B-GGUF:Q4_K_M",
            "unsloth/Qwen3-8B-GGUF",
            "hf.co/unsloth/Qwen3-8B-GGUF",
            "Qwen3-8B-Q4_K_M.gguf",
            "Qwen3-8B-Q4_K_M",
            "qwen3-8b",
        )
    ]


def test_the_author_in_a_repositorys_name_may_be_left_out() -> None:
    found = candidate("/x/Qwen_Qwen3-8B-Q4_K_M.gguf", "bartowski/Qwen_Qwen3-8B-GGUF")
    assert named(found) == {"/x/Qwen_Qwen3-8B-Q4_K_M.gguf": "qwen_qwen3-8b:q4_k_m"}
    assert aliases(found)[0][-3:] == ("qwen_qwen3-8b", "qwen3-8b:q4_k_m", "qwen3-8b")
    other = candidate("/x/Qwen3-8B-Q4_K_M.gguf", "unsloth/Qwen3-8B-GGUF")
    assert aliases(found, other)[0][-1] == "qwen_qwen3-8b"
    assert (
        aliases(candidate("/x/MiniCPM-V-2_6-Q4_0.gguf", "openbmb/MiniCPM-V-2_6-gguf"))[0][-1]
        == "minicpm-v-2_6"
    )


def test_an_alias_means_one_model_only() -> None:
    one = candidate("/x/Qwen3-8B-Q4_K_M.gguf", "unsloth/Qwen3-8B-GGUF")
    two = candidate("/x/Qwen3-8B-Q8_0.gguf", "unsloth/Qwen3-8B-GGUF")
    assert aliases(one, two) == [
        (
            f"unsloth/Qwen3-8B-GGUF:{quantization}",
            f"hf.co/unsloth/Qwen3-8B-GGUF:{quantization}",
            f"Qwen3-8B-{quantization}.gguf",
            f"Qwen3-8B-{quantization}",
        )
        for quantization in ("Q4_K_M", "Q8_0")
    ]


def test_no_alias_is_taken_or_a_models_name() -> None:
    gguf = candidate("/x/Qwen3-8B-Q4_K_M.gguf")
    folder = Candidate(path=Path("/y/Qwen3-8B"), format="safetensors", size_bytes=1, base="Qwen3-8B")
    assert aliases(gguf, folder, taken=("qwen3-8b-q4_k_m.gguf", "Qwen3-8B-Q4_K_M:latest")) == [
        (),
        ("Qwen3-8B",),
    ]


def test_a_folder_of_safetensors() -> None:
    folder = Candidate(
        path=Path("/y/snapshots/1"),
        format="safetensors",
        size_bytes=1,
        base="Qwen3-8B-AWQ",
        repository="Qwen/Qwen3-8B-AWQ",
    )
    assert named(folder) == {"/y/snapshots/1": "qwen3-8b-awq"}
    assert aliases(folder) == [("Qwen/Qwen3-8B-AWQ", "Qwen3-8B-AWQ")]


def test_two_that_would_be_called_alike_both_get_the_longer_form_and_no_other_changes() -> None:
    unsloth = candidate("/1/Qwen3-8B-Q4_K_M.gguf", "unsloth/Qwen3-8B-GGUF")
    qwen = candidate("/2/Qwen3-8B-Q4_K_M.gguf", "Qwen/Qwen3-8B-GGUF")
    other = candidate("/3/Qwen3-8B-Q8_0.gguf")
    copy = candidate("/4/Qwen3-8B-Q4_K_M.gguf", "Qwen/Qwen3-8B-GGUF")
    assert list(named(unsloth, other).values()) == ["qwen3-8b:q4_k_m", "qwen3-8b:q8_0"]
    assert list(named(unsloth, qwen, other).values()) == [
        "unsloth/qwen3-8b:q4_k_m",
        "qwen/qwen3-8b:q4_k_m",
        "qwen3-8b:q8_0",
    ]
    first, second, third = list(named(unsloth, qwen, copy).values())
    assert first == "unsloth/qwen3-8b:q4_k_m"
    assert second != third
    assert {name[: len("qwen/qwen3-8b-")] for name in (second, third)} == {"qwen/qwen3-8b-"}


def test_a_taken_name_leaves_the_longer_form() -> None:
    found = candidate("/models/Qwen3-8B-Q4_K_M.gguf")
    for taken in ("qwen3-8b:q4_k_m", "Qwen3-8B:Q4_K_M"):
        assert named(found, taken=(taken,)) == {"/models/Qwen3-8B-Q4_K_M.gguf": "models/qwen3-8b:q4_k_m"}
    untagged = candidate("/models/phi-2.gguf")
    assert named(untagged, taken=("phi-2:latest",)) == {"/models/phi-2.gguf": "models/phi-2"}


def test_a_name_that_cannot_be_made_is_skipped_with_the_remedy() -> None:
    found = candidate("/models/Qwen3-8B-Q4_K_M.gguf")
    forms = [named(found)["/models/Qwen3-8B-Q4_K_M.gguf"]]
    for _ in range(2):
        forms += named(found, taken=tuple(forms)).values()
    models, skipped = name_models([Wanted("llama", "~/models", found)], forms)
    assert models == []
    assert [each.reason for each in skipped] == ["no name can be made of its own: give it one in [models]"]


words = st.text(st.sampled_from("abQ4_K-.8ü /:\n\u202e"), max_size=12)
candidates = st.builds(
    lambda folder, stem, repository, quantization: candidate(
        f"/m/{folder.replace('/', '')}/{stem.replace('/', '') or 'x'}.gguf", repository, quantization
    ),
    words,
    words,
    st.sampled_from(("", "user/Repo-GGUF", "other/Repo-GGUF", "gpt2")),
    st.sampled_from((None, "Q4_K_M", "Q8_0")),
)


@given(
    st.lists(candidates, max_size=12, unique_by=lambda each: each.path),
    st.lists(words, max_size=3),
    st.randoms(),
)
def test_names_are_unique_and_do_not_depend_on_the_order(found, taken, random) -> None:  # noqa: ANN001
    names = named(*found, taken=tuple(taken))
    assert len(set(names.values())) == len(found)
    assert not {name.casefold() for name in taken} & set(names.values())
    assert all(
        name == name.strip() and name.isprintable() and len(name) <= MODEL_NAME_CHARS
        for name in names.values()
    )
    models, _skipped = name_models([Wanted("llama", "~/models", each) for each in found], taken)
    spoken = [{name.casefold() for name in (model.name, *model.aliases)} for model in models]
    assert len(set().union(*spoken)) == sum(map(len, spoken))
    assert not {name.casefold() for name in taken} & set().union(*spoken)
    shuffled = list(found)
    random.shuffle(shuffled)
    assert named(*shuffled, taken=tuple(taken)) == names


@given(st.lists(candidates, max_size=8, unique_by=lambda each: each.path), candidates)
def test_another_file_changes_only_names_that_would_be_equal(found, another) -> None:  # noqa: ANN001
    if any(each.path == another.path for each in found):
        return
    before, after = named(*found), named(*found, another)
    alone = named(another)[str(another.path)]
    for path, name in before.items():
        shortest = named(next(each for each in found if str(each.path) == path))[path]
        assert after[path] == name or shortest == alone


@given(words)
def test_a_plain_name_stays_itself(text: str) -> None:
    assert plain(plain(text)) == plain(text)


@pytest.mark.parametrize(
    ("name", "beside", "found"),
    [
        ("u_r_m-Q4_0.gguf", ("manifest=u=r=latest.json",), ("u/r", "m-Q4_0.gguf")),
        ("u_r_x_m-Q4_0.gguf", ("manifest=u=r=q.json", "manifest=u=r_x=q.json"), ("u/r_x", "m-Q4_0.gguf")),
        ("ggml-org_gemma-GGUF_gemma-Q8_0.gguf", (), ("ggml-org/gemma-GGUF", "gemma-Q8_0.gguf")),
        ("my_own_model.gguf", (), ("", "my_own_model.gguf")),
    ],
)
def test_names_in_the_cache_of_llama_cpp(name: str, beside: tuple[str, ...], found: tuple[str, str]) -> None:
    assert name_in_repository(name, beside) == found
