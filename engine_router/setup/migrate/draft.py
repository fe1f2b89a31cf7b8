"""The draft of an `engines.toml`: what every foreign format is turned into, and what became of each of its keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from attrs import define, field, frozen

from engine_router.guards.foreign_text import shown

Outcome = Literal["carried over", "approximated", "lost"]
"""What became of a foreign key."""


@frozen
class Note:
    """What became of one foreign key.

    Attributes:
        outcome: the verdict.
        place: the key, with the tables that it stands in; empty for the file as a whole.
        line: its line, from 1 on.
        words: what it became, or why it could not be.
        remedy: what to do, where there is something to do.
    """

    outcome: Outcome
    place: str
    line: int | None
    words: str
    remedy: str = ""


@define(eq=False, repr=False)
class Entry:
    """One table of the draft: its keys, as TOML takes them, and a comment above it."""

    values: dict[str, Any] = field(factory=dict)
    comment: str = ""


_V1: Final = "/v1"
REMOTE_URL: Final = "base_url of an engine of type remote, which ends in /v1"
"""What the URL of a server becomes that nobody here starts."""


def remote_entry(url: str) -> Entry:
    """Return a remote for a server to whose URL its former router adds the whole path."""
    url = url.strip().rstrip("/")
    return Entry({"type": "remote", "base_url": url if url.endswith(_V1) else url + _V1, "discover": False})


@define(eq=False, repr=False)
class Draft:
    """An `engines.toml` in the making. Values may hold `${env:NAME}`.

    Attributes:
        source: whose configuration it was.
        not_routed: models that no route of it chose.
    """

    source: str
    server: Entry = field(factory=Entry)
    log: Entry = field(factory=Entry)
    scheduling: Entry = field(factory=Entry)
    pools: dict[str, Entry] = field(factory=dict)
    engines: dict[str, Entry] = field(factory=dict)
    peers: dict[str, Entry] = field(factory=dict)
    models: dict[str, Entry] = field(factory=dict)
    families: dict[str, Entry] = field(factory=dict)
    aliases: Entry = field(factory=Entry)
    routes: dict[str, Entry] = field(factory=dict)
    notes: list[Note] = field(factory=list)
    not_routed: set[str] = field(factory=set)
    _places: set[tuple[str, int | None]] = field(factory=set)
    _carried: dict[tuple[str, int | None], Note] = field(factory=dict)

    def tables(self) -> Iterator[tuple[tuple[str, ...], Entry]]:
        """Yield every table that has something in it, with its path, in the order of a file."""
        for name in ("server", "log", "scheduling"):
            entry: Entry = getattr(self, name)
            if entry.values:
                yield (name,), entry
        for kind in ("pools", "engines", "peers", "models", "families"):
            entries: dict[str, Entry] = getattr(self, kind)
            for name, entry in entries.items():
                yield (kind, name), entry
        if self.aliases.values:
            yield ("aliases",), self.aliases
        for name, entry in self.routes.items():
            yield ("routes", name), entry

    def names(self) -> set[str]:
        """Return every name by which a model can be asked for."""
        names = {
            name
            for entry in (*self.engines.values(), *self.peers.values())
            for name in entry.values.get("models", ())
        }
        names |= {*self.models, *self.aliases.values}
        names |= {f"{name}:{own}" for name, e in self.models.items() for own in e.values.get("variants", ())}
        return names | {alias for entry in self.models.values() for alias in entry.values.get("aliases", ())}

    def note(self, outcome: Outcome, place: str, line: int | None, words: str, remedy: str = "") -> None:
        """Say what became of something. What was carried over in part is not carried over."""
        note = Note(outcome, shown(place), line, words, remedy)
        where = (note.place, line)
        former = self._carried.pop(where, None) if outcome != "carried over" else None
        if former is not None:
            self.notes.remove(former)
        if outcome == "carried over":
            if where in self._places:
                return
            self._carried[where] = note
        self._places.add(where)
        self.notes.append(note)

    def model(self, name: str, engine: str) -> Entry:
        """Return the table of a model, made if need be."""
        entry = self.models.setdefault(name, Entry())
        entry.values.setdefault("engine", engine)
        return entry

    def pool(self, name: str) -> Entry:
        """Return the table of a pool, made if need be."""
        return self.pools.setdefault(name, Entry())
