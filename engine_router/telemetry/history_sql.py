"""The file of the history, in SQLite. Everything here blocks, and is done by one thread at a time."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from attrs import define, field

from engine_router.events import Event, RequestEnded, ResidentReady, SwapEnded, place_of
from engine_router.guards.limits import HISTORY_QUERY_S
from engine_router.telemetry.records import (
    SUMMED,
    HistoryDamaged,
    HistoryRefused,
    HistoryTooSlow,
    HistoryUnwritable,
    Sample,
    Series,
    as_text,
    text_or_none,
)

T = TypeVar("T")
Value = str | int | float | None

VERSION: Final = 1
_APPLICATION_ID: Final = (
    0x45526873  # in the file's header: it is a history of this router, and no other database
)
_BUSY_S: Final = 2.0  # for which another router that writes to the same file is waited for
_DELETED_AT_ONCE: Final = 5000  # rows; the file is free for others in between
_KEPT_SHARE: Final = 0.9  # of the largest size, once it was passed
_PROGRESS_STEPS: Final = 20_000  # of SQLite's machine between two looks at the clock: about a millisecond
_MOST_TOKENS: Final = 2**53
_DATED: Final = ("requests", "swaps", "starts", "samples")

_SCHEMA: Final = """
CREATE TABLE requests (
    row INTEGER PRIMARY KEY, at REAL NOT NULL, id TEXT, model TEXT, engine TEXT, endpoint TEXT NOT NULL, key TEXT,
    client TEXT, status INTEGER NOT NULL, tokens_in INTEGER, tokens_cached INTEGER, tokens_out INTEGER,
    first_token_s REAL, tokens_per_s REAL, queue_wait_s REAL, load_wait_s REAL, duration_s REAL NOT NULL, error TEXT
);
CREATE INDEX requests_at ON requests (at);
CREATE INDEX requests_model ON requests (model, at);
CREATE TABLE swaps (
    row INTEGER PRIMARY KEY, at REAL NOT NULL, pool TEXT NOT NULL, source TEXT, target TEXT, cause TEXT NOT NULL,
    result TEXT NOT NULL, duration_s REAL NOT NULL, error TEXT
);
CREATE INDEX swaps_at ON swaps (at);
CREATE TABLE starts (
    row INTEGER PRIMARY KEY, at REAL NOT NULL, pool TEXT NOT NULL, resident TEXT NOT NULL, result TEXT NOT NULL,
    took_s REAL, error TEXT
);
CREATE INDEX starts_at ON starts (at);
CREATE INDEX starts_resident ON starts (resident, at);
CREATE TABLE series (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, pool TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (kind, pool, name)
);
CREATE TABLE samples (
    at INTEGER NOT NULL, series INTEGER NOT NULL, value REAL NOT NULL, PRIMARY KEY (at, series)
) WITHOUT ROWID;
"""
_REQUEST: Final = f"INSERT INTO requests VALUES (NULL{', ?' * 17})"  # noqa: S608 - a constant
_SWAP: Final = f"INSERT INTO swaps VALUES (NULL{', ?' * 8})"  # noqa: S608 - a constant
_START: Final = f"INSERT INTO starts VALUES (NULL{', ?' * 6})"  # noqa: S608 - a constant

_SAMPLE: Final = "INSERT OR REPLACE INTO samples VALUES (?, ?, ?)"
# Another router, or the one before, may have measured a part of this minute. It has sixty seconds.
_SUMMED: Final = "INSERT INTO samples VALUES (?, ?, ?) ON CONFLICT (at, series) DO UPDATE SET value = min(60, value + excluded.value)"


@define(eq=False, repr=False)
class HistoryFile:
    """One file, open or not.

    Attributes:
        path: where it lies.
    """

    path: Path
    _connection: sqlite3.Connection | None = None
    _inode: int = 0
    _series: dict[Series, int] = field(factory=dict)

    def write(self, events: Sequence[Event], samples: Sequence[Sample]) -> None:
        """Add what has happened, all of it or nothing.

        Raises:
            HistoryRefused: the file is not for this version.
            HistoryDamaged: it is damaged.
            HistoryUnwritable: nothing can be written now.
        """
        with self._explained():
            connection = self._opened()
            with _transaction(connection):
                connection.executemany(_REQUEST, (_request(e) for e in events if isinstance(e, RequestEnded)))
                swaps = [event for event in events if isinstance(event, SwapEnded)]
                connection.executemany(_SWAP, map(_swap, swaps))
                ready = [event for event in events if isinstance(event, ResidentReady)]
                connection.executemany(_START, [*_failed_starts(swaps), *_starts(ready)])
                for sample in samples:
                    row = sample.at, self._id_of(connection, sample.series), sample.value
                    connection.execute(_SUMMED if sample.series.kind in SUMMED else _SAMPLE, row)

    def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Return what a question to the file gives; where there is none yet, to an empty one.

        Raises:
            HistoryRefused: the file is not for this version.
            HistoryDamaged: it is damaged.
            HistoryTooSlow: the answer took too long, or nothing could be read.
        """
        try:
            with self._explained():
                if self._connection is None and not self.path.exists():
                    with contextlib.closing(sqlite3.connect(":memory:")) as empty:
                        empty.executescript(_SCHEMA)
                        return query(empty)
                with _deadline(connection := self._opened()):
                    return query(connection)
        except HistoryUnwritable as error:
            raise HistoryTooSlow(f"the history cannot be read: {error}", retry_after_s=_BUSY_S) from None

    def trim(self, oldest_at: float | None, max_bytes: float) -> None:
        """Remove entries that are older than a time, and the oldest ones where all are too large.

        Raises: as `write`.
        """
        with self._explained():
            connection = self._opened()
            if oldest_at is not None:
                for table in _DATED:
                    _delete(connection, table, oldest_at)
            changes = connection.total_changes
            while (size := _used_bytes(connection)) > max_bytes:
                if not self._drop_oldest(connection, 1 - _KEPT_SHARE * max_bytes / size):
                    break
            if connection.total_changes > changes:  # rows of every day fill the pages of those that went
                connection.executescript("PRAGMA incremental_vacuum")  # `execute` takes its first step only
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def set_aside(self) -> Path | None:
        """Close a damaged file and give it another name, for whoever can repair it. Returns that name.

        None where another router has done so already. What was damaged on the same day before is replaced.

        Raises:
            OSError: it cannot be renamed.
        """
        inode, damaged = (
            self._inode,
            self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y-%m-%d')}"),
        )
        self.close()
        if inode and _inode_of(self.path) != inode:
            return None
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{ending}").replace(f"{damaged}{ending}")
        return damaged

    def close(self) -> None:
        """Close the file; may be called again."""
        connection, self._connection = self._connection, None
        self._series.clear()
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _drop_oldest(self, connection: sqlite3.Connection, share: float) -> bool:
        """Remove the oldest part of each table. Returns whether there was anything to remove."""
        total = connection.total_changes
        for table in _DATED:
            (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - a constant
            place = min(count - 1, int(count * share) + 1)
            if count:
                found = connection.execute(f"SELECT at FROM {table} ORDER BY at LIMIT 1 OFFSET ?", (place,))  # noqa: S608
                _delete(connection, table, found.fetchone()[0], inclusive=count <= 2)
        return connection.total_changes > total

    def _id_of(self, connection: sqlite3.Connection, series: Series) -> int:
        if (known := self._series.get(series)) is None:
            names = (series.kind, as_text(series.pool), as_text(series.name))
            connection.execute("INSERT OR IGNORE INTO series VALUES (NULL, ?, ?, ?)", names)
            where = "SELECT id FROM series WHERE kind = ? AND pool = ? AND name = ?"
            known = int(connection.execute(where, names).fetchone()[0])
            self._series[series] = known
        return known

    def _opened(self) -> sqlite3.Connection:
        """Return the connection to the file that is there now; somebody may have removed the one before."""
        if self._connection is not None and _inode_of(self.path) != self._inode:
            self.close()
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite gives the files beside it the permissions of this one.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise HistoryUnwritable(f"{self.path}: {error.strerror or error}") from None
        self._inode = _inode_of(self.path)
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            _prepare(connection, self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Tell what SQLite says in words of the history."""
        try:
            yield
        except sqlite3.Error as error:
            # Damage is the one that has no class of its own.
            if type(error) is sqlite3.DatabaseError:
                raise HistoryDamaged(str(error)) from None
            self._series.clear()  # what was rolled back may have named some
            if not isinstance(error, sqlite3.OperationalError):
                raise
            if "interrupted" in str(error):
                raise HistoryTooSlow(
                    f"the history took more than {HISTORY_QUERY_S:g} s to answer; ask for a shorter time"
                ) from None
            raise HistoryUnwritable(f"{self.path}: {error}") from None


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Set up a connection, and make the tables of a new file.

    Raises:
        HistoryRefused: it belongs to another version, or to another program.
    """
    if not _version_of(connection, path):
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        with _transaction(connection):
            if not _version_of(connection, path):  # two routers may find a new file at the same time
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA journal_size_limit = 4000000")


def _version_of(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of a file's format; 0 for a new one. Changes nothing in it."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION_ID and (tables or application):
        raise HistoryRefused(f"{path} is a database of another program; name another file")
    if version > VERSION:
        raise HistoryRefused(
            f"{path} was written by a newer engine-router (format {version}; this one knows {VERSION})"
        )
    return int(version)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _deadline(connection: sqlite3.Connection) -> Iterator[None]:
    """Interrupt what takes longer than a question may, and keep it from writing."""
    until = time.monotonic() + HISTORY_QUERY_S
    connection.set_progress_handler(lambda: time.monotonic() > until, _PROGRESS_STEPS)
    connection.execute("PRAGMA query_only = 1")
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)
        connection.execute("PRAGMA query_only = 0")


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _delete(connection: sqlite3.Connection, table: str, before: float, *, inclusive: bool = False) -> None:
    """Delete the rows of a table before a time, some at once."""
    sign, key = "<=" if inclusive else "<", "at, series" if table == "samples" else "row"
    # The names are constants of this module.
    which = f"SELECT {key} FROM {table} WHERE at {sign} ? ORDER BY at LIMIT {_DELETED_AT_ONCE}"  # noqa: S608
    delete = f"DELETE FROM {table} WHERE ({key}) IN ({which})"  # noqa: S608
    while connection.execute(delete, (before,)).rowcount >= _DELETED_AT_ONCE:
        pass


def _inode_of(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _request(event: RequestEnded) -> tuple[Value, ...]:
    return (
        event.at,
        event.id,
        text_or_none(event.model),
        text_or_none(event.engine),
        as_text(event.path),
        text_or_none(event.key),
        text_or_none(event.client),
        event.status,
        _count(event.tokens_in),
        _count(event.tokens_cached),
        _count(event.tokens_out),
        event.first_token_s,
        event.tokens_per_s,
        event.queue_wait_s,
        event.load_wait_s,
        event.duration_s,
        text_or_none(event.error),
    )


def _count(tokens: int | None) -> int | None:
    """Return a number of tokens; None for one that an engine cannot mean, and that SQLite has no room for."""
    return tokens if tokens is not None and 0 <= tokens < _MOST_TOKENS else None


def _place(event: SwapEnded | ResidentReady) -> str:
    return as_text(place_of(event.pools) or event.pool)


def _swap(event: SwapEnded) -> tuple[Value, ...]:
    source, target = text_or_none(event.source), text_or_none(event.target)
    error = text_or_none(event.error)
    return event.at, _place(event), source, target, event.cause, event.result, event.duration_s, error


def _starts(events: Iterable[ResidentReady]) -> Iterator[tuple[Value, ...]]:
    for event in events:
        if not event.adopted:
            yield event.at, _place(event), as_text(event.resident), "ok", event.start_s, None


def _failed_starts(swaps: Iterable[SwapEnded]) -> Iterator[tuple[Value, ...]]:
    for swap in swaps:
        if swap.target is not None and swap.result != "ok" and "start" in swap.phases:
            took_s, error = swap.phases["start"], text_or_none(swap.error)
            yield swap.at, _place(swap), as_text(swap.target), swap.result, took_s, error
