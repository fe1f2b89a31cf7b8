"""The caches of other programs: where they are, and how files lie in them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.gguf_files import gguf_file, projector_file, safetensors_file, safetensors_folder, split_files
from support.scanned import model, names, reasons, scanned, scanner

from engine_router.guards.regular_file import open_regular
from engine_router.models.scan import ScanRequest
from engine_router.models.scan.places import Surroundings, find_place

HOME = Path("/home/ann")


@pytest.mark.parametrize(
    ("place", "system", "environ", "folder"),
    [
        ("huggingface", "linux", {}, "/home/ann/.cache/huggingface/hub"),
        ("huggingface", "linux", {"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ("huggingface", "linux", {"HF_HOME": "/hf", "XDG_CACHE_HOME": "/c"}, "/hf/hub"),
        ("huggingface", "linux", {"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/hf"}, "/old"),
        ("huggingface", "linux", {"HF_HUB_CACHE": "~/new", "HUGGINGFACE_HUB_CACHE": "/old"}, "/home/ann/new"),
        ("huggingface", "linux", {"HF_HUB_CACHE": " ", "HF_HOME": "$DISK/hf", "DISK": "/d"}, "/d/hf/hub"),
        ("llamacpp", "linux", {}, "/home/ann/.cache/llama.cpp"),
        ("llamacpp", "linux", {"XDG_CACHE_HOME": "/c"}, "/c/llama.cpp"),
        ("llamacpp", "linux", {"LLAMA_CACHE": "/l", "XDG_CACHE_HOME": "/c"}, "/l"),
        ("llamacpp", "darwin", {}, "/home/ann/Library/Caches/llama.cpp"),
        ("llamacpp", "win32", {}, "/home/ann/AppData/Local/llama.cpp"),
        ("llamacpp", "win32", {"LOCALAPPDATA": "/local"}, "/local/llama.cpp"),
        ("lmstudio", "linux", {}, "/home/ann/.lmstudio/models"),
        ("~", "linux", {}, "/home/ann"),
        ("~/m", "linux", {}, "/home/ann/m"),
        ("$A/${B}", "linux", {"A": "/a", "B": "b"}, "/a/b"),
        ("%A%/b", "win32", {"A": "/a"}, "/a/b"),
        ("/100%A%", "linux", {"A": "/a"}, "/100%A%"),
    ],
)
def test_places(place: str, system: str, environ: dict[str, str], folder: str) -> None:
    assert find_place(place, Surroundings(environ, system, HOME)).folders[0] == Path(folder)


@pytest.mark.parametrize("place", ["$NONE/m", "${NONE}", "~nobody-of-that-name/m"])
def test_places_that_mean_nothing(place: str) -> None:
    with pytest.raises(ValueError, match=r"NONE is not set|no such user"):
        find_place(place, Surroundings({}, "linux", HOME))


def snapshot(hub: Path, repository: str, revision: str, *names_of_blobs: str, main: bool = False) -> Path:
    """Make a revision of a repository as the hub's library does: links to blobs, which `blob` fills."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    place = folder / "snapshots" / revision
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    place.mkdir(parents=True, exist_ok=True)
    for name in names_of_blobs:
        link = place / name
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = folder / "blobs" / f"{revision}-{Path(name).name}"
        link.symlink_to(os.path.relpath(blob, link.parent))
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(revision)
    return place


def blob(place: Path, name: str) -> Path:
    return (place / name).parent / (place / name).readlink()


def filled(place: Path, name: str) -> Path:
    """Write the file to which a link of a revision leads."""
    target = blob(place, name)
    if name.endswith(".safetensors"):
        return safetensors_file(target)
    if "mmproj" in name:
        return projector_file(target)
    return gguf_file(target)


def aged(path: Path, days: int) -> None:
    os.utime(path, (1.7e9 - days * 86400,) * 2)


