"""The protocol of keep-alive frames, and the request that they are for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from engine_router.dialects.base import Clock, Dialect
from engine_router.errors import RouterError


class KeepAliveFrames(ABC):
    """The frames of one streaming client's wait for its engine: those before the answer, then the answer, or an error."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def quiet(self) -> bytes:
        """Return the frame that keeps the socket open and means nothing to any client."""
        return self._dialect.keepalive

    @abstractmethod
    def lively(self, progress: str | None = None) -> bytes:
        """Return frames that every watchdog of the endpoint's clients counts as a sign of life.

        Args:
            progress: a line for people. It is shown where the client shows a model's thoughts; where there is no
                such place that does no harm, it is left out.
        """

    def splice(self, data: bytes) -> bytes:
        """Take in bytes of the engine's answer, in the client's dialect and split anywhere; return what goes out.

        That is the very same object where nothing but quiet frames was sent.
        """
        return data

    def end(self) -> bytes:
        """Take in the end of the engine's answer; return what was held back."""
        return b""

    def failure(self, error: RouterError) -> bytes:
        """Return the frames that end the stream with an error, whatever has been sent of it so far.

        What was held back of a frame that never became whole is dropped.
        """
        return self._dialect.stream_error(error)


@frozen
class AwaitedRequest:
    """The request whose client waits, as its frames tell of it; see `keep_alive_for`."""

    model: str
    request: Callable[[], Mapping[str, Any]]
    wall_clock: Clock
    new_id: Callable[[], str]

    @property
    def seconds(self) -> int:
        """The time of day, in whole seconds since 1970."""
        return int(self.wall_clock())
