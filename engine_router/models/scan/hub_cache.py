"""Repositories in the hub's cache: `models--user--repo/snapshots/REVISION/`, whose files are links to blobs.

A revision seldom has all files: a download fetches those that it was asked for. So each file, each set of parts and
each folder of safetensors is taken from the first revision that has it: that of `refs/main`, then the newest. Links
whose blob is missing, and blobs that are not complete, hide nothing that is there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import define, evolve, field

from engine_router.guards.limits import MAX_NAME_FILE_BYTES, MAX_SCAN_DEPTH
from engine_router.guards.regular_file import open_regular
from engine_router.models.gguf import SPLIT
from engine_router.models.scan.listing import GGUF, Folder, FoundFile, Walk, missing_part

_PREFIX: Final = "models--"
_UNFINISHED: Final = ".incomplete"


def is_repository(path: Path) -> bool:
    """Tell whether a folder is a repository in the hub's cache."""
    return path.name.startswith(_PREFIX) and (path / "snapshots").is_dir()


def repository_folders(walk: Walk, path: Path) -> Iterator[Folder]:
    """Yield the folders of a repository that have files of models, those of the best revision first.

    A folder with safetensors is yielded for each revision that has it: whoever reads them takes the first that is
    complete.

    Raises:
        TooMuch: a limit is reached.
    """
    repository = path.name.removeprefix(_PREFIX).replace("--", "/", 1)
    found = [listed for snapshot in _snapshots(walk, path) for listed in _listed(walk, snapshot)]
    chosen = _Chosen()
    for listed in found:
        chosen.look_at(listed)
    for listed in found:
        files = tuple(file for file in listed.folder.files if chosen.has(listed, file))
        if files:
            yield evolve(listed.folder, files=files, repository=repository, scope=path, within=listed.within)
    present = {key for listed in found for key in listed.file_keys()}
    for dangling, key in [pair for listed in found for pair in listed.dangling()]:
        if key not in present:
            present.add(key)
            walk.skip(
                dangling, "is a link to a file that is not there: its download may have been broken off"
            )
    if not found and _is_unfinished(path):
        walk.skip(path, "holds nothing but a download that has not ended")


@define(eq=False, repr=False)
class _Listed:
    """A folder of a revision, with its path within the revision."""

    folder: Folder
    within: str
    dangling_names: list[str]

    def key(self, name: str) -> tuple[str, str]:
        """Return what a file is called in every revision."""
        return self.within, name

    def file_keys(self) -> Iterator[tuple[str, str]]:
        return (self.key(file.path.name) for file in self.folder.files)

    def dangling(self) -> Iterator[tuple[Path, tuple[str, str]]]:
        return ((self.folder.path / name, self.key(name)) for name in self.dangling_names)


@define(eq=False, repr=False)
class _Chosen:
    """The revision from which each file is taken, as the folder of that revision; of a set of parts, for the whole."""

    _complete: dict[tuple[str, str], Path] = field(factory=dict)
    _partial: dict[tuple[str, str], Path] = field(factory=dict)

    def look_at(self, listed: _Listed) -> None:
        """Take in the files of a folder; those of better revisions come first."""
        sets: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for file in listed.folder.files:
            sets[_key(listed, file)].append(file.path.name)
        for key, names in sets.items():
            for_whole = self._partial if missing_part(names) else self._complete
            for_whole.setdefault(key, listed.folder.path)

    def has(self, listed: _Listed, file: FoundFile) -> bool:
        """Tell whether a file is taken from this folder."""
        if file.path.suffix.lower() != GGUF:
            return True
        key = _key(listed, file)
        return self._complete.get(key, self._partial.get(key)) == listed.folder.path


def _key(listed: _Listed, file: FoundFile) -> tuple[str, str]:
    """Return what a file, or the set of parts that it belongs to, is called in every revision."""
    split = SPLIT.fullmatch(file.path.name)
    return listed.key(file.path.name if split is None else f"{split['stem']}-of-{split['parts']}")


def _snapshots(walk: Walk, path: Path) -> list[Path]:
    """Return the folders of a repository's revisions, the best first."""
    main = _main_revision(path)
    folder = path / "snapshots"
    found = [folder / name for name, _is_link in walk.list(folder).folders]
    return sorted(found, key=lambda snapshot: (snapshot.name != main, -_changed_at(snapshot), snapshot.name))


def _main_revision(path: Path) -> str:
    main = path / "refs" / "main"
    try:
        with open_regular(main) as file:
            return file.read(MAX_NAME_FILE_BYTES).decode().strip()
    except (OSError, ValueError):
        return ""


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _listed(walk: Walk, snapshot: Path) -> Iterator[_Listed]:
    """Yield the folders of a revision."""
    waiting = [(snapshot, "", 0)]
    while waiting:
        path, within, depth = waiting.pop()
        if not walk.is_new(path):
            continue
        listing = walk.list(path)
        if listing.files or listing.dangling:
            folder = Folder(path, tuple(listing.files), frozenset(listing.beside))
            yield _Listed(folder, within, listing.dangling)
        if depth < MAX_SCAN_DEPTH:
            waiting += [
                (path / name, f"{within}{name}/", depth + 1) for name, _is_link in reversed(listing.folders)
            ]


def _is_unfinished(path: Path) -> bool:
    try:
        return any(blob.name.endswith(_UNFINISHED) for blob in (path / "blobs").iterdir())
    except OSError:
        return False
