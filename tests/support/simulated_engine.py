"""An engine that exists only in the program: for tests of residency under a virtual clock.

It does what a real one does to a router: it takes its time, fails, dies and refuses to go. It objects to what a router
must never do, as `SimulatedMemory` does: a second start of what runs, an end for what never ran.

    memory = SimulatedMemory()
    engine = SimulatedEngine("a", memory, start_s=20.0)
    engine.scripts.append(Script("fail"))  # its next start
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Literal

import trio
from attrs import define, field, frozen

from engine_router.engines.base import Ended, Endpoint, EngineLogs, ResidentId, Supervision
from engine_router.engines.first_of import first_of
from engine_router.errors import EngineStartFailed, EngineStartTimeout, EngineStopFailed, EngineUnreachable
from support.simulated_memory import GIB, SimulatedMemory


@frozen
class Script:
    """The course of one start, and what comes of it.

    Attributes:
        start: "ok"; "fail" (refused, nothing was taken); "exit" (ends by itself); "hang" (never ready);
            "crash" (a defect: an exception that no engine should raise, with the resident left running).
        after_s: when it fails or exits, in seconds after the start began.
        die_after_s: seconds from readiness to its sudden end.
        stop_failures: how many stops fail before one works.
        stop_crashes: how many stops raise an exception that no engine should raise.
    """

    start: Literal["ok", "fail", "exit", "hang", "crash"] = "ok"
    after_s: float = 0.0
    die_after_s: float = math.inf
    stop_failures: int = 0
    stop_crashes: int = 0


@frozen
class EngineAction:
    """An entry in an engine's record of what it did.

    Attributes:
        at: the virtual clock, in seconds.
        what: "start", "adopt", "ready", "stop" (it was told to end) or "end" (it is gone).
    """

    at: float
    what: Literal["start", "adopt", "ready", "stop", "end"]
    resident: ResidentId

    def __str__(self) -> str:
        return f"{self.what} {self.resident}"


@define(eq=False)
class _Process:
    """A resident that runs."""

    script: Script
    stop_failures: int
    stop_crashes: int
    gone: trio.Event = field(factory=trio.Event)


@define(eq=False)
class SimulatedEngine:
    """An engine whose residents are entries in a dict.

    Attributes:
        name: its name in the configuration.
        memory: what its residents take memory from.
        start_s: seconds from a start to readiness.
        stop_s: seconds from the request to end to the end, or to the failure to end.
        start_timeout_s: seconds after which a start that hangs is given up.
        size_bytes: what one resident takes, from the beginning of its start.
        by_model: each model is a resident of its own.
        scripts: how the next starts go; "ok" where there are no more.
        find_error: what is wrong with every look for what runs already; None for nothing.
        find_s: seconds that such a look takes.
        check_error: what its health checks find wrong; None for nothing.
        check_s: seconds that one takes.
        start_obstacle: why a start would be in vain, by a look at it; None for nothing.
        looks: how often that was asked.
        actions: everything it did, oldest first.
        shared_actions: where the same goes too, to see the order among several engines.
    """

    name: str
    memory: SimulatedMemory
    start_s: float = 10.0
    stop_s: float = 1.0
    start_timeout_s: float = 600.0
    size_bytes: int = 40 * GIB
    by_model: bool = False
    scripts: deque[Script] = field(factory=deque)
    find_error: Exception | None = None
    find_s: float = 0.0
    check_error: str | None = None
    check_s: float = 0.0
    start_obstacle: str | None = None
    looks: int = 0
    actions: list[EngineAction] = field(factory=list)
    shared_actions: list[EngineAction] = field(factory=list)
    logs: EngineLogs = field(factory=EngineLogs)
    _running: dict[ResidentId, _Process] = field(factory=dict)
    _known: set[ResidentId] = field(factory=set)

    # What tests do to it.

    def run_already(self, model: str | None = None, script: Script | None = None) -> ResidentId:
        """Let a resident run that someone else started; `find` names it."""
        resident = ResidentId(self.name, model)
        script = script or Script()
        self._known.add(resident)
        self._running[resident] = _Process(script, script.stop_failures, script.stop_crashes)
        self.memory.held[resident] = self.size_bytes
        return resident

    def kill(self, resident: ResidentId) -> None:
        """End a resident from outside. What lives with it notices at once."""
        self._vanish(resident)

    def count(self, what: str) -> int:
        """Return how often it did something: "start", "adopt", "ready", "stop" or "end"."""
        return sum(action.what == what for action in self.actions)

    def is_running(self, resident: ResidentId) -> bool:
        """Tell whether a resident runs, ready or not."""
        return resident in self._running

    # What the supervisor does to it.

    def resident_of(self, model: str) -> ResidentId:
        """Return the resident that serves a model."""
        return ResidentId(self.name, model if self.by_model else None)

    def command(self, resident: ResidentId) -> None:
        """Return no command: none starts it."""

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        """Lead one resident through its life.

        Raises:
            EngineStartFailed: as scripted.
            EngineStopFailed: as scripted.
            RuntimeError: as scripted.
            AssertionError: misuse.

        Cancellation kills what it started, and leaves running what it adopted.
        """
        process = self._adopt(resident) if adopt else self._start(resident)
        if process is None:
            await trio.lowlevel.checkpoint()
            return Ended(stopped=False, message="is not running any more")
        try:
            return await self._lead(resident, process, supervision, adopt=adopt)
        finally:
            # Not `except trio.Cancelled`: that may come in a group.
            if not adopt and trio.current_effective_deadline() == -math.inf:
                self._vanish(resident)

    async def find(self) -> Sequence[ResidentId]:
        """Return what runs.

        Raises:
            Exception: `find_error`, where it is set.
        """
        await trio.sleep(self.find_s)
        if self.find_error is not None:
            raise self.find_error
        return tuple(self._running)

    async def check(self, resident: ResidentId, *, used: bool = False) -> str | None:
        """Return what is wrong with a resident."""
        await trio.sleep(self.check_s)
        return self.check_error if resident in self._running else "does not run"

    async def obstacle(self, resident: ResidentId) -> str | None:
        """Return why a start would be in vain."""
        self.looks += 1
        await trio.sleep(self.check_s)
        return self.start_obstacle

    async def list_models(self) -> Sequence[str] | None:
        """Return the models that run; None when nothing does.

        Raises:
            EngineUnreachable: `find_error` is set.
        """
        await trio.lowlevel.checkpoint()
        if self.find_error is not None:
            raise EngineUnreachable(self.name, "cannot be asked") from self.find_error
        return [resident.model or self.name for resident in self._running] or None

    # How it does it.

    def _start(self, resident: ResidentId) -> _Process:
        self._note("start", resident)
        if resident in self._running:
            self.memory.object(f"{resident} is started, though it runs")
        script = self.scripts.popleft() if self.scripts else Script()
        process = _Process(script, script.stop_failures, script.stop_crashes)
        if script.start != "fail":
            self.memory.take(resident, self.size_bytes)
        else:
            self.memory.held[resident] = 0
        self._known.add(resident)
        self._running[resident] = process
        return process

    def _adopt(self, resident: ResidentId) -> _Process | None:
        self._note("adopt", resident)
        if resident not in self._known:
            self.memory.object(f"{resident} is taken over, though it never ran")
        return self._running.get(resident)

    async def _lead(
        self, resident: ResidentId, process: _Process, supervision: Supervision, *, adopt: bool
    ) -> Ended:
        failure = None if adopt else await self._until_ready(process, supervision)
        if process.gone.is_set():
            return Ended(stopped=supervision.stop_asked.is_set(), message="was killed")
        if failure is not None:
            if supervision.stop_asked.is_set() or process.script.start == "hang":
                await self._end(resident, process)
            else:
                self._vanish(resident)
            raise failure
        if not supervision.stop_asked.is_set():
            self._note("ready", resident)
            supervision.ready(Endpoint(f"http://{self.name}:{len(self.actions)}"))
            with trio.move_on_after(process.script.die_after_s) as lifetime:
                await first_of(stop=supervision.stop_asked.wait, gone=process.gone.wait)
            if lifetime.cancelled_caught:
                self._vanish(resident)
            if process.gone.is_set():
                return Ended(stopped=False, message="exited with code 9", log_tail=("the last line",))
        await self._end(resident, process)
        return Ended(stopped=True, message="ended")

    async def _until_ready(self, process: _Process, supervision: Supervision) -> EngineStartFailed | None:
        """Wait until the start is over, well or not, or a stop is asked for."""
        script = process.script
        durations = {"ok": self.start_s, "hang": self.start_timeout_s}
        with trio.move_on_after(durations.get(script.start, script.after_s)):
            await first_of(stop=supervision.stop_asked.wait, gone=process.gone.wait)
            return None
        if script.start == "crash":
            raise RuntimeError("a defect of the engine")
        if script.start == "hang":
            return EngineStartTimeout(self.name, f"was not ready within {self.start_timeout_s:g} s")
        if script.start == "ok":
            return None
        how = "refused to load" if script.start == "fail" else "exited with code 1 during its start"
        return EngineStartFailed(self.name, how, log_tail=("bad flag",))

    async def _end(self, resident: ResidentId, process: _Process) -> None:
        self._note("stop", resident)
        with trio.move_on_after(self.stop_s):
            await process.gone.wait()
            return
        if process.stop_crashes > 0:
            process.stop_crashes -= 1
            raise RuntimeError("a defect in the engine's stop")
        if process.stop_failures > 0:
            process.stop_failures -= 1
            raise EngineStopFailed(self.name, f"is still there after {self.stop_s:g} s")
        self._vanish(resident)

    def _vanish(self, resident: ResidentId) -> None:
        process = self._running.pop(resident, None)
        if process is not None:
            self.memory.free(resident)
            self._note("end", resident)
            process.gone.set()

    def _note(self, what: Literal["start", "adopt", "ready", "stop", "end"], resident: ResidentId) -> None:
        action = EngineAction(trio.current_time(), what, resident)
        self.actions.append(action)
        if self.shared_actions is not self.actions:
            self.shared_actions.append(action)
        self.logs.engine.write(str(action))
