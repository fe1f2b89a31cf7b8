"""Cancelling a task at every single one of its steps, to show that none of them leaves anything behind."""

from __future__ import annotations

from types import TracebackType
from typing import final

import trio


@final
class CancelAt(trio.abc.Instrument):
    """Cancels a scope at the n-th step of a task, or of a task below it.

    A step is what a task does between two checkpoints. For a sweep over all of them:

        for n in itertools.count(1):
            with CancelAt(n) as sweep, sweep.scope:
                await whatever_may_be_cancelled()
            ...  # nothing is left of it
            if not sweep.fired:
                break

    Args:
        n: the step, counted from 1.
        scope: what is cancelled; by default a new scope, which the caller enters.
        task: whose steps count, together with those of the tasks in its nurseries, and in theirs; by default
            the task that enters this context manager.
        after: cancel at the end of the step, when the task waits already, rather than at its beginning: then
            it is the wait that is cut off, and otherwise the work that follows it.

    Attributes:
        scope: what is cancelled.
        steps: how many steps were counted.
        fired: whether the n-th step came.
    """

    def __init__(
        self,
        n: int,
        scope: trio.CancelScope | None = None,
        task: trio.lowlevel.Task | None = None,
        *,
        after: bool = False,
    ) -> None:
        self._n = n
        self._task = task
        self._after = after
        self.scope = trio.CancelScope() if scope is None else scope
        self.steps = 0
        self.fired = False

    def __repr__(self) -> str:
        return f"<CancelAt {self._n}, {'fired' if self.fired else f'{self.steps} steps so far'}>"

    def __enter__(self) -> CancelAt:
        self._task = self._task or trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        trio.lowlevel.remove_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count a step that begins."""
        if not self._after:
            self._count(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count a step that is done."""
        if self._after:
            self._count(task)

    def _count(self, task: trio.lowlevel.Task) -> None:
        if self._is_below(task):
            self.steps += 1
            if self.steps == self._n:
                self.fired = True
                self.scope.cancel()

    def _is_below(self, task: trio.lowlevel.Task) -> bool:
        ancestor: trio.lowlevel.Task | None = task
        while ancestor is not None:
            if ancestor is self._task:
                return True
            nursery = ancestor.parent_nursery
            ancestor = nursery.parent_task if nursery is not None else None
        return False
