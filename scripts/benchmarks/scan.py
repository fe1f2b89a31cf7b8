"""Measure the scan of model folders: cold, warm in memory, and warm after a restart; and how late the loop is meanwhile."""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
import tracemalloc
from pathlib import Path

import trio
from support.gguf_files import gguf_file

from engine_router.models.header_memory import HeaderMemory
from engine_router.models.scan import ScanRequest
from engine_router.models.scan.scanner import Scanner

_TICK_S = 0.001


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench scan", description=__doc__)
    parser.add_argument("--files", type=int, default=5000, help="GGUF files, 10 in a folder, 4 folders deep")
    parser.add_argument("--vocabulary", type=int, default=1000, help="tokens, and merges, of each")
    parser.add_argument("--places", type=int, default=1, help="places over which they are spread")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(options.files):
            one, two, three = number % options.places, number // 500, number // 10
            path = (
                root
                / f"place{one}"
                / f"user{two}"
                / f"set{three}"
                / "gguf"
                / f"Model-{number}-8B-Q4_K_M.gguf"
            )
            gguf_file(path, vocabulary=options.vocabulary)
        trio.run(measured, root, [str(root / f"place{one}") for one in range(options.places)])
    return 0


async def measured(root: Path, places: list[str]) -> None:
    gc.collect()
    gc.freeze()  # as the command does
    file = root / "headers.jsonl"
    memory = HeaderMemory()
    scanner = Scanner(memory)
    await report("nothing done for a second", lambda: trio.sleep(1))
    await report("cold", lambda: scan(scanner, places))
    await report("warm", lambda: scan(scanner, places))
    await report("saved", lambda: trio.to_thread.run_sync(memory.save, file))
    print(f"{file.stat().st_size / 1e6:.1f} MB in the file")
    tracemalloc.start()
    again = HeaderMemory()
    again.load(file)
    print(f"{tracemalloc.get_traced_memory()[0] / 1e6:.1f} MB in memory")
    tracemalloc.stop()
    again = HeaderMemory()

    async def restarted() -> None:
        await trio.to_thread.run_sync(again.load, file)
        await scan(Scanner(again), places)

    await report("warm after a restart, with loading", restarted)


async def scan(scanner: Scanner, places: list[str]) -> None:
    result = await scanner.scan([ScanRequest("llama", tuple(places), frozenset(("gguf",)))])
    faults = [state.fault for state in result.places.values() if state.fault]
    print(f"{len(result.models)} models, {len(result.skipped)} skipped", *faults)


async def report(what: str, work) -> None:  # noqa: ANN001
    late: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_note_lateness, late)
        began, cpu = time.perf_counter(), time.process_time()
        await work()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        nursery.cancel_scope.cancel()
    late.sort()
    print(
        f"{what}: {seconds:.2f} s, {cpu:.2f} s of CPU; the loop was late by {late[len(late) // 2] * 1e3:.1f} ms "
        f"(p99 {late[len(late) * 99 // 100] * 1e3:.1f}, longest {late[-1] * 1e3:.1f})"
    )


async def _note_lateness(late: list[float]) -> None:
    while True:
        due = trio.current_time() + _TICK_S
        await trio.sleep_until(due)
        late.append(trio.current_time() - due)
