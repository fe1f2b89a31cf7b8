"""An engine that costs next to nothing: what a swap to it takes is the router's own time.

    python -I -S instant_engine.py MODEL PORT START_LOG NAME [exit | hang]

It appends a line with NAME to START_LOG when it starts. `exit` ends at once with code 3; `hang` accepts connections
and never answers. SIGTERM ends it at once. A request's `x_delay_ms` is how long its answer takes.

Neither http.server nor json nor argparse: they would treble the time that it takes to start.
"""

import _thread
import os
import socket
import sys
import time

EXIT_CODE = 3
WORDS = (b"an ", b"instant ", b"answer")


def note_start(log: str, name: str) -> None:
    """Append who started, in one write, so that lines of several processes do not mix."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(handle, f"{name} {os.getpid()} {time.monotonic()}\n".encode())
    os.close(handle)


class Connection:
    """One client's connection, kept alive."""

    def __init__(self, sock: socket.socket, model: bytes) -> None:
        self.sock = sock
        self.model = model
        self.buffer = b""

    def serve(self) -> None:
        try:
            while self.answer():
                pass
        except OSError:
            pass
        finally:
            self.sock.close()

    def answer(self) -> bool:
        """Answer one request; False when there is none any more."""
        while b"\r\n\r\n" not in self.buffer:
            if not self.fill():
                return False
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        request, *headers = head.split(b"\r\n")
        length, closes = 0, False
        for header in headers:
            key, _, value = header.partition(b":")
            if key.lower() == b"content-length":
                length = int(value)
            elif key.lower() == b"connection":
                closes = value.strip().lower() == b"close"
        while len(self.buffer) < length:
            if not self.fill():
                return False
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        method, target, _ = request.split(b" ", 2)
        self.route(method, target.partition(b"?")[0], body.replace(b" ", b""))
        return not closes

    def fill(self) -> bool:
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def route(self, method: bytes, path: bytes, body: bytes) -> None:
        if path == b"/health":
            self.send(b"200 OK", b'{"status":"ok"}')
        elif path == b"/v1/models":
            self.send(b"200 OK", b'{"object":"list","data":[{"id":"%s","object":"model"}]}' % self.model)
        elif method == b"POST" and path == b"/v1/chat/completions":
            time.sleep(delay_s(body))
            if b'"stream":true' in body:
                self.stream()
            else:
                self.send(b"200 OK", self.completion())
        else:
            self.send(b"404 Not Found", b'{"error":{"message":"no such path"}}')

    def completion(self) -> bytes:
        return (
            b'{"id":"c","object":"chat.completion","created":0,"model":"%s","choices":[{"index":0,"message":'
            b'{"role":"assistant","content":"%s"},"finish_reason":"stop"}],'
            b'"usage":{"prompt_tokens":1,"completion_tokens":3,"total_tokens":4}}'
        ) % (self.model, b"".join(WORDS))

    def stream(self) -> None:
        self.sock.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for word in WORDS:
            self.chunk(
                b'data: {"id":"c","object":"chat.completion.chunk","created":0,"model":"%s","choices":'
                b'[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n' % (self.model, word)
            )
        self.chunk(b"data: [DONE]\n\n")
        self.sock.sendall(b"0\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.sock.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def send(self, status: bytes, body: bytes) -> None:
        self.sock.sendall(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (status, len(body), body)
        )


def delay_s(body: bytes) -> float:
    """Read `x_delay_ms` from a body without spaces."""
    _, found, rest = body.partition(b'"x_delay_ms":')
    digits = rest[: len(rest) - len(rest.lstrip(b"0123456789"))]
    return int(digits) / 1000 if found and digits else 0.0


def main(model: str, port: str, log: str, name: str, fault: str = "") -> None:
    note_start(log, name)
    if fault == "exit":
        sys.stderr.write("instant engine: no such flag\n")
        sys.exit(EXIT_CODE)
    unanswered: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", int(port)), backlog=128) as listener:
        while True:
            sock, _ = listener.accept()
            if fault == "hang":
                unanswered.append(sock)
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _thread.start_new_thread(Connection(sock, model.encode()).serve, ())


if __name__ == "__main__":
    main(*sys.argv[1:])
