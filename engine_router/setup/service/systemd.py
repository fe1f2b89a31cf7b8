"""The router as a systemd unit: of the user's manager, or of the system's."""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from engine_router.setup.service.base import Action
from engine_router.setup.service.settings import NAME, ServiceSettings, is_closed
from engine_router.setup.service.steps import RemoveFile, RunCommand, Step, WriteFile, marked

UNIT: Final = f"{NAME}.service"
SYSTEM_FOLDER: Final = Path("/etc/systemd/system")
WATCHDOG_S: Final = 60

_UNIT_TEXT: Final = """\
# {mark}
# Your own settings belong into `systemctl edit {name}` (a drop-in): an upgrade leaves those alone.
[Unit]
Description=engine-router: one port for local language models
Documentation=man:engine-router(1)
{after}# Ten failed starts in two minutes are a fault that another start does not mend.
StartLimitIntervalSec=120
StartLimitBurst=10

[Service]
# It says itself when it serves, and that it is alive: where it hangs for a minute it is started again.
Type=notify
NotifyAccess=main
WatchdogSec={watchdog}
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
SyslogIdentifier=engine-router
Restart=on-failure
RestartSec=1
# The router stops its engines itself, one after the other; whatever is left after that is killed.
KillMode=mixed
TimeoutStopSec={stop}
# An engine that the kernel ends for want of memory is an engine's failure, not the service's.
OOMPolicy=continue
# What the shell had that installed it: engines are found by PATH, libraries and GPUs by the others.
{environment}{identity}{hardening}
[Install]
WantedBy={target}
"""

_HARDENING: Final = """\
# Nothing here keeps an engine from its GPU, its models or its ports.
# New files belong to this user alone.
UMask=0077
# No program may become another user by a setuid bit{sudo}.
NoNewPrivileges={new_privileges}
RestrictSUIDSGID={new_privileges}
LockPersonality=yes
"""

_SYSTEM_HARDENING: Final = """\
# /usr, /boot and /etc are read only. PrivateDevices and ProtectHome are left out: GPUs and models lie there.
ProtectSystem=full
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
# Engines may lock a model in memory (--mlock), and open many files.
LimitMEMLOCK=infinity
LimitNOFILE=65536
"""


def is_lingering(folder: Path = Path("/var/lib/systemd/linger")) -> bool:
    """Tell whether this user's units run without a login: `install` has it so, and other units may rely on it."""
    try:
        return (folder / getpass.getuser()).exists()
    except (KeyError, OSError):  # a user without a name
        return False


def user_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where a user's own units lie."""
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


