"""The removal of a model's files: from the hub's cache without harm to other revisions, or of files as they are.

Everything here blocks.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from engine_router.errors import HubError, InUse, NotOnHub
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MOST_REMOVED_LISTED
from engine_router.models.hub.cache import FileLock, RepoCache
from engine_router.models.hub.names import HubName
from engine_router.models.hub.quantization import GgufName, is_companion, matches
from engine_router.models.weights import weight_files

_SHARED: Final = re.compile(r"[0-9a-f]{64}")
_WEIGHTS: Final = (".gguf", ".safetensors")


@frozen(kw_only=True)
class Removal:
    """The files that go when a model is removed.

    Attributes:
        name: the model, as it was named.
        files: paths that go: links in revisions of the cache, or the files themselves.
        blobs: contents in the cache that no other link shows.
        folders: folders that are empty then.
        size_bytes: what the disk gains.
        root: the hub's cache in which they are; None where they are in none.
    """

    name: str
    files: tuple[Path, ...] = ()
    blobs: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()
    size_bytes: int = 0
    root: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "name": self.name,
            "files": [str(path) for path in self.files[:MOST_REMOVED_LISTED]],
            "count": len(self.files),
            "size_bytes": self.size_bytes,
        }


def plan_hub_removal(root: Path, name: HubName) -> Removal:
    """Return what goes of the hub's cache with a model.

    Without a quantisation and a file it is the whole repository, with what broken downloads have left.

    Raises:
        NotOnHub: the cache has no such model.
    """
    cache = _found(root, name.repo)
    links = _links(cache)
    if not name.quant and not name.file:
        blobs = _children(cache.blobs)
        return _removal(
            name, cache, links, [*links, *(blob for blob in blobs if blob.name.endswith(".incomplete"))]
        )
    chosen = [link for link in links if _is_meant(name, _within(cache, link))]
    if not chosen:
        there = sorted({GgufName.of(_within(cache, link)).label for link in links if _is_model(link)} - {""})
        raise NotOnHub(
            f"the cache has no {shown(name.quant or name.file)} of hf:{name.repo}; it has {', '.join(there) or 'no model'}"
        )
    return _removal(name, cache, links, chosen)


def plan_file_removal(name: str, path: Path, projector: Path | None = None) -> Removal:
    """Return what goes with a model that is started by a file or a folder.

    Args:
        path: what lies in a cache of the hub's, by whatever way it is reached, goes as `plan_hub_removal` does it.
        projector: goes, too, where no other model lies beside it.

    Raises:
        HubError: there is nothing at that path.
    """
    if (cache := _cache_of(path)) is not None:
        links = _links(cache)
        inside = _within(cache, path)
        wanted = GgufName.of(inside).stem if inside.lower().endswith(".gguf") else None
        chosen = [
            link
            for link in links
            if (own := _within(cache, link)) == inside
            or (wanted is not None and GgufName.of(own).stem == wanted and own.lower().endswith(".gguf"))
            or (wanted is None and _is_below(own, inside))
        ]
        return _removal(name, cache, links, chosen)
    try:
        files = [*(weight_files(path) if path.is_file() else _folder_files(path))]
    except (OSError, ValueError) as error:
        raise HubError(f"the files of {name} cannot be found: {error}") from None
    if projector is not None and projector.is_file() and not _has_other_models(projector.parent, files):
        files.append(projector)
    if not files:
        raise HubError(f"there is no file at {path}")
    folders = [path] if path.is_dir() and not set(_children(path)) - set(files) else []
    return Removal(
        name=name,
        files=tuple(files),
        folders=tuple(folders),
        size_bytes=sum(_own_bytes(file) for file in files),
    )


def remove(removal: Removal) -> None:
    """Remove the files; those of the cache so that no link is left without its contents.

    Raises:
        InUse: one is being downloaded; nothing was removed.
        HubError: one cannot be removed; those before it are gone.
    """
    root = removal.root
    for path in (*removal.files, *removal.blobs):
        if root is not None and path.suffix == ".incomplete":
            _check_idle(root, path)
    shared = () if root is None else ((root, _shared_target(root, blob)) for blob in removal.blobs)
    targets = [(root, target) for root, target in shared if target is not None]
    for path in (*removal.files, *removal.blobs):
        _unlink(path)
    for root, target in targets:
        _sweep(root, target)
    for folder in removal.folders:
        _remove_empty(folder)


def _check_idle(root: Path, partial: Path) -> None:
    """See that nobody is fetching a file."""
    file = root / ".locks" / partial.parents[1].name / f"{partial.name.partition('.')[0]}.lock"
    if not file.exists():
        return
    lock = FileLock(file)
    with contextlib.suppress(OSError):
        if not lock.try_lock():
            raise InUse(
                f"{partial.parents[1].name} is being downloaded; cancel that first (engine-router cancel)"
            )
        lock.release()


def _found(root: Path, repo: str) -> RepoCache:
    exact = RepoCache(root, repo)
    if exact.folder.is_dir():
        return exact
    wanted = exact.folder.name.lower()
    for folder in _children(root):
        if folder.name.lower() == wanted and folder.is_dir():
            return RepoCache(root, folder.name.removeprefix("models--").replace("--", "/"))
    raise NotOnHub(f"the cache at {root} has nothing of hf:{repo}")


def _cache_of(path: Path) -> RepoCache | None:
    """Return the repository of a cache of the hub's that a path leads into; None where it is in none.

    It is told by its layout: there may be several caches, and links to them.
    """
    parts = path.absolute().parts
    for index in reversed(range(1, len(parts) - 2)):
        if parts[index].startswith("models--") and parts[index + 1] == "snapshots":
            repo = parts[index].removeprefix("models--").replace("--", "/")
            return RepoCache(Path(*parts[:index]), repo)
    return None


def _links(cache: RepoCache) -> list[Path]:
    """Return the files in all revisions, which are links to contents, or the contents themselves."""
    found: list[Path] = []
    for folder, _, names in os.walk(cache.folder / "snapshots"):
        found += [Path(folder) / name for name in names]
    return sorted(found)


def _within(cache: RepoCache, link: Path) -> str:
    """Return the path of a file within its revision; empty for the revision itself."""
    return "/".join(link.absolute().relative_to((cache.folder / "snapshots").absolute()).parts[1:])


def _is_below(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")


def _is_model(link: Path) -> bool:
    return link.suffix.lower() == ".gguf" and not is_companion(link.name)


def _is_meant(name: HubName, path: str) -> bool:
    is_gguf = path.lower().endswith(".gguf")
    if name.file:
        wished = name.file.lower()
        if not is_gguf or not wished.endswith(".gguf"):
            return path.lower() == wished
        stem, own = GgufName.of(wished).stem, GgufName.of(path.lower()).stem
        return own == stem or own.endswith(f"/{stem}")
    return is_gguf and not is_companion(path) and matches(GgufName.of(path).label, name.quant)


def _removal(name: HubName | str, cache: RepoCache, links: Sequence[Path], chosen: Iterable[Path]) -> Removal:
    """Return the removal of some files of a repository, and of what nothing uses any more then."""
    going = set(chosen)
    staying = [link for link in links if link not in going]
    if not any(link.name.lower().endswith(_WEIGHTS) and not is_companion(link.name) for link in staying):
        going.update(staying)  # settings and projectors without a model
        staying = []
    kept = {_blob_of(cache, link) for link in staying}
    shown_by = {blob for link in going if (blob := _blob_of(cache, link)) is not None}
    blobs = [blob for blob in sorted(shown_by) if blob not in kept]
    if (
        not staying
    ):  # the folder is the hub's own for this repository: what its libraries remember there goes, too
        blobs = [path for path in _files_below(cache.folder) if path not in going]
    folders = [Path(folder) for folder, _, _ in os.walk(cache.folder, topdown=False)]
    refs = [
        ref
        for ref in _files_below(cache.folder / "refs")
        if not any(link.is_relative_to(cache.snapshot(_text(ref))) for link in staying)
    ]
    locks = cache.root / ".locks" / cache.folder.name
    own = [link for link in going if _blob_of(cache, link) is None]
    return Removal(
        name=str(name),
        files=tuple(sorted(going)),
        blobs=(
            *blobs,
            *(refs if staying else _children(locks)),
        ),
        folders=(*folders, *([] if staying else [locks])),
        size_bytes=sum(map(_own_bytes, own))
        + sum(_freed_bytes(cache.root, blob) for blob in blobs if blob.parent == cache.blobs),
        root=cache.root,
    )


def _blob_of(cache: RepoCache, link: Path) -> Path | None:
    """Return the contents that a link shows; None where it is the contents itself, or leads out of the repository."""
    try:
        target = Path(os.path.normpath(link.parent / os.readlink(link)))  # noqa: PTH115 - the next step needs it as it is
    except OSError:
        return None
    return target if target.parent == Path(os.path.normpath(cache.blobs)) else None


def _shared_target(root: Path, blob: Path) -> Path | None:
    """Return the contents that several repositories share, which the hub's newer libraries keep in a place of their own."""
    try:
        target = Path(os.path.normpath(blob.parent / os.readlink(blob)))  # noqa: PTH115 - likewise
    except OSError:
        return None
    is_shared = (
        target.parent.parent == Path(os.path.normpath(root / "blobs"))
        and _SHARED.fullmatch(target.name) is not None
    )
    return target if is_shared else None


