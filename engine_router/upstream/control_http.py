"""Control calls over httpx; nothing else imports that.

Imported with the first call: httpx takes a tenth of the time that the router takes to start.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import trio

from engine_router.upstream.connect import tls_context
from engine_router.upstream.control_errors import CallFailed, CannotBeSent, CannotConnect, ConnectTimedOut

# A request's extension: the authorities by which certificates are verified.
_CA_FILE: Final = "ca_file"
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)


def make_client(socket: str | None = None, tls: ssl.SSLContext | None = None) -> httpx.AsyncClient:
    """Return a client without limits of its own that keeps no connection.

    Args:
        socket: path of a UNIX socket that all calls go to, whatever their host.
        tls: secures all calls over TLS; each by its `ca_file` when absent.

    Some servers wait for idle connections when they are asked to end, and others close them just when the next call
    begins.
    """
    return httpx.AsyncClient(
        trust_env=False,
        timeout=None,  # noqa: S113
        transport=_plain(socket),
        mounts={"https://": _Secured() if tls is None else _over(tls)},
        event_hooks={"request": [_with_plain_body]},
    )


@asynccontextmanager
async def stream(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    headers: Mapping[str, str],
    json: Any,
    content: bytes | None,
    connect_timeout_s: float | None,
    ca_file: str | None = None,
) -> AsyncIterator[httpx.Response]:
    """Make a call; see `ControlClient.stream`."""
    timeout = httpx.Timeout(None, connect=connect_timeout_s)
    try:
        async with client.stream(
            method,
            url,
            headers=headers,
            json=json,
            content=content,
            timeout=timeout,
            extensions={_CA_FILE: ca_file},
        ) as response:
            yield response
    except httpx.ConnectTimeout as error:
        raise ConnectTimedOut(error) from error
    except httpx.ConnectError as error:
        raise CannotConnect(error) from error
    except httpx.HTTPError as error:
        raise CallFailed(error) from error
    except (httpx.InvalidURL, UnicodeError) as error:
        raise CannotBeSent(error) from error


class _Secured(httpx.AsyncBaseTransport):
    """Transports over TLS, each made at its first call, in a thread: the system's certificates take long to load, and 3 MB."""

    def __init__(self) -> None:
        self._made: dict[ssl.SSLContext, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return its answer."""
        try:  # as for requests of clients
            tls = await trio.to_thread.run_sync(tls_context, request.extensions.get(_CA_FILE))
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        if tls not in self._made:
            self._made[tls] = _over(tls)
        return await self._made[tls].handle_async_request(request)

    async def aclose(self) -> None:
        """Close it."""
        for transport in self._made.values():
            await transport.aclose()


def _plain(socket: str | None) -> httpx.AsyncHTTPTransport:
    # No certificate is looked at over plain HTTP, and this context would accept none.
    return _over(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), socket)


def _over(context: ssl.SSLContext, socket: str | None = None) -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=_LIMITS, uds=socket)


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
