"""What the ways to load a model file cost: llama.cpp started from a cold and from a warm page cache.

Real llama.cpp (the extra llamacpp) on a model with random weights. Each way is started once a round, in turns: the file is
dropped from the page cache (posix_fadvise, no root needed) or read into it, then the server is started, until GET /health
answers 200 and one more token is written. Beside it, what reading the file in one and several streams takes. On Linux.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

PIECE = 8 * 2**20
# Seconds that a start may take.
START_S = 300.0
PROMPT = {"prompt": "the sea and the ship", "n_predict": 1, "temperature": 0}


class Way(NamedTuple):
    """A way to load a model.

    Attributes:
        streams: threads that read the file ahead, from the start of the server on.
        env: variables of the server.
        read_ahead: the router starts the server, with this setting.
    """

    words: tuple[str, ...] = ()
    streams: int = 0
    env: tuple[tuple[str, str], ...] = ()
    read_ahead: bool | None = None


WAYS = {
    "llama.cpp's default": Way(),
    "mmap": Way(("--mmap",)),
    "mmap, read ahead in 1 stream": Way(("--mmap",), streams=1),
    "mmap, read ahead in 4 streams": Way(("--mmap",), streams=4),
    "mmap, no warm-up": Way(("--mmap", "--no-warmup")),
    "no mmap": Way(("--no-mmap",)),
    "no mmap, read ahead in 4 streams": Way(("--no-mmap",), streams=4),
    "no mmap, no warm-up": Way(("--no-mmap", "--no-warmup")),
    "no mmap, huge pages": Way(("--no-mmap",), env=(("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),)),
    "direct I/O": Way(("--load-mode", "dio")),
    "mmap, by the router without read_ahead": Way(("--mmap",), read_ahead=False),
    "mmap, by the router with read_ahead": Way(("--mmap",), read_ahead=True),
    "no mmap, by the router without read_ahead": Way(("--no-mmap",), read_ahead=False),
    "no mmap, by the router with read_ahead": Way(("--no-mmap",), read_ahead=True),
}
STREAMS = (1, 2, 4, 8)


class Start(NamedTuple):
    """One start: seconds until the server was ready, and until it had written a token, both from its beginning."""

    ready_s: float
    first_s: float


def read_ahead(path: Path, streams: int, is_over: Callable[[], bool] = lambda: False) -> None:
    """Read a file into the page cache in several streams, each of which takes the next piece."""
    lock, size = threading.Lock(), path.stat().st_size
    offsets = iter(range(0, size, PIECE))

    def take() -> None:
        while not is_over():
            with lock:
                offset = next(offsets, None)
            if offset is None:
                return
            end = min(offset + PIECE, size)
            while offset < end:  # into nothing: the pages stay in the cache, and nothing is copied
                offset += os.sendfile(nowhere, descriptor, offset, end - offset)

    descriptor, nowhere = os.open(path, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
    threads = [threading.Thread(target=take) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)
    os.close(nowhere)


def drop(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def argv_of(path: Path, way: Way, port: object, options: argparse.Namespace) -> list[str]:
    argv = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(path), "--port", str(port), *way.words]
    return [
        *argv,
        *("--host", "127.0.0.1", "-c", "512", "--parallel", "1", "-t", str(options.threads), "-fit", "off"),
    ]


@contextmanager
def server(path: Path, way: Way, port: int, options: argparse.Namespace) -> Iterator[subprocess.Popen[bytes]]:
    argv = argv_of(path, way, port, options)
    environment = {**os.environ, **dict(way.env)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()
            if process.returncode not in (0, -15):
                log.seek(0)
                sys.stderr.write(log.read().decode("utf-8", "replace")[-2000:])


async def started_by_router(path: Path, way: Way, options: argparse.Namespace) -> Start:
    """Have a router start the server on a model once; until its lease is granted, and until a token is written."""
    import trio  # noqa: PLC0415 - in the environment that has them

    import engine_router  # noqa: PLC0415

    text = f"""
