"""Memory of several pools from which one simulated engine takes at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

from attrs import define

from engine_router.engines.base import ResidentId
from support.simulated_memory import SimulatedMemory


@define(eq=False)
class SpreadMemory(SimulatedMemory):
    """The memories that a resident lies across, with what it takes of each."""

    parts: Mapping[SimulatedMemory, int] = {}

    def __attrs_post_init__(self) -> None:
        self.held = _Everywhere(self.parts)  # type: ignore[assignment]

    def take(self, resident: ResidentId, size_bytes: int) -> None:
        for memory, share in self.parts.items():
            memory.take(resident, share)

    def free(self, resident: ResidentId) -> None:
        for memory in self.parts:
            memory.free(resident)

    def object(self, what: str) -> None:
        next(iter(self.parts)).object(what)


class _Everywhere(MutableMapping[ResidentId, int]):
    """What residents hold of all parts."""

    def __init__(self, parts: Mapping[SimulatedMemory, int]) -> None:
        self._parts = parts

    def __getitem__(self, resident: ResidentId) -> int:
        return sum(memory.held[resident] for memory in self._parts)

    def __setitem__(self, resident: ResidentId, size_bytes: int) -> None:
        for memory, share in self._parts.items():
            memory.held[resident] = share if size_bytes else 0

    def __delitem__(self, resident: ResidentId) -> None:
        for memory in self._parts:
            del memory.held[resident]

    def __iter__(self) -> Iterator[ResidentId]:
        return iter(next(iter(self._parts)).held)

    def __len__(self) -> int:
        return len(next(iter(self._parts)).held)
