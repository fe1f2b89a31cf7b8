"""What the samples come to: figures by proxy, medians over the rounds, and what is required of ours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.relay.proxies import DIRECT, LER, LLAMA_SWAP, NGINX, OURS
from benchmarks.relay.rounds import Round, Sample

NEVER = math.inf
"""The figure of what did not happen for as long as it was waited for."""

Value = Callable[[Round, str], "float | None"]
"""One round's figure for one proxy; None where there is none."""


@dataclass(frozen=True)
class Limit:
    """What is required of a figure of ours, or of its ratio to a rival's.

    Attributes:
        rival: None where the figure itself is limited.
        must: the most, or of a pace the least, that is enough.
        of: the rival's figure; None for the same.
    """

    rival: str | None
    must: float
    aim: float
    of: str | None = None


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        title: below its group's.
        unit: us, ms, MB, % or /s.
    """

    name: str
    group: str
    title: str
    unit: str
    value: Value
    limits: Sequence[Limit] = ()


def figures() -> list[Figure]:
    """Return all figures, in the order of the table."""
    return [
        *_requests(
            "requests-16",
            "non-streaming request, 16 clients",
            cpu=[Limit(LER, 0.08, 0.05), Limit(LLAMA_SWAP, 0.9, 0.7)],
        ),
        *_requests(
            "requests-1",
            "non-streaming request, 1 client",
            p50=[Limit(LER, 0.2, 0.15), Limit(NGINX, 2.0, 1.5)],
        ),
        *_unpaced("unpaced", "unpaced stream, 20,000 chunks of 220 bytes", [Limit(LER, 0.06, 0.03)]),
        *_paced(1),
        *_paced(50, cpu=[Limit(LER, 0.3, 0.25), Limit(LLAMA_SWAP, 0.9, 0.7)]),
        *_paced(200, cpu=[Limit(LLAMA_SWAP, 0.9, 0.7)]),
        *_paced(
            500,
            cpu=[Limit(LLAMA_SWAP, 0.9, 0.7)],
            pace=[Limit(None, 0.999, 0.999)],
            added=[Limit(None, 300, 150)],
        ),
        *_unpaced("ollama", "Ollama's /api/chat from an engine that speaks it, unpaced"),
        *_unpaced(
            "translated",
            "Ollama's /api/chat from an engine that speaks OpenAI's, unpaced",
            [Limit(LER, 0.08, 0.05, of="unpaced-cpu")],
        ),
        Figure(
            "hangup",
            "client leaves before the first byte of a non-streaming answer",
            "the upstream's connection is closed after",
            "ms",
            _hangup,
            [Limit(None, 50, 5)],
        ),
        *_large("upload", "request body of 30 MB, its model first", [Limit(LER, 0.2, 0.13)]),
        *_large("upload-late", "request body of 30 MB, its model last"),
        *_large("download", "answer of 30 MB"),
        Figure(
            "idle", "resident memory", "idle, after a few requests", "MB", _idle, [Limit(LER, 0.95, 0.85)]
        ),
        Figure(
            "after-streams",
            "resident memory",
            "at rest after 500 streams",
            "MB",
            _rest,
            [Limit(LER, 0.85, 0.8)],
        ),
    ]


def _requests(
    scenario: str, group: str, cpu: Sequence[Limit] = (), p50: Sequence[Limit] = ()
) -> list[Figure]:
    return [
        Figure(f"{scenario}-cpu", group, "CPU a request", "us", _of(scenario, _cpu_per("answers")), cpu),
        Figure(f"{scenario}-rate", group, "requests a second", "/s", _of(scenario, _rate_of("answers"))),
        *_latency(scenario, group, p50=p50),
    ]


def _unpaced(scenario: str, group: str, cpu: Sequence[Limit] = ()) -> list[Figure]:
    return [
        Figure(f"{scenario}-cpu", group, "CPU a chunk", "us", _of(scenario, _cpu_per("chunks")), cpu),
        Figure(f"{scenario}-rate", group, "chunks a second", "/s", _of(scenario, _rate_of("chunks"))),
    ]


def _paced(
    streams: int, cpu: Sequence[Limit] = (), pace: Sequence[Limit] = (), added: Sequence[Limit] = ()
) -> list[Figure]:
    scenario = f"streams-{streams}"
    group = f"{streams} stream{'s' if streams > 1 else ''} at 50 tokens/s"
    return [
        Figure(f"{scenario}-cpu", group, "CPU a chunk", "us", _of(scenario, _cpu_per("chunks")), cpu),
        Figure(
            f"{scenario}-pace", group, "chunks that came on time", "%", _of(scenario, _pace(streams)), pace
        ),
        *_latency(scenario, group, added=added),
        Figure(
            f"{scenario}-first",
            group,
            "first byte, p50",
            "us",
            _of(scenario, _quantile("first_byte_us", "p50")),
        ),
    ]


def _latency(
    scenario: str, group: str, p50: Sequence[Limit] = (), added: Sequence[Limit] = ()
) -> list[Figure]:
    middle = _of(scenario, _quantile("latency_us", "p50"))

    def over_direct(round_: Round, proxy: str) -> float | None:
        with_it, without = middle(round_, proxy), middle(round_, DIRECT)
        return None if proxy == DIRECT or with_it is None or without is None else with_it - without

    return [
        Figure(f"{scenario}-p50", group, "latency, p50", "us", middle, p50),
        Figure(f"{scenario}-added", group, "latency, p50 added to direct", "us", over_direct, added),
        Figure(f"{scenario}-p99", group, "latency, p99", "us", _of(scenario, _quantile("latency_us", "p99"))),
    ]


def _large(scenario: str, group: str, peak: Sequence[Limit] = ()) -> list[Figure]:
    def took_ms(sample: Sample) -> float | None:
        found = _quantile("latency_us", "p50")(sample)
        return None if found is None else found / 1e3

    def cpu_ms(sample: Sample) -> float | None:
        found = _cpu_per("answers")(sample)
        return None if found is None else found / 1e3

    return [
        Figure(f"{scenario}-peak", group, "peak resident memory", "MB", _of(scenario, _peak), peak),
        Figure(f"{scenario}-cpu", group, "CPU", "ms", _of(scenario, cpu_ms)),
        Figure(f"{scenario}-p50", group, "time, p50", "ms", _of(scenario, took_ms)),
    ]


def _of(scenario: str, value: Callable[[Sample], float | None]) -> Value:
    def found(round_: Round, proxy: str) -> float | None:
        sample = round_.samples.get(scenario, {}).get(proxy)
        return None if sample is None else value(sample)

    return found


def _cpu_per(what: str) -> Callable[[Sample], float | None]:
    """CPU microseconds of the proxy; nothing where there is no proxy."""

    def value(sample: Sample) -> float | None:
        count = sample.load[what]
        return sample.proxy_cpu_s * 1e6 / count if count and sample.proxy_cpu_s else None

    return value


def _rate_of(what: str) -> Callable[[Sample], float | None]:
    return lambda sample: sample.load[what] / sample.load["elapsed_s"] if sample.load[what] else None


def _quantile(sample_name: str, quantile: str) -> Callable[[Sample], float | None]:
    def value(sample: Sample) -> float | None:
        found = sample.load[sample_name]
        return None if found is None else float(found[quantile])

    return value


def _pace(streams: int) -> Callable[[Sample], float | None]:
    return lambda sample: sample.load["chunks_on_time"] / (streams * sample.wanted_chunks)


def _peak(sample: Sample) -> float | None:
    return sample.peak_mb


def _hangup(round_: Round, proxy: str) -> float | None:
    sample = round_.samples.get("hangup", {}).get(proxy)
    if sample is None:
        return None
    if sample.load["unfinished"]:
        return NEVER
    found = sample.load["latency_us"]
    return None if found is None else float(found["p50"]) / 1e3


def _idle(round_: Round, proxy: str) -> float | None:
    return round_.idle_mb.get(proxy)


def _rest(round_: Round, proxy: str) -> float | None:
    sample = round_.samples.get("streams-500", {}).get(proxy)
    return None if sample is None else sample.rest_mb


# Over all rounds.

Medians = Mapping[str, Mapping[str, float]]
"""By figure and proxy."""


def medians(rounds: Sequence[Round], proxies: Sequence[str], rows: Sequence[Figure]) -> Medians:
    """Return each figure's median over the rounds, for the proxies that have it."""
    found: dict[str, dict[str, float]] = {}
    for figure in rows:
        for proxy in proxies:
            values = [value for round_ in rounds if (value := figure.value(round_, proxy)) is not None]
            if values:
                found.setdefault(figure.name, {})[proxy] = statistics.median(values)
    return found


