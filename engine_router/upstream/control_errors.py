"""Control calls that went wrong, without the library that makes them."""

from __future__ import annotations


class CallFailed(Exception):
    """A call without an answer, or with a part of one only. The library's error is its cause.

    Attributes:
        kind: what the library calls it, such as `ReadError`.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.kind = type(error).__name__


class CannotConnect(CallFailed):
    """No address of the server accepts a connection."""


class ConnectTimedOut(CallFailed):
    """No address of the server accepted a connection in time."""


class CannotBeSent(CallFailed):
    """The URL, or a header, is one that no request can have."""
