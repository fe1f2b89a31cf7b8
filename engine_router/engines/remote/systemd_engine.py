"""Engines of type `systemd`: a unit that systemd runs, `Restart=always` included.

A unit is started and stopped as a unit: a signal to its process would only make systemd start another.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from engine_router.config import SystemdConfig, is_template
from engine_router.config.template import TemplateModels
from engine_router.engines.backoff import Backoff
from engine_router.engines.base import DOUBT_S, Ended, Endpoint, ResidentId, Supervision
from engine_router.engines.readiness import Check, ReadinessProbe
from engine_router.engines.remote.lifecycle import ended_after_doubt, run_lifecycle
from engine_router.engines.remote.remote_engine import RemoteEngine
from engine_router.engines.remote.systemctl import Systemctl
from engine_router.engines.remote.unit_files import UnitFiles
from engine_router.engines.remote.unit_state import UnitState
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.engines.sleep.resident_sleep import EngineSleep
from engine_router.engines.warm_up import warm_up
from engine_router.errors import EngineError, EngineStartFailed, EngineStopFailed, EngineUnreachable
from engine_router.upstream.control_client import ControlClient

WATCH_INTERVAL_S = 0.25
"""Seconds between two looks at a unit that is starting."""

REVIVE_S = DOUBT_S
"""Seconds that a doubted unit is given to show that it is well, or was restarted and is ready again."""

ALLOWED_EXITS = 2
"""A unit that has exited this often during its start is given up; systemd's own retries could go on for ever."""

_CHECK_UNIT = "check the name in `unit`, and its `scope`"
_NO_MODEL = Check("status == 200")  # for a unit that runs, nobody knows for which model


class SystemdEngine(RemoteEngine[SystemdConfig]):
    """A unit of systemd; implements `engines.base.Engine`.

    The unit is the resident, whichever model it serves. With `{model}` or `{path}` in its name, its drop-in or its
    configuration file each model is a resident; they take turns.
    """

    def __init__(
        self,
        name: str,
        config: SystemdConfig,
        client: ControlClient,
        *,
        sleep_registry: SleepRegistry | None = None,
        models: TemplateModels | None = None,
    ) -> None:
        super().__init__(name, config, client)
        self.manager = Systemctl(name, config)
        self._client = client
        self._models = models
        self._is_template = is_template(config)
        self.sleep = EngineSleep(name, config.sleep, sleep_registry or SleepRegistry(), self.logs.of)

    def __repr__(self) -> str:
        return f"<SystemdEngine {self.name}: {self.config.unit}>"

    def resident_of(self, model: str) -> ResidentId:
        """Return the unit: the resident of all its models, unless it is started for one of them."""
        return ResidentId(self.name, model if self._is_template else None)

    def files_of(self, resident: ResidentId) -> UnitFiles:
        """Return what a resident's unit is started with."""
        return UnitFiles(self.config, resident, self._models)

    def probe_of(self, resident: ResidentId) -> ReadinessProbe:
        """Return the test of a resident's readiness."""
        wanted, model = self.config.ready_check, resident.model
        is_unknown = model is None and self._is_template
        check = _NO_MODEL if is_unknown else Check(wanted.replace("{model}", model or "{model}"))
        url = self.config.base_url + self.config.ready_path
        return ReadinessProbe(self._client, url, check, self.config.headers)

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        """Start the unit, stay with it, stop it; see `Engine.run_resident`.

        A unit that systemd restarted while it was in use, and that is not ready again within 2 s of the
        doubt, has died: it is stopped, so that systemd does not load its model behind the router's back.

        Cancellation leaves the unit as it is: it is systemd's.
        """
        return await run_lifecycle(
            _Unit(self, resident), supervision, adopt=adopt, sleep=self.sleep.of(resident, self.server)
        )

    async def check(self, resident: ResidentId, *, used: bool = False) -> str | None:  # noqa: ARG002 - it does not matter
        """Look whether the unit runs, and ask it again what was asked before it was ready; see `Engine.check`.

        Raises:
            EngineUnreachable: systemd cannot be asked.
        """
        unit = self.files_of(resident).unit
        state = await self.manager.state(unit)
        if state.at_rest:
            return f"is down: {unit} is {state}"
        return await self.probe_of(resident).look()

    async def obstacle(self, resident: ResidentId) -> str | None:
        """Say so where systemd cannot be asked, knows no such unit, or a file cannot be written; see `Engine.obstacle`."""
        files = self.files_of(resident)
        try:
            state = await self.manager.state(files.unit)
        except EngineUnreachable as error:
            return error.summary
        if state.load in ("not-found", "masked", "bad-setting", "error"):
            return f"cannot be started: systemd says that {files.unit} is {state.load}; {_CHECK_UNIT}"
        return await files.obstacle()

    async def list_models(self) -> Sequence[str] | None:
        """Ask the running unit for its list; None where each model is a resident: it may list all that it could load."""
        return None if self._is_template else await super().list_models()

    async def find(self) -> Sequence[ResidentId]:
        """Return the unit unless it is at rest, or sleeps: then it holds little, and is woken when it is needed.

        Its probe is not asked: a unit that is starting, or broken, holds memory as well. `run_resident` with `adopt`
        waits for its readiness.

        Raises:
            EngineUnreachable: systemd cannot be asked.
        """
        residents = [ResidentId(self.name)]
        if self._is_template and self._models is not None:
            residents = [ResidentId(self.name, model) for model in self._models.names()]
        units = {resident: self.files_of(resident).unit for resident in residents}
        if not units:
            return []
        names = list(dict.fromkeys(units.values()))
        states = dict(zip(names, await self.manager.states(names), strict=True))
        running = [resident for resident, unit in units.items() if not states[unit].at_rest]
        if not running or await self.sleep.is_asleep(self.server):
            return []
        if self._is_template and len(names) == 1:  # one unit for all models: its files tell for which it runs
            placed = [resident for resident in running if await self.files_of(resident).are_in_place()]
            return placed[:1] or [ResidentId(self.name)]
        return running


