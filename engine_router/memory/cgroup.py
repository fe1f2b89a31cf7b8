"""The memory limits of this process's control groups, on Linux: version 1 and 2.

A container or a systemd unit with a memory limit may take less than the host has. Limits count in every group
up to the root of the hierarchy, as far as it can be seen from here. What the kernel gives back under pressure,
the file cache above all, counts as free, as in `MemAvailable`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

import attrs

# A limit of version 1 that stands for none is just below 2**63, rounded to pages; no machine has so much.
_NO_LIMIT: Final = 2**60
# Groups are nested by people and their tools; what is nested deeper is not looked at.
_MAX_LEVELS: Final = 32
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@attrs.frozen
class _Version:
    """The names of the files of one version."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: tuple[str, ...]


_V1: Final = _Version(
    ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")
)
# Above `memory.high` a group is slowed down until it can hardly go on: for a model that is a limit, too.
_V2: Final = _Version(
    ("memory.max", "memory.high"), "memory.current", ("active_file", "inactive_file", "slab_reclaimable")
)


@attrs.frozen
class Allowance:
    """The memory that the control groups allow.

    Attributes:
        limit_bytes: the smallest limit.
        free_bytes: what may still be taken, the reclaimable left out.
        available_bytes: what may still be taken, with what the kernel would give back.
    """

    limit_bytes: int
    free_bytes: int
    available_bytes: int


@attrs.define(eq=False, repr=False)
class ControlGroups:
    """The control groups that this process is in, and the limits of their memory.

    Attributes:
        root: where the system's files are.
    """

    root: Path = Path("/")
    _groups: tuple[tuple[_Version, Path], ...] | None = attrs.field(init=False, default=None)

    def limit(self) -> int | None:
        """Return the smallest limit in bytes; None where there is none.

        Reads a few numbers that the kernel holds in memory.
        """
        return min((limit for _, _, limit in self._limited()), default=None)

    def allowance(self) -> Allowance | None:
        """Return what may still be taken; None where there is no limit, or none that can be read.

        The kernel may have to sum up counters of every processor for it: call it in a thread.
        """
        seen = [
            (limit, *found)
            for version, folder, limit in self._limited()
            if (found := _used(version, folder)) is not None
        ]
        if not seen:
            return None
        return Allowance(
            limit_bytes=min(limit for limit, _, _ in seen),
            free_bytes=max(0, min(limit - used for limit, used, _ in seen)),
            available_bytes=max(0, min(limit - used + min(used, back) for limit, used, back in seen)),
        )

    def _limited(self) -> Iterator[tuple[_Version, Path, int]]:
        if self._groups is None:
            self._groups = tuple(self._find())
        for version, folder in self._groups:
            numbers = (_number(folder / name) for name in version.limits)
            limits = [number for number in numbers if number is not None and number < _NO_LIMIT]
            if limits:
                yield version, folder, min(limits)

    def _find(self) -> Iterator[tuple[_Version, Path]]:
        """Yield the folders of this process's groups, and of those around them."""
        paths = _group_paths(_lines(self.root / "proc/self/cgroup"))
        for version, mounted, start in _mounts(_lines(self.root / "proc/self/mountinfo")):
            path = paths.get(version)
            if path is None:
                continue
            folder = self.root / mounted.relative_to("/")
            # A container may see its own group as the root of what is mounted there.
            inside = path.relative_to(start) if path.is_relative_to(start) else PurePosixPath()
            for part in (inside, *inside.parents)[:_MAX_LEVELS]:
                if ".." not in part.parts:
                    yield version, folder / part


def _group_paths(lines: Iterable[str]) -> Mapping[_Version, PurePosixPath]:
    """Return where in each hierarchy this process is, by `/proc/self/cgroup`: `number:controllers:path`."""
    found: dict[_Version, PurePosixPath] = {}
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found[_V2] = PurePosixPath(path)
        elif "memory" in controllers.split(","):
            found[_V1] = PurePosixPath(path)
    return found


def _mounts(lines: Iterable[str]) -> Iterator[tuple[_Version, PurePosixPath, PurePosixPath]]:
    """Yield where hierarchies with a memory controller are mounted, and which of their groups is seen there."""
    for line in lines:
        before, dash, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if not dash or len(fields) < 5 or len(kinds) < 3:
            continue
        start, mounted = (PurePosixPath(_ESCAPED.sub(_character, word)) for word in fields[3:5])
        if not mounted.is_absolute():
            continue
        if kinds[0] == "cgroup2":
            yield _V2, mounted, start
        elif kinds[0] == "cgroup" and "memory" in kinds[2].split(","):
            yield _V1, mounted, start


def _character(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


def _used(version: _Version, folder: Path) -> tuple[int, int] | None:
    """Return what a group uses, and what of that is reclaimable."""
    used = _number(folder / version.usage)
    if used is None:
        return None
    back = 0
    for line in _lines(folder / "memory.stat"):
        key, _, value = line.partition(" ")
        if key in version.reclaimable and value.isascii() and value.isdigit():
            back += int(value)
    return used, back


def _number(file: Path) -> int | None:
    """Return the number in a file; None where there is none, such as in a file that says `max`."""
    try:
        text = file.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() and len(text) < 20 else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
