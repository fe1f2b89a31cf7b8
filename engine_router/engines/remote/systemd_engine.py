"""Engines of type `systemd`: a unit that systemd runs, `Restart=always` included.

A unit is started and stopped as a unit: a signal to its process would only make systemd start another.
The commands, which a sudoers rule for `prefix = ["sudo", "-n"]` has to allow, are

    systemctl [--user] --no-ask-password start --no-block -- UNIT
    systemctl [--user] --no-ask-password stop --no-block -- UNIT
    systemctl [--user] --no-ask-password show -p PROPERTIES -- UNIT
    journalctl [--user] -u UNIT -n 15 -o cat --no-pager

`--no-block`, because a command that waits for the unit could not be cancelled behind sudo; the router looks
for itself what becomes of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
from attrs import frozen

from engine_router.config import SystemdConfig
from engine_router.engines.backoff import Backoff
from engine_router.engines.base import DOUBT_S, Ended, Endpoint, ResidentId, Supervision
from engine_router.engines.readiness import Check, ReadinessProbe
from engine_router.engines.remote.lifecycle import LOG_TAIL_LINES, run_lifecycle
from engine_router.engines.remote.remote_engine import RemoteEngine
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.engines.sleep.resident_sleep import EngineSleep
from engine_router.engines.warm_up import warm_up
from engine_router.errors import EngineError, EngineStartFailed, EngineStopFailed, EngineUnreachable
from engine_router.guards.commands import CommandResult, run_command
from engine_router.upstream.control_client import ControlClient

WATCH_INTERVAL_S = 0.25
"""Seconds between two looks at a unit that is starting."""

REVIVE_S = DOUBT_S
"""Seconds that a doubted unit is given to show that it is well, or was restarted and is ready again."""

ALLOWED_EXITS = 2
"""A unit that has exited this often during its start is given up; systemd's own retries could go on for ever."""

COMMAND_TIMEOUT_S = 10.0
"""Longest wait for one command, in seconds."""

_PROPERTIES = "LoadState,ActiveState,SubState,MainPID,Result,ExecMainStatus,NRestarts,Job"
# What systemctl says, with any exit status, where there is no such unit, and where nobody answers it.
_UNKNOWN_UNIT = ("not found", "not loaded", "does not exist")
_CHECK_UNIT = "check the name in `unit`, and its `scope`"
_NO_BUS = ("connect to bus", "connect to user", "XDG_RUNTIME_DIR", "No medium found", "not been booted")
_AT_REST = frozenset({"inactive", "failed"})


@frozen
class UnitState:
    """The state of a unit, as `systemctl show` tells it.

    Attributes:
        load: `loaded`, `not-found`, `masked`, ...
        active: `active`, `activating`, `deactivating`, `inactive`, `failed`, ...
        sub: finer, such as `running` or `auto-restart`.
        pid: of its main process; 0 when there is none.
        restarts: how often systemd has restarted it by itself since it was started.
        job: whether a start or stop of it is queued.
        result: how it ended last, such as `success` or `exit-code`.
        exit_status: of its main process when it ended last.
    """

    load: str
    active: str
    sub: str
    pid: int
    restarts: int
    job: bool
    result: str
    exit_status: str

    @classmethod
    def parse(cls, text: str) -> UnitState:
        """Read `KEY=value` lines.

        Raises:
            ValueError: there is no ActiveState among them.
        """
        pairs = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        if not pairs.get("ActiveState"):
            raise ValueError("no ActiveState")
        return cls(
            load=pairs.get("LoadState", "loaded"),
            active=pairs["ActiveState"],
            sub=pairs.get("SubState", ""),
            pid=int(pairs.get("MainPID") or 0),
            restarts=int(pairs.get("NRestarts") or 0),
            job=pairs.get("Job", "") not in ("", "0"),
            result=pairs.get("Result", ""),
            exit_status=pairs.get("ExecMainStatus", ""),
        )

    @property
    def at_rest(self) -> bool:
        """True where it neither runs nor is about to."""
        return self.active in _AT_REST and self.pid == 0 and not self.job

    @property
    def restarting(self) -> bool:
        """True where its process has exited and systemd waits to start it again."""
        return self.sub.startswith("auto-restart")

    def __str__(self) -> str:
        ending = f", result {self.result}, exit status {self.exit_status}" if self.result != "success" else ""
        return f"{self.active} ({self.sub}{ending})"


