"""Jobs: work that outlives the request that began it, done in the router's own tasks."""

from __future__ import annotations

import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final, Literal

import trio
from attrs import define, field

from engine_router.errors import QueueFull, RouterClosing, RouterError
from engine_router.guards.limits import MOST_ENDED_JOBS, MOST_RUNNING_JOBS

logger = logging.getLogger(__name__)

# Seconds for which ended jobs are remembered.
REMEMBERED_S: Final = 3600.0

JobState = Literal["running", "done", "failed", "cancelled"]
OnLeave = Callable[[Callable[[], object]], object]
"""Takes what gives something back when a job, or the request that waits for it, ends."""

Work = Callable[[str, OnLeave], Awaitable[Mapping[str, Any]]]
"""The work of a job: takes its id, and what it tells what to give back at its end; returns its outcome."""


@define(eq=False, repr=False)
class Job:
    """One job, running or ended.

    Attributes:
        kind: what is done, such as `load`.
        subject: to what.
        began_at, ended_at: seconds since the epoch.
        result: its outcome, once it is done.
        error: why it failed.
        progress: returns how far it is, as plain data.
        ended: is set once it has ended.
    """

    id: str
    kind: str
    subject: str
    began_at: float
    state: JobState = "running"
    ended_at: float | None = None
    result: Mapping[str, Any] | None = None
    error: RouterError | None = None
    scope: trio.CancelScope = field(factory=trio.CancelScope, repr=False)
    progress: Callable[[], Mapping[str, Any]] | None = field(default=None, repr=False)
    ended: trio.Event = field(factory=trio.Event, repr=False)
    _followers: int = 0
    _is_kept: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the job as plain data, for JSON."""
        error = self.error
        return {
            "job": self.id,
            "kind": self.kind,
            "subject": self.subject,
            "state": self.state,
            "began_at": self.began_at,
            "ended_at": self.ended_at,
            "result": self.result,
            "error": None if error is None else {"message": str(error), "code": error.code},
            **({} if self.progress is None else {"progress": self.progress()}),
        }

    def keep(self) -> None:
        """Have it go on to its end, whoever follows it."""
        self._is_kept = True

    def follow(self, on_leave: OnLeave) -> None:
        """Have it cancelled once nobody follows it any more, unless it is kept.

        Args:
            on_leave: is told how the follower leaves.
        """
        self._followers += 1
        on_leave(self._leave)

    def _leave(self) -> None:
        self._followers -= 1
        if not self._followers and not self._is_kept:
            self.scope.cancel()


class Jobs:
    """The jobs of one router, those under way and those that have ended lately."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._nursery: trio.Nursery | None = None
        # What requests carry in their context is not for the tasks of jobs.
        self._context = contextvars.copy_context()
        self._jobs: dict[str, Job] = {}
        self._count = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do the jobs that are started; runs until cancelled, which ends them at once."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def running(self, kind: str, subject: str) -> Job | None:
        """Return the job of that kind that does something to a subject now; None where there is none."""
        jobs = (job for job in self._jobs.values() if (job.kind, job.subject) == (kind, subject))
        return next((job for job in jobs if job.state == "running" and not job.scope.cancel_called), None)

    def start(
        self, kind: str, subject: str, work: Work, progress: Callable[[], Mapping[str, Any]] | None = None
    ) -> Job:
        """Start a job and return it, still running.

        Args:
            progress: returns how far it is.

        Raises:
            QueueFull: too many are under way.
            RouterClosing: the router is going down.
        """
        if self._nursery is None:
            raise RouterClosing("the router is not running any more")
        self._forget()
        if sum(job.state == "running" for job in self._jobs.values()) >= MOST_RUNNING_JOBS:
            raise QueueFull(f"{MOST_RUNNING_JOBS} jobs are under way already", retry_after_s=1.0)
        self._count += 1
        job = Job(f"j{self._count}", kind, subject, self._wall_clock(), progress=progress)
        self._jobs[job.id] = job
        self._context.run(self._nursery.start_soon, self._do, job, work)
        return job

    def get(self, job_id: str) -> Job | None:
        """Return a job; None where there is none, or where it is forgotten."""
        self._forget()
        return self._jobs.get(job_id)

    def listed(self) -> list[Job]:
        """Return all that is remembered, the oldest first."""
        self._forget()
        return list(self._jobs.values())

    async def _do(self, job: Job, work: Work) -> None:
        result: Mapping[str, Any] | None = None
        error: RouterError | None = None
        try:
            with ExitStack() as stack, job.scope:
                result = await work(job.id, stack.callback)
        except RouterError as failure:
            error = failure
        except Exception as defect:
            logger.exception("job %s (%s %s) failed", job.id, job.kind, job.subject)
            error = RouterError(f"the router failed at this: {defect!r}")
        finally:
            job.ended_at = self._wall_clock()
            job.result, job.error = result, error
            job.state = "failed" if error is not None else "cancelled" if result is None else "done"
            job.ended.set()

    def _forget(self) -> None:
        """Forget what ended long ago, and the oldest of what would be too much."""
        ended = [job for job in self._jobs.values() if job.ended_at is not None]
        too_old = self._wall_clock() - REMEMBERED_S
        surplus = len(ended) - MOST_ENDED_JOBS
        for index, job in enumerate(ended):
            if index < surplus or (job.ended_at or 0.0) < too_old:
                del self._jobs[job.id]