async def test_each_file_is_taken_from_the_best_revision_that_has_it(tmp_path: Path) -> None:
    both, only_old = "Qwen3-8B-Q4_K_M.gguf", "Qwen3-8B-Q8_0.gguf"
    main = snapshot(tmp_path, "unsloth/Qwen3-8B-GGUF", "aaa", both, main=True)
    old = snapshot(tmp_path, "unsloth/Qwen3-8B-GGUF", "bbb", both, only_old)
    newer = snapshot(tmp_path, "unsloth/Qwen3-8B-GGUF", "ccc", both)
    for place in (main, old, newer):
        filled(place, both)
    filled(old, only_old)
    aged(main, 30)
    aged(old, 20)
    result = await scanned("huggingface", HF_HUB_CACHE=str(tmp_path))
    assert {found.name: found.path for found in result.models} == {
        "qwen3-8b:q4_k_m": main / both,
        "qwen3-8b:q8_0": old / only_old,
    }
    assert model(result, "qwen3-8b:q8_0").aliases[:2] == (
        "unsloth/Qwen3-8B-GGUF:Q8_0",
        "hf.co/unsloth/Qwen3-8B-GGUF:Q8_0",
    )
    assert result.places["huggingface"].folders == (tmp_path,)
    (main.parents[1] / "refs" / "main").unlink()
    again = await scanned(tmp_path)  # a folder that is such a cache is read as one
    assert model(again, "qwen3-8b:q4_k_m").path == newer / both
    assert again.models[0].aliases == result.models[0].aliases


async def test_the_newest_revision_may_hold_companions_only(tmp_path: Path) -> None:
    old = snapshot(tmp_path, "ggml-org/gemma-3-4b-it-GGUF", "old", "gemma-3-4b-it-Q4_K_M.gguf")
    new = snapshot(tmp_path, "ggml-org/gemma-3-4b-it-GGUF", "new", "mmproj-F16.gguf", main=True)
    filled(old, "gemma-3-4b-it-Q4_K_M.gguf")
    filled(new, "mmproj-F16.gguf")
    result = await scanned(tmp_path)
    assert names(result) == ["gemma-3-4b-it:q4_k_m"]
    assert result.models[0].mmproj == new / "mmproj-F16.gguf"


async def test_a_dangling_link_and_an_unfinished_blob_hide_nothing(tmp_path: Path) -> None:
    name = "Qwen3-8B-Q4_K_M.gguf"
    sound = snapshot(tmp_path, "u/Qwen3-8B-GGUF", "old", name)
    broken = snapshot(tmp_path, "u/Qwen3-8B-GGUF", "new", name, "Qwen3-8B-Q8_0.gguf", main=True)
    filled(sound, name)
    (broken.parents[1] / "blobs" / "0123.incomplete").write_bytes(b"GGUF")
    lone = snapshot(tmp_path, "u/Lone-GGUF", "x", main=True)
    (lone.parents[1] / "blobs" / "4567.incomplete").write_bytes(b"GGUF")
    snapshot(tmp_path, "u/Empty-GGUF", "x", main=True)
    result = await scanned(tmp_path)
    assert {found.name: found.path for found in result.models} == {"qwen3-8b:q4_k_m": sound / name}
    assert reasons(result) == {
        "Qwen3-8B-Q8_0.gguf": "is a link to a file that is not there: its download may have been broken off",
        "models--u--Lone-GGUF": "holds nothing but a download that has not ended",
    }


async def test_parts_are_taken_from_one_revision(tmp_path: Path) -> None:
    parts = [f"UD-Q2_K_XL/Big-UD-Q2_K_XL-{part:05}-of-00002.gguf" for part in (1, 2)]
    half = snapshot(tmp_path, "u/Big-GGUF", "new", *parts, main=True)
    whole = snapshot(tmp_path, "u/Big-GGUF", "old", *parts)
    files = split_files(tmp_path / "made", "Big-UD-Q2_K_XL", 2)
    blob(half, parts[0]).write_bytes(files[0].read_bytes())
    assert names(await scanned(tmp_path / "models--u--Big-GGUF")) == []
    for file, name in zip(files, parts, strict=True):
        blob(whole, name).write_bytes(file.read_bytes())
    result = await scanned(tmp_path / "models--u--Big-GGUF")
    assert {found.name: found.path for found in result.models} == {"big:ud-q2_k_xl": whole / parts[0]}
    assert reasons(result) == {}


