"""What a swap costs beyond what its engines cost, next to local-engine-router (LER).

Both routers run in the same minutes in front of the same engines, measurements taken in turns. First with
engines that cost next to nothing, then with real llama.cpp servers on tiny models. LER runs with its own
default settings. Everything stays on loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

from benchmarks import client, environments, routers
from benchmarks.environments import Missing, say
from benchmarks.lab import Failed, Lab, free_ports, own_cost, own_exit
from benchmarks.report import Row, Summary, milliseconds, ratio, table
from benchmarks.routers import (
    LER,
    OURS,
    Engines,
    InstantEngines,
    LlamaEngines,
    Program,
    Router,
    last_swap,
    open_router,
)

INSTANT = "instant engines"
MODELS = ("alpha", "beta")
PLAIN_REQUESTS = 3
SWAP_WITHIN_S = 30.0
# Requests in flight together; LER swaps for each change of letter, at about 3 s each.
ORDERS = ("ABABABABAB", "AAAAABBBBB")
OUR_REPEATS = 3
THEIR_REPEATS = 1
TOGETHER_WITHIN_S = 45.0
ANSWER_MS = 50
EARLY_EXITS = 3
# LER waits for its start_timeout_s, 300 s by default; the benchmark does not.
EXIT_WITHIN_S = 5.0
HANG_PROBES_S = 2.0
HANG_PROBE_EVERY_S = 0.02
# No new round begins after this many seconds, whatever was asked for.
ROUNDS_WITHIN_S = 90.0

SWAP_LIMIT_S = 0.15
SWAPS_LIMIT = 2
EXIT_LIMIT_S = 0.1
HEALTH_LIMIT_S = 0.05
FIRST_BYTE_LIMIT_S = 0.003


@dataclass
class Swaps:
    """One router's sequential swaps. Seconds."""

    swap: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)  # swap less plain, pair by pair
    first_byte: list[float] = field(default_factory=list)  # from the end of the start to the waiting client's
    phases: dict[str, list[float]] = field(default_factory=dict)

    def overhead(self, own: Own) -> list[float]:
        """Return what each swap took beyond the engines' own stop and start."""
        engines = own.start_s + own.stop_s
        return [cost - engines for cost in self.cost]


@dataclass
class Own:
    """What the engines cost without a router: samples in seconds."""

    start: list[float] = field(default_factory=list)
    stop: list[float] = field(default_factory=list)

    @property
    def start_s(self) -> float:
        return median(self.start)

    @property
    def stop_s(self) -> float:
        return median(self.stop)


@dataclass
class Scenario:
    """Sequential swaps with one kind of engine."""

    own: Own = field(default_factory=Own)
    swaps: dict[str, Swaps] = field(default_factory=dict)
    rounds: int = 0


@dataclass
class Together:
    """Requests in flight together: for each repeat, swaps by the engines' log and seconds in all."""

    swaps: list[int] = field(default_factory=list)
    total: list[float] = field(default_factory=list)


@dataclass
class EarlyExit:
    """An engine that exits at once.

    Attributes:
        told: seconds until each client had its error.
        silent: clients that had none within EXIT_WITHIN_S.
        named: answers that name the exit code.
    """

    told: list[float] = field(default_factory=list)
    silent: int = 0
    named: int = 0


@dataclass
class Results:
    """Everything that was measured, by router."""

    programs: Sequence[Program]
    scenarios: dict[str, Scenario] = field(default_factory=dict)
    together: dict[str, dict[str, Together]] = field(default_factory=dict)
    exits: dict[str, EarlyExit] = field(default_factory=dict)
    own_exit: list[float] = field(default_factory=list)
    health: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


# Measuring.


def sequential(
    lab: Lab, programs: Sequence[Program], engines: Engines, label: str, rounds: int, began: float
) -> Scenario:
    """Swap A, B, A, B ... on each router in turns, and measure the engines without a router in between."""
    scenario = Scenario(swaps={program.name: Swaps() for program in programs})
    (port,) = free_ports(1)
    own_argv = engines.argv(lab, f"{label}/own", MODELS[0], port)
    own_cost(lab, own_argv, port)  # the first one reads files that the later ones find in the page cache
    with opened(lab, programs, engines, label) as running:
        for router in running:
            must(client.ask(router.port, client.chat(MODELS[0]), SWAP_WITHIN_S), MODELS[0], router)
        for number in range(rounds):
            if time.perf_counter() - began > ROUNDS_WITHIN_S:
                break
            for router in running if number % 2 == 0 else running[::-1]:
                for model in reversed(MODELS):
                    one_swap(router, model, scenario.swaps[router.program.name])
                start_s, stop_s = own_cost(lab, own_argv, port)
                scenario.own.start.append(start_s)
                scenario.own.stop.append(stop_s)
            scenario.rounds += 1
    return scenario


