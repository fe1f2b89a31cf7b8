"""The commands by which units are started, stopped and looked at.

A sudoers rule for `prefix = ["sudo", "-n"]` has to allow

    systemctl [--user] --no-ask-password start --no-block -- UNIT
    systemctl [--user] --no-ask-password stop --no-block -- UNIT
    systemctl [--user] --no-ask-password show -p PROPERTIES -- UNIT ...
    journalctl [--user] -u UNIT -n 15 -o cat --no-pager

`--no-block`, because a command that waits for the unit could not be cancelled behind sudo; the router looks
for itself what becomes of it. Where something is written for a model before its start, there are also

    systemctl [--user] --no-ask-password restart --no-block -- UNIT
    systemctl [--user] --no-ask-password daemon-reload
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from engine_router.config import SystemdConfig
from engine_router.engines.remote.lifecycle import LOG_TAIL_LINES
from engine_router.engines.remote.unit_state import PROPERTIES, UnitState
from engine_router.errors import EngineUnreachable
from engine_router.guards.commands import CommandResult, run_command

COMMAND_TIMEOUT_S = 10.0
"""Longest wait for one command, in seconds."""

# What systemctl says, with any exit status, where there is no such unit, and where nobody answers it.
_UNKNOWN_UNIT = ("not found", "not loaded", "does not exist")
_NO_BUS = ("connect to bus", "connect to user", "XDG_RUNTIME_DIR", "No medium found", "not been booted")


@frozen(eq=False)
class Systemctl:
    """The manager of an engine's units.

    Attributes:
        name: the engine's, for errors.
        config: the engine's.
    """

    name: str
    config: SystemdConfig

    async def run(self, verb: str, *options: str, units: Sequence[str] = ()) -> CommandResult:
        """Run one systemctl command, at most 10 s long.

        Cancellation kills the command.
        """
        scope = ["--user"] if self.config.scope == "user" else []
        about = ["--", *units] if units else []
        argv = ["systemctl", *scope, "--no-ask-password", verb, *options, *about]
        return await run_command([*(self.config.prefix or ()), *argv], timeout_s=COMMAND_TIMEOUT_S)

    async def state(self, unit: str) -> UnitState:
        """Ask systemd for the state of a unit.

        Raises:
            EngineUnreachable: it cannot be told.
        """
        (found,) = await self.states([unit])
        return found

    async def states(self, units: Sequence[str]) -> list[UnitState]:
        """Ask systemd for the states of units.

        Raises:
            EngineUnreachable: they cannot be told.
        """
        done = await self.run("show", "-p", PROPERTIES, units=units)
        fault = done.complaint
        if done.code == 0:
            try:
                parts = done.output.strip().split("\n\n")
                found = [UnitState.parse(part) for part in parts]
                if len(found) == len(units):
                    return found
                fault = f"it tells of {len(found)} units"
            except ValueError as error:
                fault = f"its answer cannot be understood ({error})"
        shown = units[0] if len(units) == 1 else self.config.unit
        raise EngineUnreachable(
            self.name, f"cannot be looked at: systemctl show {shown}: {fault}; {self.remedy(done)}"
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

    async def journal(self, unit: str) -> tuple[str, ...]:
        """Return a unit's last journal lines; none where they cannot be had."""
        scope = ["--user"] if self.config.scope == "user" else []
        lines = str(LOG_TAIL_LINES)
        argv = ["journalctl", *scope, "-u", unit, "-n", lines, "-o", "cat", "--no-pager"]
        done = await run_command([*(self.config.prefix or ()), *argv], timeout_s=COMMAND_TIMEOUT_S)
        return tuple(done.output.splitlines()[-LOG_TAIL_LINES:]) if done.code == 0 else ()
