"""The scan of model folders, as a whole: every sound model by name, everything else with its reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.gguf_files import gguf_file, projector_file, safetensors_folder, split_files
from support.scanned import GGUF, made_old, model, names, reasons, scanned, scanner

from engine_router.models.scan import ScanRequest
from engine_router.models.scan.listing import Walk
from engine_router.models.scan.walk import walk_folders


async def test_a_folder_of_all_kinds(tmp_path: Path) -> None:
    split_files(tmp_path / "big", "Qwen3-235B-Q4_K_M", 3)
    gguf_file(tmp_path / "see" / "gemma-3-4b-it-Q4_K_M.gguf", "gemma3")
    projector_file(tmp_path / "see" / "mmproj-F16.gguf", projector_type="gemma3")
    gguf_file(tmp_path / "Qwen3-0.6B-Draft-Q8_0.gguf")
    gguf_file(tmp_path / "Mistral-7B-Q5_K_M.gguf", cut=5000)
    gguf_file(tmp_path / "a" / "Qwen3-8B-Q4_K_M.gguf")
    gguf_file(tmp_path / "b" / "Qwen3-8B-Q4_K_M.gguf")
    made_old(tmp_path)
    result = await scanned(tmp_path)
    assert names(result) == [
        "a/qwen3-8b:q4_k_m",
        "b/qwen3-8b:q4_k_m",
        "gemma-3-4b-it:q4_k_m",
        "qwen3-235b:q4_k_m",
    ]
    assert model(result, "gemma-3-4b-it:q4_k_m").mmproj == tmp_path / "see" / "mmproj-F16.gguf"
    big = model(result, "qwen3-235b:q4_k_m")
    assert big.path.name == "Qwen3-235B-Q4_K_M-00001-of-00003.gguf"
    assert big.size_bytes == sum(path.stat().st_size for path in (tmp_path / "big").iterdir())
    ((name, reason),) = reasons(result).items()
    assert name == "Mistral-7B-Q5_K_M.gguf"
    assert reason.startswith("truncated: 5.0 KB of 41")
    assert set(reasons(result, faults=False)) == {"mmproj-F16.gguf", "Qwen3-0.6B-Draft-Q8_0.gguf"}
    assert result.places[str(tmp_path)].models == 4
    assert result.places[str(tmp_path)].fault is None


# Files


async def test_what_goes_with_models_is_no_model(tmp_path: Path) -> None:
    gguf_file(tmp_path / "a-lora.gguf", "llama", {"general.type": "adapter", "adapter.type": "lora"})
    gguf_file(tmp_path / "imatrix_unsloth.gguf", "", {"general.type": "imatrix"})
    gguf_file(tmp_path / "vocab-qwen.gguf", tensors=0)
    gguf_file(tmp_path / "control.gguf", "controlvector", {})
    gguf_file(tmp_path / "flux1-dev-Q8_0.gguf", "flux", {})
    gguf_file(tmp_path / "WavTokenizer-F16.gguf", "wavtokenizer-dec", {})
    gguf_file(tmp_path / "Eagle3-Q8.gguf", "eagle3", {"eagle3.block_count": 1})
    gguf_file(tmp_path / "mtp-Qwen3.5-27B.gguf", keys=head(layers=64), tensors=15)
    gguf_file(tmp_path / "Qwen3-8B-DFlash.gguf", keys=head(layers=5), tensors=40)
    gguf_file(
        tmp_path / "GLM-4.5-Air-speed.gguf",
        "glm4moe",
        {"glm4moe.block_count": 47, "glm4moe.nextn_predict_layers": 1},
    )
    projector_file(tmp_path / "MMPROJ-F16.GGUF")
    made_old(tmp_path)
    result = await scanned(tmp_path)
    assert names(result) == []
    assert reasons(result) == {}
    assert {name: reason.split(":")[0] for name, reason in reasons(result, faults=False).items()} == {
        "a-lora.gguf": "is an adapter, not a model",
        "imatrix_unsloth.gguf": "is an importance matrix, not a model",
        "vocab-qwen.gguf": "holds a vocabulary only, not a model",
        "control.gguf": "is an adapter, not a model",
        "flux1-dev-Q8_0.gguf": "is a model that makes images",
        "WavTokenizer-F16.gguf": "is a vocoder, not a model",
        "Eagle3-Q8.gguf": "is a draft model",
        "mtp-Qwen3.5-27B.gguf": "is a draft model",
        "Qwen3-8B-DFlash.gguf": "is a draft model",
        "GLM-4.5-Air-speed.gguf": "is a draft model",
        "MMPROJ-F16.GGUF": "is a projector (mmproj) of no model here",
    }


async def test_letters_within_a_name_hide_no_model(tmp_path: Path) -> None:
    whole = [
        "Drafting-Assistant-7B.gguf",
        "rwkv-5-eagle-7b.gguf",
        "Qwen3.5-27B-MTP.gguf",
        "Seagle3x-8B.gguf",
        "Explora-7B-imatrix.gguf",
        "mmprojection-test-1B.gguf",
    ]
    for name in whole:
        gguf_file(tmp_path / name, keys=head(layers=24, **{"qwen3.nextn_predict_layers": 1}), tensors=240)
    result = await scanned(tmp_path)
    assert len(result.models) == len(whole), result.skipped


def head(layers: int, **keys: int) -> dict[str, int]:
    return {"qwen3.block_count": layers, "qwen3.embedding_length": 64, **keys}


async def test_broken_files_cost_themselves_only_and_say_what_is_wrong(tmp_path: Path) -> None:
    gguf_file(tmp_path / "Good-1B-Q8_0.gguf")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "noise.gguf").write_bytes(b"<!DOCTYPE html> 404")
    gguf_file(tmp_path / "no-architecture.gguf", "", {"general.name": "x"})
    (tmp_path / "half.gguf").write_bytes((tmp_path / "Good-1B-Q8_0.gguf").read_bytes()[:200])
    os.mkfifo(tmp_path / "pipe.gguf")
    os.mkfifo(tmp_path / "config.json")
    gguf_file(tmp_path / "of-many-00007-of-99999.gguf")
    gguf_file(tmp_path / "of-none-00001-of-00000.gguf")
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere.gguf")
    (tmp_path / "round.gguf").symlink_to(tmp_path / "round.gguf")
    (tmp_path / "Model.gguf.part").write_bytes(b"GGUF")
    gguf_file(tmp_path / "model.incomplete.gguf")
    gguf_file(tmp_path / "aria.gguf")
    (tmp_path / "aria.gguf.aria2").touch()
    (tmp_path / "a.gguf").mkdir()
    (tmp_path / "._Good-1B-Q8_0.gguf").write_bytes(b"Mac OS X")
    made_old(tmp_path)
    result = await scanned(tmp_path)
    assert names(result) == ["good-1b:q8_0"]
    found = reasons(result)
    assert found.pop("half.gguf").startswith("truncated or damaged")
    assert found == {
        "empty.gguf": "is empty",
        "noise.gguf": "not a GGUF file",
        "no-architecture.gguf": "names no architecture in its header",
        "pipe.gguf": "is not a file",
        "of-many-00007-of-99999.gguf": "part 1 of 99999 is missing",
        "of-none-00001-of-00000.gguf": "part 1 of 0 is one too many",
        "Model.gguf.part": "is a download that has not ended",
        "model.incomplete.gguf": "is a download that has not ended",
        "aria.gguf.aria2": "is a download that has not ended",
        "aria.gguf": "is a download that has not ended",
    }
    links = {each.path.name for each in result.skipped if "is a link" in each.reason and not each.is_fault}
    assert links == {"gone.gguf", "round.gguf"}


async def test_a_file_that_is_being_written_says_so(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "New-8B-Q4_0.gguf", cut=4096)
    assert reasons(await scanned(tmp_path))["New-8B-Q4_0.gguf"].startswith(
        "is still being written (truncated: "
    )
    with path.open("ab") as file:
        file.write(bytes(4096))
    assert names(await scanned(tmp_path)) == ["new-8b:q4_0"]


async def test_parts_make_one_model_and_all_are_needed(tmp_path: Path) -> None:
    split_files(tmp_path / "whole", "Big-70B-Q4_K_M", 3)
    first, *_ = split_files(tmp_path / "lacks", "Lame-70B-Q4_K_M", 3)
    (tmp_path / "lacks" / "Lame-70B-Q4_K_M-00002-of-00003.gguf").unlink()
    (tmp_path / "lacks" / "Lame-70B-Q4_K_M-00002-of-00004.gguf").write_bytes(first.read_bytes())
    split_files(tmp_path / "mixed", "Mixed-70B-Q4_K_M", 2)
    others = split_files(tmp_path / "others", "Mixed-70B-Q4_K_M", 3)
    others[1].replace(tmp_path / "mixed" / "Mixed-70B-Q4_K_M-00002-of-00002.gguf")
    first, second = split_files(tmp_path / "swapped", "Swapped-8B-Q4_0", 2)
    first.replace(second)
    cut = split_files(tmp_path / "cut", "Cut-70B-Q4_K_M", 2)[1]
    os.truncate(cut, cut.stat().st_size - 10)
    capitals = split_files(tmp_path / "capitals", "Loud-8B-Q4_0", 2)
    for path in capitals:
        path.rename(path.with_suffix(".GGUF"))
    made_old(tmp_path)
    result = await scanned(tmp_path)
    assert names(result) == ["big-70b:q4_k_m", "loud-8b:q4_0"]
    assert model(result, "loud-8b:q4_0").size_bytes > 2 * 409_600
    found = reasons(result)
    assert found.pop("Cut-70B-Q4_K_M-00002-of-00002.gguf").startswith("truncated")
    assert found == {
        "Lame-70B-Q4_K_M-00001-of-00003.gguf": "part 2 of 3 is missing",
        "Lame-70B-Q4_K_M-00002-of-00004.gguf": "part 1 of 4 is missing",
        "Mixed-70B-Q4_K_M-00001-of-00002.gguf": "part 2 of 2 is of another set",
        "Mixed-70B-Q4_K_M-00001-of-00003.gguf": "part 2 of 3 is missing",
        "Swapped-8B-Q4_0-00002-of-00002.gguf": "part 1 of 2 is missing",
    }


async def test_one_file_that_was_several(tmp_path: Path) -> None:
    merged = {**head(12), "split.no": 0, "split.count": 0, "split.tensors.count": 100}
    gguf_file(tmp_path / "Merged-8B-Q4_0.gguf", keys=merged)
    gguf_file(tmp_path / "Single-8B-Q4_0-00001-of-00001.gguf", keys={**merged, "split.count": 1})
    renamed, _ = split_files(tmp_path, "Big-70B-Q4_0", 2)
    renamed.rename(tmp_path / "big.gguf")
    result = await scanned(tmp_path)
    assert names(result) == ["merged-8b:q4_0", "single-8b:q4_0"]
    assert reasons(result) == {
        "Big-70B-Q4_0-00002-of-00002.gguf": "part 1 of 2 is missing",
        "big.gguf": "is one of 2 parts, and not called so",
    }


async def test_parts_of_sets_that_look_alike(tmp_path: Path) -> None:
    mine = split_files(tmp_path / "mine", "Big-70B-Q4_0", 2)
    own = {"split.no": 1, "split.count": 2, "split.tensors.count": 200}
    gguf_file(mine[1], "", own, tensors=90, vocabulary=0)
    theirs = split_files(tmp_path / "theirs", "Bad-70B-Q4_0", 2)
    gguf_file(theirs[1], "", {**own, "split.tensors.count": 190}, tensors=90, vocabulary=0)
    result = await scanned(tmp_path)
    assert names(result) == []
    assert set(reasons(result).values()) == {"its parts are of different sets"}


async def test_a_first_part_without_tensors(tmp_path: Path) -> None:
    for path in split_files(tmp_path, "Big-70B-Q4_K_M", 2):
        if "00001" in path.name:
            keys = {**head(12), "split.no": 0, "split.count": 2, "split.tensors.count": 100}
            gguf_file(path, keys=keys, tensors=0)
        else:
            gguf_file(path, "", {"split.no": 1, "split.count": 2, "split.tensors.count": 100}, vocabulary=0)
    assert names(await scanned(tmp_path)) == ["big-70b:q4_k_m"]


# Folders


async def test_deep_folders_loops_and_links(tmp_path: Path) -> None:
    deep = tmp_path.joinpath("models", *"abcdefgh")
    gguf_file(deep / "Deep-8B-Q4_0.GGUF")
    (deep / "loop").symlink_to(tmp_path / "models")
    (tmp_path / "models" / "0-first-by-name").symlink_to(deep)
    (tmp_path / "models" / "0-link.gguf").symlink_to(deep / "Deep-8B-Q4_0.GGUF")
    os.link(deep / "Deep-8B-Q4_0.GGUF", deep / "Other-Name-8B-Q4_0.gguf")
    gguf_file(tmp_path / "elsewhere" / "Far-8B-Q4_0.gguf")
    (tmp_path / "models" / "far").symlink_to(tmp_path / "elsewhere")
    gguf_file(tmp_path / "models" / ".cache" / "Hidden-8B-Q4_0.gguf")
    result = await scanned(tmp_path / "models")
    assert names(result) == ["deep-8b:q4_0", "far-8b:q4_0"]
    assert result.skipped == ()
    assert model(result, "deep-8b:q4_0").path == deep / "Deep-8B-Q4_0.GGUF"


async def test_links_that_lead_up_are_told_and_not_followed(tmp_path: Path) -> None:
    models = tmp_path / "home" / "models"
    gguf_file(models / "Own-8B-Q4_0.gguf")
    gguf_file(tmp_path / "around" / "Around-8B-Q4_0.gguf")
    gguf_file(tmp_path / "elsewhere" / "Far-8B-Q4_0.gguf")
    (models / "root").symlink_to(Path(tmp_path.anchor))
    (models / "up").symlink_to(tmp_path)
    (models / "far").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "home")
    result = await scanned(models)
    assert names(result) == ["far-8b:q4_0", "own-8b:q4_0"]
    told = reasons(result)
    assert set(told) == {"root", "up", "back"}
    assert all("which is not followed" in reason for reason in told.values())
    assert str(tmp_path) in told["up"]
    # The same where the folder itself is named by a link.
    (tmp_path / "named").symlink_to(models)
    assert set(reasons(await scanned(tmp_path / "named"))) == {"root", "up", "back"}


async def test_a_folder_that_is_too_deep_is_named(tmp_path: Path) -> None:
    gguf_file(tmp_path.joinpath(*["x"] * 40) / "Deep-8B-Q4_0.gguf")
    gguf_file(tmp_path / "Flat-8B-Q4_0.gguf")
    result = await scanned(tmp_path)
    assert names(result) == ["flat-8b:q4_0"]
    assert list(reasons(result).values()) == ["holds more than 32 folders within each other"]


def test_each_folder_is_a_sign_of_life(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / str(number)).mkdir()
    signs: list[None] = []
    folders = walk_folders(Walk(lambda: signs.append(None)), tmp_path, may_be_absent=False)
    assert list(folders) == []
    assert len(signs) >= 20


async def test_a_place_with_too_many_names_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_router.models.scan.listing.MAX_SCAN_ENTRIES", 3)
    for number in range(5):
        gguf_file(tmp_path / str(number) / f"M{number}-8B-Q4_0.gguf")
    result = await scanned(tmp_path)
    assert "holds more than 3 names: the rest was not looked at" in (result.places[str(tmp_path)].fault or "")


async def test_a_folder_without_permission_costs_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_file(tmp_path / "good" / "Good-8B-Q4_0.gguf")
    gguf_file(tmp_path / "locked" / "Locked-8B-Q4_0.gguf")
    gguf_file(tmp_path / "good" / "Secret-8B-Q4_0.gguf")
    refuse(monkeypatch, tmp_path / "locked", tmp_path / "good" / "Secret-8B-Q4_0.gguf")
    result = await scanned(tmp_path)
    assert names(result) == ["good-8b:q4_0"]
    assert reasons(result) == {
        "locked": "cannot be entered: permission denied",
        "Secret-8B-Q4_0.gguf": "cannot be read: permission denied",
    }


def refuse(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Have the system refuse to open files and to enter folders; tests may run as root, whom it refuses nothing."""
    scandir, opened = os.scandir, os.open

    def refusing_scandir(path: Path | str) -> object:
        if Path(path) in paths:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def refusing_open(path: Path | str, flags: int, *more: int) -> int:
        if Path(path) in paths:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *more)

    monkeypatch.setattr(os, "scandir", refusing_scandir)
    monkeypatch.setattr(os, "open", refusing_open)


