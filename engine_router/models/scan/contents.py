"""The models in one place: files read, sorted by what they are, put together from their parts, paired with projectors.

Blocks. Whatever is wrong with one file costs that file, and is told.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from attrs import define, field, frozen

from engine_router.guards.foreign_text import shown
from engine_router.models.gguf import SPLIT, GGUFHeader, summed
from engine_router.models.header_memory import HeaderMemory
from engine_router.models.scan.kinds import REASONS, kind_of
from engine_router.models.scan.listing import (
    GGUF,
    UNFINISHED,
    Folder,
    FoundFile,
    Mark,
    TooMuch,
    Walk,
    mark_of,
    missing_part,
    why,
)
from engine_router.models.scan.llama_cache import name_in_repository
from engine_router.models.scan.naming import Candidate, base_name, name_stem, split_name
from engine_router.models.scan.places import Place, PlaceLayout
from engine_router.models.scan.projectors import Part, as_model, as_projector, pair
from engine_router.models.scan.results import Skipped
from engine_router.models.scan.safetensors import NoModel, has_safetensors, model_files
from engine_router.models.scan.walk import walk_folders

WRITTEN_OF_LATE_S: Final = 60.0
"""Seconds for which an incomplete file counts as one that is still being written."""


@frozen(kw_only=True)
class Contents:
    """What lies in a place.

    Attributes:
        folders: the folders that the place means.
        candidates: the sound models.
        skipped: what was passed over.
        marks: what will look different once there is something new.
        fault: why this is not all; None where it is.
    """

    folders: tuple[Path, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    marks: Mapping[Path, Mark] = field(factory=dict)
    fault: str | None = None

    def has_changed(self, rest: Callable[[], None]) -> bool:
        """Tell whether anything looks different now. A file that was written over in its place may go unseen.

        Blocks; `rest` is called between files.
        """
        for path, mark in self.marks.items():
            rest()
            if mark_of(path) != mark:
                return True
        return False


def contents_of(
    place: Place, headers: HeaderMemory, rest: Callable[[], None], now: Callable[[], float] = time.time
) -> Contents:
    """Return what lies in a place.

    Args:
        headers: the memory of headers.
        rest: called between files: other threads get their turn.
        now: tells the time in seconds since the epoch.

    Raises:
        OSError: none of its folders can be entered.
    """
    walk = Walk(rest)
    sorter = _Sorter(place.layout, headers, walk, now)
    entered: list[Path] = []
    faults: list[str] = []
    lost: list[OSError] = []
    for root in place.folders:
        walk.mark(root)
        try:
            for folder in walk_folders(walk, root, may_be_absent=place.is_cache):
                sorter.take(root, folder)
            if not place.is_cache or root.is_dir():
                entered.append(root)
        except OSError as error:
            lost.append(error)
            faults.append(f"{shown(str(root))} cannot be entered: {why(error)}")
        except ValueError as error:
            faults.append(f"{shown(str(root))}: {error}")
        except TooMuch as reached:
            entered.append(root)
            faults.append(f"{shown(str(root))} {reached}")
            break
    if lost and len(lost) == len(place.folders):
        raise lost[0]
    return Contents(
        folders=tuple(entered),
        candidates=tuple(sorter.candidates()),
        skipped=tuple(walk.skipped),
        marks=walk.marks,
        fault="; ".join(faults) or None,
    )


class _File(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A sound GGUF file, or a whole set of parts, that is a model or a projector."""

    part: Part
    size: int
    repository: str
    file_name: str
    identity: tuple[int, int] | None
    is_link: bool
    is_projector: bool
    scope: str


@define
class _Scope:
    """The models and projectors that lie together."""

    models: list[_File] = field(factory=list)
    projectors: list[_File] = field(factory=list)