@frozen(kw_only=True)
class SystemdManager:
    """systemd.

    Attributes:
        folder: where the unit lies.
        is_system: the system's manager; else the user's.
        linger_user: whose units shall run without a login; None to leave that as it is.
        creates_user: a system service gets a user of its own, and folders for what it learns and fetches.
        purges: those go with it.
    """

    folder: Path
    is_system: bool = False
    linger_user: str | None = None
    creates_user: bool = False
    purges: bool = False

    @property
    def title(self) -> str:
        """What the service is called to people."""
        return f"{UNIT} ({'system' if self.is_system else 'user'} unit of systemd)"

    def file_text(self, settings: ServiceSettings) -> str:
        """Return the unit."""
        text = _UNIT_TEXT.format(
            mark="{mark}",
            name=f"{'' if self.is_system else '--user '}{NAME}",
            after="After=network-online.target\nWants=network-online.target\n" if self.is_system else "",
            watchdog=WATCHDOG_S,
            command=" ".join(map(_quoted, settings.command)),
            stop=round(settings.stop_timeout_s),
            environment="".join(
                f"Environment={_quoted(f'{name}={value}', is_command=False)}\n"
                for name, value in settings.environment.items()
            ),
            identity=self._identity(settings),
            hardening=_HARDENING.format(
                sudo=": off, for an engine's commands begin with sudo" if settings.needs_sudo else "",
                new_privileges="no" if settings.needs_sudo else "yes",
            )
            + (_SYSTEM_HARDENING if self.is_system else ""),
            target="multi-user.target" if self.is_system else "default.target",
        )
        return marked(text, settings.version)

    def _identity(self, settings: ServiceSettings) -> str:
        if settings.user is None:
            return ""
        if not self.creates_user:  # a person: state and models lie in their home
            return f"User={settings.user}\n"
        return (
            f"User={settings.user}\n"
            f"StateDirectory={NAME}\nCacheDirectory={NAME}\n"
            f"Environment=XDG_STATE_HOME=%S XDG_CACHE_HOME=%C/{NAME}\n"
        )

    def install(self, settings: ServiceSettings) -> Sequence[Step]:
        """Return the steps that install the unit, or bring it up to date, and start it."""
        steps: list[Step] = []
        if self.creates_user and settings.user is not None:
            home = f"/var/lib/{NAME}"
            added = ("useradd", "--system", "--home-dir", home, "--shell", "/usr/sbin/nologin", settings.user)
            steps.append(RunCommand(added, may_fail=True))  # it is there already, after an upgrade
            steps += [
                RunCommand(("usermod", "--append", "--groups", group, settings.user), may_fail=True)
                for group in ("video", "render")  # whose members may use a GPU
            ]
            if is_closed(
                settings.config, stat.S_IROTH
            ):  # it has keys: no others than this user shall read it
                config = str(settings.config)
                steps += [RunCommand(("chgrp", NAME, config)), RunCommand(("chmod", "g+r", config))]
        steps.append(WriteFile(self.folder / UNIT, self.file_text(settings)))
        steps.append(self._systemctl("daemon-reload"))
        steps.append(self._systemctl("enable", UNIT))
        steps.append(self._systemctl("restart", UNIT))
        if self.linger_user is not None:
            steps.append(RunCommand(("loginctl", "enable-linger", self.linger_user), may_fail=True))
        return steps

    def uninstall(self) -> Sequence[Step]:
        """Return the steps that stop the unit and take it away. Drop-ins, which the user wrote, stay."""
        steps: list[Step] = [self._systemctl("disable", "--now", UNIT, may_fail=True)]
        if self.purges:  # while systemd knows the unit, it knows which folders are the unit's
            steps.append(self._systemctl("clean", "--what=state", "--what=cache", UNIT, may_fail=True))
        steps += [
            RemoveFile(self.folder / UNIT),
            self._systemctl("daemon-reload"),
            self._systemctl("reset-failed", UNIT, may_fail=True),
        ]
        if self.purges and self.creates_user:
            steps.append(RunCommand(("userdel", NAME), may_fail=True))
        return steps

    def act(self, action: Action) -> Sequence[Step]:
        """Return the steps of an action."""
        return [self._systemctl(action, UNIT)]

    def status(self) -> Sequence[str]:
        """Return the command that shows the unit's state."""
        return self._systemctl("status", "--no-pager", UNIT).argv

    def logs(self, *, follow: bool, lines: int) -> Sequence[str]:
        """Return the command that shows the unit's log."""
        unit = ("--unit", UNIT) if self.is_system else ("--user-unit", UNIT)
        return ("journalctl", *unit, "--lines", str(lines), *(("--follow",) if follow else ("--no-pager",)))

    def _systemctl(self, *arguments: str, may_fail: bool = False) -> RunCommand:
        scope = () if self.is_system else ("--user",)
        return RunCommand(("systemctl", *scope, *arguments), may_fail=may_fail)


def _quoted(word: str, *, is_command: bool = True) -> str:
    """Return a word as systemd reads it back: its own quotes, specifiers and variables mean nothing (systemd.service(5))."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if is_command:
        word = word.replace("$", "$$")
    return f'"{word}"'
