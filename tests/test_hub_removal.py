"""The removal of models: what another revision, another repository or another model uses stays."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from engine_router.config import parse_config
from engine_router.errors import HubError, InUse, NotOnHub
from engine_router.models.hub.cache import FileLock
from engine_router.models.hub.model_files import users_of
from engine_router.models.hub.names import HubName, parse_name
from engine_router.models.hub.removal import Removal, plan_file_removal, plan_hub_removal, remove

REPO = "user/Tiny-GGUF"
OLD, NEW = "a" * 40, "b" * 40


def repository(
    root: Path, revisions: Mapping[str, Mapping[str, str]], *, repo: str = REPO, main: str = NEW
) -> Path:
    """Write a repository of the cache: for each revision its files, each with the name of its contents."""
    folder = root / f"models--{repo.replace('/', '--')}"
    for commit, files in revisions.items():
        for path, blob in files.items():
            contents = folder / "blobs" / blob
            contents.parent.mkdir(parents=True, exist_ok=True)
            contents.write_bytes(blob.encode() * 100)
            link = folder / "snapshots" / commit / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(contents, link.parent))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(main)
    (root / ".locks" / folder.name).mkdir(parents=True)
    (root / ".locks" / folder.name / "x.lock").write_text("")
    return folder


def named(text: str) -> HubName:
    name = parse_name(text)
    assert isinstance(name, HubName)
    return name


def gone(root: Path, text: str) -> Removal:
    removal = plan_hub_removal(root, named(text))
    remove(removal)
    return removal


def below(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()
    }


def test_a_quantisation_goes_from_every_revision_and_another_one_stays(tmp_path: Path) -> None:
    folder = repository(
        tmp_path,
        {
            OLD: {"x-Q4_K_M.gguf": "old4", "x-Q8_0.gguf": "same8"},
            NEW: {"x-Q4_K_M.gguf": "new4", "x-Q8_0.gguf": "same8", "mmproj-F16.gguf": "proj"},
        },
    )
    removal = gone(tmp_path, f"hf:{REPO}:q4_k_m")
    assert removal.size_bytes == 800
    assert below(folder) == {
        f"snapshots/{OLD}/x-Q8_0.gguf", f"snapshots/{NEW}/x-Q8_0.gguf", f"snapshots/{NEW}/mmproj-F16.gguf",
        "blobs/same8", "blobs/proj", "refs/main",
    }  # fmt: skip
    assert all(path.exists() for path in folder.rglob("*"))


def test_contents_that_another_revision_shows_under_another_name_stay(tmp_path: Path) -> None:
    folder = repository(tmp_path, {OLD: {"renamed-Q8_0.gguf": "same"}, NEW: {"x-Q4_K_M.gguf": "same"}})
    assert gone(tmp_path, f"hf:{REPO}:Q4_K_M").size_bytes == 0
    assert below(folder) == {f"snapshots/{OLD}/renamed-Q8_0.gguf", "blobs/same"}
    assert (folder / "snapshots" / OLD / "renamed-Q8_0.gguf").exists()


def test_with_the_last_model_the_whole_repository_goes(tmp_path: Path) -> None:
    folder = repository(
        tmp_path, {NEW: {"x-Q4_K_M.gguf": "four", "mmproj-F16.gguf": "proj", "config.json": "cfg"}}
    )
    (folder / "blobs" / "half.incomplete").write_bytes(b"x" * 50)
    other = repository(tmp_path, {NEW: {"y-Q4_K_M.gguf": "other"}}, repo="user/Other-GGUF")
    removal = gone(tmp_path, f"hf:{REPO}:Q4_K_M")
    assert removal.size_bytes == 400 + 400 + 300 + 50
    assert not folder.exists()
    assert not (tmp_path / ".locks" / folder.name).exists()
    assert below(other) == {f"snapshots/{NEW}/y-Q4_K_M.gguf", "blobs/other", "refs/main"}


def test_every_part_and_one_file_by_its_name(tmp_path: Path) -> None:
    parts = {f"x-Q4_K_M-{n:05d}-of-00002.gguf": f"part{n}" for n in (1, 2)}
    folder = repository(tmp_path, {NEW: {**parts, "x-Q8_0.gguf": "eight"}})
    assert len(plan_hub_removal(tmp_path, named(f"hf:{REPO}/x-Q4_K_M-00002-of-00002.gguf")).files) == 2
    gone(tmp_path, f"hf:{REPO}/X-q8_0.gguf")
    assert below(folder) == {f"snapshots/{NEW}/{path}" for path in parts} | {
        "blobs/part1",
        "blobs/part2",
        "refs/main",
    }
    gone(tmp_path, "hf:USER/tiny-gguf:Q4_K_M")
    assert not folder.exists()


def test_a_safetensors_repository_goes_whole_and_without_links_too(tmp_path: Path) -> None:
    folder = tmp_path / "models--user--safe"
    plain = folder / "snapshots" / NEW / "model.safetensors"
    plain.parent.mkdir(parents=True)
    plain.write_bytes(b"x" * 1000)
    (folder / "blobs").mkdir()
    assert gone(tmp_path, "hf:user/safe").size_bytes == 1000
    assert not folder.exists()


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    repository(tmp_path, {NEW: {"x-Q4_K_M.gguf": "four", "x-Q8_0.gguf": "eight"}})
    with pytest.raises(NotOnHub, match="has no Q2_K of hf:user/Tiny-GGUF; it has Q4_K_M, Q8_0"):
        plan_hub_removal(tmp_path, named(f"hf:{REPO}:Q2_K"))
    with pytest.raises(NotOnHub, match="has nothing of hf:user/else"):
        plan_hub_removal(tmp_path, named("hf:user/else"))
    with pytest.raises(NotOnHub, match="has nothing of"):
        plan_hub_removal(tmp_path / "nowhere", named("hf:user/else"))


@pytest.mark.parametrize("is_shared", [True, False])
def test_contents_that_repositories_share_go_with_the_last_one(tmp_path: Path, *, is_shared: bool) -> None:
    """The hub's newer libraries keep large contents once for all repositories; each has a link to them."""
    store = tmp_path / "blobs" / "cd" / ("cd" * 32)
    store.parent.mkdir(parents=True)
    (tmp_path / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
    store.write_bytes(b"x" * 700)
    folders = [
        repository(tmp_path, {NEW: {"x-Q4_K_M.gguf": "etag"}}, repo=repo) for repo in ("a/one", "b/two")
    ]
    for folder in folders if is_shared else folders[:1]:
        (folder / "blobs" / "etag").unlink()
        (folder / "blobs" / "etag").symlink_to(os.path.relpath(store, folder / "blobs"))
    store.with_name(f"{store.name}.refs").write_text("models--a--one/blobs/etag\n")
    assert gone(tmp_path, "hf:a/one").size_bytes == (0 if is_shared else 700)
    assert store.exists() == is_shared
    if is_shared:
        assert (folders[1] / "snapshots" / NEW / "x-Q4_K_M.gguf").read_bytes() == b"x" * 700
        assert gone(tmp_path, "hf:b/two:Q4_K_M").size_bytes == 700
        assert not store.exists()
        assert not store.with_name(f"{store.name}.refs").exists()


def test_a_link_out_of_the_cache_takes_nothing_along(tmp_path: Path) -> None:
    outside = tmp_path / "precious.gguf"
    outside.write_bytes(b"x")
    root = tmp_path / "hub"
    folder = repository(root, {NEW: {"x-Q4_K_M.gguf": "four"}})
    (folder / "blobs" / "four").unlink()
    (folder / "blobs" / "four").symlink_to(outside)
    (folder / "snapshots" / NEW / "y-Q8_0.gguf").symlink_to(outside)
    elsewhere = repository(tmp_path / "other", {NEW: {"z-Q8_0.gguf": "theirs"}}) / "blobs" / "theirs"
    (folder / "snapshots" / NEW / "z-Q8_0.gguf").symlink_to(elsewhere)
    assert gone(root, f"hf:{REPO}").size_bytes == 0
    assert not folder.exists()
    assert outside.exists()
    assert elsewhere.exists()


# Files that lie elsewhere.


def test_all_parts_and_the_projector_of_a_file_go_unless_another_model_lies_beside_them(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("x-Q8_0-00001-of-00002.gguf", "x-Q8_0-00002-of-00002.gguf", "mmproj-x.gguf", "y-Q4_0.gguf"):
        (models / name).write_bytes(b"x" * 10)
    first, projector = models / "x-Q8_0-00001-of-00002.gguf", models / "mmproj-x.gguf"
    removal = plan_file_removal("x", first, projector)
    assert [path.name for path in removal.files] == [
        "x-Q8_0-00001-of-00002.gguf",
        "x-Q8_0-00002-of-00002.gguf",
    ]
    (models / "y-Q4_0.gguf").unlink()
    removal = plan_file_removal("x", first, projector)
    remove(removal)
    assert (removal.size_bytes, list(models.iterdir())) == (30, [])


def test_a_link_to_a_file_goes_and_the_file_stays(tmp_path: Path) -> None:
    real, link = tmp_path / "real.gguf", tmp_path / "link.gguf"
    real.write_bytes(b"x" * 10)
    link.symlink_to(real)
    removal = plan_file_removal("x", link)
    assert removal.size_bytes == 0
    remove(removal)
    assert (real.exists(), link.is_symlink()) == (True, False)


def test_a_folder_goes_with_its_files_and_not_with_folders_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "deep/notes.txt"):
        (folder / name).write_bytes(b"x" * 10)
    remove(plan_file_removal("x", folder))
    assert below(tmp_path) == {"model/deep/notes.txt"}
    (folder / "deep" / "notes.txt").unlink()
    (folder / "deep").rmdir()
    (folder / "model.safetensors").write_bytes(b"x")
    remove(plan_file_removal("x", folder))
    assert not folder.exists()


def test_a_model_without_files_has_nothing_to_remove(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="no file"):
        plan_file_removal("x", tmp_path / "missing.gguf")


def test_the_file_of_a_found_model_in_the_cache_goes_as_by_its_name_on_the_hub(tmp_path: Path) -> None:
    folder = repository(tmp_path, {NEW: {"x-Q4_K_M.gguf": "four", "x-Q8_0.gguf": "eight"}})
    path = folder / "snapshots" / NEW / "x-Q4_K_M.gguf"
    remove(plan_file_removal("x", path))
    assert below(folder) == {f"snapshots/{NEW}/x-Q8_0.gguf", "blobs/eight", "refs/main"}


def test_what_goes_belongs_to_models_that_are_started_by_it(tmp_path: Path) -> None:
    folder = repository(tmp_path, {NEW: {"model.safetensors": "st", "config.json": "cfg"}})
    other = repository(tmp_path, {NEW: {"model.safetensors": "st"}}, repo="user/Tiny")
    removal = plan_hub_removal(tmp_path, named(f"hf:{REPO}"))
    within = ("snapshots", NEW)
    (tmp_path / "way").symlink_to(folder)
    (tmp_path / "link").symlink_to(folder.joinpath(*within, "model.safetensors"))
    (tmp_path / "circle").symlink_to("circle")
    paths = {
        "folder": folder.joinpath(*within),
        "file": folder.joinpath(*within, "config.json"),
        "by another way": (tmp_path / "way").joinpath(*within),
        "by a link": tmp_path / "link",
        "another": other.joinpath(*within),
        "in a circle": tmp_path / "circle",
    }
    engine = 'engines.e = {type = "process", argv = ["e", "{path}", "{port}"]}'
    models = [
        f'models."{name}" = {{engine = "e", path = {json.dumps(str(path))}}}' for name, path in paths.items()
    ]
    config = parse_config("\n".join([engine, *models]))
    assert users_of(removal, config) == ["folder", "file", "by another way", "by a link"]


def test_a_link_that_goes_is_not_the_file_that_stays(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "b.gguf").symlink_to("a.gguf")
    engine = 'engines.e = {type = "process", argv = ["e", "{path}", "{port}"]}'
    models = [f'models.{name} = {{engine = "e", path = "{tmp_path}/{name}.gguf"}}' for name in "ab"]
    config = parse_config("\n".join([engine, *models]))
    assert users_of(plan_file_removal("b", tmp_path / "b.gguf"), config) == ["b"]


def test_many_files_are_counted_and_not_all_named(tmp_path: Path) -> None:
    files = {f"f{number}.txt": f"b{number}" for number in range(300)} | {"model.safetensors": "st"}
    repository(tmp_path, {NEW: files})
    told = plan_hub_removal(tmp_path, named(f"hf:{REPO}")).as_dict()
    assert (told["count"], len(told["files"])) == (301, 200)
    assert random.Random(1).choice(told["files"]).startswith(str(tmp_path))


def test_what_is_being_downloaded_is_not_removed(tmp_path: Path) -> None:
    folder = repository(tmp_path, {NEW: {"x-Q4_K_M.gguf": "four"}})
    (folder / "blobs" / "etag.incomplete").write_bytes(b"x")
    (folder / "trees").mkdir()
    (folder / "trees" / "remembered.json").write_text("{}")
    lock = FileLock(tmp_path / ".locks" / folder.name / "etag.lock")
    assert lock.try_lock()
    before = below(folder)
    with pytest.raises(InUse, match="is being downloaded"):
        gone(tmp_path, f"hf:{REPO}")
    assert below(folder) == before
    lock.release()
    gone(tmp_path, f"hf:{REPO}")
    assert not folder.exists()


@pytest.mark.parametrize("way", ["itself", "a link to it", "a link among models"])
def test_what_lies_in_any_cache_goes_with_its_contents(tmp_path: Path, way: str) -> None:
    root = tmp_path / "disk" / "hub"
    folder = repository(root, {NEW: {"x-Q4_K_M.gguf": "four", "y-Q8_0.gguf": "eight"}})
    start = {"itself": root, "a link to it": tmp_path / "hub", "a link among models": tmp_path / "m" / "hf"}[
        way
    ]
    if start != root:
        start.parent.mkdir(exist_ok=True)
        start.symlink_to(root)
    removal = plan_file_removal("x", start / folder.name / "snapshots" / NEW / "x-Q4_K_M.gguf")
    assert removal.size_bytes == 400
    remove(removal)
    assert below(folder) == {f"snapshots/{NEW}/y-Q8_0.gguf", "blobs/eight", "refs/main"}
