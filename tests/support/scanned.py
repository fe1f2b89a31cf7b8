"""Scans of folders, and what they found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import trio

from engine_router.models.header_memory import HeaderMemory
from engine_router.models.scan import Format, FoundModel, ScanRequest, ScanResult
from engine_router.models.scan.places import Surroundings
from engine_router.models.scan.scanner import Scanner

GGUF: frozenset[Format] = frozenset(("gguf",))


def scanner(home: Path, **environ: str) -> Scanner:
    return Scanner(HeaderMemory(), surroundings=Surroundings(environ, "linux", home))


async def scanned(
    *places: Path | str, taken: Sequence[str] = (), home: Path = Path("/nowhere"), **environ: str
) -> ScanResult:
    request = ScanRequest("llama", tuple(map(str, places)), GGUF)
    with trio.fail_after(60):
        return await scanner(home, **environ).scan([request], taken)


def names(result: ScanResult) -> list[str]:
    return sorted(model.name for model in result.models)


def model(result: ScanResult, name: str) -> FoundModel:
    return next(found for found in result.models if found.name == name)


def reasons(result: ScanResult, *, faults: bool = True) -> dict[str, str]:
    return {skipped.path.name: skipped.reason for skipped in result.skipped if skipped.is_fault == faults}


def made_old(folder: Path) -> None:
    """Let all files look as if they had been written long ago."""
    for path in folder.rglob("*"):
        if path.exists():
            os.utime(path, (1.7e9, 1.7e9))
