"""The UNIX socket at which Docker or Podman take calls."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from engine_router.config.values import expanded
from engine_router.guards.foreign_text import shown

REMEDY: Final = (
    "start Docker and join its group (sudo usermod -aG docker $USER, then log in again), or "
    "`systemctl --user enable --now podman.socket`; another place is named by the option socket"
)


class NoSocket(Exception):
    """There is no socket that could be used. Its text goes on where a sentence says `cannot be started:`."""


def find_socket(named: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of the socket. Blocks for a moment: it looks at files.

    Args:
        named: the path that is configured.
        environ: holds `DOCKER_HOST` and `XDG_RUNTIME_DIR`.

    Raises:
        NoSocket: there is none, or none that this user may use.
    """
    if named is not None:
        return _usable(str(expanded(named.removeprefix("unix://"))), "the option socket")
    if host := environ.get("DOCKER_HOST"):
        if not host.startswith("unix://"):
            raise NoSocket(f"DOCKER_HOST is {shown(host)}, and only unix:// can be used; {REMEDY}")
        return _usable(host.removeprefix("unix://"), "DOCKER_HOST")
    places = list(_places(environ))
    forbidden = None
    for place in places:
        if Path(place).is_socket():
            if os.access(place, os.R_OK | os.W_OK):
                return place
            forbidden = forbidden or place
    if forbidden is not None:
        raise NoSocket(f"this user may not use {forbidden}; {REMEDY}")
    raise NoSocket(f"neither Docker nor Podman listens at {' or '.join(places)}; {REMEDY}")


def _places(environ: Mapping[str, str]) -> Iterator[str]:
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        yield f"{runtime}/podman/podman.sock"
        yield f"{runtime}/docker.sock"
    yield "/run/podman/podman.sock"
    yield "/var/run/docker.sock"


def _usable(path: str, source: str) -> str:
    try:
        is_there = Path(path).is_socket()
    except OSError:
        is_there = False
    if not is_there:
        raise NoSocket(f"there is no socket {shown(path)}, which {source} names; {REMEDY}")
    if not os.access(path, os.R_OK | os.W_OK):
        raise NoSocket(f"this user may not use {shown(path)}, which {source} names; {REMEDY}")
    return path
