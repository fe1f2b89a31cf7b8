"""Rounds: every proxy is started, every scenario goes through all of them in turn, and they are ended."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.environments import say
from benchmarks.lab import Failed, Lab, await_health, free_ports
from benchmarks.relay import machine
from benchmarks.relay.build import Programs
from benchmarks.relay.machine import Cores
from benchmarks.relay.proxies import DIRECT, Proxy, Setting
from benchmarks.relay.scenarios import Scenario

# Seconds in which a proxy comes to rest before its memory is read.
REST_S = 0.3
STOP_WITHIN_S = 1.0
# The share of the proxy's core beyond which other programs disturb, and how often what they disturbed is measured.
DISTURBED_SHARE = 0.1
TRIES = 3
# Flags of the upstream that a proxy of ours needs: one for each of its engines.
FLAGS_EACH = 2
FLAGS = 60
AFTER_STREAMS = "streams-500"

Report = dict[str, Any]
"""What the load client told."""


@dataclass(frozen=True)
class Sample:
    """One scenario with one proxy in one round.

    Attributes:
        wanted_chunks: how many chunks each stream has; 0 where there are none.
        load: what the load client told; see load.c.
        proxy_cpu_s, upstream_cpu_s: CPU seconds while it ran.
        programs_s: seconds for which programs, the proxy among them, used the proxy's core.
        peak_mb: largest resident memory while it ran; None where the kernel does not tell.
        rest_mb: resident memory when it was over and the proxy at rest; only where it is read.
    """

    wanted_chunks: int
    load: Report
    proxy_cpu_s: float
    upstream_cpu_s: float
    programs_s: float
    peak_mb: float | None
    rest_mb: float | None

    @property
    def load_share(self) -> float:
        """The share of a core that load client and upstream used together."""
        return (float(self.load["cpu_s"]) + self.upstream_cpu_s) / self._elapsed_s

    @property
    def proxy_share(self) -> float:
        """The share of a core that the proxy used."""
        return self.proxy_cpu_s / self._elapsed_s

    @property
    def strangers_share(self) -> float:
        """The share of the proxy's core that other programs took, as far as it can be told."""
        return max(0.0, self.programs_s - self.proxy_cpu_s) / self._elapsed_s

    @property
    def is_disturbed(self) -> bool:
        """Tell whether other programs took more of the proxy's core than a figure can bear."""
        return bool(self.proxy_cpu_s) and self.strangers_share > DISTURBED_SHARE

    @property
    def is_clean(self) -> bool:
        """Tell whether everything came, to the byte."""
        return not self.load["errors"] and not self.load["unfinished"]

    @property
    def _elapsed_s(self) -> float:
        return max(float(self.load["elapsed_s"]), 1e-9)


@dataclass
class Round:
    """What one round gave: samples by scenario and proxy, and the memory of proxies before anything.

    Attributes:
        repeated: how many measurements were made again, since other programs had disturbed them.
        disturbed: how many were disturbed every time, and stand nevertheless.
    """

    samples: dict[str, dict[str, Sample]] = field(default_factory=dict)
    idle_mb: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    repeated: int = 0
    disturbed: int = 0


@dataclass
class Running:
    """A proxy at work."""

    proxy: Proxy
    port: int
    process: subprocess.Popen[bytes] | None
    pids: list[int]


