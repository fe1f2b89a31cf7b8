"""The client of control calls: loads and unloads, probes, lists. Users' traffic has its own (`client.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx


def control_client() -> httpx.AsyncClient:
    """Return a client without limits of its own: every call says how long it may take.

    It keeps no connection: some servers wait for those that are idle when they are asked to end, and others close
    them just when the next call begins.
    """
    return httpx.AsyncClient(
        trust_env=False,
        timeout=None,  # noqa: S113
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        event_hooks={"request": [_with_plain_body]},
    )


async def _with_plain_body(request: httpx.Request) -> None:
    """Replace a request's body by one that leaves nothing behind where its sending is cancelled.

    httpx's own is an asynchronous generator, of whose unfinished end trio warns.
    """
    request.stream = _Once(request.content)


class _Once(httpx.AsyncByteStream):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._data:
            raise StopAsyncIteration
        data, self._data = self._data, b""
        return data
