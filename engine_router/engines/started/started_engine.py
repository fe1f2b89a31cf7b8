"""The way of a server that the router starts, from its start to its end: the same for processes and containers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from engine_router.config import StartedConfig, is_template
from engine_router.config.template import NO_ARGUMENTS, ModelArguments, TemplateModels, model_command
from engine_router.engines.base import Ended, Endpoint, EngineLogs, ResidentId, Supervision
from engine_router.engines.first_of import first_of
from engine_router.engines.masking import engine_mask
from engine_router.engines.ports import ClaimedPort, described, is_taken, owner_of
from engine_router.engines.readiness import CANNOT_ASK, PORT, Check, ReadinessProbe
from engine_router.engines.remote.client import EngineClient
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.engines.sleep.resident_sleep import ASLEEP, EngineSleep, WakeResult
from engine_router.engines.started.output import last_words
from engine_router.engines.started.resources import lacks_resources, out_of_resources
from engine_router.engines.started.running import ABORT_GRACE_S, RunningServer, SleepingServer
from engine_router.engines.warm_up import WARM_UP, warm_up
from engine_router.errors import (
    EngineError,
    EngineStartFailed,
    EngineStartTimeout,
    EngineStopFailed,
    EngineUnreachable,
    OutOfResources,
)
from engine_router.upstream.address import address_of
from engine_router.upstream.control_client import ControlClient

if TYPE_CHECKING:
    from engine_router.engines.context.running import RunningContext
    from engine_router.engines.process.process_tree import Guardian

LIST_TIMEOUT_S = 3.0

C = TypeVar("C", bound=StartedConfig)
T = TypeVar("T", bound="Ended | None")


class StartedEngine(ABC, Generic[C]):
    """Starts a server, stays with it, puts it to sleep and wakes it, and ends it as a whole.

    What differs between a process and a container is how one is started and found: `_start`, `_found`, `find`,
    `obstacle`. With `{model}` or `{path}` in what it is started with it is a template: one resident for each model,
    on a free port.
    """

    def __init__(
        self,
        name: str,
        config: C,
        client: ControlClient,
        *,
        guardian: Guardian | None = None,
        sleep_registry: SleepRegistry | None = None,
        models: TemplateModels | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.logs = EngineLogs(engine_mask(config))
        self.log = self.logs.engine
        self._client = client
        self._guardian = guardian
        self._models = models
        self._is_template = is_template(config)
        self._unstopped: dict[ResidentId, RunningServer] = {}
        self._listens_at: str | None = config.base_url
        self._ready_at: dict[ResidentId, str] = {}  # base URLs
        registry = sleep_registry or SleepRegistry()  # one that is not open
        self._sleep = EngineSleep(name, config.sleep, registry, self.logs.of)

    @abstractmethod
    async def _start(self, resident: ResidentId, supervision: Supervision) -> RunningServer | None:
        """Start a server; None where a stop was asked for meanwhile, and nothing was started.

        Raises:
            EngineStartFailed: it cannot be started.
            OutOfResources: not now.
        """

    @abstractmethod
    async def _found(self) -> RunningServer | None:
        """Return the engine's own server that runs without having been started here; None where none does."""

    @abstractmethod
    async def obstacle(self, resident: ResidentId) -> str | None:
        """Say why a start would be in vain; see `Engine.obstacle`."""

    @abstractmethod
    async def find(self) -> Sequence[ResidentId]:
        """Return what runs already; see `Engine.find`."""

    def _place(self) -> tuple[str, ClaimedPort | None]:
        """Return the base URL of a server that is about to be started: its own, or one on a port that is claimed."""
        if self.config.base_url is not None:
            return self.config.base_url, None
        claim = ClaimedPort()
        return f"http://127.0.0.1:{claim.number}", claim

    def resident_of(self, model: str) -> ResidentId:
        """Return the resident that serves a model: the engine, or one for each model of a template."""
        return ResidentId(self.name, model if self._is_template else None)

    def command(self, resident: ResidentId, port: int = 0) -> list[str]:
        """Return the argv for a resident, its placeholders filled in. Braces of other kinds stay."""
        arguments = self._arguments(resident) if self._is_template else NO_ARGUMENTS
        return model_command(self.config.argv, arguments, self._values(resident, port))

    def _arguments(self, resident: ResidentId) -> ModelArguments:
        return NO_ARGUMENTS if self._models is None else self._models.arguments(resident.model or "")

    def _values(self, resident: ResidentId, port: int) -> dict[str, str]:
        return {"port": str(port), **self._arguments(resident).values(resident.model or "")}

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        """Run the server from its start to its end; see `Engine.run_resident`."""
        try:
            ended = await self._run(resident, supervision, adopt=adopt)
        except OSError as error:
            if lacks_resources(error):
                raise out_of_resources(self.name, error) from error
            raise
        self._unstopped.pop(resident, None)
        return ended

    async def _run(self, resident: ResidentId, supervision: Supervision, *, adopt: bool) -> Ended:
        if (unstopped := self._unstopped.get(resident)) is not None:
            return await unstopped.end(self.config.grace_s)
        if resident in self._sleep.registry.residents:
            return await self._run_asleep(resident, supervision)
        if adopt:
            return await self._run_adopted(resident, supervision)
        return await self._run_started(resident, supervision)

    async def check(self, resident: ResidentId, *, used: bool = False) -> str | None:  # noqa: ARG002 - it does not matter
        """Ask a ready resident again what was asked before it was ready; see `Engine.check`."""
        base_url = self._ready_at.get(resident)
        if base_url is None:
            return "does not run"
        seen = await self._probe(resident, base_url).look()
        return None if seen == CANNOT_ASK else seen  # that is no fault of the engine's

    async def list_models(self) -> Sequence[str] | None:
        """Ask the running engine for its list; None for a template, whose residents are one model each."""
        base_url = self._listens_at
        if self._is_template or base_url is None or not await is_taken(base_url):
            return None
        with trio.move_on_after(LIST_TIMEOUT_S):
            return await self._client_of(base_url).models()
        raise EngineUnreachable(self.name, f"did not say within {LIST_TIMEOUT_S:g} s which models it has")

    # A server of our own.

    async def _run_started(self, resident: ResidentId, supervision: Supervision) -> Ended:
        if supervision.stop_asked.is_set():
            return Ended(stopped=True, message="was not started")
        base_url = self.config.base_url
        if base_url is not None and await is_taken(base_url):
            outcome = await self._run_found_asleep(resident, supervision)
            if outcome is not None:
                return outcome
            if await is_taken(base_url):
                raise await self._port_taken(base_url)
        running = await self._start(resident, supervision)
        if running is None:
            return Ended(stopped=True, message="was not started")
        return await self._until_gone(
            resident, running, lambda: self._begin_and_serve(resident, supervision, running)
        )

    async def _port_taken(self, base_url: str) -> EngineStartFailed:
        host, port = address_of(base_url)
        owner = described(await owner_of(port))
        return EngineStartFailed(
            self.name,
            f"cannot be started: {host}:{port} is in use by {owner}; stop that, or give the engine another port",
        )

    async def _until_gone(
        self, resident: ResidentId, running: RunningServer, work: Callable[[], Awaitable[T]]
    ) -> T:
        """Do some work with a process to its end, and leave nothing of the process but where it sleeps."""
        is_asleep = False
        try:
            ended = await running.while_read(work)
            is_asleep = ended is not None and ended.asleep
        except EngineStopFailed:
            self._unstopped[resident] = running
            raise
        finally:
            self._listens_at = self.config.base_url
            self._ready_at.pop(resident, None)
            if is_asleep:
                self._sleep.registry.put(resident, SleepingServer(running))
            else:
                running.abandon()
        return ended

    async def _begin_and_serve(
        self, resident: ResidentId, supervision: Supervision, running: RunningServer
    ) -> Ended:
        """Wait until a server runs and is ready, and let it serve to its end."""
        seen: list[str] = []
        if not await self._begin(supervision, running):
            return await running.end(min(ABORT_GRACE_S, self.config.grace_s))
        began = trio.current_time()
        happened = await first_of(
            exited=running.wait,
            stop_asked=supervision.stop_asked.wait,
            ready=lambda: self._until_ready(resident, running, seen),
            deadline=lambda: trio.sleep(self.config.start_timeout_s),
        )
        if happened == "ready":
            if running.is_ours:
                self._sleep.started(resident, trio.current_time() - began)
            return await self._serve(resident, supervision, running)
        if happened == "stop_asked" or supervision.stop_asked.is_set():
            return await running.end(min(ABORT_GRACE_S, self.config.grace_s))
        await running.clean_up()
        if happened == "deadline" and seen == [CANNOT_ASK]:
            raise OutOfResources(self.name, self._not_ready(seen))
        if happened == "deadline":
            raise EngineStartTimeout(self.name, self._not_ready(seen), log_tail=self._tail(running))
        words = f"{running.ended_how()} before it was ready"
        raise EngineStartFailed(self.name, words, log_tail=self._tail(running))

    async def _begin(self, supervision: Supervision, running: RunningServer) -> bool:
        """Have a server run; return False where a stop was asked for meanwhile."""
        failures: list[EngineError] = []

        async def begin() -> None:
            try:
                await running.begin()
            except EngineError as error:
                failures.append(error)

        happened = await first_of(begun=begin, stop_asked=supervision.stop_asked.wait)
        for failure in failures:
            await running.clean_up()
            raise failure
        return happened == "begun"

    async def _serve(
        self, resident: ResidentId, supervision: Supervision, running: RunningServer, *, woken: bool = False
    ) -> Ended:
        """Let a ready process serve to its end."""
        self._listens_at = self._ready_at[resident] = running.base_url
        await running.serves()
        context = await self._context_of(resident, running)
        supervision.ready(Endpoint(running.base_url, running.pid), woken=woken)
        happened = await first_of(exited=running.wait, stop_asked=supervision.stop_asked.wait)
        if happened == "stop_asked" or supervision.stop_asked.is_set():
            sleep = self._sleep.of(resident, self._client_of(running.base_url))
            if sleep is not None and await sleep.fall_asleep(supervision, death=running.wait):
                running.log.write("[engine-router] sleeps")
                return ASLEEP
            if context is not None:
                await context.save(death=running.wait)
            return await running.end(self.config.grace_s)
        await running.clean_up()
        return Ended(stopped=False, message=running.ended_how(), log_tail=self._tail(running))

    async def _context_of(self, resident: ResidentId, running: RunningServer) -> RunningContext | None:  # noqa: ARG002 - for those that keep one
        """Return the context that a ready server keeps; None where it keeps none."""
        return None

    async def _until_ready(self, resident: ResidentId, running: RunningServer, seen: list[str]) -> None:
        """Wait until the probe passes, and, after a start, until the warm-up has succeeded."""
        await self._probe(resident, running.base_url).until_ready(seen)
        if running.is_ours:
            model = resident.model or next(iter(self.config.models), "")
            await warm_up(self._client_of(running.base_url), self.config.warm_up, model, seen)

    def _probe(self, resident: ResidentId, base_url: str) -> ReadinessProbe:
        check = Check(self.config.ready_check.replace("{model}", resident.model or ""))
        return ReadinessProbe(self._client, base_url + self.config.ready_path, check, self.config.headers)

    def _not_ready(self, seen: Sequence[str]) -> str:
        is_of_path = self.config.ready_check != PORT and not (seen and seen[0].startswith(WARM_UP))
        where = f"{self.config.ready_path} last: " if is_of_path else ""
        last = f"; {where}{seen[0]}" if seen else ""
        return f"was not ready within {self.config.start_timeout_s:g} s{last}"

    def _tail(self, running: RunningServer) -> tuple[str, ...]:
        """Return the last words since this start: what an earlier one wrote would only confuse."""
        return last_words(running.log.since(running.log_start), (self.config.ready_path, "/v1/models"))

    # Sleep.

    async def _run_asleep(self, resident: ResidentId, supervision: Supervision) -> Ended:
        """Wake what sleeps, or stop it, if that is what is wanted; start it anew where it cannot be woken."""
        if supervision.stop_asked.is_set() and not supervision.for_good.is_set():
            return ASLEEP
        sleeper = await self._sleep.registry.take(resident, SleepingServer)
        if sleeper is not None:
            outcome = await self._run_woken(resident, supervision, sleeper.running)
            if outcome is not None:
                return outcome
        return await self._run_started(resident, supervision)

    async def _run_found_asleep(self, resident: ResidentId, supervision: Supervision) -> Ended | None:
        """Wake a process that runs this engine's command and sleeps; None where there is none any more."""
        running = await self._found() if await self._is_found_asleep() else None
        return None if running is None else await self._run_woken(resident, supervision, running)

    async def _run_woken(
        self, resident: ResidentId, supervision: Supervision, running: RunningServer
    ) -> Ended | None:
        return await self._until_gone(
            resident, running, lambda: self._wake_and_serve(resident, supervision, running)
        )

    async def _wake_and_serve(
        self, resident: ResidentId, supervision: Supervision, running: RunningServer
    ) -> Ended | None:
        """Wake a process, and let it serve to its end. Returns None where it could not be woken, and is gone."""
        sleep = self._sleep.of(resident, self._client_of(running.base_url))
        if sleep is None or supervision.stop_asked.is_set():
            return await running.end(self.config.grace_s)
        grace_s: float = self.config.grace_s
        if running.config == self.config:
            result = await sleep.wake(
                supervision,
                self._probe(resident, running.base_url).until_ready,
                start_timeout_s=self.config.start_timeout_s,
                death=running.wait,
            )
            if result is WakeResult.AWAKE:
                running.log.write("[engine-router] awake")
                return await self._serve(resident, supervision, running, woken=True)
            if result is WakeResult.DIED:
                running.log.write(f"[engine-router] {running.ended_how()} while it slept")
                await running.clean_up()
                return None
            grace_s = min(ABORT_GRACE_S, grace_s)
        ended = await running.end(grace_s)
        return ended if supervision.stop_asked.is_set() else None

    async def _is_found_asleep(self) -> bool:
        """Tell whether the server at the configured address says that it sleeps."""
        base_url = self.config.base_url
        return base_url is not None and await self._sleep.is_asleep(self._client_of(base_url))

    def _client_of(self, base_url: str) -> EngineClient:
        return EngineClient(self.name, self.config, base_url, self._client)

    # A server that runs already.

    async def _run_adopted(self, resident: ResidentId, supervision: Supervision) -> Ended:
        running = await self._found()
        if running is None:
            raise EngineStartFailed(self.name, "was found running, but has gone meanwhile")
        return await self._until_gone(
            resident, running, lambda: self._begin_and_serve(resident, supervision, running)
        )
