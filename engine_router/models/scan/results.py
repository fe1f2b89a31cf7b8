"""What a scan of model folders is asked for, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from attrs import frozen

Format = Literal["gguf", "safetensors"]

NOT_THERE: Final = "not there"
"""The words for a cache of another program that this machine does not have."""


@frozen
class ScanRequest:
    """The places in which an engine's models lie.

    Attributes:
        engine: the engine's name.
        places: folders, and names of caches (`huggingface`, `lmstudio`, `llamacpp`), as they are written.
        formats: the formats that the engine reads.
    """

    engine: str
    places: tuple[str, ...]
    formats: frozenset[Format]


@frozen(kw_only=True)
class FoundModel:
    """A model that a scan found for an engine.

    Attributes:
        engine: the engine's name.
        name: short, stable, and unique among all found models and the names that were taken; see `naming.py`.
        aliases: other names, unique as well.
        path: its file, of a model in several files the first; or its folder.
        format: the format of its weights.
        mmproj: its projector for images or sound.
        size_bytes: size of all its files, without the projector.
        place: the place under which it was found, as it is written.
    """

    engine: str
    name: str
    aliases: tuple[str, ...]
    path: Path
    format: Format
    mmproj: Path | None
    size_bytes: int
    place: str


@frozen
class Skipped:
    """A file or folder that is not listed as a model, or not with all that belongs to it.

    Attributes:
        path: where it is.
        reason: why, for people.
        is_fault: False for what is rightly no model, such as a projector or a draft model.
    """

    path: Path
    reason: str
    is_fault: bool


@frozen(kw_only=True)
class PlaceState:
    """The outcome for one place of a scan.

    Attributes:
        folders: what the place means here.
        models: how many models are known in it.
        seconds: how long the scan took.
        fault: why it is not known in full; None where it is.
    """

    folders: tuple[Path, ...] = ()
    models: int = 0
    seconds: float = 0.0
    fault: str | None = None


@frozen(kw_only=True, repr=False)
class ScanResult:
    """The models that were found, by engine and name, and what was passed over, faults first."""

    models: tuple[FoundModel, ...]
    skipped: tuple[Skipped, ...]
    places: Mapping[str, PlaceState]
