"""Commands that end what an engine's process has a daemon hold for it, such as a container."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping
from typing import Final

from attrs import frozen

from engine_router.config import ProcessConfig
from engine_router.config.template import fill_command
from engine_router.config.values import expanded
from engine_router.guards.commands import CommandResult, run_command
from engine_router.guards.masking import own_environment

# Seconds for a command that nobody waits for.
DETACHED_S: Final = 20.0


@frozen
class EndCommands:
    """The commands to run at the end of one process.

    Attributes:
        stop: asks it to end; None where its signal does that.
        kill: ends it, whatever it does.
        env: variables added to the router's own.
        cwd: where they are run.
    """

    stop: tuple[str, ...] | None = None
    kill: tuple[str, ...] | None = None
    env: Mapping[str, str] = {}
    cwd: str | None = None

    async def run(self, argv: tuple[str, ...], timeout_s: float) -> CommandResult:
        """Run one of them, for at most `timeout_s` seconds. Cancellation kills it."""
        return await run_command(argv, timeout_s=timeout_s, environment=self._environment(), cwd=self.cwd)

    def kill_detached(self) -> None:
        """Run the one that ends it without waiting for it; the program ends after it."""
        if self.kill is not None:
            threading.Thread(target=self._kill, name="kill command").start()

    def _kill(self) -> None:
        try:
            subprocess.run(  # noqa: S603 - it is what the configuration says
                self.kill or (),
                env=self._environment(),
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=DETACHED_S,
                check=False,
            )
        except (OSError, ValueError, subprocess.SubprocessError):
            return  # nobody is left whom it could be told

    def _environment(self) -> dict[str, str]:
        return {**own_environment(), **self.env}


def end_commands(config: ProcessConfig, values: Mapping[str, str]) -> EndCommands:
    """Return the commands to run at the end of a process, their placeholders filled in."""
    stop, kill = (
        None if argv is None else tuple(fill_command(argv, values))
        for argv in (config.stop_command, config.kill_command or config.stop_command)
    )
    return EndCommands(stop, kill, config.env, None if config.cwd is None else str(expanded(config.cwd)))
