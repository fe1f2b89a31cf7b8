"""The files of saved conversations: which there are, how much room they take, and which of them goes first."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import Factory, define, field, frozen

from engine_router.config import ContextConfig
from engine_router.engines.context.sealing import Checkpoint, NotSealed, Sealer, can_seal, is_sealed_text
from engine_router.engines.context.slots import Prefixes, common_chars
from engine_router.guards.atomic_file import write_atomically

logger = logging.getLogger(__name__)

_VERSION: Final = 1
_INDEX: Final = "index.json"
_SAVED: Final = ".saved"
_SEALED: Final = ".sealed"
_OPENED: Final = ".opened"
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

    @property
    def engine_name(self) -> str:
        """The name of the engine whose it is."""
        return self.resident.partition("/")[0]

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
        sealer: what encrypts them; None where they are not encrypted.
        plain_folder: where the servers write them, and read them from: for moments, where they are encrypted.

    Attributes:
        damaged: the names of the residents of which a file was found that is not whole, until they are told.
        lost: why all that was saved is of no use, until that is told.
        in_use: the names of files that are being written, or read by a server.
    """

    folder: Path
    _settings: Callable[[], ContextConfig]
    _clock: Callable[[], float]
    _sealer: Sealer | None = None
    plain_folder: Path = field(default=Factory(lambda self: self.folder, takes_self=True))
    entries: dict[str, SavedContext] = field(factory=dict)
    is_open: bool = False
    damaged: list[str] = field(factory=list)
    lost: str | None = None
    in_use: set[str] = field(factory=set)

    # In the event loop.

    def best(self, engine: str, wanted: Mapping[str, int]) -> tuple[SavedContext, int] | None:
        """Return the saved conversation with the longest beginning in common, and its length in characters."""
        found = [
            (chars, entry.used_at, entry)
            for entry in [*self.entries.values()]  # a thread may change them meanwhile
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

    def new_name(self, resident: str, engine: str, prefixes: Prefixes) -> str:
        """Return a name for the file of a conversation; one by chance where nothing may be told by it."""
        named = (
            f"{resident}\n{engine}\n{prefixes[-1].digest}" if self._sealer is None else secrets.token_hex()
        )
        return hashlib.sha256(named.encode()).hexdigest()[:32] + _SAVED

    # In a thread.

    def open(self) -> None:
        """Make the folder, and read what is in it.

        Raises:
            OSError: it cannot be made or read, or there is nothing that encrypts.
        """
        if self.is_open:
            return
        if self._sealer is not None and not can_seal():
            raise OSError("[context] encryption_key needs: pip install 'engine-router[encryption]'")
        with _naming("state_file in engines.toml"):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
            _check_own(self.folder)
        if self.plain_folder != self.folder:
            with _naming("[context] plain_dir"):
                self.plain_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                _check_own(self.plain_folder)
        self.entries |= self._read_index()
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

    def keep(self, entry: SavedContext, checkpoint: Checkpoint = lambda: None) -> None:
        """Take in a file that was written under its name with `PARTIAL` behind it.

        Args:
            checkpoint: called again and again; may raise.

        Raises:
            OSError: it is not there, or cannot be kept.
        """
        partial = self.plain_folder / (entry.file + PARTIAL)
        partial.chmod(0o600)
        if self._sealer is None:
            partial.replace(self.folder / entry.file)
        else:
            sealed = self.folder / (entry.file + _SEALED + PARTIAL)
            size = self._sealer.seal(partial, sealed, entry.file, checkpoint)
            sealed.replace(self.folder / entry.file)
            entry = attrs.evolve(entry, size_bytes=size)
        self.put_away(partial.name)
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

    def lay_out(self, entry: SavedContext, checkpoint: Checkpoint = lambda: None) -> str:
        """Have a server find a file. Returns its name there; `put_away` has to be called with that.

        Args:
            checkpoint: called again and again; may raise.

        Raises:
            NotSealed: it was encrypted with another key, or is damaged.
            OSError: it cannot be read, or decrypted into another one.
        """
        if self._sealer is None:
            return entry.file
        name = entry.file + _OPENED + PARTIAL
        self.in_use.add(name)
        try:
            self._sealer.open(self.folder / entry.file, self.plain_folder / name, entry.file, checkpoint)
        except BaseException:
            self.put_away(name)
            raise
        return name

    def put_away(self, name: str) -> None:
        """Remove what is of no use any more of a file that is not encrypted, or not whole."""
        if name.endswith(PARTIAL):
            self.in_use.discard(name)
            with contextlib.suppress(OSError):
                (self.plain_folder / name).unlink(missing_ok=True)

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
        for folder in {self.folder, self.plain_folder}:
            with contextlib.suppress(OSError):
                for path in folder.iterdir():
                    if path.name.endswith((_SAVED, PARTIAL)) and not (
                        path.name in self.entries or path.name in self.in_use
                    ):
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

    def _read_index(self) -> dict[str, SavedContext]:
        """Return what was saved. Where that cannot be read, `lost` says why."""
        try:
            text = (self.folder / _INDEX).read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return {}
        if self._sealer is None:
            if (entries := _entries_in(text)) or not is_sealed_text(text):
                return entries
            self.lost = "are encrypted, and [context] has no encryption_key"
        else:
            try:
                return _entries_in(self._sealer.opened_text(self.folder, text, _INDEX))
            except NotSealed:
                self.lost = "are not encrypted with [context] encryption_key"
        return {}

    def _write_index(self) -> None:
        entries = [attrs.asdict(entry) for entry in self.entries.values()]
        for entry in entries:
            entry["prefixes"] = [[prefix["digest"], prefix["chars"]] for prefix in entry["prefixes"]]
        text = json.dumps({"version": _VERSION, "saved": entries})
        try:
            if self._sealer is not None:
                text = self._sealer.sealed_text(self.folder, text, _INDEX)
            write_atomically(self.folder / _INDEX, text)
        except OSError as error:  # what is saved is of use until the router ends
            logger.info("what was saved of conversations cannot be remembered: %s", error)


@contextlib.contextmanager
def _naming(setting: str) -> Iterator[None]:
    """Add to an error of the system the setting that says where the folder lies."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{error}; see {setting}") from error


def _check_own(folder: Path) -> None:
    """See that nobody else can read what is in a folder, which may be a place where others could have made it.

    Raises:
        OSError: somebody else can.
    """
    found = folder.stat()
    if os.name == "posix" and (found.st_uid != os.geteuid() or found.st_mode & 0o077):
        raise OSError(
            f"{folder} is not the router's own, or others may look into it: chmod 700, or another folder"
        )


def file_state(path: str) -> tuple[str, int, int]:
    """Return path, size and time of change of a file.

    Raises:
        OSError: it is not there.
    """
    found = Path(path).stat()
    return path, found.st_size, found.st_mtime_ns


def _entries_in(text: str) -> dict[str, SavedContext]:
    """Return what was saved; what is not understood is left out, and its file removed."""
    try:
        data: Any = json.loads(text)
        entries = data["saved"] if data["version"] == _VERSION else []
        found = [_read_entry(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