def one_swap(router: Router, model: str, swaps: Swaps) -> None:
    """Measure a request that needs a swap, then some that need none."""
    body = client.chat(model)
    answer = must(client.ask(router.port, body, SWAP_WITHIN_S), model, router)
    swap = answer.took_s
    if last := last_swap(router):
        swaps.first_byte.append(answer.began_at - last["at"])
        for phase, seconds in last["phases"].items():
            swaps.phases.setdefault(phase, []).append(seconds)
    plain = [
        must(client.ask(router.port, body, SWAP_WITHIN_S), model, router).took_s
        for _ in range(PLAIN_REQUESTS)
    ]
    swaps.swap.append(swap)
    swaps.plain.extend(plain)
    swaps.cost.append(swap - median(plain))


def together(lab: Lab, programs: Sequence[Program], engines: Engines, order: str) -> dict[str, Together]:
    """Send requests in this order all at once, the first letter's model being resident."""
    results = {program.name: Together() for program in programs}
    models = [MODELS["AB".index(letter)] for letter in order]
    bodies = [client.chat(model, delay_ms=ANSWER_MS) for model in models]
    with opened(lab, programs, engines, order) as running:
        for router in running:
            result = results[router.program.name]
            for _ in range(OUR_REPEATS if router.program.name == OURS else THEIR_REPEATS):
                must(client.ask(router.port, client.chat(models[0]), SWAP_WITHIN_S), models[0], router)
                before = starts_of(lab, router)
                answers, total_s = client.ask_together(router.port, bodies, TOGETHER_WITHIN_S)
                for answer, model in zip(answers, models, strict=True):
                    must(answer, model, router)
                result.swaps.append(starts_of(lab, router) - before)
                result.total.append(total_s)
    return results


def early_exit(lab: Lab, programs: Sequence[Program], python: Path, results: Results) -> None:
    """Ask for engines that exit at once with code 3; each once, because a failure may be remembered."""
    models = [f"exits{number}" for number in range(EARLY_EXITS)]
    engines = InstantEngines(python, models, "exit")
    for model in models:
        results.own_exit.append(own_exit(lab, engines.argv(lab, "exits/own", model, 1)))
    with opened(lab, programs, engines, "exits") as running:
        for router in running:
            result = results.exits.setdefault(router.program.name, EarlyExit())
            for model in models:
                answer = client.ask(router.port, client.chat(model), EXIT_WITHIN_S)
                if answer.status is None:
                    result.silent += 1
                    break  # its next answer would wait for this start as well
                result.told.append(answer.took_s)
                result.named += b"code 3" in answer.body


def hanging(lab: Lab, programs: Sequence[Program], python: Path) -> dict[str, list[float]]:
    """Probe each router's own `/health` while it starts an engine that accepts connections and says nothing."""
    results: dict[str, list[float]] = {}
    engines = InstantEngines(python, ["hangs"], "hang")
    with opened(lab, programs, engines, "hangs") as running:
        for router in running:
            before = starts_of(lab, router)
            request = client.Request(router.port, client.chat("hangs"), SWAP_WITHIN_S)
            request.send()
            try:
                await_start(lab, router, before)
                results[router.program.name] = client.latencies(
                    router.port, "/health", every_s=HANG_PROBE_EVERY_S, for_s=HANG_PROBES_S
                )
            finally:
                request.close()
    return results


@contextmanager
def opened(lab: Lab, programs: Sequence[Program], engines: Engines, label: str) -> Iterator[list[Router]]:
    """Run the routers in front of engines of their own, and stop them."""
    running: list[Router] = []
    try:
        running.extend(open_router(lab, program, engines, label) for program in programs)
        yield running
    finally:
        for router in running:
            lab.stop(router.process)
        lab.end_leftovers()  # LER leaves its engines running


def must(answer: client.Answer, model: str, router: Router) -> client.Answer:
    """Insist on the right model's answer: a wrong one would be a wrong time."""
    if not answer.is_from(model):
        said = "nothing" if answer.status is None else f"{answer.status} {answer.body[:200]!r}"
        raise Failed(f"{router.program.name} answered {said} when asked for {model}")
    return answer


def starts_of(lab: Lab, router: Router) -> int:
    """Count the starts of a router's engines, by the engines' own log."""
    names = set(router.names.values())
    return sum(name in names for name, _ in lab.starts())


def await_start(lab: Lab, router: Router, before: int) -> None:
    deadline = time.perf_counter() + 10
    while starts_of(lab, router) == before:
        if time.perf_counter() > deadline:
            raise Failed(f"{router.program.name} did not start the engine that hangs")
        time.sleep(0.01)


# Telling.


def rows(results: Results) -> list[Row]:
    """Return the table's rows."""
    return [*scenario_rows(results), *together_rows(results), *exit_rows(results), *health_rows(results)]


