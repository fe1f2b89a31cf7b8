"""An engine that writes 20,000 lines, and first what no terminal should obey.

Half of them come at 5,000 a second at most, the others at once: the last line is one of a flood, and nothing follows it.
"""

from __future__ import annotations

import http.server
import sys
import threading
import time


def write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def shout() -> None:
    write("\x1b[31mthe first line\x1b[0m <script>alert(1)</script> \x1b]0;title\x07 \u202eforward")
    write("x" * 1_000_000)
    for number in range(100):
        write("\n".join(f"line {number * 100 + part}" for part in range(100)))
        time.sleep(0.02)
    flood = "\n".join(f"line {number}" for number in range(10_000, 20_000))
    write(f"{flood}\nthe last line")


class Engine(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_POST(self) -> None:
        threading.Thread(target=shout, daemon=True).start()
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by its base class
        """Write nothing: a line about a request would come after the last one."""


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Engine).serve_forever()
