"""One request to the hub and its answer, over a connection of its own, done in a thread that can be stopped.

A thread decrypts and takes in a fast download for a tenth of what it costs the router's loop, which has requests to
serve meanwhile: trio's TLS needs a second of the loop for 100 MB.
"""

from __future__ import annotations

import contextlib
import http.client
import selectors
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import trio

from engine_router.upstream.address import address_of

PIECE_BYTES: Final = 262_144
"""The most bytes of one read."""

T = TypeVar("T")


class Stopped(Exception):
    """The exchange was stopped, or ended, before its answer was complete; the message says how."""


class HubExchange:
    """A GET and its answer. All methods but `stop` block; `run` has them run in a thread.

    Args:
        sock: connected, and closed by `close`.
        quiet_s: seconds without a byte after which the connection counts as dead.
    """

    def __init__(
        self, sock: socket.socket, tls: ssl.SSLContext, url: str, headers: Mapping[str, str], quiet_s: float
    ) -> None:
        self._sock = sock
        self._tls = tls if url.startswith("https:") else None
        self._url = url
        self._headers = headers
        self._quiet_s = quiet_s
        self._response: http.client.HTTPResponse | None = None
        self._selector = selectors.DefaultSelector()
        self._is_stopped = False

    def head(self, target: str) -> tuple[int, Mapping[str, str]]:
        """Send the request and return the status and the headers of the answer; names in lower case.

        Raises:
            Stopped: there is no answer.
        """
        host, port = address_of(self._url)
        try:
            self._sock.settimeout(self._quiet_s)
            if self._tls is not None:
                self._sock = self._tls.wrap_socket(
                    self._sock, server_hostname=host, do_handshake_on_connect=False
                )
                self._sock.do_handshake()
            connection = http.client.HTTPConnection(host, port)
            connection.sock = self._sock
            connection.putrequest("GET", target, skip_accept_encoding=True)
            for name, value in self._headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            self._response = connection.getresponse()
            self._selector.register(self._sock, selectors.EVENT_READ)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Stopped(_reason(error)) from None
        return self._response.status, {name.lower(): value for name, value in self._response.getheaders()}

    def piece(self) -> bytes:
        """Return the next bytes of the body; empty at its end.

        Raises:
            Stopped: it broke off.
        """
        if self._response is None or self._is_stopped:
            raise Stopped("it was stopped")
        try:
            return self._response.read1(PIECE_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Stopped(_reason(error)) from None

    def has_more(self) -> bool:
        """Tell whether more bytes have come; where it says no, there may be some."""
        is_decrypted = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0
        return is_decrypted or bool(self._selector.select(0))

    def stop(self) -> None:
        """End it at once, from any thread."""
        self._is_stopped = True
        with contextlib.suppress(OSError, ValueError):
            # That of TLS would take away what the other thread is using.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    @property
    def is_stopped(self) -> bool:
        """True once somebody has stopped it."""
        return self._is_stopped

    def close(self) -> None:
        """Close the connection. Nobody may use it any more. Never waits."""
        self._selector.close()
        if self._response is not None:
            with contextlib.suppress(OSError, ValueError):
                self._response.close()
        self._sock.close()

    async def run(
        self, work: Callable[[], T], meanwhile: Callable[[], Awaitable[None]] = trio.sleep_forever
    ) -> T:
        """Do something with it in a thread. Cancellation stops it, and waits until the thread has noticed.

        Args:
            meanwhile: what is done in the loop as long as the thread is at work.
        """
        outcome: list[T] = []
        failure: Exception | None = None
        is_over = False

        async def watch() -> None:
            try:
                await meanwhile()
            finally:
                if not is_over:
                    self.stop()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                outcome.append(await trio.to_thread.run_sync(work))
            except Exception as error:  # noqa: BLE001 - raised below: the nursery would put it into a group
                failure = error
            is_over = True
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return outcome[0]


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be trusted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "nothing came for too long"
    return str(error) or type(error).__name__