def scenario_rows(results: Results) -> list[Row]:
    found: list[Row] = []
    for name, scenario in results.scenarios.items():
        own = scenario.own
        found.append(
            Row(
                f"sequential swaps, {name} (the engine itself: start {milliseconds(Summary.of(own.start))}, "
                f"stop {milliseconds(Summary.of(own.stop))})"
            )
        )
        samples = {
            "request without a swap": {key: swaps.plain for key, swaps in scenario.swaps.items()},
            "request with a swap": {key: swaps.swap for key, swaps in scenario.swaps.items()},
        }
        found.extend(compared(measure, sample) for measure, sample in samples.items())
        overheads = {key: swaps.overhead(own) for key, swaps in scenario.swaps.items()}
        found.append(compared(f"swap overhead, {name}", overheads, limit_s=SWAP_LIMIT_S))
        for phase, seconds in scenario.swaps[OURS].phases.items():
            found.append(Row(f"  phase {phase}", milliseconds(Summary.of(seconds))))
        first_byte = {OURS: scenario.swaps[OURS].first_byte}
        # Of a real engine most of it is the engine's.
        limit_s = FIRST_BYTE_LIMIT_S if name == INSTANT else None
        found.append(compared("from the start's end to the client's first byte", first_byte, limit_s=limit_s))
    return found


def compared(
    measure: str, samples: dict[str, list[float]], *, limit_s: float | None = None, indent: str = "  "
) -> Row:
    """Return a row of times, with the requirement on our median if there is one."""
    mine, theirs = Summary.of(samples[OURS]), Summary.of(samples.get(LER, []))
    return Row(
        indent + measure,
        milliseconds(mine),
        milliseconds(theirs),
        ratio(mine, theirs),
        "" if limit_s is None else f"<= {limit_s:g} s",
        None if limit_s is None or mine is None else mine.median <= limit_s,
    )


def together_rows(results: Results) -> list[Row]:
    found: list[Row] = []
    for order, by_router in results.together.items():
        found.append(Row(f"{order} in flight together, each answer {ANSWER_MS} ms"))
        mine, theirs = by_router[OURS], by_router.get(LER, Together())
        limited = order == ORDERS[0]
        found.append(
            Row(
                "  swaps",
                counts(mine.swaps),
                counts(theirs.swaps),
                max(mine.swaps) / max(theirs.swaps) if theirs.swaps and max(theirs.swaps) else None,
                "1 or 2" if limited else "",
                1 <= max(mine.swaps) <= SWAPS_LIMIT if limited else None,
            )
        )
        found.append(compared("all ten answered", {key: value.total for key, value in by_router.items()}))
    return found


def counts(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers)) or "-"


def exit_rows(results: Results) -> list[Row]:
    mine, theirs = results.exits[OURS], results.exits.get(LER)
    own = milliseconds(Summary.of(results.own_exit))
    told = Summary.of(mine.told)
    their_told = Summary.of(theirs.told) if theirs is not None else None
    return [
        Row(f"an engine that exits at once with code 3 (it lives {own})"),
        Row(
            "  the client has its error after",
            milliseconds(told) if not mine.silent else f"> {EXIT_WITHIN_S:g} s",
            exit_words(theirs),
            ratio(told, their_told),
            f"<= {EXIT_LIMIT_S:g} s",
            told is not None and not mine.silent and told.median <= EXIT_LIMIT_S,
        ),
        Row("  errors that name the exit code", named(mine), named(theirs)),
    ]


def exit_words(result: EarlyExit | None) -> str:
    if result is None:
        return "-"
    return f"> {EXIT_WITHIN_S:g} s (given up)" if result.silent else milliseconds(Summary.of(result.told))


def named(result: EarlyExit | None) -> str:
    return "-" if result is None or not result.told else f"{result.named} of {len(result.told)}"


def health_rows(results: Results) -> list[Row]:
    row = compared("/health, median and range", results.health)
    most = max(results.health[OURS])
    their_most = max(results.health.get(LER, [0.0]))
    worst = Row(
        "  /health, slowest",
        f"{most * 1e3:.1f} ms",
        f"{their_most * 1e3:.1f} ms" if their_most else "-",
        most / their_most if their_most else None,
        f"<= {HEALTH_LIMIT_S:g} s",
        most <= HEALTH_LIMIT_S,
    )
    return [Row("the router itself while an engine hangs on its start"), row, worst]