async def test_names_that_are_no_text(tmp_path: Path) -> None:
    gguf_file(tmp_path / "Good-8B-Q4_0.gguf")
    (tmp_path / os.fsdecode(b"caf\xe9-8B-Q4_0.gguf")).write_bytes(b"GGUF")
    (tmp_path / os.fsdecode(b"d\xe9")).mkdir()
    gguf_file(tmp_path / "new\nline\x1b[2J-8B-Q4_0.gguf")
    result = await scanned(tmp_path)
    assert names(result) == ["good-8b:q4_0", "new-line-2j-8b:q4_0"]
    assert model(result, "new-line-2j-8b:q4_0").aliases == ("new-line-2j-8b",)
    assert sorted(skipped.reason for skipped in result.skipped) == [
        "holds a file whose name is no text: caf\\udce9-8B-Q4_0.gguf",
        "holds a folder whose name is no text: d\\udce9",
    ]
    assert {skipped.path for skipped in result.skipped} == {tmp_path}


async def test_places_that_are_not_there(tmp_path: Path) -> None:
    file = gguf_file(tmp_path / "m.gguf")
    result = await scanned(
        tmp_path / "none", file, "$NOT_SET/models", "huggingface", "lmstudio", "llamacpp", home=tmp_path
    )
    assert {place: state.fault for place, state in result.places.items()} == {
        str(tmp_path / "none"): f"{tmp_path}/none: there is no such folder",
        str(file): f"{file}: is a file, not a folder: give it a table of its own in [models]",
        "$NOT_SET/models": "the environment variable NOT_SET is not set",
        "huggingface": None,
        "lmstudio": None,
        "llamacpp": None,
    }


