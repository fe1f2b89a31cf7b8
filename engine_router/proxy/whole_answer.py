"""A translated answer in one piece, held until it is understood: its head must promise nothing before."""

from __future__ import annotations

from attrs import define, field

from engine_router.guards.limits import MAX_WHOLE_BYTES


@define(eq=False)
class Whole:
    """A translated answer in one piece, held until it is understood.

    Attributes:
        size_bytes: of what the engine has sent of it.
    """

    parts: list[bytes] = field(factory=list)
    size_bytes: int = 0
    is_complete: bool = False

    @property
    def too_long(self) -> str:
        """What is said of an answer that is too long."""
        return f"is longer than {MAX_WHOLE_BYTES / 1_000_000:.0f} MB"

    def counts(self, data: bytes) -> bool:
        """Count bytes that the engine sent; tell whether they are not too many."""
        self.size_bytes += len(data)
        return self.size_bytes <= MAX_WHOLE_BYTES

    @property
    def length(self) -> tuple[bytes, bytes]:
        """The header that tells how long it is."""
        return b"content-length", b"%d" % sum(map(len, self.parts))

    def take(self) -> bytes:
        """Return all of it, once; then nothing."""
        whole, self.parts = b"".join(self.parts), []
        return whole