async def test_a_projector_beside_folders_of_a_repository(tmp_path: Path) -> None:
    place = snapshot(tmp_path, "u/VL-GGUF", "x", "BF16/VL-8B-BF16.gguf", "VL-8B-Q4_0.gguf", "mmproj-F32.gguf")
    for name in ("BF16/VL-8B-BF16.gguf", "VL-8B-Q4_0.gguf", "mmproj-F32.gguf"):
        filled(place, name)
    result = await scanned(tmp_path)
    assert {found.name: found.mmproj for found in result.models} == {
        "vl-8b:bf16": place / "mmproj-F32.gguf",
        "vl-8b:q4_0": place / "mmproj-F32.gguf",
    }


async def test_the_cache_of_llama_cpp(tmp_path: Path) -> None:
    prefix = "ggml-org_gemma-3-4b-it-GGUF_"
    gguf_file(tmp_path / f"{prefix}gemma-3-4b-it-Q4_K_M.gguf", "gemma3")
    projector_file(tmp_path / f"{prefix}mmproj-model-f16.gguf")
    (tmp_path / "manifest=ggml-org=gemma-3-4b-it-GGUF=latest.json").write_text("{}")
    gguf_file(tmp_path / "own.gguf")
    gguf_file(tmp_path / f"{prefix}gemma-3-4b-it-Q8_0.gguf.downloadInProgress")
    result = await scanned("llamacpp", LLAMA_CACHE=str(tmp_path))
    assert names(result) == ["gemma-3-4b-it:q4_k_m", "own:q4_k_m"]
    found = model(result, "gemma-3-4b-it:q4_k_m")
    assert found.mmproj == tmp_path / f"{prefix}mmproj-model-f16.gguf"
    assert "hf.co/ggml-org/gemma-3-4b-it-GGUF:Q4_K_M" in found.aliases
    assert "gemma-3-4b-it-Q4_K_M.gguf" in found.aliases


async def test_lm_studio_and_its_pointer(tmp_path: Path) -> None:
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path}/moved \r\n")
    gguf_file(tmp_path / "moved" / "models" / "lmstudio-community" / "Qwen3-8B-GGUF" / "Qwen3-8B-Q4_K_M.gguf")
    gguf_file(tmp_path / ".cache" / "lm-studio" / "models" / "a" / "Old-8B-GGUF" / "Old-8B-Q4_K_M.gguf")
    (tmp_path / "moved" / "settings.json").write_text(json.dumps({"downloadsFolder": str(tmp_path / "big")}))
    (tmp_path / ".lmstudio").mkdir()
    (tmp_path / ".lmstudio" / "settings.json").write_text("[" * 100_000)
    gguf_file(tmp_path / "big" / "lmstudio-community" / "Big-70B-GGUF" / "Big-70B-Q4_K_M.gguf")
    result = await scanned("lmstudio", home=tmp_path)
    assert names(result) == ["big-70b:q4_k_m", "old-8b:q4_k_m", "qwen3-8b:q4_k_m"]
    assert "lmstudio-community/Big-70B-GGUF:Q4_K_M" in model(result, "big-70b:q4_k_m").aliases
    assert "lmstudio-community/Qwen3-8B-GGUF:Q4_K_M" in model(result, "qwen3-8b:q4_k_m").aliases


# Folders of safetensors