class Bench:
    """The upstream, and what is started in front of it."""

    def __init__(self, lab: Lab, programs: Programs, cores: Cores) -> None:
        self.lab = lab
        self.programs = programs
        self.cores = cores
        (self.upstream_port,) = free_ports(1)
        with machine.on(cores.load):
            self._upstream = lab.spawn([programs.upstream, str(self.upstream_port)], output="upstream.out")
        await_health(self._upstream, self.upstream_port, "the upstream")
        self._started = 0

    def start(self, proxy: Proxy) -> Running:
        """Start a proxy and let it warm up.

        Raises:
            Failed: it did not start.
        """
        if proxy.argv is None:
            return Running(proxy, self.upstream_port, None, [])
        (port,) = free_ports(1)
        stem = self.lab.folder / f"{self._started}-{proxy.name.replace(' ', '-')}"
        flag = self._started * FLAGS_EACH % FLAGS
        self._started += 1
        argv = proxy.argv(Setting(self.lab, stem, port, self.upstream_port, flag))
        with machine.on(self.cores.proxy):
            process = self.lab.spawn(argv, output=f"{stem.name}.out")
        try:
            await_health(process, port, proxy.title)
        except Failed as failure:
            self.lab.stop(process, STOP_WITHIN_S)
            lines = stem.with_suffix(".out").read_text(errors="replace").strip().splitlines()
            raise Failed(f"{failure}; its last words: {' '.join(lines[-2:])[:300]}") from None
        running = Running(proxy, port, process, machine.family(process.pid))
        self._warm_up(running)
        running.pids = machine.family(process.pid)
        return running

    def _warm_up(self, running: Running) -> None:
        port = f"port={running.port}"
        loads = [["request", port, "conns=4", "count=50"], ["stream", port, "n=200", "count=2"]]
        if running.proxy.relays_ollama:
            loads.append(["ndjson", port, "n=20", "count=2", "model=native"])
        for words in loads:
            report = self.load([*words, "limit=10"], 20)
            if report["errors"] or report["unfinished"]:
                raise Failed(
                    f"{running.proxy.title} does not answer: {report['first_error'] or 'nothing came'}"
                )

    def stop(self, running: Running) -> None:
        """End a proxy. It is to take no time: none has anything to put in order."""
        if running.process is not None:
            self.lab.stop(running.process, STOP_WITHIN_S)

    def load(self, arguments: Sequence[str], within_s: float) -> Report:
        """Run the load client once.

        Raises:
            Failed: it did not end, or told nothing.
        """
        with machine.on(self.cores.load):
            process = self.lab.spawn([self.programs.load, *arguments], output="load.out")
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise Failed(
                f"the load client did not end within {within_s:g} s: {' '.join(arguments)}"
            ) from None
        finally:
            self.lab.stop(process)
        output = self.lab.folder / "load.out"
        text = output.read_text(errors="replace")
        output.unlink()
        try:
            report: Report = json.loads(text)
        except ValueError:
            raise Failed(f"the load client says: {text.strip()[:300]}") from None
        return report

    def measure(self, scenario: Scenario, running: Running) -> Sample:
        """Run one scenario against one proxy."""
        has_peak = bool(running.pids) and machine.reset_peak(running.pids)
        upstream = [self._upstream.pid]
        proxy_before, upstream_before = machine.cpu_s(running.pids), machine.cpu_s(upstream)
        programs_before = machine.programs_s(self.cores.proxy)
        report = self.load(
            scenario.arguments(running.proxy, running.port, self.upstream_port), 2 * scenario.limit_s + 30
        )
        proxy_cpu_s = machine.cpu_s(running.pids) - proxy_before
        upstream_cpu_s = machine.cpu_s(upstream) - upstream_before
        programs_s = machine.programs_s(self.cores.proxy) - programs_before
        peak_mb = machine.peak_mb(running.pids) if has_peak else None
        rest_mb = None
        if scenario.name == AFTER_STREAMS and running.pids:
            time.sleep(REST_S)
            rest_mb = machine.resident_mb(running.pids)
        return Sample(
            int(scenario.options.get("n", 0)),
            report,
            proxy_cpu_s,
            upstream_cpu_s,
            programs_s,
            peak_mb,
            rest_mb,
        )


def one_round(
    bench: Bench,
    proxies: Sequence[Proxy],
    scenarios: Sequence[Scenario],
    number: int,
    note: Callable[[str], None],
) -> Round:
    """Go through all scenarios once, each with all proxies; who is first changes with every scenario and round."""
    done = Round()
    running: dict[str, Running] = {}
    try:
        for proxy in _turned(proxies, number):
            _start(bench, proxy, running, done)
        time.sleep(REST_S)
        for name, there in running.items():
            if there.pids:
                done.idle_mb[name] = machine.resident_mb(there.pids)
        for position, scenario in enumerate(scenarios):
            note(scenario.title)
            for proxy in _turned(proxies, number + position):
                if scenario.is_for(proxy) and proxy.name in running:
                    _measure(bench, scenario, running, proxy, done)
    finally:
        for there in running.values():
            bench.stop(there)
    return done


def _turned(proxies: Sequence[Proxy], by: int) -> list[Proxy]:
    by %= len(proxies)
    return [*proxies[by:], *proxies[:by]]


def _start(bench: Bench, proxy: Proxy, running: dict[str, Running], done: Round) -> None:
    try:
        running[proxy.name] = bench.start(proxy)
    except Failed as failure:
        if proxy.name == DIRECT:
            raise
        done.faults.append(str(failure))
        say(f"  {failure}")


def _measure(
    bench: Bench, scenario: Scenario, running: dict[str, Running], proxy: Proxy, done: Round
) -> None:
    there = running[proxy.name]
    sample = bench.measure(scenario, there)
    for _ in range(TRIES - 1):
        if not sample.is_clean or not sample.is_disturbed:
            break
        done.repeated += 1
        say(f"  {proxy.title}: other programs took {sample.strangers_share:.0%} of its core; once more")
        sample = bench.measure(scenario, there)
    done.disturbed += sample.is_disturbed
    done.samples.setdefault(scenario.name, {})[proxy.name] = sample
    ended = there.process is not None and there.process.poll() is not None
    if sample.is_clean and not ended:
        return
    if sample.load["errors"] or ended:
        done.faults.append(
            f"{proxy.title}, {scenario.title}: {sample.load['errors']} errors, first: {sample.load['first_error']}"
            + (", and it has ended" if ended else "")
        )
    if there.process is not None:
        # Whoever left something behind must not be measured with it: some leak a place for each lost client.
        bench.stop(running.pop(proxy.name))
        _start(bench, proxy, running, done)
