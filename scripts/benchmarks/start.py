"""What a start costs: the router's first answers, the short commands, and the router at rest, beside local-engine-router.

Every figure of a start begins with the process; medians of the rounds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from benchmarks import client, environments, routers
from benchmarks.environments import Missing, say
from benchmarks.lab import Failed, Lab
from benchmarks.relay import machine
from benchmarks.report import Summary, milliseconds

MODELS = ("alpha", "beta", "gamma")
COMMANDS = {"--version": ("--version",), "--help": ("--help",), "status": ("status",)}
COMMAND_WITHIN_S = 30.0
# Seconds after the first answers before the router is at rest, and for which it is watched then.
CALM_S = 3.0

Samples = dict[str, list[float]]


def one_round(lab: Lab, program: routers.Program, label: str, rest_s: float) -> Samples:
    """Start a router once, and measure it.

    Raises:
        Failed: it did not start, or did not answer.
    """
    samples: Samples = {}

    def timed(name: str, began: float) -> None:
        samples.setdefault(name, []).append(time.perf_counter() - began)

    began = time.perf_counter()
    router = routers.open_router(lab, program, routers.InstantEngines(program.python, MODELS), label)
    timed("first answer (GET /health)", began)
    pids = [router.process.pid]
    began = time.perf_counter()
    answer = client.ask(router.port, client.chat(MODELS[0]))
    if answer.status != 200:
        raise Failed(f"{program.name} answered the first chat with {answer.status}")
    timed("first chat, its engine's start included", began)
    if program.name == routers.OURS:
        url = f"http://127.0.0.1:{router.port}"
        for name, words in COMMANDS.items():
            more = ("--url", url) if name == "status" else ()
            began = time.perf_counter()
            argv = [str(program.python), "-m", "engine_router", *words, *more]
            subprocess.run(argv, check=True, capture_output=True, timeout=COMMAND_WITHIN_S, cwd=lab.folder)
            timed(f"engine-router {name}", began)
    time.sleep(CALM_S)
    samples["memory at rest"] = [machine.resident_mb(pids)]
    before = machine.cpu_s(pids)
    time.sleep(rest_s)
    samples["CPU at rest"] = [(machine.cpu_s(pids) - before) / rest_s]
    began = time.perf_counter()
    _get(router.port, "/v1/models")
    timed("first list of models", began)
    samples["memory at rest, lists asked for"] = [machine.resident_mb(pids)]
    if program.name == routers.OURS:
        began = time.perf_counter()
        _get(router.port, "/", "text/html")
        timed("first page", began)
        samples["memory at rest, pages asked for"] = [machine.resident_mb(pids)]
    lab.stop(router.process)
    return samples


def _get(port: int, path: str, accept: str = "*/*") -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=COMMAND_WITHIN_S)
    try:
        connection.request("GET", path, headers={"Accept": accept})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"GET {path} was not answered: {error}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise Failed(f"GET {path} was answered with {answer.status}")


def shown(name: str, summary: Summary) -> str:
    """Return a figure in its unit."""
    if name.startswith("memory"):
        return f"{summary.median:.1f} MB"
    if name.startswith("CPU"):
        return f"{summary.median * 100:.2f} % of a core"
    return milliseconds(summary)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark as the command line asks. Returns 0, 1 where it could not be made, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="scripts/bench start", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, choices=range(1, 51), default=5, metavar="N", help="default 5")
    parser.add_argument("--rest", type=float, default=10.0, metavar="S", help="seconds at rest (default 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    parser.add_argument("--without-ler", action="store_true", help="measure engine_router only")
    options = parser.parse_args(arguments)
    results: dict[str, Samples] = {}
    try:
        programs = [routers.ours(environments.engine_router())]
        if not options.without_ler:
            programs.append(routers.ler(environments.ler()))
        with closing(Lab()) as lab:
            for number in range(options.rounds):
                for program in programs:
                    found = one_round(lab, program, f"start-{number}", min(options.rest, 60.0))
                    for name, values in found.items():
                        results.setdefault(program.name, {}).setdefault(name, []).extend(values)
    except (Missing, Failed, subprocess.SubprocessError) as error:
        say(f"scripts/bench start: {error}")
        return 1
    except KeyboardInterrupt:
        say("scripts/bench start: interrupted")
        return 130
    summaries = {
        program: {name: summary for name, values in samples.items() if (summary := Summary.of(values))}
        for program, samples in results.items()
    }
    for program, figures in summaries.items():
        print(f"{program}, {options.rounds} rounds")
        for name, summary in figures.items():
            print(f"  {name:42} {shown(name, summary)}")
    if options.json is not None:
        data = {p: {name: s.as_json() for name, s in figures.items()} for p, figures in summaries.items()}
        options.json.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return 0
