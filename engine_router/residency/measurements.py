"""Measurements that the router remembers between runs: memory and times of residents, models of engines.

Everything here is advice. What is resident is always asked of the engines, never read from this file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio
from attrs import define, field

from engine_router.config import Config
from engine_router.engines.base import ResidentId
from engine_router.guards.atomic_file import write_atomically
from engine_router.guards.numbers import amount
from engine_router.models.last_seen import SeenModels, seen_as_json, seen_from_json
from engine_router.residency.held_context import HeldContext
from engine_router.residency.speeds import Speeds

_VERSION = 1

# The largest number that is believed: seconds, or bytes of the largest memory.
_MOST = 1e15

# Where nobody knows how much has to come free, sleep has to bring back this part of what a start took.
SLEEP_SHARE = 0.75


@define
class Footprint:
    """The measured memory of one resident. None: not yet.

    Attributes:
        footprint_bytes: memory that its last start took.
        release_ratio: part of that which came back after its stop, by the gauge (1.0: all of it).
        sleep_freed_bytes: memory that came back when it fell asleep the last time.
    """

    footprint_bytes: int | None = None
    release_ratio: float | None = None
    sleep_freed_bytes: int | None = None

    @property
    def asleep_bytes(self) -> int | None:
        """The memory that it still has while it sleeps; None where that was not measured."""
        if self.footprint_bytes is None or self.sleep_freed_bytes is None:
            return None
        return max(0, self.footprint_bytes - self.sleep_freed_bytes)

    def frees_asleep(self, wanted_bytes: float) -> bool:
        """Tell whether so much came back when it fell asleep; True as long as that is not known."""
        return self.sleep_freed_bytes is None or self.sleep_freed_bytes >= wanted_bytes


@define
class Measurement(Footprint):
    """The measurements of one resident. None: not yet.

    Attributes:
        shares: those of each pool, where it lies across several; its own are the sums then.
        start_s: seconds that its last start took.
        stop_s: seconds that its last stop took.
        settle_s: seconds that its memory took to come back.
        wake_s: seconds that its last wake took.
    """

    start_s: float | None = None
    stop_s: float | None = None
    settle_s: float | None = None
    wake_s: float | None = None
    shares: dict[str, Footprint] = field(factory=dict)

    def share(self, pool: str, pools: Collection[str]) -> Footprint:
        """Return the measured memory in one of a resident's pools, to be read or changed."""
        return self if len(pools) < 2 else self.shares.setdefault(pool, Footprint())

    def within(self, pool: str) -> Footprint:
        """Return the measured memory in one of its pools, to be read."""
        return self.shares.get(pool, self)

    def add_up(self, pools: Collection[str]) -> None:
        """Make its own figures the sums of those of its pools, where it lies across several.

        Those of pools in which it does not lie any more are forgotten.
        """
        kept = set(pools) if len(pools) > 1 else set()
        self.shares = {pool: part for pool, part in self.shares.items() if pool in kept}
        if len(pools) > 1:
            parts = [self.share(pool, pools) for pool in pools]
            self.footprint_bytes = _sum(part.footprint_bytes for part in parts)
            self.sleep_freed_bytes = _sum(part.sleep_freed_bytes for part in parts)

    def needs(self, pools: Collection[str]) -> dict[str, int] | None:
        """Return what a start took of each of several pools; None where that is not known of all."""
        sizes = {pool: part.footprint_bytes for pool, part in self.shares.items() if part.footprint_bytes}
        return {pool: sizes[pool] for pool in pools} if sizes.keys() >= set(pools) else None

    def prefers_sleep(
        self,
        missing: Mapping[str, float] | None = None,
        *,
        cache_s: float = 0.0,
        rest_s: float | None = None,
    ) -> bool:
        """Tell whether it should sleep rather than be stopped: that costs less time in the end.

        A stop costs its start, and the reading of what its cache holds; sleep costs its wake, and, where it does not
        free enough, the time to make the rest free. True as well as long as it never slept: only a try can tell.

        Args:
            missing: the bytes that have to come free in each of its pools; None for nearly all that it took.
            cache_s: seconds of reading that its cache has saved lately, where that survives sleep and no stop.
            rest_s: seconds that it costs to make free what sleep does not; as much as its own start when absent.
        """
        stop_s = None if self.start_s is None else self.start_s + cache_s
        if self.wake_s is not None and stop_s is not None and self.wake_s >= stop_s:
            return False
        if self._is_enough_asleep(missing):
            return True
        if stop_s is None or self.start_s is None:
            return False
        return (self.wake_s or 0.0) + (self.start_s if rest_s is None else rest_s) < stop_s

    def _is_enough_asleep(self, missing: Mapping[str, float] | None) -> bool:
        if missing is None:
            return self.frees_asleep((self.footprint_bytes or 0) * SLEEP_SHARE)
        parts = ((self.shares.get(pool, self), size_bytes) for pool, size_bytes in missing.items())
        return all(part.frees_asleep(size_bytes) for part, size_bytes in parts)