@define(eq=False, repr=False)
class _Sorter:
    """What was found so far in a place."""

    _layout: PlaceLayout
    _headers: HeaderMemory
    _walk: Walk
    _now: Callable[[], float]
    _files: list[_File] = field(factory=list)
    _folders: dict[tuple[str, str], Candidate] = field(factory=dict)
    _broken_folders: dict[tuple[str, str], tuple[Path, NoModel]] = field(factory=dict)

    def take(self, root: Path, folder: Folder) -> None:
        """Take in a folder."""
        self._walk.check_time()
        for name in folder.unfinished:
            self._walk.skip(folder.path / name, "is a download that has not ended")
        if has_safetensors(folder):
            self._take_safetensors(root, folder)
        scope = folder.scope
        if split_name(scope.name) == ("", scope.name):  # a folder for one quantization
            scope = scope.parent
        sets: defaultdict[tuple[str, str], list[FoundFile]] = defaultdict(list)
        for file in folder.files:
            if file.path.suffix.lower() == GGUF:
                split = SPLIT.fullmatch(file.path.name)
                sets[(file.path.name, "") if split is None else (split["stem"], split["parts"])].append(file)
        for files in sets.values():
            self._take_gguf(root, folder, str(scope), files)

    def candidates(self) -> Iterator[Candidate]:
        """Yield the models."""
        for path, fault in self._broken_folders.values():
            self._walk.skip(path, str(fault), is_fault=fault.is_fault)
        yield from self._folders.values()
        scopes: defaultdict[str, _Scope] = defaultdict(_Scope)
        for file in _distinct(self._files):
            scope = scopes[file.scope]
            (scope.projectors if file.is_projector else scope.models).append(file)
        for scope in scopes.values():
            yield from self._paired(scope)

    # GGUF

    def _take_gguf(self, root: Path, folder: Folder, scope: str, files: Sequence[FoundFile]) -> None:
        """Take in a file, or a set of parts as far as it is there."""
        first = files[0]
        stem = name_stem(first.path.name)
        if stem.lower().endswith(UNFINISHED) or f"{first.path.name}.aria2" in folder.unfinished:
            self._walk.skip(first.path, "is a download that has not ended")
            return
        if (missing := missing_part(file.path.name for file in files)) is not None:
            self._walk.skip(first.path, missing)
            return
        found = [self._read(file) for file in files]
        headers = [header for header in found if header is not None]
        if len(headers) < len(files):
            return
        if (fault := _fault_of_set(headers)) is not None:
            self._walk.skip(first.path, fault)
            return
        self._sort(root, folder, scope, first, headers[0] if len(headers) == 1 else summed(headers))

    def _read(self, file: FoundFile) -> GGUFHeader | None:
        """Read the header of a file; None, and tell why, where it is not a sound one."""
        is_fresh = abs(self._now() - file.modified_at) < WRITTEN_OF_LATE_S
        try:
            header = self._headers.read_part(file.path, self._walk.rest)
        except FileNotFoundError:  # it went meanwhile
            return None
        except OSError as error:
            self._walk.skip(file.path, f"cannot be read: {why(error)}")
            return None
        except ValueError as error:
            fault = str(error).removeprefix(f"{file.path}: ")
            self._walk.skip(file.path, _while_written(fault if file.size else "is empty", is_fresh=is_fresh))
            return None
        if header.missing_bytes:
            whole = header.file_bytes + header.missing_bytes
            fault = f"truncated: {_amount(header.missing_bytes)} of {_amount(whole)} are missing"
            self._walk.skip(file.path, _while_written(fault, is_fresh=is_fresh))
            return None
        return header

    def _sort(self, root: Path, folder: Folder, scope: str, first: FoundFile, header: GGUFHeader) -> None:
        """Put a sound file where it belongs by what it is."""
        repository, name = self._origin(root, folder, first.path)
        kind = kind_of(name, header)
        if kind not in ("model", "projector"):
            self._walk.skip(first.path, REASONS[kind], is_fault=kind == "unknown")
            return
        base, quantization = split_name(name)
        if not quantization and header.quantization != "unknown":
            quantization = header.quantization
        if kind == "projector":
            part = as_projector(first.path, base, quantization, header)
        else:
            part = as_model(first.path, base_name(base, repository, first.path), quantization, header)
        self._files.append(
            _File(
                part=part,
                size=header.file_bytes,
                repository=repository,
                file_name=name,
                identity=first.identity,
                is_link=first.is_link,
                is_projector=kind == "projector",
                scope=repository or scope,
            )
        )

    def _origin(self, root: Path, folder: Folder, path: Path) -> tuple[str, str]:
        """Return the repository of a file, where it is known, and the file's name in it."""
        if folder.repository:
            return folder.repository, path.name
        if self._layout == "llamacpp":
            return name_in_repository(path.name, folder.beside)
        return self._by_layout(root, path.parent), path.name

    def _by_layout(self, root: Path, folder: Path) -> str:
        """Return the repository of a folder; LM Studio's are `user/repo`."""
        if self._layout != "lmstudio" or not folder.is_relative_to(root):
            return ""
        within = folder.relative_to(root).parts
        return "/".join(within[:2]) if len(within) >= 2 else ""

    def _paired(self, scope: _Scope) -> Iterator[Candidate]:
        pairing = pair(
            [file.part for file in scope.models],
            [file.part for file in scope.projectors],
            is_repository=bool(scope.models and scope.models[0].repository),
        )
        used = {chosen[0] for chosen in pairing.chosen if len(chosen) == 1}
        for projector in (file.part.path for file in scope.projectors):
            if projector in pairing.unclear:
                self._walk.skip(
                    projector,
                    "is a projector that may belong to several models here: "
                    "give the right one a table in [models] with mmproj",
                )
            else:
                whose = "of a model here" if projector in used else "of no model here"
                self._walk.skip(projector, f"is a projector (mmproj) {whose}", is_fault=False)
        for file, chosen in zip(scope.models, pairing.chosen, strict=True):
            if len(chosen) > 1:
                names = ", ".join(shown(path.name) for path in chosen[:4])
                self._walk.skip(
                    file.part.path,
                    f"is served without a projector: several fit equally ({names}); "
                    "give it a table in [models] with mmproj",
                )
            yield Candidate(
                path=file.part.path,
                format="gguf",
                size_bytes=file.size,
                base=file.part.base,
                quantization=file.part.quantization,
                mmproj=chosen[0] if len(chosen) == 1 else None,
                repository=file.repository,
                file_name=file.file_name,
                identity=file.identity,
            )

    # Safetensors

    def _take_safetensors(self, root: Path, folder: Folder) -> None:
        repository = folder.repository or self._by_layout(root, folder.path)
        key = (str(folder.scope), folder.within)
        if key in self._folders:
            return
        try:
            files = model_files(folder, self._headers)
        except NoModel as fault:
            self._broken_folders.setdefault(key, (folder.path, fault))
            return
        self._broken_folders.pop(key, None)
        name = repository.rpartition("/")[2] or folder.path.name
        if folder.within:
            name = f"{name}-{folder.path.name}"
        self._folders[key] = Candidate(
            path=folder.path,
            format="safetensors",
            size_bytes=sum(file.size for file in files),
            base=name,
            repository="" if folder.within else repository,
            identity=files[0].identity,
        )


