"""Whether anything is lost when much goes wrong: random faults under load, then a look at what is left.

Three engines share one memory. Clients ask in three dialects, whole and streamed, leave at random moments, and ask
for engines' faults. Meanwhile engines are killed and stopped (SIGSTOP), models are unloaded, requests are ended by
hand, garbage and good configurations are reloaded, and the router can write no file for a while. Every request has to
end in a right answer or a clear error; never may two engines run at a time; at the end no lease, place in the queue,
descriptor or engine may be left, and no more memory than in the middle. The exit status is 1 otherwise. Everything
stays on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from benchmarks import environments, routers
from benchmarks.environments import Missing, say
from benchmarks.faults.answers import PATHS, is_alive, on_wire, read_answer, request_of
from benchmarks.lab import Failed, Lab, await_health, free_ports
from benchmarks.soak import Watched, reset

HERE = Path(__file__).resolve().parent
MODELS = ("alpha", "beta", "gamma")
ENGINE_FAULTS = ("half", "garbage", "null", "error", "silent")
WORKERS = 16
ANSWER_WITHIN_S = 90.0
PAUSE_S = 0.2
# At the beginning of a line; an engine's own, in an error, is indented.
TRACEBACK = "\nTraceback (most recent call last)"
QUIET_WITHIN_S = 60.0
# Idle connections to engines, and files that are open at the moment of the look.
SPARE_DESCRIPTORS = 72
GROWTH_MB = 8.0
CONFIG = """
[scheduling]
max_wait_s = 5
drain_timeout_s = 3
health_interval_s = 1
"""
ENGINE = """idle_timeout_s = 60
start_timeout_s = 15
grace_s = 2
"""


class Load:
    """Requests, so many of them and for so long at most.

    Attributes:
        asked: requests of each kind.
        errors: what was neither a right answer nor a clear error, in words.
        statuses: how often each status was seen.
    """

    def __init__(self, port: int, requests: int, until: float, seed: int) -> None:
        self.port = port
        self.left = requests
        self.until = until
        self.random = random.Random(seed)
        self.asked: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    async def run(self) -> None:
        await asyncio.gather(*(self.work() for _ in range(WORKERS)))

    async def work(self) -> None:
        model = self.random.choice(MODELS)
        while self.left > 0 and time.monotonic() < self.until:
            self.left -= 1
            if self.random.random() < 0.05:  # for most of the time a client stays with its model
                model = self.random.choice(MODELS)
            kind = self.leave if self.random.random() < 0.2 else self.ask
            path, stream = self.random.choice(PATHS), self.random.random() < 0.5
            self.asked[kind.__name__] += 1
            try:
                await asyncio.wait_for(kind(path, model, stream=stream), ANSWER_WITHIN_S)
            except asyncio.TimeoutError:
                self.errors[
                    f"{kind.__name__} {path} stream={stream}: no end within {ANSWER_WITHIN_S:g} s"
                ] += 1
            except (OSError, EOFError) as error:
                self.errors[f"{kind.__name__} {path} stream={stream}: {error!r}"[:300]] += 1

    async def ask(self, path: str, model: str, *, stream: bool) -> None:
        fault = self.random.choice(ENGINE_FAULTS) if self.random.random() < 0.1 else ""
        if (
            fault == "silent"
        ):  # which ends when its engine is unloaded or killed, or when the client has enough
            await self.leave(path, model, stream=stream, fault=fault)
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with closing(writer):
            writer.write(
                on_wire(path, json.dumps(request_of(path, model, stream=stream, fault=fault)).encode())
            )
            answer = await read_answer(reader)
        self.statuses[str(answer.status)] += 1
        if answer.status in (
            502,
            503,
        ):  # a start that failed is remembered: who asks on gets the same answer for a while
            await asyncio.sleep(PAUSE_S)
        wrong = answer.fault(path, model, stream=stream)
        if wrong is not None and not (
            fault and answer.status in (200, 500)
        ):  # what an engine answers is passed on
            self.errors[f"{path} stream={stream} fault={fault}: {wrong}"[:400]] += 1

    async def leave(self, path: str, model: str, *, stream: bool, fault: str = "") -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with closing(writer):
            writer.write(
                on_wire(path, json.dumps(request_of(path, model, stream=stream, fault=fault)).encode())
            )
            with suppress(asyncio.TimeoutError, ConnectionError):
                await asyncio.wait_for(
                    reader.read(self.random.choice((1, 300))), self.random.choice((0.0, 0.01, 0.2))
                )
            if self.random.random() < 0.5:
                reset(writer)


async def load(port: int, pid: int, folder: str, requests: int, seconds: float, seed: int) -> dict[str, Any]:
    """Run the load in two halves, looking before, between and after."""
    from benchmarks.faults.disturb import Disturber  # noqa: PLC0415 - needs psutil, which the router's Python has

    watched, lab = Watched(pid, port), Path(folder)
    warm_up = Load(port, 200, time.monotonic() + 20, seed)
    await warm_up.run()
    looks, parts = [await quiet(watched)], []
    disturber = Disturber(port, pid, lab / "router.toml", lab / "starts.log", seed)
    for half in (1, 2):
        part = Load(port, requests // 2, time.monotonic() + seconds / 2, seed + half)
        disturbing = asyncio.create_task(disturber.run())
        await part.run()
        disturbing.cancel()
        await asyncio.gather(disturbing, return_exceptions=True)
        parts.append(part)
        looks.append(await quiet(watched))
    total = {
        name: sum((getattr(part, name) for part in parts), Counter())
        for name in ("asked", "statuses", "errors")
    }
    return {
        **total,
        "errors": total["errors"] + disturber.faults,
        "disturbed": disturber.done,
        "looks": looks,
    }


async def quiet(watched: Watched) -> dict[str, Any]:
    """Wait until nothing is held any more, or for long enough, and tell what is."""
    until = time.monotonic() + QUIET_WITHIN_S
    found = await watched.look()
    while (found["leases"] or found["queued"] or found["clients"]) and time.monotonic() < until:
        found = await watched.look()
    return found


def run(lab: Lab, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    port, *ports = free_ports(1 + len(MODELS))
    lock = lab.folder / "lock"
    commands = {
        model: (
            [str(python), "-I", "-S", str(HERE / "engine.py"), model, str(at), str(lab.log), str(lock)],
            at,
        )
        for model, at in zip(MODELS, ports, strict=True)
    }
    config = routers.our_config(port, commands, lab.folder / "router.state", fast=not options.ordinary)
    config = config.replace('type = "process"\n', f'type = "process"\n{ENGINE}')
    (lab.folder / "router.toml").write_text(config + CONFIG, "utf-8")
    serve = [python, "-m", "engine_router", "serve", "--config", lab.folder / "router.toml"]
    router = lab.spawn(serve, output="router.out")
    await_health(router, port, "the router")
    argv = [
        python,
        "-m",
        "benchmarks.faults",
        port,
        router.pid,
        lab.folder,
        options.requests,
        options.seconds,
        options.seed,
    ]
    process = lab.spawn(argv, output="load.out", env={"PYTHONPATH": str(HERE.parents[1])})
    try:
        process.wait(options.seconds + 4 * QUIET_WITHIN_S + 2 * ANSWER_WITHIN_S)
    except subprocess.TimeoutExpired:
        raise Failed("the clients did not come to an end") from None
    said = (lab.folder / "load.out").read_text(errors="replace")
    if process.returncode != 0:
        raise Failed(f"the clients ended with status {process.returncode}: {said[-2000:]}")
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    found = result["left"] = []
    if router.poll() is not None:
        found.append(f"the router ended with status {router.returncode}")
    lab.stop(router, within_s=30)
    found += [f"an engine outlived the router: {pid}" for _, pid in lab.starts() if is_alive(pid)]
    with suppress(FileNotFoundError):
        found += Path(f"{lock}.violations").read_text().splitlines()
    log = (lab.folder / "router.out").read_text(errors="replace")
    result["tracebacks"] = log.count(TRACEBACK)
    if result["tracebacks"]:
        at = log.index(TRACEBACK)
        found.append(f"a traceback in the router's log: {log[max(0, at - 300) : at + 2500]}")
    return result


def faults(result: dict[str, Any]) -> list[str]:
    """Tell what is left, or went wrong; nothing where all is well."""
    start, middle, end = result["looks"]
    found = [
        *result["left"],
        *(f"{end[name]} {name} left" for name in ("leases", "queued", "clients") if end[name]),
    ]
    if (more := end["descriptors"] - start["descriptors"]) > SPARE_DESCRIPTORS:
        found.append(f"{more} descriptors more than at the start")
    if (grown := end["rss_mb"] - middle["rss_mb"]) > GROWTH_MB:
        found.append(f"{grown:.1f} MB of memory more than in the middle")
    return found + [f"{count} times {words}" for words, count in result["errors"].items()]


def report(result: dict[str, Any]) -> str:
    lines = [
        f"{what}: " + ", ".join(f"{count} {name}" for name, count in sorted(result[what].items()))
        for what in ("asked", "statuses", "disturbed")
    ]
    lines += ["", f"{'':12} {'start':>9} {'middle':>9} {'end':>9}"]
    for name in result["looks"][0]:
        lines.append(f"{name:12} " + " ".join(f"{look[name]:>9}" for look in result["looks"]))
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="at most (%(default)s)")
    parser.add_argument("--seconds", type=float, default=300.0, metavar="S", help="at most (%(default)g)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random mix (%(default)s)")
    parser.add_argument("--ordinary", action="store_true", help="without the fast tier")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        python = environments.engine_router()
        with closing(Lab()) as lab:
            result = run(lab, python, options)
    except (Missing, Failed) as error:
        say(str(error))
        return 1
    print(json.dumps(result, indent=1) if options.json else report(result))
    found = faults(result)
    for words in found:
        say(f"LEFT OR WRONG: {words}")
    return 1 if found else 0
