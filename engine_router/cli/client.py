"""HTTP to a running router, with nothing but the standard library, which is imported fast."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from engine_router.cli.address import KEY_VARIABLE, RouterAddress
from engine_router.cli.exit_codes import UNREACHABLE, CommandFailed
from engine_router.guards.foreign_text import indented

CONNECT_TIMEOUT_S = 5.0
# Everything but a swap is answered from what the router knows, without waiting.
ANSWER_TIMEOUT_S = 10.0


class Refused(CommandFailed):
    """The router answered with an error.

    Attributes:
        status: the HTTP status.
        error_code: the router's own code, such as `model_not_found`; empty where there is none.
    """

    def __init__(self, message: str, status: int, error_code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code


class Call:
    """One request on a connection of its own; `end` ends it, from any thread.

    Args:
        timeout_s: of the answer's head and of each piece of its body; None waits for ever.
    """

    def __init__(
        self, address: RouterAddress, method: str, path: str, body: object, timeout_s: float | None
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        parts = urlsplit(address.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connect_s = min(CONNECT_TIMEOUT_S, timeout_s or CONNECT_TIMEOUT_S)
        self._connection = kind(parts.hostname or "", parts.port, timeout=connect_s)
        self._method, self._target = method, f"{parts.path}{path}"
        self._body = None if body is None else json.dumps(body).encode()
        self._is_ended = False

    def answer(self) -> http.client.HTTPResponse:
        """Send the request and return the head of its answer.

        Raises:
            CommandFailed: nobody is there, or what is there is no router.
            Refused: the router says no.
        """
        headers: dict[str, str | bytes] = {"Accept": "application/json, text/plain"}
        if self._body is not None:
            headers["Content-Type"] = "application/json"
        if self._address.key is not None:
            headers["Authorization"] = f"Bearer {self._address.key}".encode()
        url = self._address.url
        try:
            self._connection.connect()
            if self._is_ended:
                raise CommandFailed("ended")
            self._connection.sock.settimeout(self._timeout_s)
            self._connection.request(self._method, self._target, self._body, headers)
            answer = self._connection.getresponse()
            if answer.status >= 400:
                raise _refused(self._address, answer.status, answer.read())
        except ssl.SSLError as error:
            raise CommandFailed(
                f"{url} has no TLS that can be trusted: {error.reason or error}", UNREACHABLE
            ) from None
        except TimeoutError:
            raise CommandFailed(f"{url} does not answer; is it the router?", UNREACHABLE) from None
        except (ConnectionError, socket.gaierror, OSError) as error:
            raise CommandFailed(_unreachable(url, error), UNREACHABLE) from None
        except (http.client.HTTPException, UnicodeError):
            raise CommandFailed(
                f"what answers at {url} does not speak HTTP; give the router's URL with --url"
            ) from None
        return answer

    def read(self) -> Any:
        """Return the JSON of the answer.

        Raises:
            CommandFailed: as `answer`, or the answer is not the router's, or broke off.
        """
        with self.answer() as answer:
            try:
                return json.loads(answer.read())
            except (http.client.HTTPException, OSError):
                raise CommandFailed(f"the connection to {self._address.url} broke off") from None
            except ValueError:
                raise CommandFailed(f"what answers at {self._address.url} is not an engine-router") from None

    def end(self) -> None:
        """End it, whatever another thread waits for in it; that thread finds the connection at its end, and closes it."""
        self._is_ended = True
        sock = self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(
                    sock, socket.SHUT_RDWR
                )  # TLS would take its own state away from the reader

    def close(self) -> None:
        """Close the connection; only for the thread that reads from it."""
        self.end()
        self._connection.close()


def get(address: RouterAddress, path: str) -> Any:
    """Return the JSON that the router answers there; raises as `Call.read`."""
    call = Call(address, "GET", path, None, ANSWER_TIMEOUT_S)
    try:
        return call.read()
    finally:
        call.close()


def post(address: RouterAddress, path: str, body: object, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
    """Post what is done within `timeout_s` seconds, and return the JSON that the router answers; raises as `Call.read`."""
    call = Call(address, "POST", path, body, timeout_s)
    try:
        return call.read()
    finally:
        call.close()


def not_understood(address: RouterAddress) -> CommandFailed:
    """Return the failure of a command that finds no sense in what the router says."""
    return CommandFailed(f"the router at {address.url} is of another version; --json shows what it says")


def get_status(address: RouterAddress) -> dict[str, Any]:
    """Return the router's status; raises as `Call.read`."""
    status = get(address, "/status")
    if not isinstance(status, dict) or "pools" not in status:
        raise CommandFailed(f"what answers at {address.url} is not an engine-router")
    return status


def _unreachable(url: str, error: OSError) -> str:
    reason = (
        "connection refused" if isinstance(error, ConnectionRefusedError) else error.strerror or str(error)
    )
    return (
        f"no router answers at {url} ({reason.lower()}); start one with `engine-router serve`, "
        "or say where it is with --url"
    )


def _refused(address: RouterAddress, status: int, body: bytes) -> Refused:
    message, code = "", ""
    try:
        error = json.loads(body)["error"]
        message = error if isinstance(error, str) else str(error["message"])
        code = "" if isinstance(error, str) else str(error.get("code") or "")
    except (ValueError, KeyError, TypeError):
        message = (
            f"what answers at {address.url} says {status} {http.client.responses.get(status, '')}".rstrip()
        )
        message += "; is it the router?"
    if status == 401:
        message += f"; give {'another' if address.key else 'one'} with --api-key, or in ${KEY_VARIABLE}"
    return Refused(indented(message), status, code)
