"""The protocols of a dialect and of a translation between two, and the headers of an error's answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from engine_router.errors import RouterError

Clock = Callable[[], float]
"""A clock, in seconds."""


class Dialect(Protocol):
    """A dialect: OpenAI's, Ollama's or Anthropic's."""

    @property
    def name(self) -> str:
        """`openai`, `ollama` or `anthropic`."""
        ...

    @property
    def stream_type(self) -> str:
        """Content type of a streamed answer."""
        ...

    @property
    def keepalive(self) -> bytes:
        """Frame that keeps a waiting stream open and means nothing to any client."""
        ...

    def streams(self, path: str, body: Mapping[str, Any]) -> bool:
        """Tell whether the client asked for a stream, in which keep-alive frames may be sent."""
        ...

    def error(self, error: RouterError) -> dict[str, Any]:
        """Render an error as the body of an answer."""
        ...

    def is_error(self, body: bytes) -> bool:
        """Tell whether a body is an error as the dialect's clients read it."""
        ...

    def stream_error(self, error: RouterError) -> bytes:
        """Render an error as the last frame of a stream, one that the dialect's clients raise on."""
        ...

    def frames_end(self, data: bytes) -> int:
        """Return where the last complete frame in these bytes of a stream ends; 0 where none is complete."""
        ...


class Translation(Protocol):
    """One request on its way from the client's dialect to the engine's, and its answer on the way back.

    Holds no whole answer where the client asked for a stream.
    """

    @property
    def path(self) -> str:
        """Path of the request in the engine's dialect."""
        ...

    @property
    def body(self) -> bytes:
        """Body of the request in the engine's dialect."""
        ...

    @property
    def content_type(self) -> str:
        """Content type of the answer in the client's dialect."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take in bytes of the engine's answer, split anywhere; return what the client gets for them.

        Raises:
            ValueError: the engine's answer cannot be understood, or is an error; the message says so.
        """
        ...

    def end(self) -> bytes:
        """Take in the end of the engine's answer; return what the client still gets.

        Raises:
            ValueError: the answer ended before its end.
        """
        ...


def error_headers(error: RouterError) -> dict[str, str]:
    """Return the headers that go with an error's answer."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if not error.retryable:
        # openai and anthropic SDKs honour it: a retry cannot help, so the person waits no longer than needed.
        headers["x-should-retry"] = "false"
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="engine-router"'
    return headers
