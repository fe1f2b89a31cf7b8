"""Detection: the hardware, the engines that run, the programs and the models of this machine, looked at together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import trio
from attrs import field, frozen

from engine_router.config.values import expanded
from engine_router.guards.foreign_text import shown
from engine_router.guards.masking import masked_argv
from engine_router.models.fixed_models import FixedModels, fixed_models
from engine_router.models.header_memory import HeaderMemory
from engine_router.models.scan import FoundModel, ScanRequest, ScanResult
from engine_router.models.scan.places import CACHES, LM_STUDIO
from engine_router.models.scan.scanner import Scanner
from engine_router.models.served_names import served_models
from engine_router.setup.clouds import Cloud, clouds_in
from engine_router.setup.hardware import Hardware, find_hardware
from engine_router.setup.listeners import Listeners, find_listeners
from engine_router.setup.programs import STAND_IN_WORDS, Program, ask_version, find_programs, missing_for

LOOK_S: Final = 3.0
"""Seconds that the look at each subject may take."""

# Where people keep models, besides the caches of programs.
_FOLDERS: Final = (
    "~/models", "~/Models", "~/llm", "~/gguf", "~/llama.cpp/models", "~/text-generation-webui/user_data/models",
    "~/koboldcpp/models", "~/AI/models", "/models", "/srv/models", "/opt/models", "/data/models",
)  # fmt: skip


@frozen(kw_only=True)
class Detection:
    """What this machine has.

    Attributes:
        hardware: None where looking took too long.
        places: the folders and caches that hold models, as `scan` takes them.
        models: the models in them.
        broken: how many files in them cannot be served.
        missing: what installed programs lack to run, each with its remedy.
        clouds: those whose keys stand in the environment.
        unknown: what could not be found out.
    """

    hardware: Hardware | None = None
    listeners: Listeners = field(factory=Listeners)
    programs: tuple[Program, ...] = ()
    places: tuple[str, ...] = ()
    models: tuple[FoundModel, ...] = ()
    broken: int = 0
    missing: tuple[str, ...] = ()
    clouds: tuple[Cloud, ...] = ()
    unknown: tuple[str, ...] = ()

    def running_models(self) -> FixedModels:
        """Return the models that the commands of the engines serve that run here."""
        found = FixedModels()
        for listener in self.listeners.engines:
            if listener.argv and listener.container is None:
                found |= fixed_models(listener.argv, {}, listener.cwd or None)
        return found

    def has(self, kind: str) -> Program | None:
        """Return the program of a kind; None where it is not installed."""
        return next((program for program in self.programs if program.kind == kind), None)

    def places_with(self, model_format: str) -> tuple[str, ...]:
        """Return the places that hold models of a format, without those whose engine runs and loads them itself."""
        held = {model.place for model in self.models if model.format == model_format}
        return tuple(place for place in self.places if place in held and not self._is_loaded_from(place))

    def _is_loaded_from(self, place: str) -> bool:
        """Tell whether an engine that runs, and loads models when told, serves all that is in a place."""
        for listener in self.listeners.engines:
            folder = served_models(listener.argv, {}).folder
            if (listener.kind == "lmstudio" and place == LM_STUDIO) or (
                folder is not None
                and place not in CACHES
                and os.path.join(listener.cwd, expanded(folder)) == str(expanded(place).absolute())  # noqa: PTH118 - one of them may be empty
            ):
                return True
        return False


async def detect(folders: Sequence[str] = (), own_ports: Sequence[int] = ()) -> Detection:
    """Look at this machine; nothing is changed or disturbed. Takes a little more than `LOOK_S` seconds at most.

    Args:
        folders: more folders with models.
        own_ports: ports that are not looked at.

    Cancellation ends it at once.
    """
    hardware: list[Hardware] = []
    listeners: list[Listeners] = []
    results: list[ScanResult] = []
    unknown: list[str] = []
    missing: list[str] = []
    places = (*CACHES, *_folders(folders))

    async def look_at_hardware() -> None:
        with trio.move_on_after(LOOK_S) as scope:
            hardware.append(await trio.to_thread.run_sync(find_hardware, abandon_on_cancel=True))
        if scope.cancelled_caught:
            unknown.append(f"the hardware: the driver does not answer within {LOOK_S:g} s")

    async def look_at_listeners() -> None:
        listeners.append(await find_listeners(own_ports=own_ports))

    async def look_at_models() -> None:
        request = ScanRequest("models", places, frozenset(("gguf", "safetensors")))
        with trio.move_on_after(LOOK_S) as scope:
            results.append(await Scanner(HeaderMemory()).scan((request,)))
        if scope.cancelled_caught:
            unknown.append(f"how many models there are: more than can be counted in {LOOK_S:g} s")

    programs = await trio.to_thread.run_sync(find_programs)

    async def look_at_the_stand_in() -> None:
        for program in programs:
            if program.argv[1:] == STAND_IN_WORDS:
                done = await ask_version(program.argv, timeout_s=LOOK_S)
                missing.append(missing_for(program.argv, done))

    async with trio.open_nursery() as nursery:
        for look in (look_at_hardware, look_at_listeners, look_at_models, look_at_the_stand_in):
            nursery.start_soon(look)
    return Detection(
        hardware=hardware[0] if hardware else None,
        listeners=listeners[0],
        programs=programs,
        places=places,
        models=results[0].models if results else (),
        broken=sum(skipped.is_fault for skipped in results[0].skipped) if results else 0,
        missing=tuple(filter(None, missing)),
        clouds=clouds_in(os.environ),
        unknown=(*unknown, *listeners[0].unknown, *(hardware[0].unknown if hardware else ())),
    )


def _folders(more: Sequence[str]) -> tuple[str, ...]:
    """Return the folders that exist, each once, whatever it is called."""
    found: dict[object, str] = {}
    for folder in (*more, *_FOLDERS):
        path = Path(os.path.expanduser(folder))  # noqa: PTH111 - never raises
        try:
            status = path.stat()
        except OSError:
            if folder in more:
                found[folder] = folder  # whoever names it is told that it is not there
            continue
        found.setdefault((status.st_dev, status.st_ino), folder)
    return tuple(found.values())


def as_dict(detection: Detection) -> Mapping[str, Any]:
    """Return a detection as plain data, for JSON."""
    hardware = detection.hardware
    return {
        "hardware": None
        if hardware is None
        else {
            "machine": hardware.machine,
            "memory_bytes": hardware.memory_bytes,
            "unified_memory": hardware.is_unified,
            "gpus": [
                {"name": gpu.name, "index": gpu.index, "memory_bytes": gpu.memory_bytes}
                for gpu in hardware.gpus
            ],
        },
        "engines": [
            {
                "kind": each.kind,
                "base_url": each.base_url,
                "argv": [shown(word) for word in masked_argv(each.argv)],
                "unit": each.unit,
                "container": each.container,
            }
            for each in detection.listeners.engines
        ],
        "programs": {program.kind: list(program.argv) for program in detection.programs},
        "models": dict(Counter(model.place for model in detection.models)),
        "broken_files": detection.broken,
        "missing": list(detection.missing),
        "keys": [cloud.variable for cloud in detection.clouds],
        "unknown": list(detection.unknown),
    }
