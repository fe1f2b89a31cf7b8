"""Names of what can be downloaded, and the choice of files in a repository."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_router.errors import BadRequest, NotOnHub
from engine_router.models.hub.choice import RepoFile, choose
from engine_router.models.hub.names import FileUrl, HubName, is_plain_path, parse_name
from engine_router.models.hub.quantization import GgufName, distance, is_companion, matches


def files(*paths: str) -> list[RepoFile]:
    return [RepoFile(path, 10, "a" * 64) for path in paths]


def chosen(name: str, *paths: str) -> list[str]:
    parsed = parse_name(name)
    assert isinstance(parsed, HubName)
    return [file.path for file in choose(parsed, files(*paths)).files]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hf:user/repo", HubName("user/repo")),
        ("HF:user/repo", HubName("user/repo")),
        ("hf://user/repo@v1/sub/x.gguf", HubName("user/repo", file="sub/x.gguf", revision="v1")),
        ("hf:user/repo:Q4_K_M", HubName("user/repo", quant="Q4_K_M")),
        ("hf:user/repo:latest", HubName("user/repo")),
        ("hf.co/user/Repo-GGUF:q8_0", HubName("user/Repo-GGUF", quant="q8_0")),
        ("huggingface.co/user/repo", HubName("user/repo")),
        ("hf:user/repo/BF16/x-00001-of-00002.gguf", HubName("user/repo", file="BF16/x-00001-of-00002.gguf")),
        ("hf.co/user/repo:x-IQ3_M.gguf", HubName("user/repo", file="x-IQ3_M.gguf")),
        ("https://huggingface.co/user/repo", HubName("user/repo")),
        ("https://huggingface.co/user/repo/", HubName("user/repo")),
        ("https://hf.co/user/repo:Q6_K", HubName("user/repo", quant="Q6_K")),
        ("https://huggingface.co/user/repo/tree/main/BF16", HubName("user/repo")),
        ("https://huggingface.co/user/repo/tree/dev", HubName("user/repo", revision="dev")),
        ("https://huggingface.co/user/repo/tree/refs%2Fpr%2F1", HubName("user/repo", revision="refs/pr/1")),
        ("https://huggingface.co/user/repo/blob/main/a%20b.gguf?x=1#y", HubName("user/repo", file="a b.gguf")),
        ("https://huggingface.co/user/repo/resolve/v1/d/x.gguf?download=true", HubName("user/repo", file="d/x.gguf", revision="v1")),
        ("http://127.0.0.1:9/user/repo/resolve/main/x.gguf", HubName("user/repo", file="x.gguf")),
        ("http://127.0.0.1:8/x.gguf?token=1", FileUrl("http://127.0.0.1:8/x.gguf?token=1", "x.gguf")),
        ("https://example.org/models/My%20Model.GGUF", FileUrl("https://example.org/models/My%20Model.GGUF", "My Model.GGUF")),
    ],
)  # fmt: skip
def test_what_people_write_is_understood(text: str, meant: object) -> None:
    assert parse_name(text, endpoint="http://127.0.0.1:9") == meant


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "hf:", "hf:user", "hf:user/", "hf:/repo", "hf:user/re po", "hf:../repo", "hf:user/..", "hf:user/a--b",
        "hf:user/repo.git", "hf:user/repo:", "hf:user/repo:a/b", "hf:user/repo:q 4", "hf:user/repo@", "hf:user/repo@../x",
        "hf:user/repo/../x.gguf", "hf:user/repo/a//b.gguf", "hf:user/repo/a\\b.gguf", "hf:user/repo/c:x.gguf", "hf:datasets/x",
        "https://huggingface.co/", "https://huggingface.co/user", "https://huggingface.co/datasets/user/x",
        "https://huggingface.co/user/repo/blob/main/..%2Fx.gguf", "https://example.org/", "https://example.org/x.bin",
        "https://me:secret@example.org/x.gguf", "https://example.org/..%2Fx.gguf", "http://[", "ftp://example.org/x.gguf",
        "qwen3", "qwen3:8b", "hf:user/repo\n", "hf:user/repo\x1b[2J", "hf:" + "a/" * 400, "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused_with_the_forms_that_are(text: str) -> None:
    if text.strip() == "hf:user/repo":
        return
    with pytest.raises(BadRequest) as raised:
        parse_name(text)
    assert "secret" not in str(raised.value)
    assert "\x1b" not in str(raised.value)


def test_a_name_without_its_prefix_is_suggested() -> None:
    with pytest.raises(BadRequest, match="did you mean hf:user/repo:Q4_K_M"):
        parse_name("user/repo:Q4_K_M")


def test_a_revision_is_said_once() -> None:
    assert parse_name("hf:u/r", revision="v2") == HubName("u/r", revision="v2")
    with pytest.raises(BadRequest, match="has the revision v1"):
        parse_name("hf:u/r@v1", revision="v2")
    with pytest.raises(BadRequest, match="revision"):
        parse_name("https://example.org/x.gguf", revision="v2")


@given(st.text(max_size=60))
def test_no_text_makes_more_than_a_refusal(text: str) -> None:
    for prefix in (
        "",
        "hf:",
        "hf:u/",
        "hf:u/r",
        "hf:u/r:",
        "hf:u/r/",
        "https://huggingface.co/",
        "https://x.org/",
    ):
        try:
            name = parse_name(prefix + text)
        except BadRequest:
            continue
        if isinstance(name, HubName):
            assert not name.file or is_plain_path(name.file)
            assert name.repo.count("/") == 1
            assert parse_name(str(name)) == name or name.quant.lower() == "latest"


part = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.]{0,20}[A-Za-z0-9]", fullmatch=True).filter(
    lambda text: (
        ".." not in text
        and text not in ("datasets", "spaces", "models", "api", "docs", "collections", "papers", "kernels")
        and not text.endswith(".git")
    )
)


@given(
    part,
    part,
    st.sampled_from(["", "Q4_K_M", "iq2_xxs", "UD-Q4_K_XL"]),
    st.sampled_from(["main", "v1.0", "dev"]),
)
def test_a_name_is_read_back_as_it_is_shown(user: str, repo: str, quant: str, revision: str) -> None:
    name = HubName(f"{user}/{repo}", quant=quant, revision=revision)
    assert parse_name(str(name)) == name


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"), ("qwen2.5-7b-instruct-q5_k_m.gguf", "Q5_K_M"), ("x-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Llama-3.2-3B-Instruct-IQ3_XXS.gguf", "IQ3_XXS"), ("x.i1-Q4_K_S.gguf", "Q4_K_S"), ("x-f16.gguf", "F16"), ("x.FP16.gguf", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"), ("gpt-oss-120b-MXFP4_MOE-00001-of-00003.gguf", "MXFP4_MOE"), ("model.gguf", ""),
        ("BF16/Qwen3-BF16-00001-of-00002.gguf", "BF16"), ("Q8_0/model-00001-of-00002.gguf", "Q8_0"), ("Qwen3-4B.gguf", ""),
        ("x-Q4_K_M-imat.gguf", "Q4_K_M"), ("bitnet.gguf", ""), ("x-TQ1_0.gguf", "TQ1_0"), ("x-NVFP4.gguf", "NVFP4"),
    ],
)  # fmt: skip
def test_the_quantisation_is_read_from_a_files_name(path: str, label: str) -> None:
    assert GgufName.of(path).label == label


def test_companions_are_no_models() -> None:
    for path in (
        "mmproj-F16.gguf",
        "x-mmproj-f16.gguf",
        "imatrix_unsloth.gguf",
        "ggml-vocab-llama.gguf",
        "mtp-x-Q4_0.gguf",
        "d/dflash-x.gguf",
    ):
        assert is_companion(path), path
    for path in ("Qwen3-8B-Q4_K_M.gguf", "drafter-Q4_0.gguf", "Eagle-7B-Q4_0.gguf"):
        assert not is_companion(path), path


def test_without_a_wish_it_is_q4_k_m_or_the_nearest() -> None:
    assert chosen("hf:u/r", "x-Q8_0.gguf", "x-Q4_K_M.gguf", "x-Q4_0.gguf") == ["x-Q4_K_M.gguf"]
    assert chosen("hf:u/r", "x-Q8_0.gguf", "x-Q2_K.gguf", "x-Q5_K_M.gguf") == ["x-Q5_K_M.gguf"]
    assert chosen("hf:u/r", "x-F32.gguf", "x-BF16.gguf", "x-Q8_0.gguf") == ["x-Q8_0.gguf"]
    assert chosen("hf:u/r", "only.gguf", "README.md") == ["only.gguf"]
    assert min(["", "Q8_0", "Q4_K_M"], key=distance) == "Q4_K_M"


def test_a_wish_is_met_exactly_or_refused_with_what_there_is() -> None:
    names = ("x-Q8_0.gguf", "x-UD-Q4_K_XL.gguf", "x-Q4_K_M.gguf")
    assert chosen("hf:u/r:q8_0", *names) == ["x-Q8_0.gguf"]
    assert chosen("hf:u/r:Q4_K_XL", *names) == ["x-UD-Q4_K_XL.gguf"]
    assert matches("Q4_K_XL", "Q4_K_XL")
    with pytest.raises(NotOnHub, match="has no Q3_K_S; it has Q4_K_M, UD-Q4_K_XL, Q8_0"):
        chosen("hf:u/r:Q3_K_S", *names)


def test_every_part_is_taken_and_none_may_be_missing() -> None:
    parts = [f"Q4_K_M/x-Q4_K_M-{n:05d}-of-00003.gguf" for n in (3, 1, 2)]
    assert chosen("hf:u/r", *parts, "x-Q8_0.gguf") == sorted(parts)
    assert chosen(f"hf:u/r/{parts[0]}", *parts) == sorted(parts)
    with pytest.raises(NotOnHub, match="part 2 of 3 is missing"):
        chosen("hf:u/r", *parts[:2])


def test_two_models_of_one_quantisation_are_not_guessed_at() -> None:
    with pytest.raises(
        BadRequest, match=r"more than one model of Q4_K_M: a-Q4_K_M.gguf, b-Q4_K_M.gguf; name one"
    ):
        chosen("hf:u/r", "a-Q4_K_M.gguf", "b-Q4_K_M.gguf")
    assert chosen("hf:u/r/b-q4_k_m.gguf", "a-Q4_K_M.gguf", "b-Q4_K_M.gguf") == ["b-Q4_K_M.gguf"]


def test_a_file_that_is_not_there_is_answered_with_those_that_look_like_it() -> None:
    with pytest.raises(NotOnHub, match=r"did you mean x-Q4_K_M.gguf"):
        chosen("hf:u/r/x-Q4_K_S.gguf", "x-Q4_K_M.gguf", "README.md")
    with pytest.raises(NotOnHub, match="companions"):
        chosen("hf:u/r", "mmproj-F16.gguf")


@pytest.mark.parametrize(
    ("others", "projector"),
    [
        (("mmproj-F32.gguf", "mmproj-F16.gguf", "mmproj-BF16.gguf"), "mmproj-BF16.gguf"),
        (("mmproj-F32.gguf", "mmproj-F16.gguf"), "mmproj-F16.gguf"),
        (("mmproj-Q8_0.gguf",), "mmproj-Q8_0.gguf"),
        (("mmproj-vl-7b-f16.gguf", "mmproj-vl-3b-f16.gguf"), "mmproj-vl-7b-f16.gguf"),
        (("mmproj-F16.gguf", "mmproj-vision-F16.gguf"), None),
        (("deep/mmproj-BF16.gguf",), None),
        (("mmproj-imatrix.gguf",), None),
    ],
)
def test_the_projector_is_paired_by_name_then_precision(others: Sequence[str], projector: str | None) -> None:
    name = HubName("u/r")
    choice = choose(name, files("vl-7b-Q4_K_M.gguf", *others))
    assert choice.projector == (projector or "")
    assert bool(choice.notes) == (len(others) > 1 and "vision" in others[1])
    assert choose(name, files("vl-7b-Q4_K_M.gguf", *others), with_projector=False).projector == ""


def test_a_repository_without_gguf_is_taken_as_a_safetensors_model() -> None:
    wanted = ["config.json", "merges.txt", "tokenizer.model", "model-1.safetensors", "model-2.safetensors"]
    unwanted = [
        "pytorch_model.bin", "original/consolidated.00.pth", "original/params.json", "onnx/model.onnx", "consolidated.safetensors",
        "tf_model.h5", "README.md", ".gitattributes", "image.png", "optimizer.pt",
    ]  # fmt: skip
    assert chosen("hf:u/r", *unwanted, *wanted) == wanted
    assert chosen("hf:u/r", "consolidated.safetensors", "params.json") == [
        "params.json",
        "consolidated.safetensors",
    ]
    with pytest.raises(NotOnHub, match="no GGUF files, so no Q4_K_M"):
        chosen("hf:u/r:Q4_K_M", *wanted)
    with pytest.raises(NotOnHub, match="no GGUF and no safetensors"):
        chosen("hf:u/r", "pytorch_model.bin")
    assert chosen("hf:u/r", "x-Q4_K_M.gguf", *wanted) == ["x-Q4_K_M.gguf"]