def as_json(results: Results) -> dict[str, Any]:
    """Return everything as plain data; times in seconds."""
    return {
        "benchmark": "swap",
        "machine": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else [],
            "python": platform.python_version(),
        },
        "versions": {program.name: program.version for program in results.programs},
        "scenarios": {name: scenario_json(scenario) for name, scenario in results.scenarios.items()},
        "together": {
            order: {
                name: {"swaps": result.swaps, "total_s": rounded(result.total)}
                for name, result in found.items()
            }
            for order, found in results.together.items()
        },
        "early_exit": {
            "own_s": rounded(results.own_exit),
            "routers": {
                name: {
                    "told_s": rounded(result.told),
                    "silent_after_s": EXIT_WITHIN_S if result.silent else None,
                    "named_exit_code": result.named,
                }
                for name, result in results.exits.items()
            },
        },
        "health_while_hanging": {name: summed(sample) for name, sample in results.health.items()},
        "requirements": [
            {"measure": row.measure.strip(), "value": row.ours, "required": row.required, "met": row.met}
            for row in rows(results)
            if row.required
        ],
        "notes": results.notes,
    }


def scenario_json(scenario: Scenario) -> dict[str, Any]:
    return {
        "rounds": scenario.rounds,
        "engine_itself": {"start_s": summed(scenario.own.start), "stop_s": summed(scenario.own.stop)},
        "routers": {
            name: {
                "swap_s": {**summed(swaps.swap), "all": rounded(swaps.swap)},
                "plain_s": summed(swaps.plain),
                "overhead_s": summed(swaps.overhead(scenario.own)),
                "first_byte_s": rounded(swaps.first_byte),
                "phases_s": {
                    phase: {**summed(seconds), "all": rounded(seconds)}
                    for phase, seconds in swaps.phases.items()
                },
            }
            for name, swaps in scenario.swaps.items()
        },
    }


def summed(sample: Sequence[float]) -> dict[str, float]:
    summary = Summary.of(sample)
    return {} if summary is None else summary.as_json()


def rounded(sample: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in sample]


# Running.


def measure(lab: Lab, programs: Sequence[Program], rounds: int) -> Results:
    """Measure everything, in about two and a half minutes with LER and half a minute without."""
    began = time.perf_counter()
    python = programs[0].python
    results = Results(programs)
    instant = InstantEngines(python, MODELS)
    kinds: list[tuple[str, Engines]] = [(INSTANT, instant)]
    if environments.has_llamacpp(python):
        kinds.append(("llama.cpp, tiny models", LlamaEngines(python, MODELS)))
    else:
        results.notes.append("llama.cpp left out: its wheel is missing (pip install -e '.[llamacpp]')")
    for number, (name, engines) in enumerate(kinds):
        # The llama.cpp engines say little more about the routers than the instant ones: half the rounds do.
        wanted = rounds if number == 0 else (rounds + 1) // 2
        say(f"sequential swaps, {name}: {wanted} rounds")
        found = results.scenarios[name] = sequential(lab, programs, engines, f"seq{number}", wanted, began)
        if found.rounds < wanted:
            results.notes.append(f"{name}: {found.rounds} of {wanted} rounds, for time was up")
    for order in ORDERS:
        say(f"{order} in flight together")
        results.together[order] = together(lab, programs, instant, order)
    say("an engine that exits at once")
    early_exit(lab, programs, python, results)
    say("an engine that hangs")
    results.health = hanging(lab, programs, python)
    return results


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark as the command line asks. Returns 0, 1 where it could not be made, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="scripts/bench swap", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=positive, default=5, help="rounds of two swaps each (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    parser.add_argument("--without-ler", action="store_true", help="measure engine_router only")
    options = parser.parse_args(arguments)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupted)
    try:
        programs = [routers.ours(environments.engine_router())]
        if not options.without_ler:
            programs.append(routers.ler(environments.ler()))
        began = time.perf_counter()
        with closing(Lab()) as lab:
            results = measure(lab, programs, options.rounds)
    except (Missing, Failed) as error:
        say(f"scripts/bench swap: {error}")
        return 1
    except KeyboardInterrupt:
        say("scripts/bench swap: interrupted")
        return 130
    tell(results, time.perf_counter() - began)
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(results), indent=1) + "\n", "utf-8")
    return 0


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def interrupted(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def tell(results: Results, took_s: float) -> None:
    """Print the table."""
    heads = [f"{program.name} {program.version}" for program in results.programs]
    heads += [""] * (2 - len(heads))
    print(table(["measure", *heads, "ratio", "required", ""], rows(results)))
    load = ""
    with suppress(AttributeError, OSError):
        load = f", load average {os.getloadavg()[0]:.1f}"
    print(f"\nTimes are medians (least to most). {os.cpu_count()} CPUs{load}; {took_s:.0f} s in all.")
    print("Swap overhead: with a swap, less without, less the engine's own start and stop in the same run.")
    if len(results.programs) > 1:
        print(
            f"{LER} with its defaults, among them swap_memory_settle_timeout_s 25, start_timeout_s 300, routing_mode smart."
        )
    for note in results.notes:
        print(f"Note: {note}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
