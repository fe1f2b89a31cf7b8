"""The hub's cache on disk: `models--user--repo` with blobs, snapshots of links to them, and refs, as its library has it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from engine_router.models.hub.choice import RepoFile

_TAG: Final = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This file is a cache directory tag created by huggingface_hub.\n"
    "# For information about cache directory tags, see: https://bford.info/cachedir/\n"
)
# The file system has no locks. Two that fetch the same file then fetch it twice, and its hash tells.
_NO_LOCKS: Final = frozenset((errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK))


@frozen
class RepoCache:
    """The part of the hub's cache that holds one repository. All methods block.

    Attributes:
        root: the cache.
        repo: `user/name`.
        has_links: False where links are not wanted.
    """

    root: Path
    repo: str
    has_links: bool = True

    @property
    def folder(self) -> Path:
        """The repository's folder."""
        return self.root / f"models--{self.repo.replace('/', '--')}"

    @property
    def blobs(self) -> Path:
        """The folder of contents, each under its hash."""
        return self.folder / "blobs"

    def blob(self, file: RepoFile) -> Path:
        """Return the place of a file's bytes."""
        return self.blobs / file.etag

    def partial(self, file: RepoFile) -> Path:
        """Return the place of what there is so far of a file's bytes."""
        return self.blobs / f"{file.etag}.incomplete"

    def snapshot(self, commit: str) -> Path:
        """Return the folder of one revision."""
        return self.folder / "snapshots" / commit

    def pointer(self, commit: str, file: RepoFile) -> Path:
        """Return the place under which a file is found in a revision."""
        return self.snapshot(commit).joinpath(*file.path.split("/"))

    def lock(self, file: RepoFile) -> Path:
        """Return the lock file that whoever fetches a file holds, the hub's own library too."""
        return self.root / ".locks" / self.folder.name / f"{file.etag}.lock"

    def has(self, commit: str, file: RepoFile) -> bool:
        """Tell whether all bytes of a file are there, under its hash or in the revision itself."""
        return (
            _size(self.blob(file)) == file.size_bytes or _size(self.pointer(commit, file)) == file.size_bytes
        )

    def fetched_bytes(self, file: RepoFile) -> int:
        """Return how many bytes of a file are there of a broken download."""
        return min(_size(self.partial(file)) or 0, file.size_bytes)

    def prepare(self) -> None:
        """Make the folders that a download needs.

        Raises:
            OSError: they cannot be made.
        """
        self.blobs.mkdir(parents=True, exist_ok=True)
        (self.folder / "snapshots").mkdir(exist_ok=True)
        (self.root / ".locks" / self.folder.name).mkdir(parents=True, exist_ok=True)
        tag = self.root / "CACHEDIR.TAG"
        if not tag.exists():
            with contextlib.suppress(OSError):
                tag.write_text(_TAG, encoding="utf-8")

    def keep(self, file: RepoFile) -> None:
        """Turn what was fetched of a file, all of it and found right, into its blob.

        Raises:
            OSError: it cannot be.
        """
        self.partial(file).replace(self.blob(file))

    def publish(self, commit: str, files: Sequence[RepoFile], revision: str) -> None:
        """Make files visible in a revision, and the revision under its name; only now does anybody see them.

        Raises:
            OSError: it cannot be done.
        """
        uses = Counter(file.etag for file in files)
        for file in files:
            pointer, blob = self.pointer(commit, file), self.blob(file)
            uses[file.etag] -= 1
            if _size(pointer) == file.size_bytes:
                continue
            pointer.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                pointer.unlink()
            self._point(pointer, blob, is_last=not uses[file.etag])
        if revision != commit:
            _write_whole(self.folder / "refs" / revision, commit)

    def _point(self, pointer: Path, blob: Path, *, is_last: bool) -> None:
        """Have a path show a blob: by a relative link, else by the file itself, as the hub's library does it.

        Args:
            is_last: no other path of this revision shows it.
        """
        if self.has_links:
            try:
                pointer.symlink_to(os.path.relpath(blob, pointer.parent))
            except FileExistsError:  # somebody else has just done it
                return
            except OSError:
                pass
            else:
                return
        if blob.is_symlink() or not is_last:  # its bytes are wanted elsewhere, too
            shutil.copyfile(blob, pointer)
        else:
            blob.replace(pointer)


def _size(path: Path) -> int | None:
    """Return the size of a file; None where there is none, or something else."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _write_whole(path: Path, text: str) -> None:
    """Write a small file so that nobody ever reads a part of it."""
    with contextlib.suppress(OSError):
        if path.read_text(encoding="utf-8") == text:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    other = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        other.write_text(text, encoding="utf-8")
        other.replace(path)
    finally:
        other.unlink(missing_ok=True)


class FileLock:
    """A lock on a file that ends with the process, as the hub's own library takes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def try_lock(self) -> bool:
        """Take the lock, or return False where somebody has it. Blocks no longer than the file system does.

        Raises:
            OSError: the lock's file cannot be opened.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o664)
        try:
            is_ours = _try_lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if is_ours:
            self._descriptor = descriptor
        else:
            os.close(descriptor)
        return is_ours

    def release(self) -> None:
        """Give the lock back, if it is held. Its file stays: another one may wait for it."""
        if self._descriptor is not None:
            os.close(self._descriptor)  # which ends the lock
            self._descriptor = None


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return True
            raise
        return True


def repositories(root: Path) -> Iterator[RepoCache]:
    """Yield the repositories of models that a cache holds. Blocks."""
    try:
        folders = sorted(folder for folder in root.iterdir() if folder.name.startswith("models--"))
    except OSError:
        return
    for folder in folders:
        if folder.is_dir():
            yield RepoCache(root, folder.name.removeprefix("models--").replace("--", "/"))
