"""An engine that looks for a client that has left only when it writes, as MLX's, KoboldCpp's and llama-cpp-python's do.

Usage: heedless_engine.py PORT

It generates until somebody asks GET /finish: a word every hundredth of a second, which it writes at once where a stream
is asked for, and at the end where it is not. GET /state tells what became of the generations: running, finished, left.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FINISH = threading.Event()
STATE = {"running": 0, "finished": 0, "left": 0, "streams": 0}
LOCK = threading.Lock()


def count(**changes: int) -> None:
    with LOCK:
        for name, change in changes.items():
            STATE[name] += change


class Talk(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/finish":
            FINISH.set()
        self.answer(dict(STATE))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        streams = request.get("stream") is True
        count(running=1, streams=int(streams))
        try:
            self.stream() if streams else self.whole()
        except OSError:
            count(running=-1, left=1)
            self.close_connection = True
        else:
            count(running=-1, finished=1)

    def whole(self) -> None:
        FINISH.wait()
        choice = {"index": 0, "message": {"role": "assistant", "content": "word"}, "finish_reason": "stop"}
        self.answer({"id": "c", "object": "chat.completion", "created": 7, "model": "m", "choices": [choice]})

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.chunk({"role": "assistant", "content": "word "}, None)
        while not FINISH.wait(0.01):
            self.chunk({"content": "word "}, None)
        self.chunk({}, "stop")
        self.wfile.write(b"data: [DONE]\n\n")

    def chunk(self, delta: dict[str, Any], reason: str | None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk = {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 7,
            "model": "m",
            "choices": [choice],
        }
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def answer(self, data: object) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True


Server(("127.0.0.1", int(sys.argv[1])), Talk).serve_forever()
