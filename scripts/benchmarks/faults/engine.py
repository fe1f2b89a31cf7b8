"""An engine that does wrong when it is asked to, and notes when another one runs beside it.

    python -I -S engine.py MODEL PORT START_LOG LOCK

Only one such engine may run at a time: whoever cannot lock LOCK appends a line to LOCK.violations. A request's
`x_fault` says what goes wrong: `half` breaks off in the middle, `garbage` is no HTTP, `null` is no answer, `error` is
a 500, `silent` never answers.
"""

import _thread
import fcntl
import os
import pathlib
import resource
import socket
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from benchmarks.instant_engine import Connection, note_start

CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":0,"model":"%s","choices":'
    b'[{"index":0,"delta":{%s},"finish_reason":%s}]}\n\n'
)
COUNT = 6
EVERY_S = 0.01
SILENT_S = 1000.0


class FaultyConnection(Connection):
    """One client's connection."""

    fault = b""

    def route(self, method: bytes, path: bytes, body: bytes) -> None:
        _, found, rest = body.partition(b'"x_fault":"')
        self.fault = rest.partition(b'"')[0] if found else b""
        if self.fault == b"silent":
            time.sleep(SILENT_S)
        if self.fault == b"garbage":
            self.sock.sendall(b"what do you want?\r\n\r\n")
            raise OSError
        if self.fault == b"null":
            self.send(b"200 OK", b"null")
        elif self.fault == b"error":
            self.send(b"500 Internal Server Error", b'{"error":{"message":"out of memory"}}')
        else:
            super().route(method, path, body)

    def stream(self) -> None:
        self.sock.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(COUNT):
            if number == COUNT // 2 and self.fault == b"half":
                raise OSError
            self.chunk(CHUNK % (self.model, b'"content":"word "', b"null"))
            time.sleep(EVERY_S)
        self.chunk(CHUNK % (self.model, b"", b'"stop"') + b"data: [DONE]\n\n")
        self.sock.sendall(b"0\r\n\r\n")


def main(model: str, port: str, log: str, lock: str) -> None:
    # A router that may write no file for a moment hands that on to what it starts.
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with pathlib.Path(f"{lock}.violations").open("a") as violations:
            violations.write(f"{model} {os.getpid()} started beside another engine\n")
    note_start(log, model)
    with socket.create_server(("127.0.0.1", int(port)), backlog=512) as listener:
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _thread.start_new_thread(FaultyConnection(sock, model.encode()).serve, ())


if __name__ == "__main__":
    main(*sys.argv[1:])
