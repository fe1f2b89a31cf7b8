"""Errors of the configuration file."""

from __future__ import annotations

from collections.abc import Sequence

from engine_router.errors.base import RouterError
from engine_router.guards.limits import MOST_FAULTS


class BadConfiguration(RouterError):
    """The configuration was to be read again and has faults, so that nothing was changed."""

    status = 422
    code = "bad_configuration"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"
    retryable = False


class ConfigurationChanged(BadConfiguration):
    """The configuration was to be replaced, and is not any more what it was when it was read."""

    status = 409
    code = "configuration_changed"


class ConfigurationReadOnly(BadConfiguration):
    """The configuration was to be replaced by somebody who may not do that, or where nobody may."""

    status = 403
    code = "configuration_read_only"
    kind = "permission_error"
    anthropic_kind = "permission_error"


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        source: the file, as the user named it.
        faults: the faults found, each as (path, message); the path is empty for a fault of the file itself. There are
            at most `MOST_FAULTS` of them: nobody reads more, and a file may have as many as it has lines.
        more: how many faults there are beyond those.
        excerpts: for each fault the line of the file that it is about, with carets below; empty where none can be
            shown.
    """

    def __init__(self, source: str, faults: Sequence[tuple[str, str]], excerpts: Sequence[str] = ()) -> None:
        self.source = source
        self.faults = tuple(faults[:MOST_FAULTS])
        self.more = len(faults) - len(self.faults)
        self.excerpts = tuple(excerpts[:MOST_FAULTS]) or ("",) * len(self.faults)
        lines = [
            f"{path}: {message}".removeprefix(": ") + (f"\n{excerpt}" if excerpt else "")
            for (path, message), excerpt in zip(self.faults, self.excerpts, strict=True)
        ]
        if self.more:
            lines.append(f"and {self.more:,} more")
        count = "1 fault" if len(faults) == 1 else f"{len(faults):,} faults"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {line}" for line in lines))
