"""Tables: with colours on a terminal, aligned text elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import TextIO

from attrs import frozen

from engine_router.guards.foreign_text import printable, printable_json

STYLES = {
    "ready": "green",
    "starting": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "settling": "yellow",
    "stuck": "bold red",
    "failed": "bold red",
    "off": "dim",
    "stopped": "dim",
    "empty": "dim",
}
"""The colour of each state."""


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a person's terminal, with a cursor that can be moved."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colours(stream: TextIO) -> bool:
    """Return whether colours may be written there."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def say(text: str = "", *, to: TextIO | None = None, end: str = "\n") -> None:
    """Print text, to standard output unless `to` names another stream, and let a terminal find nothing to obey in it.

    The only way to print in the command line: what the router says may hold what a stranger or an engine wrote.
    """
    print(printable(text, keep_lines=True), file=to, end=end, flush=to is not None or not end)


def say_dimmed(text: str) -> None:
    """Print text less brightly, without a line's end, to standard output, which must have colours."""
    print(f"\x1b[2m{printable(text, keep_lines=True)}\x1b[22m", end="", flush=True)


def show_json(data: object) -> None:
    """Print what the router said, for programs and for people."""
    print(printable_json(json.dumps(data, indent=2, ensure_ascii=False)))


@frozen
class Table:
    """Rows under headings. A cell that is the name of a state gets its colour.

    Attributes:
        right: the columns, by index, whose cells are numbers.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[int] = frozenset()

    def show(self) -> None:
        """Print it to standard output."""
        text = self.text()
        if not is_terminal(sys.stdout):
            say(text)
        elif max(map(len, text.split("\n"))) > shutil.get_terminal_size().columns:
            say(self.records())
        else:
            self._show_rich()

    def text(self) -> str:
        """Return it as aligned text, two spaces between the columns."""
        lines = [
            [heading.upper() for heading in self.headings],
            *([printable(cell) for cell in row] for row in self.rows),
        ]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if column in self.right else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def records(self) -> str:
        """Return each row as lines of their own, a cell in each: for what is wider than the terminal.

        Two columns are a name and its value, which need no headings.
        """
        if len(self.headings) == 2:
            width = max((len(printable(name)) for name, _ in self.rows), default=0)
            return "\n".join(
                f"{printable(name).ljust(width)}  {printable(value)}" for name, value in self.rows
            )
        headings = [heading.upper() for heading in self.headings]
        width = max(map(len, headings))
        return "\n\n".join(
            "\n".join(
                f"{heading.ljust(width)}  {printable(cell)}".rstrip()
                for heading, cell in zip(headings, row, strict=True)
            )
            for row in self.rows
        )

    def _show_rich(self) -> None:
        from rich import box, table, text  # noqa: PLC0415 - slow to import, and not needed in a pipe
        from rich.console import Console  # noqa: PLC0415 - likewise

        made = table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for column, heading in enumerate(self.headings):
            made.add_column(heading, justify="right" if column in self.right else "left", overflow="fold")
        for row in self.rows:
            made.add_row(*(text.Text(printable(cell), STYLES.get(cell, "")) for cell in row))
        Console(highlight=False).print(made)