state_file = {json.dumps(str(path.with_suffix(".json")))}
[scheduling]
read_ahead = {json.dumps(way.read_ahead)}
[engines.a]
type = "process"
argv = {json.dumps(argv_of(path, way, "{port}", options))}
models = ["m"]
"""
    async with engine_router.open_router(engine_router.parse_config(text)) as router:
        began = time.perf_counter()
        async with router.lease("m") as lease:
            ready_s = time.perf_counter() - began
            port = int(lease.base_url.rpartition(":")[2])
            await trio.to_thread.run_sync(asked, port, "POST", "/completion", json.dumps(PROMPT))
            return Start(ready_s, time.perf_counter() - began)


def started(path: Path, way: Way, options: argparse.Namespace) -> Start:
    """Start the server on a model once."""
    import trio  # noqa: PLC0415

    from benchmarks.lab import free_ports  # noqa: PLC0415

    if way.read_ahead is not None:
        return trio.run(started_by_router, path, way, options)

    (port,) = free_ports(1)
    began, is_over = time.perf_counter(), threading.Event()
    with server(path, way, port, options) as process:
        reader = threading.Thread(target=read_ahead, args=(path, way.streams, is_over.is_set))
        reader.start()
        while asked(port, "GET", "/health") != 200:
            if process.poll() is not None or time.perf_counter() - began > START_S:
                raise RuntimeError(f"llama.cpp did not start: {' '.join(way.words)}")
            time.sleep(0.01)
        ready_s = time.perf_counter() - began
        is_over.set()
        if asked(port, "POST", "/completion", json.dumps(PROMPT)) != 200:
            raise RuntimeError("llama.cpp did not answer")
        first_s = time.perf_counter() - began
        reader.join()
    return Start(ready_s, first_s)


def asked(port: int, method: str, path: str, body: str | None = None) -> int:
    """Ask the server; return the status, 0 where nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    try:
        connection.request(method, path, body, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        answer.read()
    except OSError:
        return 0
    else:
        return answer.status
    finally:
        connection.close()


def measure(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all ways, in turns."""
    wanted = [name for name in WAYS if not options.way or name in options.way]
    starts: dict[str, list[Start]] = {f"{cache} {name}": [] for name in wanted for cache in ("cold", "warm")}
    reads: dict[str, list[float]] = {str(count): [] for count in STREAMS}
    for number in range(options.rounds):
        for count in STREAMS:
            drop(path)
            began = time.perf_counter()
            read_ahead(path, count)
            reads[str(count)].append(time.perf_counter() - began)
        for name in wanted:
            drop(path)
            starts[f"cold {name}"].append(started(path, WAYS[name], options))
            read_ahead(path, 4)
            starts[f"warm {name}"].append(started(path, WAYS[name], options))
        sys.stderr.write(f"round {number + 1} of {options.rounds}\n")
    return {"starts": starts, "reads": reads}


def report(found: dict[str, Any], size: int) -> str:
    from benchmarks.report import Summary  # noqa: PLC0415

    def shown(sample: list[float]) -> str:
        summary = Summary.of(sample)
        assert summary is not None
        return f"{summary.median:.2f} s ({summary.low:.2f} to {summary.high:.2f})"

    names = [name.removeprefix("cold ") for name in found["starts"] if name.startswith("cold ")]
    rounds = len(next(iter(found["starts"].values()), ()))
    lines = [f"one file of {size / 2**20:.0f} MiB, {rounds} rounds in turns: median, least and most", ""]
    lines += [
        "| way | cold: ready | cold: first token | warm: ready | warm: first token |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        cells = [
            shown([Start(*start)[part] for start in found["starts"][f"{cache} {name}"]])
            for cache in ("cold", "warm")
            for part in (0, 1)
        ]
        lines.append(f"| {' | '.join([name, *cells])} |")
    lines += ["", "| the file read in | |", "|---|---|"]
    for count, sample in found["reads"].items():
        rate = size / 1e6 / sorted(sample)[len(sample) // 2]
        lines.append(f"| {count} stream{'' if count == '1' else 's'} | {shown(sample)}, {rate:,.0f} MB/s |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6, help="of the model (%(default)s)")
    parser.add_argument("--width", type=int, default=2048, help="of the model (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of llama.cpp (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each way (%(default)s)")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="only this one; may be repeated")
    parser.add_argument("--folder", help="on the disk to be measured; the system's for temporary files")
    parser.add_argument("--model", type=Path, help="a GGUF file of your own instead")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        sys.stderr.write(
            "files cannot be dropped from the page cache on this system: there is nothing to measure\n"
        )
        return 1
    from engine_router.engines.llamacpp.tiny import write_tiny_gguf  # noqa: PLC0415

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = options.model
        if path is None:
            path = write_tiny_gguf(Path(folder) / "model.gguf", layers=options.layers, width=options.width)
            with path.open("rb") as file:
                os.fsync(file.fileno())  # what is not written yet cannot be dropped
        found = measure(path, options)
        print(json.dumps(found) if options.json else report(found, path.stat().st_size))
    return 0
