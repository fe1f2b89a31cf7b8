"""The state of a unit of systemd."""

from __future__ import annotations

from typing import Final

from attrs import frozen

PROPERTIES: Final = "LoadState,ActiveState,SubState,MainPID,Result,ExecMainStatus,NRestarts,Job"
"""What `systemctl show` is asked for."""

_AT_REST: Final = frozenset({"inactive", "failed"})


@frozen
class UnitState:
    """The state of a unit, as `systemctl show` tells it.

    Attributes:
        load: `loaded`, `not-found`, `masked`, ...
        active: `active`, `activating`, `deactivating`, `inactive`, `failed`, ...
        sub: finer, such as `running` or `auto-restart`.
        pid: of its main process; 0 when there is none.
        restarts: how often systemd has restarted it by itself since it was started.
        job: whether a start or stop of it is queued.
        result: how it ended last, such as `success` or `exit-code`.
        exit_status: of its main process when it ended last.
    """

    load: str
    active: str
    sub: str
    pid: int
    restarts: int
    job: bool
    result: str
    exit_status: str

    @classmethod
    def parse(cls, text: str) -> UnitState:
        """Read `KEY=value` lines.

        Raises:
            ValueError: there is no ActiveState among them.
        """
        pairs = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        if not pairs.get("ActiveState"):
            raise ValueError("no ActiveState")
        return cls(
            load=pairs.get("LoadState", "loaded"),
            active=pairs["ActiveState"],
            sub=pairs.get("SubState", ""),
            pid=int(pairs.get("MainPID") or 0),
            restarts=int(pairs.get("NRestarts") or 0),
            job=pairs.get("Job", "") not in ("", "0"),
            result=pairs.get("Result", ""),
            exit_status=pairs.get("ExecMainStatus", ""),
        )

    @property
    def at_rest(self) -> bool:
        """True where it neither runs nor is about to."""
        return self.active in _AT_REST and self.pid == 0 and not self.job

    @property
    def restarting(self) -> bool:
        """True where its process has exited and systemd waits to start it again."""
        return self.sub.startswith("auto-restart")

    def __str__(self) -> str:
        ending = f", result {self.result}, exit status {self.exit_status}" if self.result != "success" else ""
        return f"{self.active} ({self.sub}{ending})"
