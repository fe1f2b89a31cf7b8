"""Scans of a router's model folders: the last one's result, and whoever waits for the next."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import trio
from attrs import define, field

from engine_router.models.rounds import Rounds
from engine_router.models.scan import ScanResult

# A request for an unknown model waits for a look no longer than this: a folder may hang.
ASK_TIMEOUT_S: Final = 10.0

NOTHING: Final = ScanResult(models=(), skipped=(), places={})


@define(eq=False, repr=False)
class FolderScans:
    """The scans of one router, done in rounds by a task of its own.

    Attributes:
        result: what the last scan found.
        at: when it began, in seconds since the epoch; None before the first.
        took_s: how long it took, in seconds.
        is_active: the configuration asks for scans.
        around: what is in force during a scan, which makes a great many objects: a program's own garbage collection.
        rounds: of the task that scans.
    """

    result: ScanResult = NOTHING
    at: float | None = None
    took_s: float | None = None
    is_active: bool = False
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    rounds: Rounds = field(factory=Rounds)

    def note(self, result: ScanResult, *, at: float, took_s: float) -> None:
        """Take in what a scan found."""
        self.result, self.at, self.took_s = result, at, took_s

    async def ask_if_due(self) -> bool:
        """Wait for a round as `Rounds.if_due` does, but no longer than `ASK_TIMEOUT_S`. Returns whether there was one."""
        if not self.is_active:
            return False
        with trio.move_on_after(ASK_TIMEOUT_S):
            return await self.rounds.if_due()
        return True  # it goes on, and may have found something