class _Unit:
    """The lifecycle of the unit; the steps are described at `RemoteLifecycle`."""

    def __init__(self, engine: SystemdEngine, resident: ResidentId) -> None:
        self.name, self.config, self.log = engine.name, engine.config, engine.logs.of(resident)
        self.engine = engine
        self.resident = resident
        self.files = engine.files_of(resident)
        self.unit = self.files.unit
        self.probe = engine.probe_of(resident)
        self.began = False
        self._pid = 0
        self._seen: list[str] = []

    @property
    def obstacle(self) -> str:
        return "; ".join(self._seen)

    async def start(self) -> Endpoint:
        await self._prepare()
        self.began = True  # also where this is cancelled: the command may have been heard
        # One that runs already has not seen what was written for this model.
        is_rewritten = self.resident.model is not None and (self.config.drop_in or self.config.config_file)
        verb = "restart" if is_rewritten and await self._is_there() else "start"
        self.log.write(f"{verb}ing {self.unit}")
        await self._command(verb, "--no-block", units=[self.unit])
        endpoint = await self._until_ready()
        model = self.resident.model or next(iter(self.config.models), "")
        await warm_up(self.engine.server, self.config.warm_up, model, self._seen)
        return endpoint

    async def _prepare(self) -> None:
        """Write what the unit is started with.

        Raises:
            EngineStartFailed: that cannot be done; nothing was started.
        """
        if await self.files.write():
            await self._command("daemon-reload")

    async def _command(self, verb: str, *options: str, units: Sequence[str] = ()) -> None:
        """Run a command of a start.

        Raises:
            EngineStartFailed: it was refused.
        """
        done = await self.engine.manager.run(verb, *options, units=units)
        if done.code != 0:
            self.began = self.began and await self._is_there()
            if not self.began:
                await self._tidy()
            words = " ".join((verb, *units))
            raise EngineStartFailed(
                self.name,
                f"could not be started: systemctl {words}: {done.complaint}; {self.engine.manager.remedy(done)}",
            )

    async def _tidy(self) -> None:
        """Take away what was written for this start only."""
        try:
            if (
                await self.files.remove()
                and (done := await self.engine.manager.run("daemon-reload")).code != 0
            ):
                self.log.write(f"systemctl daemon-reload: {done.complaint}")
        except OSError as error:
            self.log.write(f"{self.files.path} cannot be removed: {error.strerror or error}")

    async def adopt(self) -> Endpoint | Ended:
        self.began = True
        state = await self.engine.manager.state(self.unit)
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
        return await ended_after_doubt(self, self._look_again)

    async def end(self, *, aborted: bool) -> str:  # noqa: ARG002 - systemd knows all that belongs to the unit
        timeout_s = self.config.stop_timeout_s
        self.log.write(f"stopping {self.unit}")
        with trio.move_on_after(timeout_s):
            state = await self._until_at_rest()
            self.log.write(f"{self.unit} is {state}")
            await self._tidy()
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
            obstacle = await self.probe.ask()
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
            log_tail=await self.engine.manager.journal(self.unit),
        )

    async def _look(self) -> UnitState:
        state = await self.engine.manager.state(self.unit)
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
            ready = await self.probe.ask() is None
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
        done = await self.engine.manager.run("stop", "--no-block", units=[self.unit])
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
                        f"could not be stopped: systemctl stop {self.unit}: {done.complaint}; {self.engine.manager.remedy(done)}",
                    )
            await backoff.pause()
