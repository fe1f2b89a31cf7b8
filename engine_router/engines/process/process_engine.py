"""`type = "process"`: a server that the router starts and stops itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import psutil
import trio

from engine_router.config import ProcessConfig
from engine_router.config.process import SLOT_SAVE_PATH
from engine_router.config.template import TemplateModels
from engine_router.config.values import expanded
from engine_router.engines.base import Ended, ResidentId, Supervision
from engine_router.engines.command_options import may_keep_context
from engine_router.engines.context.keeper import ContextKeeper
from engine_router.engines.context.running import RunningContext
from engine_router.engines.ports import head_of, is_taken
from engine_router.engines.process.adopted import AdoptedTree
from engine_router.engines.process.end_commands import EndCommands, end_commands
from engine_router.engines.process.running_process import RunningProcess, began_at
from engine_router.engines.process.shared_memory import SharedMemory, shared_memory
from engine_router.engines.process.start import spawn, start_obstacle
from engine_router.engines.settings_file import set_values
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.engines.started.log_file import open_log_file
from engine_router.engines.started.output import EngineOutput
from engine_router.engines.started.running import RunningServer
from engine_router.engines.started.started_engine import StartedEngine
from engine_router.guards.masking import masked_argv
from engine_router.upstream.address import address_of
from engine_router.upstream.control_client import ControlClient

if TYPE_CHECKING:
    from engine_router.engines.process.process_tree import Guardian

_GPUS: Final = "{gpus}"


class ProcessEngine(StartedEngine[ProcessConfig]):
    """Starts its command, watches it, and ends it with all that it started.

    Args:
        keeper: of its context, where it keeps any.
    """

    def __init__(
        self,
        name: str,
        config: ProcessConfig,
        client: ControlClient,
        *,
        guardian: Guardian | None = None,
        sleep_registry: SleepRegistry | None = None,
        models: TemplateModels | None = None,
        keeper: ContextKeeper | None = None,
    ) -> None:
        super().__init__(
            name, config, client, guardian=guardian, sleep_registry=sleep_registry, models=models
        )
        self._keeper = keeper if config.keep_context and may_keep_context(config.argv) else None

    def command(self, resident: ResidentId, port: int = 0) -> list[str]:
        """Return the argv for a resident; with the folder of its context, where it keeps any."""
        argv = super().command(resident, port)
        if self._keeper is not None and (folder := self._keeper.slot_folder) is not None:
            argv += [SLOT_SAVE_PATH, str(folder)]
        return argv

    async def obstacle(self, resident: ResidentId) -> str | None:
        """Say so where the program, its folder or its model file is missing; see `Engine.obstacle`."""
        return await start_obstacle(self.config, self.command(resident, 0), self._values(resident, 0))

    async def find(self) -> Sequence[ResidentId]:
        """Return the engine if its port is owned by a process that runs its very command, and does not sleep.

        One that sleeps is not ready for anybody, and holds little: it is woken when it is needed.
        """
        if await self._owner() is None or await self._is_found_asleep():
            return []
        return [ResidentId(self.name)]

    def _with_gpus(self, resident: ResidentId) -> ProcessConfig:
        """Return the configuration with the GPUs of a resident in its environment, where that asks for them."""
        gpus = self._arguments(resident).gpus
        if gpus is None or not any(_GPUS in value for value in self.config.env.values()):
            return self.config
        env = {name: value.replace(_GPUS, gpus) for name, value in self.config.env.items()}
        return attrs.evolve(self.config, env=env)

    def _end_commands(self, resident: ResidentId, base_url: str, pid: int) -> EndCommands:
        values = {**self._values(resident, address_of(base_url)[1]), "pid": str(pid)}
        return end_commands(self.config, values)

    # A process of our own.

    async def _start(self, resident: ResidentId, supervision: Supervision) -> RunningProcess:  # noqa: ARG002 - a start takes milliseconds
        if self._keeper is not None:
            await self._keeper.prepare(resident)
        log, file = self.logs.of(resident), await open_log_file(self.name, self.config)
        log_start, began = log.count, time.time()
        claim = None
        try:
            base_url, claim = self._place()
            port = address_of(base_url)[1]
            argv = self.command(resident, port)
            await set_values(self.name, self.config.config_file, self._values(resident, port))
            process, tree = await spawn(self.name, self._with_gpus(resident), argv, self._guardian)
        except BaseException:
            if file is not None:
                file.close()
            if claim is not None:
                claim.release()
            raise
        log.write(f"[engine-router] started pid {process.pid}: {' '.join(masked_argv(argv))}")
        commands = self._end_commands(resident, base_url, process.pid)
        if self._guardian is not None and commands.kill is not None:
            self._guardian.run_at_end(process.pid, commands.kill, commands.env, commands.cwd)
        return RunningProcess(
            name=self.name,
            config=self.config,
            log=log,
            log_start=log_start,
            base_url=base_url,
            tree=tree,
            wait=process.wait,
            process=process,
            port=claim,
            output=EngineOutput(log, file),
            commands=commands,
            shared=self._shared_memory(began, argv),
        )

    async def _context_of(self, resident: ResidentId, running: RunningServer) -> RunningContext | None:
        if self._keeper is None:
            return None
        cwd = Path() if self.config.cwd is None else expanded(self.config.cwd)
        client = self._client_of(running.base_url)
        return await self._keeper.began(resident, client, self.command(resident), cwd, self.config.env)

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        """Run the server from its start to its end; see `Engine.run_resident`."""
        try:
            return await super().run_resident(resident, supervision, adopt=adopt)
        finally:
            if self._keeper is not None:
                self._keeper.ended(resident)

    def _shared_memory(self, began: float, argv: Sequence[str]) -> SharedMemory:
        return shared_memory(began, (*argv, *self.config.env.values()))

    # A process that runs already.

    async def _owner(self) -> psutil.Process | None:
        """Find the process of this engine that runs without having been started here."""
        if self.config.base_url is None or self._is_template or not await is_taken(self.config.base_url):
            return None
        port = address_of(self.config.base_url)[1]
        return await head_of(port, self.command(ResidentId(self.name), port))

    async def _found(self) -> RunningProcess | None:
        owner = await self._owner()
        if owner is None or self.config.base_url is None:
            return None
        self.log.write(f"[engine-router] adopted pid {owner.pid}, which runs this engine's command already")
        tree = await trio.to_thread.run_sync(AdoptedTree, owner)
        return RunningProcess(
            name=self.name,
            config=self.config,
            log=self.log,
            log_start=self.log.count,
            base_url=self.config.base_url,
            tree=tree,
            wait=tree.wait,
            output=EngineOutput(self.log),
            commands=self._end_commands(ResidentId(self.name), self.config.base_url, owner.pid),
            shared=self._shared_memory(await trio.to_thread.run_sync(began_at, owner), self.config.argv),
        )
