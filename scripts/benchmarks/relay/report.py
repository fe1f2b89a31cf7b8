"""What the figures say, as a table and as plain data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.relay.figures import Figure, Limit, Medians, Verdict, figures, medians, ratio, verdicts
from benchmarks.relay.machine import Cores
from benchmarks.relay.proxies import DIRECT, LER, LLAMA_SWAP, NGINX, OURS, REMOTE, TIER_ONE, Proxy
from benchmarks.relay.rounds import Round, Sample

CLOSED_LOOPS = {
    "requests-16": "requests, 16 clients",
    "unpaced": "unpaced stream",
    "streams-500": "500 streams",
}
"""Where the load side could be what limits."""

BUSY = 0.85  # of a core: less than that, and something else was waited for
UNITS = {"%": 100.0}


@dataclass(frozen=True)
class Results:
    """Everything that was measured."""

    proxies: Sequence[Proxy]
    rounds: Sequence[Round]
    cores: Cores
    machine: Mapping[str, str | int | float]
    notes: Sequence[str]

    @property
    def names(self) -> list[str]:
        """The proxies' names."""
        return [proxy.name for proxy in self.proxies]

    def ours_failed(self) -> bool:
        """Tell whether ours did not start, or gave a wrong answer: figures of the rest are no result then."""
        mine = [proxy.name for proxy in self.proxies if proxy.name in (OURS, TIER_ONE, REMOTE)]
        return any(
            name not in done.idle_mb
            or any(samples[name].load["errors"] for samples in done.samples.values() if name in samples)
            for done in self.rounds
            for name in mine
        )

    def rows(self) -> list[Figure]:
        """The figures that somebody has."""
        found = self.medians()
        return [figure for figure in figures() if found.get(figure.name)]

    def medians(self) -> Medians:
        """By figure and proxy."""
        return medians(self.rounds, self.names, figures())


def shown(value: float | None) -> str:
    """Show a number with three digits that count."""
    if value is None:
        return ""
    if math.isinf(value):
        return "never"
    if not value:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}" if decimals < 5 else f"{value:.1e}"


def table(results: Results) -> str:
    """Return the table: medians over the rounds, ratios, and what is required."""
    found = results.medians()
    heads = [
        "median of " + counted(len(results.rounds), "round"),
        "",
        *(proxy.title for proxy in results.proxies),
    ]
    heads += ["ours/LER", "ours/nginx", "ours/llama-swap", "must / aim", ""]
    judged: dict[str, list[Verdict]] = {}
    for verdict in verdicts(found, results.rows()):
        judged.setdefault(verdict.figure.name, []).append(verdict)
    lines: list[list[str]] = [heads]
    group = ""
    for figure in results.rows():
        if figure.group != group:
            group = figure.group
            lines.append([group])
        lines.append(_cells(results, figure, found[figure.name], judged.get(figure.name, [])))
    return _laid_out(lines)


def _cells(
    results: Results, figure: Figure, by_proxy: Mapping[str, float], judged: Sequence[Verdict]
) -> list[str]:
    scale = UNITS.get(figure.unit, 1.0)
    values = [shown(None if (v := by_proxy.get(name)) is None else v * scale) for name in results.names]
    mine = by_proxy.get(OURS)
    limits = "; ".join(limit_words(figure, verdict.limit) for verdict in judged)
    words = ", ".join(verdict.word for verdict in judged)
    return [
        f"  {figure.title}",
        figure.unit,
        *values,
        shown(ratio(mine, by_proxy.get(LER))),
        shown(ratio(mine, by_proxy.get(NGINX))),
        shown(ratio(mine, by_proxy.get(LLAMA_SWAP))),
        limits,
        words,
    ]


def limit_words(figure: Figure, limit: Limit) -> str:
    """Say what is required: against whom, the most (or least) that must be, and the aim."""
    scale = UNITS.get(figure.unit, 1.0) if limit.rival is None else 1.0
    return f"{limit.rival or figure.unit} {limit.must * scale:g} / {limit.aim * scale:g}"