@define(eq=False, repr=False)
class Measurements:
    """The router's memory.

    Attributes:
        residents: measurements by the resident's name (`engine` or `engine/model`).
        models: by engine, the list that it gave when it last ran.
        speeds: how fast models read and write.
        held_context: what residents hold of conversations; not remembered between runs.
        newer_version: the version of a file that this program cannot read, and must not replace.
    """

    residents: dict[str, Measurement] = field(factory=dict)
    models: dict[str, SeenModels] = field(factory=dict)
    speeds: Speeds = field(factory=Speeds)
    held_context: HeldContext = field(init=False)
    changed: bool = False
    newer_version: int | None = None

    def __attrs_post_init__(self) -> None:
        self.held_context = HeldContext(self.speeds)

    def of(self, resident: ResidentId) -> Measurement:
        """Return the measurements of a resident, to be read or changed."""
        name = str(resident)
        if (found := self.residents.get(name)) is None:
            found = self.residents[name] = Measurement()
        return found

    def touch(self) -> None:
        """Note that something changed, so that it is written."""
        self.changed = True

    def set_models(self, engine: str, seen: SeenModels) -> None:
        """Remember what an engine listed."""
        before, self.models[engine] = self.models.get(engine), seen
        if seen.is_news(before):
            self.touch()

    def set_silent(self, engine: str) -> None:
        """Note that an engine did not list anything when it was asked last."""
        if (seen := self.models.get(engine)) is not None and seen.is_live:
            self.models[engine] = attrs.evolve(seen, is_live=False)
            self.touch()

    def forget_models(self, now: float) -> list[str]:
        """Forget the lists that are too old. Returns whose they were.

        Args:
            now: seconds since the epoch.
        """
        old = [engine for engine, seen in self.models.items() if seen.is_old(now)]
        for engine in old:
            del self.models[engine]
            self.touch()
        return old

    def to_json(self) -> str:
        """Return the state as the text of its file."""
        residents = {name: _entry(measured) for name, measured in self.residents.items()}
        speeds = {"speeds": self.speeds.to_json()}
        return json.dumps(
            {"version": _VERSION, "residents": residents, **seen_as_json(self.models), **speeds}, indent=1
        )

    @classmethod
    def from_json(cls, text: str) -> Measurements:
        """Read the text of a state file. What is not understood is left out: it will be measured again."""
        try:
            data: Any = json.loads(text)
            version = data["version"]
            if type(version) is int and version > _VERSION:
                return cls(newer_version=version)
            entries = data["residents"] if version == _VERSION else {}
            state = cls(speeds=Speeds.from_json(data.get("speeds")))
            for name, values in entries.items():
                state.residents[str(name)] = _measured(values)
            state.models = seen_from_json(data["models"], data.get("seen"), time.time())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls()
        return state


def _sum(sizes: Iterable[int | None]) -> int | None:
    known = list(sizes)
    return None if None in known else sum(filter(None, known))


def _entry(measured: Measurement) -> dict[str, object]:
    entry = attrs.asdict(measured)
    if not measured.shares:
        del entry["shares"]
    return entry


def _measured(values: dict[str, Any]) -> Measurement:
    memory = _footprint(values)
    return Measurement(
        memory.footprint_bytes,
        memory.release_ratio,
        memory.sleep_freed_bytes,
        start_s=amount(values.get("start_s"), _MOST),
        stop_s=amount(values.get("stop_s"), _MOST),
        settle_s=amount(values.get("settle_s"), _MOST),
        wake_s=amount(values.get("wake_s"), _MOST),
        shares={str(pool): _footprint(share) for pool, share in values.get("shares", {}).items()},
    )


def _footprint(values: dict[str, Any]) -> Footprint:
    return Footprint(
        footprint_bytes=_size(values.get("footprint_bytes")),
        release_ratio=amount(values.get("release_ratio"), 1.0),
        sleep_freed_bytes=_size(values.get("sleep_freed_bytes")),
    )


def _size(value: object) -> int | None:
    number = amount(value, _MOST)
    return None if number is None else int(number)


def state_file_of(config: Config) -> Path:
    """Return the state file of a configuration."""
    return default_state_file() if config.state_file is None else Path(config.state_file)


def default_state_file() -> Path:
    """Return the state file's place in the platform's state folder."""
    import platformdirs  # noqa: PLC0415 - not needed where a file is named, and slow to import

    return platformdirs.user_state_path("engine-router", appauthor=False) / "state.json"


def read_state(path: Path) -> Measurements:
    """Read a state file; an absent or damaged one is an empty state."""
    try:
        return Measurements.from_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return Measurements()


async def save_state(state: Measurements, path: Path) -> None:
    """Write the state if it changed. The write happens in a thread; cancellation waits for it (milliseconds).

    Raises:
        OSError: it cannot be written.
    """
    if state.changed or state.speeds.has_news:
        state.changed = False
        try:
            await trio.to_thread.run_sync(write_atomically, path, state.to_json())
        except BaseException:
            state.changed = True  # nothing was written: the next call tries again
            raise
