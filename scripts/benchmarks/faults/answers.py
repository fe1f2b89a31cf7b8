"""Requests in three dialects, their answers read to the end, and what is wrong with an answer."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from typing import Any

PATHS = ("/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/responses")
# What ends a stream in each dialect, and what tells of an error in it.
LAST = {
    "/v1/chat/completions": b"[DONE]",
    "/v1/messages": b"message_stop",
    "/api/chat": b'"done":true',
    "/v1/responses": b"response.completed",
}
FAILED = (b'"error"', b"response.failed")
# A request may fail, in one of these ways; 500 is a defect of the router.
ERRORS = frozenset((400, 404, 408, 413, 415, 429, 502, 503, 504, 507, 529))


def request_of(path: str, model: str, *, stream: bool, fault: str = "") -> dict[str, Any]:
    """Return the body of a chat request."""
    data: dict[str, Any] = {"model": model, "stream": stream}
    if fault:
        data["x_fault"] = fault
    if path == "/v1/responses":
        return {**data, "input": "hi"}
    data["messages"] = [{"role": "user", "content": "hi"}]
    if path == "/v1/messages":
        data["max_tokens"] = 5
    return data


def on_wire(path: str, body: bytes, *more: str) -> bytes:
    """Return a POST as it goes on the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return (
        head.encode()
        + "".join(f"{line}\r\n" for line in more).encode()
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )


@dataclass
class Answer:
    """What a client got.

    Attributes:
        is_whole: it came to its proper end.
    """

    status: int
    body: bytes
    is_whole: bool

    def fault(self, path: str, model: str, *, stream: bool) -> str | None:
        """Tell what is wrong with this answer; None where it is right, or a clear error."""
        if self.status == 200:
            return self._fault_of_stream(path) if stream else self._fault_of_whole(model)
        if self.status not in ERRORS:
            return f"status {self.status}: {self.body[:300]!r}"
        if not self.is_whole:
            return f"an error answer with status {self.status} broke off"
        try:
            return None if "error" in json.loads(self.body) else f"no error in {self.body[:200]!r}"
        except ValueError:
            return f"an error that is not JSON: {self.body[:200]!r}"

    def _fault_of_stream(self, path: str) -> str | None:
        has_error = any(mark in self.body for mark in FAILED)
        if has_error or (self.is_whole and LAST[path] in self.body):
            return None
        return f"a stream without its end, nor an error: ...{self.body[-200:]!r}"

    def _fault_of_whole(self, model: str) -> str | None:
        if not self.is_whole:
            return (
                None
                if b'"error"' in self.body
                else f"an answer broke off without a word: {self.body[:200]!r}"
            )
        try:
            data = json.loads(self.body)
        except ValueError:
            return f"a whole answer that is not JSON: {self.body[:200]!r}"
        if isinstance(data, dict) and data.get("model") == model and not data.get("error"):
            return None
        return f"not an answer of {model}: {self.body[:200]!r}"


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read an answer.

    Raises:
        EOFError: the connection ended before an answer began.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    status = int(head[0].split(b" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in head[1:])}
    body, is_whole = bytearray(), False
    try:
        if headers.get(b"transfer-encoding") == b"chunked":
            while size := int(await reader.readline() or b"broken", 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        else:
            body += await reader.readexactly(int(headers.get(b"content-length", b"0")))
        is_whole = True
    except asyncio.IncompleteReadError as error:
        body += error.partial
    except (OSError, ValueError):
        pass
    return Answer(status, bytes(body), is_whole)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - os.open would do no better
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return os.path.exists(f"/proc/{pid}")  # noqa: PTH110