def _users(root: Path, target: Path) -> list[Path]:
    """Return the blobs of all repositories that show shared contents."""
    return [
        blob
        for repository in _children(root)
        if "--" in repository.name
        for blob in _children(repository / "blobs")
        if _shared_target(root, blob) == target
    ]


def _sweep(root: Path, target: Path) -> None:
    """Remove shared contents that no repository uses any more, under the lock that the hub's library takes for it."""
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    with contextlib.suppress(OSError):
        if not lock.try_lock():
            return
        try:
            if not _users(root, target):
                target.unlink(missing_ok=True)
                target.with_name(f"{target.name}.refs").unlink(missing_ok=True)
        finally:
            lock.release()


def _freed_bytes(root: Path, blob: Path) -> int:
    target = _shared_target(root, blob)
    if target is None:
        return _own_bytes(blob)
    return _own_bytes(target) if _users(root, target) == [blob] else 0


def _own_bytes(path: Path) -> int:
    """Return the bytes that go with a file; none with a link."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _folder_files(folder: Path) -> list[Path]:
    """Return the files of a model in a folder of its own."""
    return [path for path in _children(folder) if path.is_file()]


def _has_other_models(folder: Path, files: Sequence[Path]) -> bool:
    return any(_is_model(path) and path not in files for path in _children(folder))


def _files_below(folder: Path) -> list[Path]:
    return [Path(where) / name for where, _, names in os.walk(folder) for name in names]


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or "-"
    except (OSError, UnicodeDecodeError):
        return "-"


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise HubError(f"{path} cannot be removed: {error.strerror or error}") from None


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