async def safetensors(*places: Path | str, home: Path = HOME) -> tuple[dict[str, Path], dict[str, str]]:
    request = ScanRequest("vllm", tuple(map(str, places)), frozenset(("safetensors",)))
    result = await scanner(home).scan([request])
    return {found.name: found.path for found in result.models}, {
        skipped.path.name: skipped.reason for skipped in result.skipped
    }


async def test_folders_of_safetensors(tmp_path: Path) -> None:
    safetensors_folder(tmp_path / "Qwen3-8B-AWQ")
    safetensors_folder(tmp_path / "Big-70B", parts=3)
    lacks = safetensors_folder(tmp_path / "Lacks-70B", parts=3)
    (lacks / "model-00002-of-00003.safetensors").unlink()
    bare = safetensors_folder(tmp_path / "Bare-70B", parts=3)
    (bare / "model.safetensors.index.json").unlink()
    (bare / "model-00001-of-00003.safetensors").unlink()
    cut = safetensors_folder(tmp_path / "Cut-8B")
    safetensors_file(cut / "model.safetensors", cut=7)
    adapter = safetensors_folder(tmp_path / "Adapter")
    (adapter / "adapter_config.json").write_text("{}")
    pipeline = safetensors_folder(tmp_path / "Pipeline" / "unet")
    (pipeline / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    dense = safetensors_folder(tmp_path / "Embedder" / "2_Dense")
    (dense / "config.json").write_text('{"in_features": 768}')
    damaged = safetensors_folder(tmp_path / "Damaged")
    (damaged / "config.json").write_bytes(b'"\xff"')
    gguf = tmp_path / "Qwen3-8B-GGUF"
    gguf_file(gguf / "Qwen3-8B-Q8_0.gguf")
    (gguf / "config.json").write_text('{"model_type": "qwen3"}')
    safetensors_file(tmp_path / "loras" / "style.safetensors")
    found, skipped = await safetensors(tmp_path)
    assert found == {"qwen3-8b-awq": tmp_path / "Qwen3-8B-AWQ", "big-70b": tmp_path / "Big-70B"}
    assert skipped == {
        "Lacks-70B": "model-00002-of-00003.safetensors is missing: its download may not have ended",
        "Bare-70B": "part 1 of 3 is missing",
        "Cut-8B": "model.safetensors is truncated: 7 bytes are missing",
        "Adapter": "is an adapter, not a model",
        "unet": "its config.json names neither a model_type nor architectures",
        "2_Dense": "holds safetensors without a model's config.json beside them",
        "Damaged": "config.json is not JSON",
        "loras": "holds safetensors without a model's config.json beside them",
    }


async def test_safetensors_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = safetensors_folder(tmp_path / "Big-70B", parts=3)
    found, request = scanner(HOME), ScanRequest("vllm", (str(tmp_path),), frozenset(("safetensors",)))
    assert len((await found.scan([request])).models) == 1
    opened: list[str] = []

    def noting(path: Path) -> object:
        opened.append(path.name)
        return open_regular(path)

    monkeypatch.setattr("engine_router.models.scan.safetensors.open_regular", noting)
    assert len((await found.scan([request])).models) == 1
    assert opened == []
    safetensors_file(folder / "model-00002-of-00003.safetensors", cut=1)
    assert len((await found.scan([request])).models) == 0
    assert opened == ["model-00002-of-00003.safetensors"]


async def test_safetensors_in_the_hubs_cache(tmp_path: Path) -> None:
    files = ("config.json", "model.safetensors")
    sound = snapshot(tmp_path, "Qwen/Qwen3-8B", "old", *files)
    broken = snapshot(tmp_path, "Qwen/Qwen3-8B", "new", *files, main=True)
    for place in (sound, broken):
        blob(place, "config.json").write_text('{"model_type": "qwen3"}')
    filled(sound, "model.safetensors")
    found, skipped = await safetensors(tmp_path)
    assert found == {"qwen3-8b": sound}
    assert skipped == {}
