"""The removal of a container by whoever cannot wait: a router that goes down, or the guardian of one that died.

Usage: removal.py SOCKET NAME. It imports nothing but the standard library and is run with `python -I -S`, so that it
starts in milliseconds.
"""

from __future__ import annotations

import http.client
import socket
import sys
import time
from urllib.parse import quote

# Seconds for which a container may still be made, though it is not there: its router died while it asked for it.
UNSURE_S = 3.0
# Seconds after which it is given up. The next router on this machine removes what is left.
GIVE_UP_S = 30.0
_CALL_S = 20.0
_INTERVAL_S = 0.1


class _Connection(http.client.HTTPConnection):
    """A connection to a UNIX socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_CALL_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_CALL_S)
        self.sock.connect(self._path)


def remove(path: str, name: str, unsure_s: float = UNSURE_S) -> bool:
    """Kill and remove a container. Blocks until it is gone, for `GIVE_UP_S` seconds at most; returns whether it is.

    Args:
        path: the daemon's socket.
        name: the container's name.
        unsure_s: for how many seconds it may still be made, and is asked for again.
    """
    began = time.monotonic()
    while (passed := time.monotonic() - began) < GIVE_UP_S:
        status = _ask(path, name)
        # Podman removes what it still makes, says so, and has it all the same in the end.
        if status in (200, 204, http.client.NOT_FOUND) and passed >= unsure_s:
            return True
        time.sleep(_INTERVAL_S)
    return False


def _ask(path: str, name: str) -> int | None:
    """Ask for the removal once; return the status of the answer, None without one."""
    connection = _Connection(path)
    try:
        connection.request("DELETE", f"/containers/{quote(name, safe='')}?force=true&v=true")
        with connection.getresponse() as answer:
            return answer.status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


if __name__ == "__main__":
    remove(sys.argv[1], sys.argv[2])