class SystemdEngine(RemoteEngine[SystemdConfig]):
    """A unit of systemd; implements `engines.base.Engine`.

    The unit is the resident, whichever model it serves.
    """

    def __init__(
        self,
        name: str,
        config: SystemdConfig,
        client: ControlClient,
        *,
        sleep_registry: SleepRegistry | None = None,
    ) -> None:
        super().__init__(name, config, client)
        self.sleep = EngineSleep(name, config.sleep, sleep_registry or SleepRegistry(), self.logs.of)
        self.probe = ReadinessProbe(
            client, config.base_url + config.ready_path, Check(config.ready_check), config.headers
        )

    def __repr__(self) -> str:
        return f"<SystemdEngine {self.name}: {self.config.unit}>"

    def resident_of(self, model: str) -> ResidentId:  # noqa: ARG002 - it serves them all
        """Return the unit: the resident of all its models."""
        return ResidentId(self.name)

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        """Start the unit, stay with it, stop it; see `Engine.run_resident`.

        A unit that systemd restarted while it was in use, and that is not ready again within 2 s of the
        doubt, has died: it is stopped, so that systemd does not load its model behind the router's back.

        Cancellation leaves the unit as it is: it is systemd's.
        """
        return await run_lifecycle(
            _Unit(self), supervision, adopt=adopt, sleep=self.sleep.of(resident, self.server)
        )

    async def check(self, resident: ResidentId, *, used: bool = False) -> str | None:  # noqa: ARG002 - there is one
        """Look whether the unit runs, and ask it again what was asked before it was ready; see `Engine.check`.

        Raises:
            EngineUnreachable: systemd cannot be asked.
        """
        state = await self.state()
        if state.at_rest:
            return f"is down: {self.config.unit} is {state}"
        return await self.probe.look()

    async def obstacle(self, resident: ResidentId) -> str | None:  # noqa: ARG002 - there is one
        """Say so where systemd cannot be asked, or knows no such unit; see `Engine.obstacle`."""
        try:
            state = await self.state()
        except EngineUnreachable as error:
            return error.summary
        if state.load in ("not-found", "masked", "bad-setting", "error"):
            return f"cannot be started: systemd says that {self.config.unit} is {state.load}; {_CHECK_UNIT}"
        return None

    async def find(self) -> Sequence[ResidentId]:
        """Return the unit unless it is at rest, or sleeps: then it holds little, and is woken when it is needed.

        Its probe is not asked: a unit that is starting, or broken, holds memory as well. `run_resident` with `adopt`
        waits for its readiness.

        Raises:
            EngineUnreachable: systemd cannot be asked.
        """
        state = await self.state()
        if state.at_rest or await self.sleep.is_asleep(self.server):
            return []
        return [ResidentId(self.name)]

    async def systemctl(self, verb: str, *options: str) -> CommandResult:
        """Run one systemctl command about the unit, at most 10 s long.

        Cancellation kills the command.
        """
        scope = ["--user"] if self.config.scope == "user" else []
        argv = ["systemctl", *scope, "--no-ask-password", verb, *options, "--", self.config.unit]
        return await run_command([*(self.config.prefix or ()), *argv], timeout_s=COMMAND_TIMEOUT_S)

    async def state(self) -> UnitState:
        """Ask systemd for the unit's state.

        Raises:
            EngineUnreachable: it cannot be told.
        """
        done = await self.systemctl("show", "-p", _PROPERTIES)
        fault = done.complaint
        if done.code == 0:
            try:
                return UnitState.parse(done.output)
            except ValueError as error:
                fault = f"its answer cannot be understood ({error})"
        raise EngineUnreachable(
            self.name, f"cannot be looked at: systemctl show {self.config.unit}: {fault}; {self.remedy(done)}"
        )

    def remedy(self, done: CommandResult) -> str:
        """Say what to do about a command that failed."""
        if done.code is None and "not found" in done.complaint:
            return 'install systemd, or use an engine of type "process"'
        if any(words in done.complaint for words in _UNKNOWN_UNIT):
            which = " --user" if self.config.scope == "user" else ""
            return f"check the name in `unit` (systemctl{which} list-unit-files shows those that exist) and its `scope`"
        if self.config.scope == "user" and any(words in done.complaint for words in _NO_BUS):
            return "check that this user's systemd runs (loginctl enable-linger keeps it running without a login)"
        return 'check that the router may do that; a prefix such as ["sudo", "-n"] may be needed'

    async def journal(self) -> tuple[str, ...]:
        """Return the unit's last journal lines; none where they cannot be had."""
        scope = ["--user"] if self.config.scope == "user" else []
        lines = str(LOG_TAIL_LINES)
        argv = ["journalctl", *scope, "-u", self.config.unit, "-n", lines, "-o", "cat", "--no-pager"]
        done = await run_command([*(self.config.prefix or ()), *argv], timeout_s=COMMAND_TIMEOUT_S)
        return tuple(done.output.splitlines()[-LOG_TAIL_LINES:]) if done.code == 0 else ()


