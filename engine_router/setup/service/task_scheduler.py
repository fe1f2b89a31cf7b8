"""The router as a scheduled task of Windows, which starts when its user logs in."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from attrs import frozen

from engine_router.setup.service.base import Action, steps_of
from engine_router.setup.service.settings import NAME, ServiceSettings
from engine_router.setup.service.steps import RemoveFile, RunCommand, Step, WriteFile, marked

_TASK: Final = """\
<?xml version="1.0"?>
<!-- {mark} -->
<Task version="1.4" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo><Description>engine-router: one port for local language models</Description></RegistrationInfo>
  <Triggers><LogonTrigger><Enabled>true</Enabled><UserId>{user}</UserId></LogonTrigger></Triggers>
  <Principals><Principal id="Author"><UserId>{user}</UserId><LogonType>InteractiveToken</LogonType></Principal></Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <RestartOnFailure><Interval>PT1M</Interval><Count>999</Count></RestartOnFailure>
    <Hidden>true</Hidden>
  </Settings>
  <Actions Context="Author"><Exec><Command>{program}</Command><Arguments>{arguments}</Arguments></Exec></Actions>
</Task>
"""


@frozen(kw_only=True)
class TaskSchedulerManager:
    """Windows's task scheduler (schtasks).

    Attributes:
        folder: where the task's description and its log lie.
        user: whose task it is, with the domain.
    """

    folder: Path
    user: str

    @property
    def title(self) -> str:
        """What the service is called to people."""
        return f"{NAME} (scheduled task)"

    @property
    def _file(self) -> Path:
        return self.folder / f"{NAME}-task.xml"

    @property
    def _log(self) -> Path:
        return self.folder / f"{NAME}.log"

    def file_text(self, settings: ServiceSettings) -> str:
        """Return the task's description. A task has no variables of its own: it gets those of its user's login."""
        program, *arguments = settings.command
        # Its output would go nowhere; the router's log goes to a file.
        line = f'/d /c ""{program}" {subprocess.list2cmdline(arguments)} >>"{self._log}" 2>&1"'
        text = _TASK.format(mark="{mark}", user=escape(self.user), program="cmd.exe", arguments=escape(line))
        return marked(text, settings.version)

    def install(self, settings: ServiceSettings) -> Sequence[Step]:
        """Return the steps that install the task, or bring it up to date, and start it."""
        return [
            WriteFile(self._file, self.file_text(settings)),
            RunCommand(("schtasks", "/Create", "/TN", NAME, "/XML", str(self._file), "/F")),
            *self.act("restart"),
        ]

    def uninstall(self) -> Sequence[Step]:
        """Return the steps that stop the task and take it away."""
        return [
            RunCommand(("schtasks", "/End", "/TN", NAME), may_fail=True),
            RunCommand(("schtasks", "/Delete", "/TN", NAME, "/F"), may_fail=True),
            RemoveFile(self._file),
            RemoveFile(self._log),
        ]

    def act(self, action: Action) -> Sequence[Step]:
        """Return the steps of an action."""
        return steps_of(action, ("schtasks", "/Run", "/TN", NAME), ("schtasks", "/End", "/TN", NAME))

    def status(self) -> Sequence[str]:
        """Return the command that shows the task's state."""
        return ("schtasks", "/Query", "/TN", NAME, "/V", "/FO", "LIST")

    def logs(self, *, follow: bool, lines: int) -> Sequence[str]:
        """Return the command that shows the task's log."""
        wait = " -Wait" if follow else ""
        quoted = str(self._log).replace("'", "''")
        command = f"Get-Content -Tail {lines}{wait} -LiteralPath '{quoted}'"
        return ("powershell", "-NoProfile", "-Command", command)