async def test_home_and_environment_in_a_place(tmp_path: Path) -> None:
    gguf_file(tmp_path / "models" / "A-8B-Q4_0.gguf")
    gguf_file(tmp_path / "more" / "B-8B-Q4_0.gguf")
    result = await scanned("~/models", "${DISK}/more", home=tmp_path, DISK=str(tmp_path))
    assert names(result) == ["a-8b:q4_0", "b-8b:q4_0"]


# Several engines


async def test_each_engine_gets_the_formats_that_it_reads(tmp_path: Path) -> None:
    gguf_file(tmp_path / "a" / "Qwen3-8B-Q4_K_M.gguf")
    safetensors_folder(tmp_path / "Qwen3-8B")
    requests = [
        ScanRequest("llama", (str(tmp_path),), GGUF),
        ScanRequest("vllm", (str(tmp_path),), frozenset(("safetensors",))),
        ScanRequest("llama-cpu", (str(tmp_path / "a"),), GGUF),
    ]
    result = await scanner(tmp_path).scan(requests)
    assert [(found.engine, found.name, found.aliases) for found in result.models] == [
        ("llama", "qwen3-8b:q4_k_m", ("Qwen3-8B-Q4_K_M.gguf", "Qwen3-8B-Q4_K_M")),
        ("vllm", "qwen3-8b", ("Qwen3-8B",)),
        ("llama-cpu", "llama-cpu/qwen3-8b:q4_k_m", ()),
    ]