class _Unit:
    """The lifecycle of the unit; the steps are described at `RemoteLifecycle`."""

    def __init__(self, engine: SystemdEngine) -> None:
        self.name, self.config, self.log = engine.name, engine.config, engine.log
        self.engine = engine
        self.unit = engine.config.unit
        self.began = False
        self._pid = 0
        self._seen: list[str] = []

    @property
    def obstacle(self) -> str:
        return "; ".join(self._seen)

    async def start(self) -> Endpoint:
        self.began = True  # also where this is cancelled: the command may have been heard
        self.log.write(f"starting {self.unit}")
        done = await self.engine.systemctl("start", "--no-block")
        if done.code != 0:
            self.began = await self._is_there()
            raise EngineStartFailed(
                self.name,
                f"could not be started: systemctl start {self.unit}: {done.complaint}; {self.engine.remedy(done)}",
            )
        endpoint = await self._until_ready()
        await warm_up(self.engine.server, self.config.warm_up, next(iter(self.config.models), ""), self._seen)
        return endpoint

    async def adopt(self) -> Endpoint | Ended:
        self.began = True
        state = await self.engine.state()
        if state.at_rest:
            return Ended(stopped=False, message=f"is down: {self.unit} is {state}")
        return await self._until_ready()

    async def _is_there(self) -> bool:
        """Tell whether the unit is known to be there, and so to hold memory, though it could not be started."""
        try:
            return not (await self._look()).at_rest
        except EngineError:
            return False  # nobody knows: that must not hold up others

    async def gone(self) -> str | None:
        try:
            reason = await self._look_again()
        except EngineError as error:
            self.log.write(error.summary)
            return None
        if reason is not None:
            await self.end(aborted=False)
        return reason

    async def end(self, *, aborted: bool) -> str:  # noqa: ARG002 - systemd knows all that belongs to the unit
        timeout_s = self.config.stop_timeout_s
        self.log.write(f"stopping {self.unit}")
        with trio.move_on_after(timeout_s):
            state = await self._until_at_rest()
            self.log.write(f"{self.unit} is {state}")
            return f"{self.unit} is {state.active}"
        raise EngineStopFailed(
            self.name,
            f"did not stop within {timeout_s:g} s (stop_timeout_s in engines.toml): "
            f"{self.obstacle or 'systemd is silent'}; compare it with the unit's TimeoutStopSec",
        )

    async def _until_ready(self) -> Endpoint:
        """Wait until the unit is active and its probe passes, or until it fails.

        Both are asked: something else may answer at its address while the unit itself cannot start.
        """
        backoff = Backoff()
        first, looked_at = await self._look(), trio.current_time()
        state = first
        while True:
            obstacle = await self.engine.probe.ask()
            if obstacle is None or trio.current_time() - looked_at >= WATCH_INTERVAL_S:
                state, looked_at = await self._look(), trio.current_time()
                await self._raise_if_in_vain(state, since=first)
            if obstacle is None and state.active == "active":
                self._pid = state.pid
                self.log.write(f"{self.unit} is ready")
                return Endpoint(self.config.base_url, self._pid or None)
            self._seen = [f"{self.unit} is {state}", f"its probe: {obstacle or 'ready'}"]
            await backoff.pause()

    async def _raise_if_in_vain(self, state: UnitState, *, since: UnitState) -> None:
        """Raise as soon as waiting for the unit is in vain.

        Raises:
            EngineStartFailed: it is at rest again, or exits again and again.
        """
        exits = state.restarts - since.restarts + state.restarting
        if not state.at_rest and exits < ALLOWED_EXITS:
            return
        how = f"exited {exits} times" if exits >= ALLOWED_EXITS else "ended"
        raise EngineStartFailed(
            self.name,
            f"{how} during its start: {self.unit} is {state}",
            log_tail=await self.engine.journal(),
        )

    async def _look(self) -> UnitState:
        state = await self.engine.state()
        self._seen = [f"{self.unit} is {state}"]
        return state

    async def _look_again(self) -> str | None:
        """Give a doubted unit a moment to show that it serves; return what has become of it otherwise."""
        backoff = Backoff()
        deadline = trio.current_time() + REVIVE_S
        while True:
            state = await self._look()
            if state.at_rest:
                return f"is down: {self.unit} is {state}"
            ready = await self.engine.probe.ask() is None
            if ready and state.active == "active":
                self._pid = state.pid
                return None
            if trio.current_time() >= deadline:
                break
            await backoff.pause()
        if state.active == "active" and state.pid == self._pid:
            return None  # busy or hung: it is there, and holds its memory
        return f"was restarted by systemd and is not ready again: {self.unit} is {state}"

    async def _until_at_rest(self) -> UnitState:
        backoff = Backoff()
        done = await self.engine.systemctl("stop", "--no-block")
        while True:
            try:
                state = await self._look()
            except EngineError as error:
                if done.code != 0:  # nobody hears it, and to wait would not help
                    raise EngineStopFailed(self.name, f"cannot be controlled: it {error.summary}") from error
                self._seen = [error.summary]
            else:
                if state.at_rest:
                    return state
                if done.code != 0 and not state.job and state.active != "deactivating":
                    raise EngineStopFailed(
                        self.name,
                        f"could not be stopped: systemctl stop {self.unit}: {done.complaint}; {self.engine.remedy(done)}",
                    )
            await backoff.pause()
