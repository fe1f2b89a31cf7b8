"""The service manager of this platform."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

import platformdirs

from engine_router.setup.service.base import ServiceManager
from engine_router.setup.service.launchd import LaunchdManager
from engine_router.setup.service.settings import NAME
from engine_router.setup.service.systemd import SYSTEM_FOLDER, SystemdManager, user_folder
from engine_router.setup.service.task_scheduler import TaskSchedulerManager


class NoServiceManager(Exception):
    """This platform has no service manager for what is asked."""


def manager_for(
    *,
    is_system: bool,
    lingers: bool = False,
    user: str | None = None,
    purges: bool = False,
    platform: str = sys.platform,
) -> ServiceManager:
    """Return the service manager.

    Args:
        is_system: a service of the machine, with a user of its own; else of the user who asks.
        lingers: the user's service runs without a login, too.
        user: whom a system service runs as; the router's own where it is engine-router.
        purges: what a system service has learned and fetched goes with it.

    Raises:
        NoServiceManager: there is none for that here.
    """
    if platform == "linux":
        return SystemdManager(
            folder=SYSTEM_FOLDER if is_system else user_folder(),
            is_system=is_system,
            linger_user=getpass.getuser() if lingers and not is_system else None,
            creates_user=is_system and user == NAME,
            purges=purges,
        )
    if is_system:
        raise NoServiceManager("--system is for Linux: here a service is its user's")
    if platform == "darwin":
        return LaunchdManager(home=Path.home(), uid=_own_uid())
    if platform == "win32":
        domain = os.environ.get("USERDOMAIN", ".")
        folder = Path(platformdirs.user_state_dir(NAME, appauthor=False))
        return TaskSchedulerManager(folder=folder, user=f"{domain}\\{getpass.getuser()}")
    raise NoServiceManager(
        f"no service manager is known for {platform}: run `engine-router serve` under your own"
    )


def is_running(platform: str = sys.platform) -> bool:
    """Tell whether this platform's service manager runs; in a container it usually does not (sd_booted(3))."""
    return platform in ("darwin", "win32") or Path("/run/systemd/system").is_dir()


def _own_uid() -> int:
    return 0 if sys.platform == "win32" else os.getuid()
