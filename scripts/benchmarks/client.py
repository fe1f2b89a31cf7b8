"""A client with a clock: standard library, one connection for each request, loopback only."""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a client got.

    Attributes:
        status: None where nothing came in time.
        took_s: seconds from sending to the last byte, or to giving up.
        began_at: when the answer's head had come, in seconds since 1970.
    """

    status: int | None
    took_s: float
    body: bytes = b""
    began_at: float = math.nan

    def is_from(self, model: str) -> bool:
        """Tell whether that very model answered."""
        return self.status == 200 and f'"{model}"'.encode() in self.body


def chat(model: str, *, delay_ms: int = 0, stream: bool = False) -> bytes:
    """Return the body of a small chat request."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    if stream:
        body["stream"] = True
    if delay_ms:
        body["x_delay_ms"] = delay_ms
    return json.dumps(body).encode()


class Request:
    """A chat request whose sending and whose answer are apart, so that many can be in flight."""

    def __init__(self, port: int, body: bytes, timeout_s: float) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        self._connection.connect()
        self._body = body
        self._sent_at = 0.0

    def send(self) -> None:
        self._sent_at = time.perf_counter()
        self._connection.request(
            "POST", "/v1/chat/completions", self._body, {"Content-Type": "application/json"}
        )

    def answer(self) -> Answer:
        """Wait for the answer, at most the timeout between two pieces of it."""
        try:
            response = self._connection.getresponse()
            began_at = time.time()
            body = response.read()
        except (OSError, http.client.HTTPException):
            return Answer(None, time.perf_counter() - self._sent_at)
        finally:
            self._connection.close()
        return Answer(response.status, time.perf_counter() - self._sent_at, body, began_at)

    def close(self) -> None:
        self._connection.close()


def ask(port: int, body: bytes, timeout_s: float = 30.0) -> Answer:
    """Send one request and wait for its answer."""
    request = Request(port, body, timeout_s)
    request.send()
    return request.answer()


def ask_together(port: int, bodies: Sequence[bytes], timeout_s: float) -> tuple[list[Answer], float]:
    """Send requests in their order, all before the first answer is read; return answers and total seconds."""
    requests = [Request(port, body, timeout_s) for body in bodies]
    with ThreadPoolExecutor(len(requests)) as pool:
        began = time.perf_counter()
        for request in requests:
            request.send()
        answers = list(pool.map(Request.answer, requests))
        return answers, time.perf_counter() - began


def get(port: int, path: str, timeout_s: float = 15.0) -> Any:
    """Return the JSON of a page; None where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def latencies(port: int, path: str, *, every_s: float, for_s: float, timeout_s: float = 5.0) -> list[float]:
    """Ask for a page at a steady pace on one connection; return the seconds that each answer took.

    An answer that does not come in time counts as the timeout, and the connection is made anew.
    """
    taken: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    began = time.perf_counter()
    due = began
    try:
        while due < began + for_s:
            time.sleep(max(0.0, due - time.perf_counter()))
            asked = time.perf_counter()
            try:
                connection.request("GET", path)
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()
            taken.append(time.perf_counter() - asked)
            due = max(due + every_s, time.perf_counter())
    finally:
        connection.close()
    return taken
