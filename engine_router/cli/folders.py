"""Folders of models that are named on the command line."""

from __future__ import annotations

from collections.abc import Iterable

from engine_router.config.values import expanded
from engine_router.models.scan.places import CACHES


def absent_folders(names: Iterable[str]) -> list[str]:
    """Return the folders that are not there; the caches of other programs may be missing."""
    return [name for name in names if name not in CACHES and not is_there(name)]


def lasting(name: str) -> str:
    """Return a folder's name as a file may keep it that is read from elsewhere: from a relative one, its whole path."""
    return name if name in CACHES or name.startswith("~") else str(expanded(name).absolute())


def is_there(name: str) -> bool:
    """Return whether a name leads to a file or a folder."""
    try:
        return expanded(name).exists()
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        return False