@dataclass(frozen=True)
class Verdict:
    """How ours stands to one limit.

    Attributes:
        value: the ratio, or the figure itself.
        word: `aim`, `must` or `MISSED`; `-` where it was not measured.
    """

    figure: Figure
    limit: Limit
    value: float | None
    word: str


def verdicts(found: Medians, rows: Sequence[Figure]) -> list[Verdict]:
    """Judge all limits."""
    return [_judged(found, figure, limit) for figure in rows for limit in figure.limits]


def _judged(found: Medians, figure: Figure, limit: Limit) -> Verdict:
    value = found.get(figure.name, {}).get(OURS)
    if limit.rival is not None:
        value = ratio(value, found.get(limit.of or figure.name, {}).get(limit.rival))
    if value is None:
        return Verdict(figure, limit, None, "-")
    if _within(figure, value, limit.aim):
        return Verdict(figure, limit, value, "aim")
    return Verdict(figure, limit, value, "must" if _within(figure, value, limit.must) else "MISSED")


def _within(figure: Figure, value: float, bound: float) -> bool:
    return value >= bound if figure.unit == "%" else value <= bound  # of a pace, more is better


def ratio(value: float | None, rival: float | None) -> float | None:
    """Return a figure of ours by a rival's."""
    if value is None or not rival or math.isinf(value) or math.isinf(rival):
        return None
    return value / rival
