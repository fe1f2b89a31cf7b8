"""`scripts/bench relay`: what a request, a chunk and a large body cost in each proxy, in one run.

Rounds are interleaved: every scenario goes through all proxies before the next one begins, and who is first
changes each time. The load client and the upstream are C programs on one core, the proxies run on another.
Latencies of streams come from times that the upstream writes into each chunk; every byte is checked.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from benchmarks import environments
from benchmarks.environments import Missing, say
from benchmarks.lab import Failed, Lab
from benchmarks.relay import machine, proxies
from benchmarks.relay.build import Programs, build
from benchmarks.relay.chart import chart
from benchmarks.relay.proxies import DIRECT, Proxy
from benchmarks.relay.report import Results, as_json, bottlenecks, counted, errors, table
from benchmarks.relay.rounds import Bench, Round, one_round
from benchmarks.relay.scenarios import Scenario, scenarios

FULL_S, QUICK_S = 480.0, 60.0  # no round begins that could end later
FILES_FOR_500_STREAMS = 1400


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark.

    Returns:
        0; 1 where it could not be made, or something was wrong with ours; 2 where something is missing; 130 on Ctrl-C.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupted)
    began = time.monotonic()
    try:
        wanted = _wanted(parser, options)
        notes: list[str] = []
        programs = build()
        measured = _proxies(options, notes)
        results = _run(programs, measured, wanted, options, notes, began)
    except Missing as missing:
        say(f"scripts/bench relay: {missing}")
        return 2
    except Failed as failure:
        say(f"scripts/bench relay: {failure}")
        return 1
    except KeyboardInterrupt:
        say("scripts/bench relay: interrupted")
        return 130
    _tell(results, time.monotonic() - began)
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(results), indent=1) + "\n", "utf-8")
    if options.svg is not None:
        options.svg.write_text(chart(results), "utf-8")
    return 1 if results.ours_failed() else 0


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(scenario.name for scenario in scenarios(quick=False))
    parser = argparse.ArgumentParser(
        prog="scripts/bench relay",
        description=__doc__,
        epilog=f"scenarios: {names}. proxies: {', '.join(proxies.NAMES)}; direct is always measured.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--rounds", type=_positive, help="rounds (default 3; 1 with --quick)")
    parser.add_argument(
        "--only", metavar="NAMES", default="", help="only these scenarios and proxies, with commas between"
    )
    parser.add_argument("--without-ler", action="store_true", help="leave local-engine-router out")
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="CHECKOUT",
        help="measure the router of another checkout in the same run, such as the code before a change",
    )
    parser.add_argument("--quick", action="store_true", help="less than a minute: a look, not a measurement")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything there, raw samples included"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write a chart there")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _interrupted(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _wanted(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Scenario]:
    """Split `--only` into scenarios, which are returned, and proxies, which stay in the options."""
    every = scenarios(quick=options.quick)
    given = {name.strip() for name in options.only.split(",") if name.strip()}
    known = {scenario.name for scenario in every}
    if unknown := given - known - set(proxies.NAMES):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    options.proxies = given & set(proxies.NAMES) or set(proxies.NAMES)
    chosen = given & known or known
    return [scenario for scenario in every if scenario.name in chosen]


def _proxies(options: argparse.Namespace, notes: list[str]) -> list[Proxy]:
    found = [proxies.direct()]
    if proxies.NGINX in options.proxies:
        nginx = proxies.nginx()
        if nginx is not None:
            found.append(nginx)
        else:
            notes.append("nginx is not installed (apt install nginx-light); it is left out")
    if proxies.LLAMA_SWAP in options.proxies:
        swap = proxies.llama_swap()
        if swap is not None:
            found.append(swap)
        else:
            notes.append("llama-swap is neither on PATH nor named by LLAMA_SWAP; it is left out")
    if proxies.LER in options.proxies and not options.without_ler:
        found.append(proxies.ler(environments.ler()))
    if options.proxies & {proxies.OURS, proxies.TIER_ONE, proxies.REMOTE}:
        mine = proxies.ours(environments.engine_router())
        found += [proxy for proxy in mine if proxy.name in options.proxies]
    if options.beside is not None:
        found.append(proxies.beside(environments.engine_router(), options.beside))
    return found


def _run(
    programs: Programs,
    measured: Sequence[Proxy],
    wanted: Sequence[Scenario],
    options: argparse.Namespace,
    notes: list[str],
    began: float,
) -> Results:
    rounds_wanted = options.rounds or (1 if options.quick else 3)
    ends_at = began + (QUICK_S if options.quick else FULL_S)
    machine.raise_file_limit()
    if machine.file_limit() < FILES_FOR_500_STREAMS:
        wanted = [scenario for scenario in wanted if scenario.name != "streams-500"]
        notes.append(f"500 streams left out: only {machine.file_limit()} files may be open (ulimit -Hn)")
    cores = machine.cores()
    described = machine.described()
    done: list[Round] = []
    longest_s = 0.0
    with closing(Lab()) as lab:
        bench = Bench(lab, programs, cores)
        for number in range(rounds_wanted):
            round_began = time.monotonic()
            if done and round_began + longest_s > ends_at:
                notes.append(f"{number} of {rounds_wanted} rounds: there was no time for more")
                break

            def note(words: str, number: int = number) -> None:
                say(f"round {number + 1} of {rounds_wanted}, {time.monotonic() - began:3.0f} s: {words}")

            done.append(one_round(bench, measured, wanted, number, note))
            longest_s = max(longest_s, time.monotonic() - round_began)
    note_disturbances(done, notes)
    return Results(measured, done, cores, described, notes)


def note_disturbances(done: Sequence[Round], notes: list[str]) -> None:
    """Note what other programs have disturbed."""
    repeated, disturbed = sum(round_.repeated for round_ in done), sum(round_.disturbed for round_ in done)
    if repeated:
        notes.append(f"{counted(repeated, 'measurement')} made again: other programs had disturbed them")
    if disturbed:
        notes.append(
            f"{counted(disturbed, 'measurement')} disturbed every time: trust none of this run's figures"
        )


def _tell(results: Results, took_s: float) -> None:
    print(table(results))
    print()
    for line in bottlenecks(results):
        print(line)
    for fault in errors(results):
        print(f"ERROR {fault}")
    if not errors(results):
        print("Every byte of every answer was right.")
    versions = ", ".join(
        f"{proxy.title} is {proxy.version}" for proxy in results.proxies if proxy.name != DIRECT
    )
    known = results.machine
    print(
        f"{versions}. {known['processor']}, {known['cores']} cores, load average {known['load_average']} before; "
        f"{took_s:.0f} s in all."
    )
    for note in results.notes:
        print(f"Note: {note}")
