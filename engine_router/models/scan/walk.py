"""The walk through folders: which files of models are there. It costs a bounded time, whatever is in them.

Links are followed, except those that lead up: to the root of a file system, or to a folder that holds the scanned
one. Each folder is entered once, by its real path if it has one here. Hidden folders and files are passed over:
downloaders keep what is unfinished there. A folder that cannot be entered costs itself only.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MAX_SCAN_DEPTH
from engine_router.models.scan.hub_cache import is_repository, repository_folders
from engine_router.models.scan.listing import ABSENT, Folder, Walk

# What else lies in the hub's cache.
_NOT_MODELS: Final = ("datasets--", "spaces--")
_UP: Final = "the scan would leave its folder for all that is around it; name the folders with models in scan"


def walk_folders(walk: Walk, root: Path, *, may_be_absent: bool) -> Iterator[Folder]:
    """Yield the folders under one that have files of models, itself first.

    Raises:
        OSError: the folder itself cannot be entered.
        ValueError: it is not there, or no folder.
        TooMuch: a limit is reached; what was yielded is not all.
    """
    if not _is_there(root, may_be_absent=may_be_absent):
        return
    # Links wait until all else was seen, so that what lies here is found under its real path.
    real_root = root.resolve()
    waiting: deque[tuple[Path, int, bool]] = deque([(root, 0, False)])
    links: deque[tuple[Path, int, bool]] = deque()
    while waiting or links:
        path, depth, is_link = (waiting or links).popleft()
        if not walk.is_new(path):
            continue
        if is_repository(path):
            yield from repository_folders(walk, path)
            continue
        listing = walk.list(path, by_link=is_link)
        for name in listing.dangling:
            walk.skip(path / name, "is a link to a file that is not there", is_fault=False)
        if listing.files or listing.unfinished:
            yield Folder(
                path, tuple(listing.files), frozenset(listing.beside), tuple(listing.unfinished), scope=path
            )
        if listing.folders and depth >= MAX_SCAN_DEPTH:
            walk.skip(path, f"holds more than {MAX_SCAN_DEPTH} folders within each other")
            continue
        for name, folder_is_link in listing.folders:
            if name.startswith(_NOT_MODELS) or (folder_is_link and _leads_up(walk, path / name, real_root)):
                continue
            linked = is_link or folder_is_link
            (links if linked else waiting).append((path / name, depth + 1, linked))


def _leads_up(walk: Walk, link: Path, real_root: Path) -> bool:
    """Tell whether a link leads to a root, or to a folder that holds the scanned one; it is noted then."""
    try:
        target = link.resolve()
    except (OSError, RuntimeError):  # it went meanwhile, or leads in a circle
        return False
    if target != target.parent and target not in real_root.parents:
        return False
    walk.skip(link, f"is a link to {shown(str(target))}, which is not followed: {_UP}")
    return True


def _is_there(root: Path, *, may_be_absent: bool) -> bool:
    """Tell whether a place's folder can be entered.

    Raises:
        OSError, ValueError: as `walk_folders` does.
    """
    try:
        if not stat.S_ISDIR(root.stat().st_mode):
            raise ValueError("is a file, not a folder: give it a table of its own in [models]")
        os.scandir(root).close()
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        if not may_be_absent:
            raise ValueError("there is no such folder") from None
        return False
    return True
