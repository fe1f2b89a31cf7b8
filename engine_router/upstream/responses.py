"""Reading HTTP/1.1 responses from bytes. llhttp (httptools) parses; what it lets pass too generously is a fault."""

from __future__ import annotations

from collections import deque

import httptools
from attrs import define, field


@define(eq=False)
class Parsed:
    """Collects what the parser finds in one response."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(factory=list)
    body: deque[bytes] = field(factory=deque)
    head_done: bool = False
    complete: bool = False
    pieces_at_end: int = 0
    reusable: bool = False
    fault: str = ""


class ResponseReader:
    """The callbacks of httptools, feeding `Parsed`. Interim responses (1xx) are passed over."""

    def __init__(self, *, bodyless: bool) -> None:
        self.parsed = Parsed()
        self._bodyless = bodyless
        # Called for every chunk of every stream: a method of ours would cost more than all else here. What does
        # not belong to the body (an interim answer's, or what follows the end) is taken out afterwards.
        self.on_body = self.parsed.body.append
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Parse what came in.

        Raises:
            httptools.HttpParserError: it is not HTTP.

        What llhttp lets pass, but has no sure end, is noted in `Parsed.fault`.
        """
        parsed = self.parsed
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # noted as a fault
        finally:
            if not parsed.head_done:
                parsed.body.clear()
            while parsed.complete and len(parsed.body) > parsed.pieces_at_end:
                parsed.body.pop()

    def on_message_begin(self) -> None:
        """Begin a message: an interim one, the answer, or what follows it."""
        if not self.parsed.complete:
            self.parsed.headers = []
        else:
            self.parsed.reusable = False  # bytes after the end: nobody asked for them

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        if not self.parsed.head_done:  # what comes later is a trailer
            self.parsed.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Judge a head that is complete."""
        status = self._parser.get_status_code()
        if self.parsed.complete or (100 <= status < 200 and status != 101):
            return
        self.parsed.fault = self._fault(status)
        if self.parsed.fault:
            return
        self.parsed.status = status
        self.parsed.head_done = True
        self.parsed.body.clear()
        if self._bodyless or status in (204, 304):
            self.parsed.complete = True
            self.parsed.reusable = self._bodyless is False and self._parser.should_keep_alive()

    def _fault(self, status: int) -> str:
        """Tell what is wrong with a head that llhttp lets pass; empty for nothing."""
        if status < 200:
            return f"its answer has the status {status}, which nobody asked for"
        codings = [value for name, value in self.parsed.headers if name.lower() == b"transfer-encoding"]
        if codings and [value.lower() for value in codings] != [b"chunked"]:
            # Anything else is encoded in a way that the client is not told of, or ends nobody knows where.
            return f"its answer has the transfer encoding '{b', '.join(codings).decode('latin-1')}'"
        return ""

    def on_message_complete(self) -> None:
        """End a message."""
        if self.parsed.head_done and not self.parsed.complete:
            self.parsed.complete = True
            self.parsed.pieces_at_end = len(self.parsed.body)
            self.parsed.reusable = self._parser.should_keep_alive()

    def ends_with_connection(self) -> bool:
        """Tell whether the body has no framing, so that the connection's end is its end."""
        names = {name.lower() for name, _ in self.parsed.headers}
        return self.parsed.head_done and not names & {b"content-length", b"transfer-encoding"}
