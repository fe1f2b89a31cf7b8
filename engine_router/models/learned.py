"""Facts learned while the router runs, which outlive the configuration under which they were learned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import trio
from attrs import define, field

from engine_router.events import Event, ResidentReady
from engine_router.guards.limits import LISTED_MODELS
from engine_router.models.header_memory import HeaderMemory
from engine_router.models.served_names import ServedModels
from engine_router.models.weights import Weights

Json = Mapping[str, Any]
Signature = tuple[float, int]


@define(eq=False, repr=False)
class Listing:
    """The last answers of one engine: entries of its lists, by the normal name of the model."""

    models: dict[str, Json] = field(factory=dict)
    shown: dict[str, Json] = field(factory=dict)
    loaded: dict[str, Json] = field(factory=dict)
    shown_bytes: dict[str, int] = field(factory=dict)

    def learn(self, models: Mapping[str, Json]) -> None:
        """Take in what one of an engine's residents lists: of a template, each lists its own model."""
        known = {**self.models, **models}
        self.models = known if len(known) <= LISTED_MODELS else dict(models)


@define(eq=False, repr=False)
class Learned:
    """The facts that one snapshot of the configuration hands on to the next.

    Attributes:
        listings: the last answers of each engine, by its name.
        weights: the contents of model files; None where a file is not understood.
        signatures: the time and size that a file had when it was read.
        headers: the headers of GGUF files.
        reader: one thread at a time reads them.
        served: what the files say that engines' commands name, by engine.
        endpoints: by engine, the optional endpoints that it was asked for since it started, and whether it serves them.
    """

    listings: defaultdict[str, Listing] = field(factory=lambda: defaultdict(Listing))
    weights: dict[Path, Weights | None] = field(factory=dict)
    signatures: dict[Path, Signature] = field(factory=dict)
    headers: HeaderMemory = field(factory=HeaderMemory)
    reader: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))
    served: dict[str, ServedModels] = field(factory=dict)
    endpoints: defaultdict[str, dict[str, bool]] = field(factory=lambda: defaultdict(dict))

    def observe(self, event: Event) -> None:
        """Forget which endpoints an engine served before it started anew: it may be another version now."""
        if isinstance(event, ResidentReady):
            self.forget([event.resident.partition("/")[0]])

    def forget(self, engines: Collection[str]) -> None:
        """Forget which endpoints some engines serve."""
        for engine in engines:
            self.endpoints.pop(engine, None)