def _distinct(files: Sequence[_File]) -> list[_File]:
    """Return files, each once: by its own path rather than by a link, and by the shortest of several."""
    found: dict[object, _File] = {}
    by_path = [(file.is_link, len(file.part.path.parts), str(file.part.path), file) for file in files]
    for *_order, path, file in sorted(by_path, key=lambda each: each[:3]):
        found.setdefault(file.identity or path, file)
    return sorted(found.values(), key=lambda file: str(file.part.path))


def _fault_of_set(headers: Sequence[GGUFHeader]) -> str | None:
    """Return what is wrong with the parts of a model together."""
    if len(headers) == 1:
        # Parts that were merged into one file leave a count of 0.
        parts = headers[0].metadata.get("split.count")
        return f"is one of {parts} parts, and not called so" if isinstance(parts, int) and parts > 1 else None
    for number, header in enumerate(headers):
        own = header.metadata.get("split.no")
        if own is not None and (own != number or header.metadata.get("split.count") != len(headers)):
            return f"part {number + 1} of {len(headers)} is of another set"
    promised = {header.metadata.get("split.tensors.count") for header in headers}
    total = promised.pop()
    if promised or total not in (None, sum(header.tensor_count for header in headers)):
        return "its parts are of different sets"
    return None


def _while_written(fault: str, *, is_fresh: bool) -> str:
    return f"is still being written ({fault})" if is_fresh else fault


def _amount(size_bytes: int) -> str:
    for unit, letters in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {letters}"
    return f"{size_bytes} bytes"