def _laid_out(lines: Sequence[Sequence[str]]) -> str:
    full = [line for line in lines if len(line) > 1]
    widths = [max(len(line[column]) for line in full) for column in range(len(full[0]))]
    numbers = range(2, len(widths) - 2)

    def line(cells: Sequence[str]) -> str:
        if len(cells) == 1:
            return f"\n{cells[0]}"
        return "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    return "\n".join([line(lines[0]), *map(line, lines[1:])])


def bottlenecks(results: Results) -> list[str]:
    """Say for the closed loops which side was busy: whether the proxy was measured, or the load side."""
    lines = []
    for scenario, title in CLOSED_LOOPS.items():
        found = {
            proxy: [
                sample
                for done in results.rounds
                if (sample := done.samples.get(scenario, {}).get(proxy.name))
            ]
            for proxy in results.proxies
        }
        if any(found.values()):
            lines.append(f"{title}, shares of a core (others: other programs):")
            lines += [f"  {_who_was_busy(proxy, samples)}" for proxy, samples in found.items() if samples]
    if not results.cores.are_apart:
        lines.append(
            "There is one core only, shared by both sides: latencies and rates are those of both together."
        )
    return lines


def _who_was_busy(proxy: Proxy, samples: Sequence[Sample]) -> str:
    load = statistics.median(sample.load_share for sample in samples)
    own = statistics.median(sample.proxy_share for sample in samples)
    others = statistics.median(sample.strangers_share for sample in samples)
    if proxy.name == DIRECT:
        return f"direct: load side {load:.0%}"
    if load >= BUSY and load > own:
        verdict = "THE LOAD SIDE WAS THE LIMIT: its rate and latency say little, its CPU figures hold"
    elif own >= BUSY or (own > load and own + others >= BUSY):
        verdict = "the proxy was the limit"
    else:
        verdict = "neither was busy all the time"
    return f"{proxy.title}: proxy {own:.0%}, load side {load:.0%}, others on its core {others:.0%}: {verdict}"


def errors(results: Results) -> list[str]:
    """Tell what went wrong, each once with how often."""
    counts: dict[str, int] = {}
    for done in results.rounds:
        for fault in done.faults:
            counts[fault] = counts.get(fault, 0) + 1
    return [fault if times == 1 else f"{fault} (in {times} rounds)" for fault, times in counts.items()]


def as_json(results: Results) -> dict[str, Any]:
    """Return everything as plain data, each round's raw samples included. What never happened is "never"."""
    found = results.medians()
    rows = results.rows()
    return {
        "benchmark": "relay",
        "machine": {**results.machine, "separate_cores": results.cores.are_apart},
        "proxies": {
            proxy.name: {"title": proxy.title, "version": proxy.version} for proxy in results.proxies
        },
        "figures": [
            {
                "name": figure.name,
                "group": figure.group,
                "title": figure.title,
                "unit": figure.unit,
                "median": {name: _plain(value) for name, value in found[figure.name].items()},
                "rounds": {
                    name: [_plain(figure.value(done, name)) for done in results.rounds]
                    for name in found[figure.name]
                },
            }
            for figure in rows
        ],
        "requirements": [
            {
                "figure": verdict.figure.name,
                "against": verdict.limit.rival,
                "value": _plain(verdict.value),
                "must": verdict.limit.must,
                "aim": verdict.limit.aim,
                "verdict": verdict.word,
            }
            for verdict in verdicts(found, rows)
        ],
        "load_side": bottlenecks(results),
        "errors": errors(results),
        "notes": list(results.notes),
        "samples": [
            {
                "idle_mb": done.idle_mb,
                "scenarios": {
                    scenario: {
                        name: {
                            **asdict(sample),
                            "load_share": sample.load_share,
                            "proxy_share": sample.proxy_share,
                            "strangers_share": sample.strangers_share,
                        }
                        for name, sample in samples.items()
                    }
                    for scenario, samples in done.samples.items()
                },
            }
            for done in results.rounds
        ],
    }


def _plain(value: float | None) -> float | str | None:
    if value is None:
        return None
    return "never" if math.isinf(value) else round(value, 6)


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
