"""The files of saved conversations: which there are, how much room they take, and which of them goes first."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import define, field, frozen

from engine_router.config import ContextConfig
from engine_router.engines.context.slots import Prefixes, common_chars
from engine_router.guards.atomic_file import write_atomically

logger = logging.getLogger(__name__)

_VERSION: Final = 1
_INDEX: Final = "index.json"
_SAVED: Final = ".saved"
PARTIAL: Final = ".partial"
"""The end of the name of a file that is being written."""
_DAY_S: Final = 86_400.0
_GB: Final = 1e9


@frozen
class KnownPrefix:
    """A beginning of a saved conversation; see `slots.Prefix`."""

    digest: str
    chars: int


@frozen(kw_only=True)
class SavedContext:
    """A saved conversation.

    Attributes:
        file: its name in the folder.
        resident: the name of whose it is.
        engine: the digest of what it can be restored into: model, build, sizes; see `identity`.
        weights: path, size and time of change (in ns) of the model's file.
        prefixes: the beginnings of its prompt.
        prompt_tokens: the tokens of that.
        size_bytes: of the file.
        saved_at, used_at: seconds since the epoch.
    """

    file: str
    resident: str
    engine: str
    weights: tuple[str, int, int] | None
    prefixes: tuple[KnownPrefix, ...]
    prompt_tokens: int
    size_bytes: int
    saved_at: float
    used_at: float

    @property
    def chars(self) -> int:
        """The characters of its prompt."""
        return self.prefixes[-1].chars if self.prefixes else 0

    def tokens_of(self, chars: int) -> float:
        """Return about how many tokens so many characters of its prompt have."""
        return self.prompt_tokens * chars / self.chars if self.chars else 0.0


@define(eq=False, repr=False)
class ContextStore:
    """The saved conversations of one router, in a folder that only its owner can read.

    Its methods that touch the disk block, and are called in a thread, one at a time.

    Args:
        settings: returns the options in force.
        clock: seconds since the epoch.

    Attributes:
        damaged: the names of the residents of which a file was found that is not whole, until they are told.
    """

    folder: Path
    _settings: Callable[[], ContextConfig]
    _clock: Callable[[], float]
    entries: dict[str, SavedContext] = field(factory=dict)
    is_open: bool = False
    damaged: list[str] = field(factory=list)

    # In the event loop.

    def best(self, engine: str, wanted: Mapping[str, int]) -> tuple[SavedContext, int] | None:
        """Return the saved conversation with the longest beginning in common, and its length in characters."""
        found = [
            (chars, entry.used_at, entry)
            for entry in self.entries.values()
            if entry.engine == engine and (chars := common_chars(entry.prefixes, wanted))
        ]
        if not found:
            return None
        chars, _, entry = max(found, key=lambda one: one[:2])
        return entry, chars

    def others_of(self, resident: str, engine: str) -> list[SavedContext]:
        """Return what was saved of a resident that was another then: another model file, build or size."""
        return [
            entry for entry in self.entries.values() if entry.resident == resident and entry.engine != engine
        ]

    def note_use(self, entry: SavedContext) -> None:
        """Note that a saved conversation is of use: it is removed later than others."""
        if entry.file in self.entries:
            self.entries[entry.file] = attrs.evolve(entry, used_at=self._clock())

    # In a thread.

    def open(self) -> None:
        """Make the folder, and read what is in it.

        Raises:
            OSError: it cannot be made or read.
        """
        if self.is_open:
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        self.entries |= _read_index(self.folder / _INDEX)
        self.is_open = True
        self.prune()

    def make_room(self, size_bytes: int) -> str | None:
        """Remove what has to go for so many bytes more. Returns why they cannot be saved all the same, if so.

        Raises:
            OSError: nobody knows how much is free.
        """
        settings = self._settings()
        if size_bytes > settings.max_gb * _GB:
            return f"one takes about {size_bytes / _GB:.1f} GB, more than [context] max_gb"
        self.prune(size_bytes)
        if shutil.disk_usage(self.folder).free - size_bytes < settings.min_free_gb * _GB:
            return f"too little is free in {self.folder}: see [context] min_free_gb"
        return None

    def keep(self, entry: SavedContext) -> None:
        """Take in a file that was written under its name with `PARTIAL` behind it.

        Raises:
            OSError: it is not there, or cannot be kept.
        """
        partial = self.folder / (entry.file + PARTIAL)
        partial.chmod(0o600)
        partial.replace(self.folder / entry.file)
        known = {prefix.digest: prefix.chars for prefix in entry.prefixes}
        shorter = [
            other.file
            for other in self.entries.values()
            if other.engine == entry.engine and other.prefixes and other.prefixes[-1].digest in known
        ]
        self._remove(name for name in shorter if name != entry.file)
        self.entries[entry.file] = entry
        self.prune()
        self._write_index()

    def discard_partial(self, file: str) -> None:
        """Remove what was written of a file that did not become one."""
        with contextlib.suppress(OSError):
            (self.folder / (file + PARTIAL)).unlink(missing_ok=True)

    def remove(self, entries: Iterable[SavedContext]) -> None:
        """Remove saved conversations."""
        self._remove(entry.file for entry in entries)
        self._write_index()

    def remove_all_of(self, engine: str) -> None:
        """Remove all that could be restored into an engine."""
        if found := [entry for entry in self.entries.values() if entry.engine == engine]:
            self.remove(found)

    def prune(self, more_bytes: int = 0) -> None:
        """Remove what is too old, too much, or of a model whose file has gone or changed, and what nobody knows of.

        Args:
            more_bytes: what is about to be saved.
        """
        settings, now, before = self._settings(), self._clock(), len(self.entries)
        gone = [entry.file for entry in self.entries.values() if not self._is_valid(entry, settings, now)]
        self._remove(gone)
        total = more_bytes + sum(entry.size_bytes for entry in self.entries.values())
        for entry in sorted(self.entries.values(), key=lambda one: one.used_at):
            if total <= settings.max_gb * _GB:
                break
            total -= entry.size_bytes
            self._remove([entry.file])
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path.name.endswith((_SAVED, PARTIAL)) and path.name not in self.entries:
                    path.unlink(missing_ok=True)
        if len(self.entries) != before:
            self._write_index()

    def _is_valid(self, entry: SavedContext, settings: ContextConfig, now: float) -> bool:
        is_old = settings.max_days and now - entry.used_at > settings.max_days * _DAY_S
        try:
            size = (self.folder / entry.file).stat().st_size
            has_model = entry.weights is None or file_state(entry.weights[0]) == entry.weights
        except OSError:
            return False
        if size != entry.size_bytes:
            self.damaged.append(entry.resident)
            return False
        return not is_old and has_model

    def _remove(self, names: Iterable[str]) -> None:
        for name in list(names):
            self.entries.pop(name, None)
            with contextlib.suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)

    def _write_index(self) -> None:
        entries = [attrs.asdict(entry) for entry in self.entries.values()]
        for entry in entries:
            entry["prefixes"] = [[prefix["digest"], prefix["chars"]] for prefix in entry["prefixes"]]
        try:
            write_atomically(self.folder / _INDEX, json.dumps({"version": _VERSION, "saved": entries}))
        except OSError as error:  # what is saved is of use until the router ends
            logger.info("what was saved of conversations cannot be remembered: %s", error)


def file_of(resident: str, engine: str, prefixes: Prefixes) -> str:
    """Return the name of the file of a conversation."""
    import hashlib  # noqa: PLC0415 - few routers need it

    named = f"{resident}\n{engine}\n{prefixes[-1].digest}"
    return hashlib.sha256(named.encode()).hexdigest()[:32] + _SAVED


def file_state(path: str) -> tuple[str, int, int]:
    """Return path, size and time of change of a file.

    Raises:
        OSError: it is not there.
    """
    found = Path(path).stat()
    return path, found.st_size, found.st_mtime_ns


def _read_index(path: Path) -> dict[str, SavedContext]:
    """Read what was saved; what is not understood is left out, and its file removed."""
    try:
        data: Any = json.loads(path.read_text("utf-8"))
        entries = data["saved"] if data["version"] == _VERSION else []
        found = [_read_entry(entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {entry.file: entry for entry in found}


def _read_entry(data: Mapping[str, Any]) -> SavedContext:
    weights = data["weights"]
    if "/" in data["file"] or not data["file"].endswith(_SAVED):
        raise ValueError("no file of a saved conversation")
    return SavedContext(
        file=str(data["file"]),
        resident=str(data["resident"]),
        engine=str(data["engine"]),
        weights=None if weights is None else (str(weights[0]), int(weights[1]), int(weights[2])),
        prefixes=tuple(KnownPrefix(str(digest), int(chars)) for digest, chars in data["prefixes"]),
        prompt_tokens=int(data["prompt_tokens"]),
        size_bytes=int(data["size_bytes"]),
        saved_at=float(data["saved_at"]),
        used_at=float(data["used_at"]),
    )
