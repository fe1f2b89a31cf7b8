"""The engines' own metrics, asked of those that are ready, and merged into one exposition for Prometheus.

A scrape changes nothing: no engine is started or woken for it, it holds no lease, and it counts for no idle timeout. An
engine that is about to be stopped is not kept from its end either: the scrape lets go of it in the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, Protocol
from urllib.parse import quote

import trio
from attrs import define, field, frozen

from engine_router.config import Config, HttpConfig, OllamaConfig, RemoteConfig
from engine_router.errors import EngineError
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import (
    ALL_ENGINE_METRICS_SERIES,
    ENGINE_METRICS_BYTES,
    ENGINE_METRICS_LONGEST_PAUSE_S,
    ENGINE_METRICS_PAUSE_S,
    ENGINE_METRICS_S,
    ENGINE_METRICS_SERIES,
)
from engine_router.models.registry import ModelRegistry
from engine_router.residency.read_model import ReadModel, ResidentStatus
from engine_router.residency.resident_state import Phase
from engine_router.telemetry.exposition import BadExposition, Exposition, merged
from engine_router.telemetry.metric_families import Gauge, Labels
from engine_router.upstream.client import Exchange, Upstream
from engine_router.upstream.forwarding import EngineRequests, is_plain

_UP: Final = Gauge(
    "engine_scrape_up", "1 for each ready engine whose own metrics are here, else 0.", ("engine", "model")
)
_ACCEPT: Final = (
    b"accept",
    b"text/plain;version=0.0.4;q=1,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1",
)
# An idle connection that is kept may keep a server from its end.
_CLOSE: Final = (b"connection", b"close")
# Lines that are read in one step: some milliseconds, in which nobody else is served, take a thousand.
_BATCH: Final = 250
# Scrapes at the same time; others wait for them.
_SCRAPES: Final = 4


class InForce(Protocol):
    """The configuration in force, with what is derived from it."""

    @property
    def config(self) -> Config:
        """The configuration."""
        ...

    @property
    def registry(self) -> ModelRegistry:
        """Its models."""
        ...

    @property
    def requests(self) -> Mapping[str, EngineRequests]:
        """What makes requests to each engine, by its name."""
        ...


@frozen
class _Source:
    """Where metrics are had.

    Attributes:
        engine: the engine's name.
        model: the model that they are about; empty where they are about all of an engine's models.
    """

    engine: str
    model: str
    base_url: str
    path: str


@define(eq=False, repr=False)
class _Pauses:
    """The pauses of sources that did not answer in time: without them, each scrape would wait for these until its limit.

    Each pause is twice as long as the one before, until the source answers.
    """

    _ends: dict[_Source, tuple[float, float]] = field(init=False, factory=dict)

    def is_paused(self, source: _Source, now: float) -> bool:
        """Tell whether a source is not to be asked now."""
        return now < self._ends.get(source, (0.0, 0.0))[0]

    def begin(self, source: _Source, now: float) -> None:
        """Begin the next pause of a source."""
        if not self.is_paused(source, now):
            _, last_s = self._ends.get(source, (0.0, 0.0))
            pause_s = min(2 * last_s or ENGINE_METRICS_PAUSE_S, ENGINE_METRICS_LONGEST_PAUSE_S)
            self._ends[source] = now + pause_s, pause_s

    def end(self, source: _Source) -> None:
        """Forget the pauses of a source that answered."""
        self._ends.pop(source, None)

    def end_all(self, base_url: str) -> None:
        """Forget those of an engine that ends: what answers there next is another process."""
        self._ends = {source: end for source, end in self._ends.items() if source.base_url != base_url}

    def keep(self, sources: Collection[_Source]) -> None:
        """Forget those of all other sources."""
        self._ends = {source: end for source, end in self._ends.items() if source in sources}


@define(eq=False, repr=False)
class EngineMetrics:
    """The metrics of the engines that are ready.

    Args:
        snapshot: returns the configuration in force.
        note: tells the person who runs the router something.
    """

    _snapshot: Callable[[], InForce]
    _read_model: ReadModel
    _upstream: Upstream
    _note: Callable[[str], None]
    _scopes: dict[str, set[trio.CancelScope]] = field(init=False, factory=dict)
    _reported: set[str] = field(init=False, factory=set)
    _pauses: _Pauses = field(init=False, factory=_Pauses)
    _scrapes: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_SCRAPES))

    async def exposition(self) -> bytes:
        """Ask all engines that are ready, and return their metrics in Prometheus' text format.

        It takes no longer than `ENGINE_METRICS_S` and the time to put them together. What an engine does not give, or
        not properly, is left out; one that did not answer in time is left alone for a while. Cancellation closes the connections to the engines.
        """
        found: dict[_Source, Exposition | None] = {}
        async with self._scrapes:
            snapshot = self._snapshot()
            async with trio.open_nursery() as nursery:
                sources = self._sources(snapshot)
                self._pauses.keep(sources)
                for source in sources:
                    if self._pauses.is_paused(source, trio.current_time()):
                        found[source] = None
                        continue
                    nursery.start_soon(self._ask, snapshot.requests[source.engine], source, found)
        return "".join(self._lines(found)).encode()

    def let_go(self, base_url: str) -> None:
        """Let go of an engine that is about to be asked to end. Never waits."""
        self._pauses.end_all(base_url)
        for scope in self._scopes.get(base_url, ()):
            scope.cancel()

    def _lines(self, found: dict[_Source, Exposition | None]) -> Iterator[str]:
        taken: list[Exposition] = []
        room = ALL_ENGINE_METRICS_SERIES
        for source, exposition in found.items():
            if exposition is not None and exposition.series > room:
                self._tell(
                    source.engine,
                    f"would make more than {ALL_ENGINE_METRICS_SERIES:,} samples with those of the others",
                )
                found[source] = None
            elif exposition is not None:
                room -= exposition.series
                taken.append(exposition)
        if found:
            ups: dict[Labels, float] = {
                (source.engine, source.model): 1.0 if read else 0.0 for source, read in found.items()
            }
            yield from _UP.lines(ups)
        yield from merged(taken)

    def _sources(self, snapshot: InForce) -> list[_Source]:
        """Return where the metrics are had of what is ready, each place once."""
        ready = [
            (status, base_url, path)
            for status in self._read_model.present()
            if status.phase is Phase.READY
            and (base_url := status.base_url) is not None
            and (settings := snapshot.config.engines.get(status.resident.engine)) is not None
            and (path := settings.metrics_path)
        ]
        if not ready:
            return []
        names = {target.resident: target.model for target in reversed(snapshot.registry.targets())}
        found = [
            _source(snapshot.config, status, names.get(status.resident, ""), base_url, path)
            for status, base_url, path in ready
        ]
        return list(dict.fromkeys(found))

    async def _ask(
        self, requests: EngineRequests, source: _Source, found: dict[_Source, Exposition | None]
    ) -> None:
        fault, exposition = "", None
        with trio.CancelScope() as scope:
            scopes = self._scopes.setdefault(source.base_url, set())
            scopes.add(scope)
            try:
                with trio.move_on_after(ENGINE_METRICS_S) as bound:
                    exposition = await self._read(requests, source)
                if bound.cancelled_caught:
                    fault = f"did not give them within {ENGINE_METRICS_S:g} s"
                    self._pauses.begin(source, trio.current_time())
                else:
                    self._pauses.end(source)
            except BadExposition as error:
                fault = f"sent {error}"
            except EngineError as error:
                fault = error.summary
            finally:
                scopes.discard(scope)
                if not scopes:
                    self._scopes.pop(source.base_url, None)
        if scope.cancelled_caught:  # it is on its way out: neither up nor down
            return
        found[source] = exposition
        if fault:
            self._tell(source.engine, fault)

    async def _read(self, requests: EngineRequests, source: _Source) -> Exposition:
        """Ask an engine for its metrics.

        Raises:
            BadExposition: what it answers is none.
            EngineError: it cannot be reached, or broke off.
        """
        outgoing = requests.outgoing("GET", source.path, (_ACCEPT,), b"")
        outgoing.headers = [*outgoing.headers, _CLOSE]
        exchange = await self._upstream.send(outgoing.to(source.base_url))
        try:
            is_openmetrics, text = await _text(exchange)
        finally:
            exchange.close()
        exposition = Exposition(
            {"engine": source.engine, "model": source.model}, is_openmetrics=is_openmetrics
        )
        lines = text.split("\n")
        for begin in range(0, len(lines), _BATCH):
            exposition.read(lines[begin : begin + _BATCH])
            await trio.lowlevel.checkpoint()
        return exposition

    def _tell(self, engine: str, fault: str) -> None:
        """Tell of an engine without metrics, once."""
        if engine not in self._reported:
            self._reported.add(engine)
            self._note(
                f"the metrics of engine '{engine}' are left out: it {fault}; its metrics_path in engines.toml says where they "
                'are, "" that it has none'
            )


def _source(config: Config, status: ResidentStatus, model: str, base_url: str, path: str) -> _Source:
    resident = status.resident
    upstream = resident.model or ""
    # These are one server for all their models.
    is_shared = isinstance(config.engines[resident.engine], (HttpConfig, OllamaConfig, RemoteConfig))
    if is_shared and resident.model is not None and "{model}" not in path:
        model = ""
    else:
        model = model or upstream or resident.engine
    return _Source(
        resident.engine, model, base_url, path.replace("{model}", quote(upstream or model, safe=""))
    )


async def _text(exchange: Exchange) -> tuple[bool, str]:
    """Read an answer. Returns whether it is OpenMetrics, and its text.

    Raises:
        BadExposition: it is no text, or too much.
        EngineBroke: it broke off.
    """
    head = await exchange.head()
    if head.status != 200:
        hint = " (llama.cpp has metrics when it is started with --metrics)" if head.status == 501 else ""
        raise BadExposition(f"an answer with status {head.status}{hint}")
    if not is_plain(head.headers):
        raise BadExposition("an answer in a content encoding that it was not asked for")
    kind = (head.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind in (b"text/html", b"application/json"):
        raise BadExposition(f"an answer of the type {shown(kind.decode('latin-1'))}")
    body = bytearray()
    while data := await exchange.chunk():
        body += data
        if len(body) > ENGINE_METRICS_BYTES:
            raise BadExposition(f"more than {ENGINE_METRICS_BYTES / 1_048_576:g} MiB")
    if body.count(b"\n") > 4 * ENGINE_METRICS_SERIES:
        raise BadExposition(f"more than {ENGINE_METRICS_SERIES:,} samples")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise BadExposition("text that is not UTF-8") from None
    if "\0" in text:
        raise BadExposition("text with zero bytes")
    return kind == b"application/openmetrics-text", text
