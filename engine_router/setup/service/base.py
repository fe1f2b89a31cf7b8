"""What every service manager can do for the router."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from engine_router.setup.service.settings import ServiceSettings
from engine_router.setup.service.steps import RunCommand, Step

Action = Literal["start", "stop", "restart"]


def steps_of(action: Action, start: Sequence[str], stop: Sequence[str]) -> Sequence[Step]:
    """Return the steps of an action for a manager with a command to start and one to stop.

    A restart goes on where nothing ran.
    """
    ended = RunCommand(tuple(stop), may_fail=action == "restart")
    begun = RunCommand(tuple(start))
    return {"start": [begun], "stop": [ended], "restart": [ended, begun]}[action]


class ServiceManager(Protocol):
    """A service manager: plans the steps for what is asked, and carries out none."""

    @property
    def title(self) -> str:
        """What the service is called to people, with its manager."""
        ...

    def file_text(self, settings: ServiceSettings) -> str:
        """Return the file that describes the service."""
        ...

    def install(self, settings: ServiceSettings) -> Sequence[Step]:
        """Return the steps that install the service, or bring it up to date, and start it."""
        ...

    def uninstall(self) -> Sequence[Step]:
        """Return the steps that stop the service and take away what `install` made."""
        ...

    def act(self, action: Action) -> Sequence[Step]:
        """Return the steps of an action."""
        ...

    def status(self) -> Sequence[str]:
        """Return the command that shows the service's state."""
        ...

    def logs(self, *, follow: bool, lines: int) -> Sequence[str]:
        """Return the command that shows the service's log."""
        ...
