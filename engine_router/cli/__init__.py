"""The command line: `engine-router COMMAND`. A command's module is imported when the command is run."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from engine_router.cli.exit_codes import BAD_CONFIG, FAILED, INTERRUPTED, CommandFailed
from engine_router.cli.init_process import run_below_init
from engine_router.cli.terminal import say
from engine_router.errors import ConfigError

if TYPE_CHECKING:
    import argparse

# Objects of which, when so many more were made than went, the youngest are searched for cycles. Requests make many
# objects and next to no cycles: with Python's 700 the searches take 5 % of their time.
YOUNG_OBJECTS = 10_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; None takes it from the process.

    Returns:
        the exit code: 0 ok, 1 failed, 2 bad configuration, 3 router not reachable, 130 interrupted.

    Raises:
        SystemExit: with code 2 for wrong usage, 0 after `--help` and `--version`.
    """
    _have_streams()
    if arguments is None:  # the process is this command's alone
        run_below_init()
        _trim_imports()
        gc.disable()  # imports make many objects, and nothing that could be collected
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `engine-router models | head -1`
        _forget_stdout()
        return FAILED
    except CommandFailed as failure:
        _say(f"engine-router: {failure}")
        return failure.code
    except ConfigError as error:
        _say(str(error))
        return BAD_CONFIG
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    return code


def _run(arguments: Sequence[str] | None) -> int:
    from engine_router.cli.parser import build_parser  # noqa: PLC0415 - Ctrl-C while it is imported ends quietly, too

    options = build_parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = importlib.import_module(options.module).run
    if arguments is None:
        _begin_collecting()
    return run(options)


def _begin_collecting() -> None:
    """Search for cycles from now on, but not in what was imported: that stays."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    gc.enable()


def _trim_imports() -> None:
    """Have httpx leave out its own command line, as it does where rich and click are missing: that saves 4 MB."""
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment] # None is documented
    modules.setdefault("httpx._main", None)


def _have_streams() -> None:
    """Open what the caller closed, so that no socket gets the number of standard error and the words meant for it."""
    with contextlib.suppress(OSError):
        # The lowest free number is taken: 0, 1 or 2 as long as one of them is closed.
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - stays open to the end
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - likewise
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # whoever calls `main` may have put anything there
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # a model's name must not fail in an ASCII terminal


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        say(text, to=sys.stderr)


def _forget_stdout() -> None:
    """Let the interpreter's last flush go nowhere: there is nobody to read it."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
