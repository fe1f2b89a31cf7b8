"""The answer in one piece of a request whose answer is translated."""

from __future__ import annotations

from attrs import define, field


@define(eq=False, repr=False)
class WholeAnswer:
    """A translated answer in one piece, held until it is understood: its head must promise nothing before.

    Attributes:
        size_bytes: what the engine has sent of it.
    """

    data: bytearray = field(factory=bytearray)
    size_bytes: int = 0
    is_complete: bool = False

    @property
    def length(self) -> tuple[bytes, bytes]:
        """The header that tells how long it is."""
        return b"content-length", b"%d" % len(self.data)

    def take(self) -> bytes:
        """Return all of it, once; then nothing."""
        data, self.data = bytes(self.data), bytearray()
        return data
