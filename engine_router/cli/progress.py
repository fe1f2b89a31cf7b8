"""The progress of a call that may take minutes, shown while it lasts."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from attrs import frozen

from engine_router.cli.address import RouterAddress
from engine_router.cli.client import Call, get_status
from engine_router.cli.exit_codes import CommandFailed
from engine_router.cli.formatting import counted, phase_text, seconds
from engine_router.cli.terminal import is_terminal, say
from engine_router.guards.foreign_text import indented_values

POLL_S = 0.2


@frozen
class Step:
    """The step that the router is at.

    Attributes:
        text: in words; a step is another one when they change.
        elapsed_s: seconds since it began, where known.
        expected_s: seconds that it took the last time, where known.
    """

    text: str
    elapsed_s: float | None = None
    expected_s: float | None = None

    def whole(self, total_s: float) -> str:
        """Return one line with all times."""
        elapsed = total_s if self.elapsed_s is None else self.elapsed_s
        about = "" if self.expected_s is None else f" of about {seconds(self.expected_s)}"
        in_all = f" ({seconds(total_s)} in all)" if total_s - elapsed > 1 else ""
        return f"{self.text}: {seconds(elapsed)}{about}{in_all}"

    def once(self) -> str:
        """Return the line for a reader who sees it once."""
        return self.text if self.expected_s is None else f"{self.text} (about {seconds(self.expected_s)})"


class _Thread(threading.Thread):
    def __init__(self, call: Call) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.answer: Any = None
        self.failure: CommandFailed | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self.answer = self.call.read()
        except CommandFailed as failure:
            self.failure = failure
        finally:
            self.call.close()
            self.done.set()


def wait_for(address: RouterAddress, path: str, body: object, pool: str | None, *, quiet: bool) -> Any:
    """Post and return the answer; meanwhile show on standard error what the router does.

    Args:
        pool: whose swap is shown; None shows any.
        quiet: show nothing.

    Raises:
        CommandFailed: as `Call.read`.
        KeyboardInterrupt: the connection is closed then, so that the router knows.
    """
    thread = _Thread(Call(address, "POST", path, body, None))
    thread.start()
    began = time.monotonic()
    try:
        with shown(quiet=quiet) as show:
            while not thread.done.wait(POLL_S):
                if (
                    not quiet
                    and (step := current_step(address, pool)) is not None
                    and not thread.done.is_set()
                ):
                    show(step, time.monotonic() - began)
    finally:
        thread.call.end()
    if thread.failure is not None:
        raise thread.failure
    return thread.answer


@contextlib.contextmanager
def shown(*, quiet: bool) -> Iterator[Callable[[Step, float], None]]:
    """Return what shows a step: in one line that changes on a terminal, each once elsewhere."""
    if quiet:
        yield lambda _step, _total_s: None
    elif is_terminal(sys.stderr):
        from rich.console import Console  # noqa: PLC0415 - slow to import, and not needed in a pipe
        from rich.text import Text  # noqa: PLC0415 - likewise

        with Console(stderr=True).status("") as line:
            yield lambda step, total_s: line.update(Text(step.whole(total_s)))
    else:
        last: list[str] = []

        def show(step: Step, _total_s: float) -> None:
            if last != [step.text]:
                last[:] = [step.text]
                say(step.once(), to=sys.stderr)

        yield show


def current_step(address: RouterAddress, pool: str | None) -> Step | None:
    """Return the step that the router is at; None where it does not answer now."""
    try:
        status = get_status(address)
    except CommandFailed:
        return None
    for name, state in indented_values(status["pools"]).items():
        if pool in (None, name) and (step := describe(state)) is not None:
            return step
    return None


def describe(pool: dict[str, Any]) -> Step | None:
    """Return the step that a pool is at; None where nothing happens."""
    swap, resident = pool["swap"], pool["resident"]
    if swap is not None:
        text = phase_text(swap["phase"], swap["source"], swap["target"])
        if swap.get("step"):
            return Step(f"{text} ({swap['step']})", swap["phase_elapsed_s"])
        if swap["phase"] == "start":
            return Step(text, swap["phase_elapsed_s"], swap["expected_s"])
        if swap["phase"] == "drain" and resident is not None:
            text = f"letting {swap['source']} finish {counted(resident['in_flight'], 'request')}"
        return Step(text, swap["phase_elapsed_s"])
    others = sum(pool["waiting"].values()) - 1  # the call itself waits, too
    if resident is None or others < 0:
        return None
    text = (
        f"waiting for {resident['resident']}, which is busy with {counted(resident['in_flight'], 'request')}"
    )
    return Step(text if others == 0 else f"{text}; {counted(others, 'other')} waiting, too")
