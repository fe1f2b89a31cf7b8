"""The client of control calls: loads and unloads, probes, lists. Users' traffic has its own (`client.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    import ssl

    import httpx

# Seconds after the start in which there is more urgent work.
CALM_S: Final = 1.0


class ControlClient:
    """A client without limits of its own: every call says how long it may take.

    Args:
        client: what makes the calls; loaded with the first call when absent.
        socket: path of a UNIX socket that all calls go to, whatever their host.
        tls: secures all calls over TLS; each by its `ca_file` when absent.
    """

    def __init__(
        self,
        client: httpx.AsyncClient | None = None,
        *,
        socket: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._client = client
        self._socket = socket
        self._tls = tls
        self._loading = trio.Lock()

    @property
    def is_loaded(self) -> bool:
        """True once there is what makes the calls."""
        return self._client is not None

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        json: Any = None,
        content: bytes | None = None,
        connect_timeout_s: float | None = None,
        ca_file: str | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """Make a call. The block gets the answer once its head is there, and reads its body. No redirect is followed.

        Args:
            json: the body, as data; or
            content: the body, as bytes, whose type the headers name.
            ca_file: the authorities that vouch for a certificate; None for the system's.

        Raises:
            CallFailed: the call went wrong, be it while the block reads.

        Cancellation closes the connection.
        """
        client = await self.load()
        from engine_router.upstream import control_http  # noqa: PLC0415 - see `load`

        async with control_http.stream(
            client, method, url, headers, json, content, connect_timeout_s, ca_file
        ) as response:
            yield response

    async def load(self) -> httpx.AsyncClient:
        """Load what makes the calls, in a thread: that takes a tenth of the time that the router takes to start."""
        async with self._loading:
            if self._client is None:
                self._client = await trio.to_thread.run_sync(_make_client, self._socket, self._tls)
            return self._client

    async def load_when_calm(self) -> None:
        """Load a moment after the start, for the calls to come: the first engine that is started needs it."""
        await trio.sleep(CALM_S)
        await self.load()

    async def aclose(self) -> None:
        """End what makes the calls."""
        if self._client is not None:
            await self._client.aclose()


@asynccontextmanager
async def control_client() -> AsyncIterator[ControlClient]:
    """Run a client inside the block."""
    async with aclosing(ControlClient()) as client:
        yield client


def _make_client(socket: str | None, tls: ssl.SSLContext | None) -> httpx.AsyncClient:
    from engine_router.upstream.control_http import make_client  # noqa: PLC0415 - see `ControlClient.load`

    return make_client(socket, tls)
