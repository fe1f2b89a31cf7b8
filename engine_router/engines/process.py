"""`type = "process"`: a server that the router starts and stops itself."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from io import FileIO

import httpx
import psutil
import trio
from attrs import frozen

from engine_router.config import ProcessConfig, is_template
from engine_router.config.values import expanded
from engine_router.engines.adopted import AdoptedFamily
from engine_router.engines.base import Ended, Endpoint, LogRing, ResidentId, Supervision
from engine_router.engines.family import Family, Guardian, reap_later, start_family
from engine_router.engines.ports import address_of, described, free_port, head_of, is_taken, owner_of
from engine_router.errors import (
    EngineError,
    EngineStartFailed,
    EngineStartTimeout,
    EngineStopFailed,
    EngineUnreachable,
)
from engine_router.probe import Check, ReadinessProbe, listed_ids, look, parse_json
from engine_router.racing import first_of

LOG_LINES_IN_ERRORS = 12
# Seconds that output may still be on its way after the process that wrote it has gone.
OUTPUT_GRACE_S = 0.05
# A start that nobody wants any more has nothing to save: it gets less time than a serving engine.
ABORT_GRACE_S = 2.0
# How much of `stop_timeout_s` may pass at most before SIGKILL, so that it has time to work.
GRACE_SHARE = 0.75
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
        self._listens_at: str | None = config.base_url
        self._ready_at: dict[ResidentId, str] = {}  # base URLs

    def resident_of(self, model: str) -> ResidentId:
        """Return the resident that serves a model: the engine, or one for each model of a template."""
        return ResidentId(self.name, model if self._is_template else None)

    def command(self, resident: ResidentId, port: int) -> list[str]:
        """Return the argv for a resident, its placeholders filled in. Braces of other kinds stay."""
        model = resident.model or ""
        path = str(expanded(self._paths[model])) if model in self._paths else model
        filled = {"{port}": str(port), "{model}": model, "{path}": path}
        program, *arguments = (
            re.sub(r"\{(port|model|path)\}", lambda found: filled[found[0]], word)
            for word in self.config.argv
        )
        return [str(expanded(program)) if program.startswith("~") else program, *arguments]

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

    async def check(self, resident: ResidentId) -> str | None:
        """Ask a ready resident again what was asked before it was ready; see `Engine.check`."""
        base_url = self._ready_at.get(resident)
        if base_url is None:
            return "does not run"
        probe = self._probe(resident, base_url)
        return await look(probe.client, probe.url, probe.check, headers=probe.headers)

    async def find(self) -> Sequence[ResidentId]:
        """Return the engine if its port is owned by a process that runs its very command."""
        return [ResidentId(self.name)] if await self._owner() is not None else []

    async def list_models(self) -> Sequence[str] | None:
        """Ask the running engine for its list; None for a template, whose residents are one model each."""
        base_url = self._listens_at
        if self._is_template or base_url is None or not await is_taken(base_url):
            return None
        with trio.move_on_after(LIST_TIMEOUT_S):
            try:
                answer = await self._client.get(f"{base_url}/v1/models", headers=dict(self.config.headers))
            except httpx.HTTPError as error:
                raise EngineUnreachable(self.name, f"does not say which models it has: {error!r}") from error
            if answer.status_code != 200:
                # An error is not an empty list.
                words = f"does not say which models it has: /v1/models answered {answer.status_code}"
                raise EngineUnreachable(self.name, words)
            return list(listed_ids(parse_json(answer.content)))
        raise EngineUnreachable(self.name, f"did not say within {LIST_TIMEOUT_S:g} s which models it has")

    # A process of our own.

    async def _live_started(self, resident: ResidentId, supervision: Supervision) -> Ended | EngineError:
        if supervision.stop_asked.is_set():
            return Ended(stopped=True, message="was not started")
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
                reap_later(process)
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
        cwd = None if self.config.cwd is None else str(expanded(self.config.cwd))
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
            raise EngineStartFailed(
                self.name, f"cannot be started: {_refusal(argv[0], cwd, error)}"
            ) from None
        self.log.write(f"[engine-router] started pid {process.pid}: {' '.join(argv)}")
        return process, family

    async def _run(
        self, resident: ResidentId, supervision: Supervision, running: Running
    ) -> Ended | EngineError:
        """Go through a family's life. Failures are returned: raised in a nursery they would arrive in a group."""
        try:
            outcome = await self._life(resident, supervision, running)
        finally:
            self._listens_at = self.config.base_url
            self._ready_at.pop(resident, None)
        if isinstance(outcome, EngineStopFailed):
            self._undead[resident] = running
        return outcome

    async def _life(
        self, resident: ResidentId, supervision: Supervision, running: Running
    ) -> Ended | EngineError:
        probe = self._probe(resident, running.base_url)
        seen: list[str] = []
        happened = await first_of(
            exited=running.wait,
            stop_asked=supervision.stop_asked.wait,
            ready=lambda: probe.until_ready(seen),
            deadline=lambda: trio.sleep(self.config.start_timeout_s),
        )
        grace_s: float = min(ABORT_GRACE_S, self.config.grace_s)
        was_ready = happened == "ready"
        if was_ready:
            grace_s = self.config.grace_s
            self._listens_at = self._ready_at[resident] = running.base_url
            supervision.ready(Endpoint(running.base_url, running.family.pid))
            happened = await first_of(exited=running.wait, stop_asked=supervision.stop_asked.wait)
        if happened == "stop_asked" or supervision.stop_asked.is_set():
            return await self._end(running, grace_s)
        if happened == "deadline":
            running.family.kill()
        if (undead := await self._bury(running)) is not None:
            return undead
        if happened == "deadline":
            return EngineStartTimeout(self.name, self._not_ready(seen), log_tail=self._tail())
        if was_ready:
            return Ended(stopped=False, message=running.ended_how(), log_tail=self._tail())
        words = f"{running.ended_how()} before it was ready"
        return EngineStartFailed(self.name, words, log_tail=self._tail())

    def _probe(self, resident: ResidentId, base_url: str) -> ReadinessProbe:
        check = Check(self.config.ready_check.replace("{model}", resident.model or ""))
        return ReadinessProbe(self._client, base_url + self.config.ready_path, check, self.config.headers)

    def _not_ready(self, seen: Sequence[str]) -> str:
        last = f"; {self.config.ready_path} last: {seen[0]}" if seen else ""
        return f"was not ready within {self.config.start_timeout_s:g} s{last}"

    def _tail(self) -> tuple[str, ...]:
        return self.log.tail(LOG_LINES_IN_ERRORS)

    # The end of a family.

    async def _end(self, running: Running, grace_s: float) -> Ended | EngineStopFailed:
        family = running.family
        grace_s = min(grace_s, self.config.stop_timeout_s * GRACE_SHARE)
        with trio.move_on_after(self.config.stop_timeout_s):
            family.signal(self.config.stop_signal)
            with trio.move_on_after(grace_s) as patience:
                await running.wait()
                await _until_dead(family)
            if patience.cancelled_caught and await family.is_alive():
                self.log.write(
                    f"[engine-router] still there {grace_s:g} s after {self.config.stop_signal}: killed"
                )
            await self._put_down(running)
            return Ended(stopped=True, message=running.ended_how())
        return self._still_there(family)

    async def _bury(self, running: Running) -> EngineStopFailed | None:
        """See that nobody is left of a family whose head has gone or was killed, however long that may take."""
        with trio.move_on_after(self.config.stop_timeout_s):
            await self._put_down(running)
            return None
        return self._still_there(running.family)

    def _still_there(self, family: Family) -> EngineStopFailed:
        return EngineStopFailed(
            self.name,
            f"is still there {self.config.stop_timeout_s:g} s after its stop (pid {family.pid}), even after SIGKILL",
        )

    async def _put_down(self, running: Running) -> None:
        """Kill what is left of a family until nothing is, and read its last words."""
        await _until_dead(running.family, kill=True)
        await running.wait()
        running.family.bury()
        with trio.move_on_after(OUTPUT_GRACE_S):
            await running.output_ended.wait()
        self.log.flush()

    # Output.

    @contextlib.asynccontextmanager
    async def _log_file(self) -> AsyncIterator[FileIO | None]:
        """Open the log file, if one is configured."""
        if self.config.log_file is None:
            yield None
            return
        path = expanded(self.config.log_file)
        try:
            # Unbuffered: what a full disk refused once must not be refused again by the closing.
            opened = await trio.open_file(path, "ab", buffering=0)
        except OSError as error:
            message = f"cannot be started: its log_file {path} cannot be written: {error.strerror or error}"
            raise EngineStartFailed(self.name, message) from None
        with opened.wrapped as file:
            yield file

    async def _read_output(self, process: trio.Process, file: FileIO | None, ended: trio.Event) -> None:
        """Read what the family writes until nobody can write any more."""
        if process.stdout is None:
            raise RuntimeError("the process was started without a pipe for its output")
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in process.stdout:
                self.log.feed(bytes(data))
                if file is not None:
                    try:
                        await trio.to_thread.run_sync(file.write, bytes(data))
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
        return await head_of(port, self.command(ResidentId(self.name), port))

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


async def _until_dead(family: Family, *, kill: bool = False) -> None:
    """Wait until nobody of a family lives. With `kill`, kill whoever is found, and who was born meanwhile."""
    interval = 0.002
    while await family.is_alive():
        if kill:
            family.kill()
        await trio.sleep(interval)
        interval = min(interval * 2, 0.05)


def _refusal(program: str, cwd: str | None, error: OSError | ValueError) -> str:
    """Say why the system would not start a program."""
    if not isinstance(error, OSError):
        return f"{program}: {error}"
    if cwd is not None and error.filename == cwd:
        return f"its cwd {cwd} cannot be used: {error.strerror}"
    hint = "; is it a program, and executable?" if isinstance(error, PermissionError) else ""
    return f"{program}: {error.strerror or error}{hint}"


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
