"""What a machine, or this process, has too little of for a start: descriptors, processes, memory."""

from __future__ import annotations

import errno
from typing import Final

from engine_router.errors import OutOfResources

_LACKS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS})


def lacks_resources(error: BaseException | None) -> bool:
    """Tell whether an error says that this machine, or this process, had too little of something just then."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _LACKS:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def out_of_resources(name: str, error: BaseException) -> OutOfResources:
    """Return the error for what this machine had too little of."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OutOfResources(
        name,
        f"cannot be started just now: {reason}; let the router have more open files and processes "
        "(ulimit -n, LimitNOFILE= of its service), or fewer connections",
    )
