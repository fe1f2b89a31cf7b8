"""The scan of model folders, as a whole: every sound model by name, everything else with its reason."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import trio
from support.gguf_files import gguf_file, projector_file, split_files

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


async def test_a_folder_of_all_kinds(tmp_path: Path) -> None:
    split_files(tmp_path / "big", "Qwen3-235B-Q4_K_M", 3)
    gguf_file(tmp_path / "see" / "gemma-3-4b-it-Q4_K_M.gguf", "gemma3")
    projector_file(tmp_path / "see" / "mmproj-F16.gguf", projector_type="gemma3")
    gguf_file(tmp_path / "Qwen3-0.6B-Draft-Q8_0.gguf")
    gguf_file(tmp_path / "Mistral-7B-Q5_K_M.gguf", cut=5000)
    gguf_file(tmp_path / "a" / "Qwen3-8B-Q4_K_M.gguf")
    gguf_file(tmp_path / "b" / "Qwen3-8B-Q4_K_M.gguf")
    made_old(tmp_path)
    result = await scanned(tmp_path)
    assert names(result) == [
        "a/qwen3-8b:q4_k_m",
        "b/qwen3-8b:q4_k_m",
        "gemma-3-4b-it:q4_k_m",
        "qwen3-235b:q4_k_m",
    ]
    assert model(result, "gemma-3-4b-it:q4_k_m").mmproj == tmp_path / "see" / "mmproj-F16.gguf"
    big = model(result, "qwen3-235b:q4_k_m")
    assert big.path.name == "Qwen3-235B-Q4_K_M-00001-of-00003.gguf"
    assert big.size_bytes == sum(path.stat().st_size for path in (tmp_path / "big").iterdir())
    ((name, reason),) = reasons(result).items()
    assert name == "Mistral-7B-Q5_K_M.gguf"
    assert reason.startswith("truncated: 5.0 KB of 41")
    assert set(reasons(result, faults=False)) == {"mmproj-F16.gguf", "Qwen3-0.6B-Draft-Q8_0.gguf"}
    assert result.places[str(tmp_path)].models == 4
    assert result.places[str(tmp_path)].fault is None
