"""What a scrape of /metrics costs a router with many models: as it stands, and after each model has served.

The router is at work as in practice: each model has an engine of its own, and each of the first requests is a swap. The
CPU is the router's own, by the clock of its process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks import client, environments, routers
from benchmarks.environments import Missing, say
from benchmarks.lab import Failed, Lab
from benchmarks.relay import machine
from benchmarks.report import Summary, milliseconds

# How often Prometheus asks, as scripts/deploy/monitoring has it.
INTERVAL_S = 5.0
WITHIN_S = 60.0
# How often all models serve again: each time is a swap for each.
AGAIN = 2
# Until what the last request left to do is done.
CALM_S = 1.0


@dataclass(frozen=True)
class Scrape:
    """One scrape: the CPU seconds of the router, the seconds until it was read, its size and its samples."""

    cpu_s: float
    took_s: float
    size: int
    samples: int


class Scraper:
    """A Prometheus, as far as the router sees it: one connection that is kept.

    Args:
        router: the router that is asked.
        query: what is asked for besides the router's own metrics.
    """

    def __init__(self, router: routers.Router, query: str = "") -> None:
        self._pids = [router.process.pid]
        self._path = f"/metrics{query}"
        self._connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=WITHIN_S)

    def close(self) -> None:
        self._connection.close()

    def scrape(self) -> Scrape:
        """Ask once.

        Raises:
            Failed: there was no answer.
        """
        before, began = machine.cpu_s(self._pids), time.perf_counter()
        try:
            self._connection.request("GET", self._path, headers={"Accept": "text/plain;version=0.0.4"})
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"{self._path} was not answered: {error}") from None
        if answer.status != 200:
            raise Failed(f"{self._path} was answered with {answer.status}")
        took_s = time.perf_counter() - began
        samples = sum(not line.startswith(b"#") for line in body.splitlines())
        return Scrape(machine.cpu_s(self._pids) - before, took_s, len(body), samples)


def serve_all(router: routers.Router, models: Sequence[str]) -> None:
    """Have each model answer once, which swaps it in.

    Raises:
        Failed: one did not.
    """
    for model in models:
        answer = client.ask(router.port, client.chat(model))
        if answer.status != 200:
            raise Failed(f"{model} was answered with {answer.status}")
    time.sleep(CALM_S)


def measure(lab: Lab, program: routers.Program, count: int, rounds: int) -> dict[str, list[Scrape]]:
    """Run a router with models, and scrape it again and again.

    Raises:
        Failed: it did not start, or did not answer.
    """
    models = [f"model-{number:03d}" for number in range(count)]
    router = routers.open_router(lab, program, routers.InstantEngines(program.python, models), "scrape")
    found: dict[str, list[Scrape]] = {}
    with closing(Scraper(router)) as plain, closing(Scraper(router, "?engines=1")) as merged:
        plain.scrape()
        found["nothing has served"] = [plain.scrape() for _ in range(rounds)]
        serve_all(router, models)
        found["all have served for the first time"] = [plain.scrape()]
        after_all = found["all have served since the last scrape"] = []
        for _ in range(AGAIN):
            serve_all(router, models)
            after_all.append(plain.scrape())
        found["nothing has changed"] = [plain.scrape() for _ in range(rounds)]
        found["nothing has changed, ?engines=1"] = [merged.scrape() for _ in range(rounds)]
        after_one = found["one has served since the last scrape"] = []
        for _ in range(rounds):
            client.ask(router.port, client.chat(models[-1]))
            time.sleep(0.05)
            after_one.append(plain.scrape())
    lab.stop(router.process)
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark as the command line asks. Returns 0, 1 where it could not be made, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="scripts/bench scrape", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--models", type=int, choices=range(1, 1001), default=200, metavar="N", help="default 200"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        choices=range(1, 1001),
        default=50,
        metavar="N",
        help="scrapes of each kind (default 50)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    options = parser.parse_args(arguments)
    try:
        with closing(Lab()) as lab:
            program = routers.ours(environments.engine_router())
            found = measure(lab, program, options.models, options.rounds)
    except (Missing, Failed) as error:
        say(f"scripts/bench scrape: {error}")
        return 1
    except KeyboardInterrupt:
        say("scripts/bench scrape: interrupted")
        return 130
    print(
        f"{options.models} models; CPU, time, size of a scrape; share of a core at one each {INTERVAL_S:g} s"
    )
    for name, scrapes in found.items():
        cpu, took = (Summary.of([getattr(one, key) for one in scrapes]) for key in ("cpu_s", "took_s"))
        last = scrapes[-1]
        print(
            f"  {name:42} {milliseconds(cpu):>10} {milliseconds(took):>10} {last.size / 1000:6.0f} kB "
            f"{last.samples:6d} samples {cpu.median / INTERVAL_S:8.3%}"
        )
    if options.json is not None:
        data = {name: [vars(one) for one in scrapes] for name, scrapes in found.items()}
        options.json.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return 0
