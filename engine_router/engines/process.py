"""`type = "process"`: a server that the router starts and stops itself."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import httpx
import psutil
import trio
from attrs import frozen

from engine_router.config import ProcessConfig, is_template
from engine_router.engines.adopted import AdoptedFamily
from engine_router.engines.base import Ended, Endpoint, LogRing, ResidentId, Supervision
from engine_router.engines.family import Family, Guardian, start_family
from engine_router.engines.ports import address_of, described, free_port, is_taken, lineage, owner_of, runs
from engine_router.errors import (
    EngineError,
    EngineStartFailed,
    EngineStartTimeout,
    EngineStopFailed,
    EngineUnreachable,
)
from engine_router.probe import Check, ReadinessProbe, listed_ids, parse_json
from engine_router.racing import first_of

LOG_LINES_IN_ERRORS = 12
# Seconds that output may still be on its way after the process that wrote it has gone.
OUTPUT_GRACE_S = 0.05
# A start that nobody wants any more has nothing to save: it gets less time than a serving engine.
ABORT_GRACE_S = 2.0
LIST_TIMEOUT_S = 3.0


@frozen
class Running:
    """A family at work.

    Attributes:
        wait: waits for the end of its head.
        ended_how: says in words how the head ended.
        output_ended: set when everything that it wrote was read.
    """

    base_url: str
    family: Family
    wait: Callable[[], Awaitable[object]]
    ended_how: Callable[[], str]
    output_ended: trio.Event


class ProcessEngine:
    """Starts its command, watches it, and ends it with all that it started.

    With `{model}` or `{path}` in its argv it is a template: one resident for each model, on a free port.
    """

    def __init__(
        self,
        name: str,
        config: ProcessConfig,
        client: httpx.AsyncClient,
        *,
        guardian: Guardian | None = None,
        paths: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.log = LogRing()
        self._client = client
        self._guardian = guardian
        self._paths = paths or {}
        self._is_template = is_template(config)
        self._undead: dict[ResidentId, Running] = {}

    def resident_of(self, model: str) -> ResidentId:
        """Return the resident that serves a model: the engine, or one for each model of a template."""
        return ResidentId(self.name, model if self._is_template else None)

    def command(self, resident: ResidentId, port: int) -> list[str]:
        """Return the argv for a resident, its placeholders filled in. Braces of other kinds stay."""
        model = resident.model or ""
        filled = {"{port}": str(port), "{model}": model, "{path}": self._paths.get(model, model)}
        words = list(self.config.argv)
        for placeholder, value in filled.items():
            words = [word.replace(placeholder, value) for word in words]
        return [str(Path(words[0]).expanduser()) if words[0].startswith("~") else words[0], *words[1:]]

    async def live(self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False) -> Ended:
        """Run the process from its start to its end; see `Engine.live`."""
        outcome: Ended | EngineError
        if (undead := self._undead.get(resident)) is not None:
            outcome = await self._end(undead, self.config.grace_s)
        elif adopt:
            outcome = await self._live_adopted(resident, supervision)
        else:
            outcome = await self._live_started(resident, supervision)
        if isinstance(outcome, EngineError):
            raise outcome
        self._undead.pop(resident, None)
        return outcome

    async def find(self) -> Sequence[ResidentId]:
        """Return the engine if its port is owned by a process that runs its very command."""
        return [ResidentId(self.name)] if await self._owner() is not None else []

    async def list_models(self) -> Sequence[str] | None:
        """Ask the running engine for its list; None for a template, whose residents are one model each."""
        if self.config.base_url is None or not await is_taken(self.config.base_url):
            return None
        with trio.move_on_after(LIST_TIMEOUT_S):
            try:
                url = f"{self.config.base_url}/v1/models"
                answer = await self._client.get(url, headers=dict(self.config.headers))
            except httpx.HTTPError as error:
                raise EngineUnreachable(self.name, f"does not say which models it has: {error!r}") from error
            return list(listed_ids(parse_json(answer.content)))
        raise EngineUnreachable(self.name, f"did not say within {LIST_TIMEOUT_S:g} s which models it has")

    # A process of our own.

    async def _live_started(self, resident: ResidentId, supervision: Supervision) -> Ended | EngineError:
        base_url = self.config.base_url or f"http://127.0.0.1:{free_port()}"
        if await is_taken(base_url):
            return await self._taken(base_url)
        async with self._log_file() as file:
            process, family = await self._spawn(self.command(resident, address_of(base_url)[1]))
            try:
                async with trio.open_nursery() as nursery:
                    ended = trio.Event()
                    nursery.start_soon(self._read_output, process, file, ended)
                    running = Running(
                        base_url, family, process.wait, lambda: _exit_words(process.returncode), ended
                    )
                    outcome = await self._run(resident, supervision, running)
                    nursery.cancel_scope.cancel()
            finally:
                family.kill()  # a family that is known to be dead is buried, and this does nothing
                self.log.flush()
        return outcome

    async def _taken(self, base_url: str) -> EngineStartFailed:
        host, port = address_of(base_url)
        owner = described(await owner_of(port))
        return EngineStartFailed(
            self.name,
            f"cannot be started: {host}:{port} is in use by {owner}; stop that, or give the engine another port",
        )

    async def _spawn(self, argv: Sequence[str]) -> tuple[trio.Process, Family]:
        cwd = None if self.config.cwd is None else str(Path(self.config.cwd).expanduser())
        try:
            process, family = await start_family(argv, env=self.config.env, cwd=cwd, watcher=self._guardian)
        except FileNotFoundError as error:
            if cwd is not None and error.filename == cwd:
                raise EngineStartFailed(
                    self.name, f"cannot be started: its cwd {cwd} does not exist"
                ) from None
            message = f"cannot be started: {argv[0]} was not found; give its full path in argv"
            raise EngineStartFailed(self.name, message) from None
        except (OSError, ValueError) as error:
            raise EngineStartFailed(self.name, f"cannot be started: {argv[0]}: {error}") from None
        self.log.write(f"[engine-router] started pid {process.pid}: {' '.join(argv)}")
        return process, family

    async def _run(
        self, resident: ResidentId, supervision: Supervision, running: Running
    ) -> Ended | EngineError:
        """Go through a family's life. Failures are returned: raised in a nursery they would arrive in a group."""
        check = Check(self.config.ready_check.replace("{model}", resident.model or ""))
        url = running.base_url + self.config.ready_path
        probe = ReadinessProbe(self._client, url, check, self.config.headers)
        seen: list[str] = []
        happened = await first_of(
            exited=running.wait,
            stop_asked=supervision.stop_asked.wait,
            ready=lambda: probe.until_ready(seen),
            deadline=lambda: trio.sleep(self.config.start_timeout_s),
        )
        grace_s: float = min(ABORT_GRACE_S, self.config.grace_s)
        if happened == "exited":
            await self._bury(running)
            words = f"{running.ended_how()} before it was ready"
            return EngineStartFailed(self.name, words, log_tail=self._tail())
        if happened == "deadline":
            running.family.kill()
            await self._bury(running)
            return EngineStartTimeout(self.name, self._not_ready(seen), log_tail=self._tail())
        if happened == "ready":
            supervision.ready(Endpoint(running.base_url, running.family.pid))
            happened = await first_of(exited=running.wait, stop_asked=supervision.stop_asked.wait)
            grace_s = self.config.grace_s
            if happened == "exited":
                await self._bury(running)
                return Ended(stopped=False, message=running.ended_how(), log_tail=self._tail())
        outcome = await self._end(running, grace_s)
        if isinstance(outcome, EngineStopFailed):
            self._undead[resident] = running
        return outcome

    def _not_ready(self, seen: Sequence[str]) -> str:
        last = f"; {self.config.ready_path} last: {seen[0]}" if seen else ""
        return f"was not ready within {self.config.start_timeout_s:g} s{last}"

    def _tail(self) -> tuple[str, ...]:
        return self.log.tail(LOG_LINES_IN_ERRORS)

    # The end of a family.

    async def _end(self, running: Running, grace_s: float) -> Ended | EngineStopFailed:
        family = running.family
        with trio.move_on_after(self.config.stop_timeout_s):
            family.signal(self.config.stop_signal)
            with trio.move_on_after(grace_s):
                await running.wait()
                await _until_dead(family)
                family.bury()
            if await family.is_alive():
                self.log.write(
                    f"[engine-router] still there {grace_s:g} s after {self.config.stop_signal}: killed"
                )
                family.kill()
            await running.wait()
            await self._bury(running)
            return Ended(stopped=True, message=running.ended_how())
        return EngineStopFailed(
            self.name,
            f"is still there {self.config.stop_timeout_s:g} s after its stop (pid {family.pid}), even after SIGKILL",
        )

    async def _bury(self, running: Running) -> None:
        """See that nobody is left of a family whose head has gone, and that its last words are read."""
        if await running.family.is_alive():
            running.family.kill()
            await _until_dead(running.family)
        running.family.bury()
        with trio.move_on_after(OUTPUT_GRACE_S):
            await running.output_ended.wait()
        self.log.flush()

    # Output.

    @contextlib.asynccontextmanager
    async def _log_file(self) -> AsyncIterator[BinaryIO | None]:
        """Open the log file, if one is configured."""
        if self.config.log_file is None:
            yield None
            return
        path = Path(self.config.log_file).expanduser()
        try:
            opened = await trio.open_file(path, "ab")
        except OSError as error:
            message = f"cannot be started: its log_file {path} cannot be written: {error.strerror or error}"
            raise EngineStartFailed(self.name, message) from None
        with opened.wrapped as file:
            yield file

    async def _read_output(self, process: trio.Process, file: BinaryIO | None, ended: trio.Event) -> None:
        """Read what the family writes until nobody can write any more."""
        if process.stdout is None:
            raise RuntimeError("the process was started without a pipe for its output")
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in process.stdout:
                self.log.feed(bytes(data))
                if file is not None:
                    try:
                        await trio.to_thread.run_sync(_append, file, bytes(data))
                    except OSError as error:
                        self.log.write(f"[engine-router] the log_file cannot be written any more: {error}")
                        file = None
        ended.set()

    # A process that runs already.

    async def _owner(self) -> psutil.Process | None:
        """Find the process of this engine that runs without having been started here."""
        if self.config.base_url is None or self._is_template or not await is_taken(self.config.base_url):
            return None
        port = address_of(self.config.base_url)[1]
        owner = await owner_of(port)
        if owner is None:
            return None
        argv = self.command(ResidentId(self.name), port)
        mine = [process for process in lineage(owner) if runs(process, argv)]
        return mine[-1] if mine else None

    async def _live_adopted(self, resident: ResidentId, supervision: Supervision) -> Ended | EngineError:
        owner = await self._owner()
        if owner is None or self.config.base_url is None:
            return EngineStartFailed(self.name, "was found running, but has gone meanwhile")
        self.log.write(f"[engine-router] adopted pid {owner.pid}, which runs this engine's command already")
        family = AdoptedFamily(owner)
        output_ended = trio.Event()
        output_ended.set()
        running = Running(self.config.base_url, family, family.wait, lambda: "ended", output_ended)
        return await self._run(resident, supervision, running)


def _append(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()


async def _until_dead(family: Family) -> None:
    interval = 0.002
    while await family.is_alive():
        await trio.sleep(interval)
        interval = min(interval * 2, 0.05)


def _exit_words(code: int | None) -> str:
    """Say how a process ended."""
    if code is None:
        return "ended"
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
