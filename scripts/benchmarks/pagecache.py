"""What it is worth to read the next model's file ahead while an engine drains, and what dropping one costs.

A file of random bytes stands for a model; a start is its reading from beginning to end, as a load without mmap does
it. In turns: the file is dropped from the page cache, an engine drains for a while, then the start is timed; once with
the disk idle meanwhile, once with `engine_router.memory.read_ahead` at work until the start is done. No root is
needed: files are dropped with posix_fadvise. On Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PIECE = 8 * 2**20


def write(path: Path, size: int) -> None:
    """Write a file that no disk can compress, all the way to the disk."""
    with path.open("wb") as file:
        for _ in range(size // PIECE):
            file.write(os.urandom(PIECE))
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> float:
    """Read a file as a load would; return the seconds that it took."""
    began, buffer = time.perf_counter(), bytearray(PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - began


async def one_round(path: Path, drain_s: float, *, ahead: bool) -> dict[str, float]:
    import trio  # noqa: PLC0415 - in the environment that has them

    from engine_router.memory import drop, read_ahead  # noqa: PLC0415

    began = time.perf_counter()
    await drop([path])
    dropped_s = time.perf_counter() - began
    async with trio.open_nursery() as nursery:
        if ahead:
            nursery.start_soon(read_ahead, [path], sys.maxsize)
        await trio.sleep(drain_s)
        start_s = await trio.to_thread.run_sync(read, path)
        nursery.cancel_scope.cancel()
    return {"start_s": start_s, "drop_s": dropped_s}


async def measure(path: Path, drain_s: float, rounds: int) -> dict[str, Any]:
    samples: dict[str, list[float]] = {"cold": [], "ahead": [], "warm": [], "drop": []}
    for _ in range(rounds):
        cold = await one_round(path, drain_s, ahead=False)
        samples["cold"].append(cold["start_s"])
        samples["warm"].append(read(path))
        ahead = await one_round(path, drain_s, ahead=True)
        samples["ahead"].append(ahead["start_s"])
        samples["drop"].append(ahead["drop_s"])
    return samples


def report(samples: dict[str, list[float]], size: int, drain_s: float) -> str:
    from benchmarks.report import Row, Summary, milliseconds, ratio, table  # noqa: PLC0415

    found = {name: Summary.of(values) for name, values in samples.items()}
    cold = found["cold"]
    words = {
        "cold": f"start after {drain_s:g} s with an idle disk",
        "ahead": f"start after {drain_s:g} s of reading ahead",
        "warm": "start of a file that is cached already",
        "drop": "drop of the whole file from the cache",
    }
    rows = [
        Row(words[name], milliseconds(found[name]), milliseconds(cold), ratio(found[name], cold))
        for name in words
    ]
    head = f"one file of {size / 2**20:.0f} MiB, {len(samples['cold'])} rounds in turns"
    return f"{head}\n\n{table(('', 'took', 'idle disk', 'ratio', '', ''), rows)}"


def main(arguments: Sequence[str]) -> int:
    from benchmarks import environments  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="scripts/bench pagecache",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mib", type=int, default=1024, metavar="N", help="size of the file (%(default)s)")
    parser.add_argument(
        "--drain", type=float, default=1.0, metavar="S", help="seconds of drain (%(default)g)"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each kind (%(default)s)")
    parser.add_argument("--folder", help="on the disk to be measured; the system's for temporary files")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        environments.say("the page cache is left alone on this system: there is nothing to measure")
        return 1
    try:
        python = environments.engine_router()
    except environments.Missing as error:
        environments.say(str(error))
        return 1
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "model"
        write(path, options.mib * 2**20)
        argv = [str(python), __file__, "measure", str(path), str(options.drain), str(options.rounds)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        return done.returncode
    samples = json.loads(done.stdout)
    print(done.stdout if options.json else report(samples, options.mib * 2**20, options.drain))
    return 0


if __name__ == "__main__" and sys.argv[1:2] == ["measure"]:
    import trio

    wanted = sys.argv[2:]
    print(json.dumps(trio.run(measure, Path(wanted[0]), float(wanted[1]), int(wanted[2]))))
