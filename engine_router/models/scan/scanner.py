"""The scanner: looks through places of models in threads, one for each, and puts together what they hold."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import trio
from attrs import define, evolve, field

from engine_router.guards.limits import MAX_FOUND_MODELS, MAX_TOLD_SKIPPED
from engine_router.models.header_memory import HeaderMemory
from engine_router.models.pace import Pace
from engine_router.models.scan.contents import Contents, contents_of
from engine_router.models.scan.listing import why
from engine_router.models.scan.naming import Wanted, name_models
from engine_router.models.scan.places import Surroundings, find_place
from engine_router.models.scan.results import FoundModel, PlaceState, ScanRequest, ScanResult, Skipped

logger = logging.getLogger(__name__)

SILENCE_LIMIT_S: Final = 30.0
"""Seconds in which the scan of a place has to come forward by a file at least; a disk that spins up takes ten."""


@define(eq=False, repr=False)
class _PlaceScan:
    """The scans of one place: at most one thread at a time, and what the last that ended found."""

    written: str
    _pace: Pace
    state: PlaceState = field(factory=PlaceState)
    contents: Contents = field(factory=Contents)
    _one_thread: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))

    async def scan(self, look: Callable[[str, Callable[[], None]], Contents], silence_limit_s: float) -> None:
        """Look through the place; what it had last stays where that fails, or takes too long.

        Cancellation returns at once, and leaves the thread to itself.
        """
        began = trio.current_time()
        if self._one_thread.borrowed_tokens:
            self._settle(began, f"{self._silence(silence_limit_s)}, and its last scan still hangs")
            return
        is_done = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope, silence_limit_s)
            await trio.to_thread.run_sync(self._run, look, abandon_on_cancel=True, limiter=self._one_thread)
            is_done = True
            nursery.cancel_scope.cancel()
        self._settle(began, self.contents.fault if is_done else self._silence(silence_limit_s))

    async def has_changed(self, silence_limit_s: float) -> bool:
        """Tell whether there is something new in the place; not where it cannot be told, since it hangs."""
        if self._one_thread.borrowed_tokens:
            return False
        with trio.move_on_after(silence_limit_s):
            return await trio.to_thread.run_sync(
                self.contents.has_changed, self._pace.rest, abandon_on_cancel=True, limiter=self._one_thread
            )
        return False

    def _run(self, look: Callable[[str, Callable[[], None]], Contents]) -> None:
        """Run in the thread. What a thread finds that nobody waits for any more is there for the next scan."""
        try:
            with self._pace:
                self.contents = look(self.written, self._pace.rest)
        except ValueError as error:
            self.contents = Contents(fault=str(error))
        except OSError as error:
            self.contents = evolve(self.contents, fault=f"cannot be entered: {why(error)}{self._kept()}")
        except Exception:  # a fault of this program must not cost what other places hold
            logger.exception("the scan of %s failed", self.written)
            self.contents = evolve(self.contents, fault="the scan failed: see the log")

    async def _watch(self, scope: trio.CancelScope, silence_limit_s: float) -> None:
        """Give up a thread that shows no sign of life."""
        signs, silent_since = self._pace.signs, trio.current_time()
        while trio.current_time() - silent_since < silence_limit_s:
            await trio.sleep(silence_limit_s / 10)
            if self._pace.signs != signs:
                signs, silent_since = self._pace.signs, trio.current_time()
        scope.cancel()

    def _silence(self, silence_limit_s: float) -> str:
        return f"did not answer within {silence_limit_s:g} s{self._kept()}"

    def _kept(self) -> str:
        return ": what it had last stays" if self.contents.candidates else ""

    def _settle(self, began: float, fault: str | None) -> None:
        self.state = PlaceState(
            folders=self.contents.folders,
            models=len(self.contents.candidates),
            seconds=trio.current_time() - began,
            fault=fault,
        )


@define(eq=False, repr=False)
class Scanner:
    """The scanner of a router's model folders. It remembers the last good contents of each place.

    Args:
        headers: the memory of headers.
        environ: the variables of the environment, which tell where caches are.
        silence_limit_s: seconds in which the scan of a place has to come forward by a file.
    """

    _headers: HeaderMemory
    _environ: Mapping[str, str] = field(factory=lambda: os.environ)
    _surroundings: Surroundings | None = field(default=None, kw_only=True)
    _silence_limit_s: float = field(default=SILENCE_LIMIT_S, kw_only=True)
    _places: dict[str, _PlaceScan] = field(factory=dict, init=False)
    _crowd: set[Pace] = field(factory=set, init=False)
    _one_scan: trio.Lock = field(factory=trio.Lock, init=False)
    _assembling: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1), init=False)

    async def scan(
        self,
        requests: Sequence[ScanRequest],
        taken: Collection[str] = (),
        is_served: Callable[[FoundModel], bool] = lambda _: False,
    ) -> ScanResult:
        """Look through all places, and name what lies there. A second scan waits for the first.

        A place that hangs, or cannot be entered, keeps what it had last; its state says so. Cancellation returns at
        once, and changes nothing.

        Args:
            requests: the engines and their places, in the order of the configuration.
            taken: names and aliases that are no found model's.
            is_served: tells of which models the configuration has no need; see `name_models`.
        """
        async with self._one_scan:
            written = list(dict.fromkeys(place for request in requests for place in request.places))
            self._places = {
                place: self._places.get(place) or _PlaceScan(place, Pace(self._crowd)) for place in written
            }
            async with trio.open_nursery() as nursery:
                for place in self._places.values():
                    nursery.start_soon(place.scan, self._look, self._silence_limit_s)
            contents = {place: scan.contents for place, scan in self._places.items()}
            states = {place: scan.state for place, scan in self._places.items()}
            return await trio.to_thread.run_sync(
                _assemble,
                requests,
                functools.partial(name_models, taken=taken, is_served=is_served),
                contents,
                states,
                abandon_on_cancel=True,
                limiter=self._assembling,
            )

    async def has_changed(self) -> bool:
        """Tell whether folders look different than at the last scan. Cancellation returns at once."""
        for place in list(self._places.values()):
            if await place.has_changed(self._silence_limit_s):
                return True
        return False

    def _look(self, written: str, rest: Callable[[], None]) -> Contents:
        place = find_place(written, self._surroundings or Surroundings(self._environ))
        return contents_of(place, self._headers, rest)


def _assemble(
    requests: Sequence[ScanRequest],
    name: Callable[..., tuple[list[FoundModel], list[Skipped]]],
    contents: Mapping[str, Contents],
    states: Mapping[str, PlaceState],
) -> ScanResult:
    """Put together what all places hold: each model once for each engine that reads it."""
    wanted: list[Wanted] = []
    files: dict[object, str] = {}
    for request in requests:
        own: set[object] = set()
        for place in dict.fromkeys(request.places):
            for candidate in contents[place].candidates:
                file = candidate.identity or candidate.path
                if candidate.format in request.formats and file not in own:
                    own.add(file)
                    engine = files.setdefault(file, request.engine)
                    wanted.append(Wanted(request.engine, place, candidate, engine != request.engine))
    models, nameless = name(wanted[:MAX_FOUND_MODELS], rest=Pace().rest)
    if len(wanted) > MAX_FOUND_MODELS:
        more = len(wanted) - MAX_FOUND_MODELS
        reason = f"and {more} more models are not listed: no more than {MAX_FOUND_MODELS} are"
        nameless.append(Skipped(wanted[MAX_FOUND_MODELS].candidate.path, reason, is_fault=True))
    order = {request.engine: number for number, request in enumerate(requests)}
    models.sort(key=lambda model: (order[model.engine], model.name))
    skipped = dict.fromkeys(nameless)
    for held in contents.values():
        skipped.update(dict.fromkeys(held.skipped))
    listed = sorted(skipped, key=lambda each: (not each.is_fault, str(each.path), each.reason))
    if len(listed) > MAX_TOLD_SKIPPED:
        more = len(listed) - MAX_TOLD_SKIPPED + 1
        listed[MAX_TOLD_SKIPPED - 1 :] = [Skipped(listed[-1].path, f"and {more} more are passed over", False)]
    return ScanResult(models=tuple(models), skipped=tuple(listed), places=states)
