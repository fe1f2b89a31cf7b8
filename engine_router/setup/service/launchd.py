"""The router as an agent of macOS's launchd, which starts when its user logs in."""

from __future__ import annotations

import plistlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from engine_router.setup.service.base import Action, steps_of
from engine_router.setup.service.settings import NAME, ServiceSettings
from engine_router.setup.service.steps import RemoveFile, RunCommand, Step, WriteFile, marked

LABEL: Final = f"local.{NAME}"


@frozen(kw_only=True)
class LaunchdManager:
    """launchd (launchd.plist(5), launchctl(1)).

    Attributes:
        home: the user's home.
        uid: the user's number.
    """

    home: Path
    uid: int

    @property
    def title(self) -> str:
        """What the service is called to people."""
        return f"{LABEL} (agent of launchd)"

    @property
    def _plist(self) -> Path:
        return self.home / "Library" / "LaunchAgents" / f"{LABEL}.plist"

    @property
    def _log(self) -> Path:
        return self.home / "Library" / "Logs" / f"{NAME}.log"

    @property
    def _target(self) -> str:
        return f"gui/{self.uid}/{LABEL}"

    def file_text(self, settings: ServiceSettings) -> str:
        """Return the property list."""
        plist = plistlib.dumps(
            {
                "Label": LABEL,
                "ProgramArguments": list(settings.command),
                "EnvironmentVariables": dict(settings.environment),
                "RunAtLoad": True,
                "KeepAlive": {"SuccessfulExit": False},
                "ThrottleInterval": 1,
                "ExitTimeOut": round(settings.stop_timeout_s),
                "ProcessType": "Interactive",  # else macOS slows it down
                "SoftResourceLimits": {"NumberOfFiles": 65536},
                "StandardOutPath": str(self._log),
                "StandardErrorPath": str(self._log),
                "Umask": 0o077,
            },
            sort_keys=False,
        ).decode()
        head, end = plist.split("<plist", 1)
        return marked(f"{head}<!-- {{mark}} -->\n<plist{end}", settings.version)

    def install(self, settings: ServiceSettings) -> Sequence[Step]:
        """Return the steps that install the agent, or bring it up to date, and start it."""
        return [
            WriteFile(self._plist, self.file_text(settings)),
            RunCommand(("launchctl", "bootout", self._target), may_fail=True),
            RunCommand(("launchctl", "enable", self._target)),
            RunCommand(("launchctl", "bootstrap", f"gui/{self.uid}", str(self._plist))),
        ]

    def uninstall(self) -> Sequence[Step]:
        """Return the steps that stop the agent and take it away."""
        return [
            RunCommand(("launchctl", "bootout", self._target), may_fail=True),
            RemoveFile(self._plist),
            RemoveFile(self._log),
        ]

    def act(self, action: Action) -> Sequence[Step]:
        """Return the steps of an action."""
        start = ("launchctl", "bootstrap", f"gui/{self.uid}", str(self._plist))
        return steps_of(action, start, ("launchctl", "bootout", self._target))

    def status(self) -> Sequence[str]:
        """Return the command that shows the agent's state."""
        return ("launchctl", "print", self._target)

    def logs(self, *, follow: bool, lines: int) -> Sequence[str]:
        """Return the command that shows the agent's log."""
        return ("tail", "-n", str(lines), *(("-F",) if follow else ()), str(self._log))
