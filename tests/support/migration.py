"""Another router's configuration as its importer reads it: from a text, without files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from attrs import frozen

from engine_router.config import Config, ProcessConfig, parse_config
from engine_router.setup.migrate.draft import Draft
from engine_router.setup.migrate.migration import migrate
from engine_router.setup.migrate.recognise import Kind
from engine_router.setup.migrate.render import rendered
from engine_router.setup.migrate.sound import any_environment


@frozen
class Imported:
    """What a file became.

    Attributes:
        text: the TOML.
        config: what it means.
    """

    draft: Draft
    text: str
    config: Config

    def outcome(self, place: str) -> str:
        """Return what became of a key; empty where nothing is said."""
        return next((note.outcome for note in self.draft.notes if note.place == place), "")

    def line(self, place: str) -> int | None:
        return next(note.line for note in self.draft.notes if note.place == place)

    def process(self, name: str) -> ProcessConfig:
        engine = self.config.engines[name]
        assert isinstance(engine, ProcessConfig)
        return engine


def imported(*texts: str, kind: Kind | None = None, models_dir: str | None = None) -> Imported:
    """Import texts as the files of one router; the loader has to accept what comes of it."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.conf" for index in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, "utf-8")
        draft, has_engines = migrate(paths, kind, models_dir)
    assert has_engines, [note for note in draft.notes if note.outcome == "lost"]
    text = rendered(draft)
    return Imported(draft, text, parse_config(text, environment=any_environment()))
