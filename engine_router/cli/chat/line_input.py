"""Lines that a person types: several as one message between triple quotes, and a history that outlives the session."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from engine_router.cli.chat.screen import note

PROMPT: Final = 3 * ">" + " "
MORE: Final = "... "
QUOTES: Final = '"""'
HISTORY_LINES: Final = 1000
HISTORY_VARIABLE: Final = "ENGINE_ROUTER_HISTORY"


def read_message() -> str | None:
    """Return the next message; empty where the person thought better of it, None at the end of the input."""
    try:
        line = input(PROMPT)
        if not line.lstrip().startswith(QUOTES):
            return line.strip()
        lines = [line.lstrip().removeprefix(QUOTES)]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(input(MORE))
    except EOFError:
        return None
    except KeyboardInterrupt:
        note("\n/bye ends the chat, and so does Ctrl-D")
        return ""
    except UnicodeDecodeError:
        note("that is not UTF-8")
        return ""
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip()


@contextlib.contextmanager
def history() -> Iterator[None]:
    """Have the arrow keys bring back what was typed, in earlier sessions too, until the block ends.

    The file is the person's alone. It cannot be written where it has no place; then there is none.
    """
    try:
        import readline  # noqa: PLC0415 - not on every platform, and only for people
    except ImportError:
        yield
        return
    path = _history_path()
    before = 0
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600))
            readline.read_history_file(path)
        before = readline.get_current_history_length()
    try:
        yield
    finally:
        added = readline.get_current_history_length() - before
        if path is not None and added > 0:
            readline.set_history_length(HISTORY_LINES)
            with contextlib.suppress(OSError):
                readline.append_history_file(added, path)


def _history_path() -> Path | None:
    named = os.environ.get(HISTORY_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    import platformdirs  # noqa: PLC0415 - slow to import

    return platformdirs.user_state_path("engine-router", appauthor=False) / "history"
