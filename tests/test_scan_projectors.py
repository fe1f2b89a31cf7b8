"""Projectors and the models that they belong to."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.gguf_files import Value, gguf_file, projector_file
from support.scanned import made_old, model, names, reasons, scanned


def gemma(path: Path, width: int = 2560, architecture: str = "gemma3") -> Path:
    keys: dict[str, Value] = {
        f"{architecture}.block_count": 12,
        f"{architecture}.embedding_length": width,
        "general.file_type": 15,
    }
    return gguf_file(path, architecture, keys)


def gemma_projector(path: Path, width: int = 2560) -> Path:
    return projector_file(path, projector_type="gemma3", vision__projection_dim=width)


async def paired(folder: Path) -> dict[str, str | None]:
    made_old(folder)
    result = await scanned(folder)
    return {found.name: found.mmproj.name if found.mmproj else None for found in result.models}


async def test_one_projector_is_for_all_models_of_its_family(tmp_path: Path) -> None:
    gemma(tmp_path / "gemma-3-4b-it-Q4_K_M.gguf")
    gemma(tmp_path / "gemma-3-4b-it-Q8_0.gguf")
    gemma(tmp_path / "gemma-3-4b-it-qat-Q4_0.gguf")
    gemma(tmp_path / "gemma-3-12b-it-Q4_K_M.gguf", width=3840)
    gguf_file(
        tmp_path / "Llama-3.1-8B-Q4_K_M.gguf",
        "llama",
        {"llama.block_count": 12, "llama.embedding_length": 2560},
    )
    gemma_projector(tmp_path / "mmproj-F16.gguf")
    assert await paired(tmp_path) == {
        "gemma-3-4b-it:q4_k_m": "mmproj-F16.gguf",
        "gemma-3-4b-it:q8_0": "mmproj-F16.gguf",
        "gemma-3-4b-it-qat:q4_0": "mmproj-F16.gguf",
        "gemma-3-12b-it:q4_k_m": None,
        "llama-3.1-8b:q4_k_m": None,
    }


@pytest.mark.parametrize(
    ("projectors", "chosen"),
    [
        (["mmproj-F32", "mmproj-F16", "mmproj-BF16"], "mmproj-BF16"),
        (["mmproj-F32", "mmproj-F16"], "mmproj-F16"),
        (["mmproj-F32", "mmproj-model-q6_k"], "mmproj-F32"),
        (["mmproj-BF16", "mmproj-Q8_0"], "mmproj-Q8_0"),  # the model's own quantization
        (["mmproj-BF16", "mmproj-gemma-3-4b-it-F32"], "mmproj-gemma-3-4b-it-F32"),
        (["mmproj-gemma-3-4b-it-F16", "gemma-3-4b-mmproj-BF16"], "mmproj-gemma-3-4b-it-F16"),
        (["mmproj-gemma-3-12b-it-F16"], None),
        (["mmproj-pixtral-F16"], None),
        (["mmproj-F16", "model-mmproj-f16"], None),
    ],
)
async def test_by_name_then_quantization_then_precision(
    tmp_path: Path, projectors: list[str], chosen: str | None
) -> None:
    gguf_file(tmp_path / "gemma-3-4b-it-Q8_0.gguf", "gemma3")
    for name in projectors:
        projector_file(tmp_path / f"{name}.gguf")
    assert await paired(tmp_path) == {"gemma-3-4b-it:q8_0": chosen and f"{chosen}.gguf"}


async def test_variants_of_a_model(tmp_path: Path) -> None:
    for name in ("Qwen2-7B-Q8_0", "Qwen2-7B-Audio-Q8_0", "Qwen2-7B-Audio-Tuned-Q8_0"):
        gguf_file(tmp_path / f"{name}.gguf", "qwen2")
    projector_file(tmp_path / "mmproj-Qwen2-7B-Audio-F16.gguf")
    assert await paired(tmp_path) == {
        "qwen2-7b:q8_0": None,
        "qwen2-7b-audio:q8_0": "mmproj-Qwen2-7B-Audio-F16.gguf",
        "qwen2-7b-audio-tuned:q8_0": "mmproj-Qwen2-7B-Audio-F16.gguf",
    }
    (tmp_path / "Qwen2-7B-Audio-Q8_0.gguf").unlink()
    assert (await paired(tmp_path))["qwen2-7b:q8_0"] == "mmproj-Qwen2-7B-Audio-F16.gguf"


async def test_two_that_fit_equally_are_named_and_none_is_taken(tmp_path: Path) -> None:
    gemma(tmp_path / "gemma-3-4b-it-Q4_K_M.gguf")
    gemma_projector(tmp_path / "mmproj-F16.gguf")
    gemma_projector(tmp_path / "model-mmproj-f16.gguf")
    made_old(tmp_path)
    result = await scanned(tmp_path)
    assert model(result, "gemma-3-4b-it:q4_k_m").mmproj is None
    assert reasons(result) == {
        "gemma-3-4b-it-Q4_K_M.gguf": "is served without a projector: several fit equally (mmproj-F16.gguf, "
        "model-mmproj-f16.gguf); give it a table in [models] with mmproj"
    }


async def test_a_projector_without_a_name_among_two_families_is_nobodys(tmp_path: Path) -> None:
    gguf_file(tmp_path / "llava-7b-Q4_K_M.gguf")
    gguf_file(tmp_path / "moondream-Q4_K_M.gguf")
    projector_file(tmp_path / "mmproj-model-f16.gguf", projector_type="mlp", vision__projection_dim=768)
    made_old(tmp_path)
    result = await scanned(tmp_path)
    assert [found.mmproj for found in result.models] == [None, None]
    assert list(reasons(result)) == ["mmproj-model-f16.gguf"]
    assert "may belong to several models here" in reasons(result)["mmproj-model-f16.gguf"]


async def test_the_width_of_older_projectors_is_not_the_models(tmp_path: Path) -> None:
    gemma(tmp_path / "llava-7b-Q4_K_M.gguf", 4096, "llama")
    projector_file(tmp_path / "mmproj-model-f16.gguf", projector_type="mlp", vision__projection_dim=768)
    assert await paired(tmp_path) == {"llava-7b:q4_k_m": "mmproj-model-f16.gguf"}


async def test_a_folder_for_one_quantization_belongs_to_the_one_around_it(tmp_path: Path) -> None:
    gemma(tmp_path / "gemma" / "Q8_0" / "gemma-3-4b-it-Q8_0.gguf")
    gemma_projector(tmp_path / "gemma" / "mmproj-F16.gguf")
    gemma(tmp_path / "other" / "gemma-3-4b-pt-Q8_0.gguf")
    assert await paired(tmp_path) == {"gemma-3-4b-it:q8_0": "mmproj-F16.gguf", "gemma-3-4b-pt:q8_0": None}


async def test_in_a_repository_the_name_need_not_tell(tmp_path: Path) -> None:
    folder = tmp_path / ".lmstudio" / "models" / "openbmb" / "MiniCPM-V-2_6-gguf"
    gguf_file(folder / "ggml-model-Q4_K_M.gguf", "qwen2", {"qwen2.block_count": 28})
    projector_file(folder / "mmproj-minicpm-F16.gguf")
    made_old(tmp_path)
    result = await scanned("lmstudio", home=tmp_path)
    assert names(result) == ["minicpm-v-2_6:q4_k_m"]
    assert result.models[0].mmproj == folder / "mmproj-minicpm-F16.gguf"
    assert "openbmb/MiniCPM-V-2_6-gguf:Q4_K_M" in result.models[0].aliases
