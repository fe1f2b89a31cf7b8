"""A streamed answer, read in a thread of its own, so that Ctrl-C and the progress of a wait have their turn."""

from __future__ import annotations

import http.client
import json
import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import frozen

from engine_router.cli.client import Call
from engine_router.cli.exit_codes import CommandFailed

MAX_EVENT_BYTES: Final = 16_777_216
"""One event of a stream, or an answer in one piece: a long answer with all its probabilities stays below it."""
_AHEAD: Final = 1000
_PUT_S: Final = 0.5


@frozen
class Chunk:
    """A chunk of an answer, in OpenAI's words."""

    data: Mapping[str, Any]


@frozen
class End:
    """The end of what the router sends.

    Attributes:
        is_whole: the stream said that it was over; else its connection just ended.
    """

    is_whole: bool


Event = Chunk | End | CommandFailed


class ChunkReader(threading.Thread):
    """A reader of the chunks of one answer; `close` ends it, and the request with it."""

    def __init__(self, call: Call) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._events: queue.Queue[Event] = queue.Queue(_AHEAD)
        self._is_closed = threading.Event()

    def next_event(self, timeout_s: float) -> Event | None:
        """Return what comes next; None where nothing came in time."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """End the request: the router learns that nobody waits for its answer any more."""
        self._is_closed.set()
        self._call.end()

    def run(self) -> None:
        """Read until the end, or the first failure."""
        try:
            with self._call.answer() as answer:
                self._read(answer)
        except CommandFailed as failure:
            self._put(failure)
        except (http.client.HTTPException, OSError, ValueError):
            self._put(End(is_whole=False))
        finally:
            self._call.close()

    def _read(self, answer: http.client.HTTPResponse) -> None:
        if "text/event-stream" not in (answer.headers.get("Content-Type") or ""):
            text = answer.read(MAX_EVENT_BYTES + 1)
            if len(text) > MAX_EVENT_BYTES:
                raise CommandFailed("the answer is too long")
            self._put(Chunk(_parsed(text)))
            self._put(End(is_whole=True))
            return
        for event in sse_data(answer):
            if event == b"[DONE]":
                self._put(End(is_whole=True))
                return
            self._put(Chunk(_parsed(event)))
        self._put(End(is_whole=False))

    def _put(self, event: Event) -> None:
        while not self._is_closed.is_set():
            try:
                self._events.put(event, timeout=_PUT_S)
            except queue.Full:
                continue
            return


def sse_data(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the data of each event that has any; comments keep a connection open, and say nothing.

    Raises:
        CommandFailed: a line is too long.
    """
    rest = bytearray()
    while block := answer.read1(65536):
        rest += block
        if b"\n" in block:
            *lines, last = rest.split(b"\n")
            rest = bytearray(last)
            found = (bytes(line[5:]).strip() for line in lines if line.startswith(b"data:"))
            yield from filter(None, found)
        if len(rest) > MAX_EVENT_BYTES:
            raise CommandFailed("a piece of the answer is too long")


def _parsed(text: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise CommandFailed("what comes as an answer is not JSON in OpenAI's form")
    return data
