"""The gauge that runs a command and reads what it prints."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import Decimal, DecimalException
from typing import Final

import attrs
import trio

from engine_router.guards.commands import run_command
from engine_router.guards.limits import MAX_AMOUNT_BYTES, PRINTED_CHARS
from engine_router.memory.reading import GaugeUnreadable, MemoryReading

_UNITS: Final = {
    "": 1,
    "B": 1,
    "bytes": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
# A unit may stand apart ("12 MiB"); whatever else touches the number belongs to it and is checked, so
# that "12Gi" or "93%" is refused instead of being read as 12 or 93 bytes.
_NUMBER: Final = re.compile(
    r"(?<![\w.-])(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
    r"(?:[ \t]+(?P<apart>[KMGT]iB|[kMGT]B|bytes|B)\b|(?P<attached>[^\s,;|]*))"
)


def number_of_bytes(text: str) -> int:
    """Give the last number in `text` in bytes.

    Raises:
        ValueError: there is none, or it is no amount of memory.
    """
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        raise ValueError("it printed no number")
    found = numbers[-1]
    factor = _UNITS.get(found["apart"] or found["attached"] or "")
    try:
        amount = Decimal(found["number"])
        # Compared before it is multiplied or made an integer: 1e999999999 would be one of a gigabyte.
        if factor is not None and 0 <= amount < MAX_AMOUNT_BYTES and amount * factor < MAX_AMOUNT_BYTES:
            return int(amount * factor)
    except DecimalException:  # an exponent that no decimal can have
        pass
    raise ValueError(f"it printed {found[0][:PRINTED_CHARS]!r}, which is no number of bytes")


def _words(argv: Iterable[str]) -> tuple[str, ...]:
    return tuple(argv)


@attrs.frozen(eq=False, repr=False)
class CommandGauge:
    """The last number that a command prints: bytes, or with a unit behind it.

    Units are KiB, MiB, GiB, TiB (powers of 1024), kB, MB, GB, TB (powers of 1000) and B.
    `nvidia-smi --query-gpu=memory.free --format=csv,noheader -i 0` fits as it is.
    """

    argv: tuple[str, ...] = attrs.field(converter=_words)
    limit_s: float = 5.0
    """Seconds that the command may take before it is killed, with all that it started."""

    def __attrs_post_init__(self) -> None:
        if not self.argv:
            raise ValueError("the command gauge needs a command")

    @property
    def name(self) -> str:
        """The name for logs and messages."""
        return f"command {self.argv[0]}"

    async def read(self) -> MemoryReading:
        """Run the command. A cancellation kills it, with all that it started, and waits for its end."""
        result = None
        with trio.move_on_after(self.limit_s):
            result = await run_command(self.argv, timeout_s=math.inf, own_session=True)
        if result is None:
            raise GaugeUnreadable(f"{self.name} took more than {self.limit_s:g} s")
        if result.code is None:
            raise GaugeUnreadable(f"{self.name} {result.said}")
        if result.code != 0:
            said = f": {result.said[-PRINTED_CHARS:]}" if result.said else ""
            raise GaugeUnreadable(f"{self.name} ended with status {result.code}{said}")
        try:
            return MemoryReading(number_of_bytes(result.output))
        except ValueError as error:
            raise GaugeUnreadable(f"{self.name}: {error}") from error
