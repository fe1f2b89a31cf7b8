"""An engine without a model: it does what each request's field `do` says, and tells on stdout what happens.

Usage: obedient_engine.py PORT [delay=SECONDS] [fail=TEXT] [stop=SECONDS] [models=A,B]

delay: how long it takes until it listens. fail: what it says before it exits with code 3 then, instead.
stop: how long it goes on after SIGTERM. deaf: bodies of more bytes are not read. closes=1: the second
request on a connection ends it, as where it closes just when that request comes.
said: what `do_said` answers. plain=1: it has neither /v1/messages nor /v1/responses.

Lines on stdout: `up`, `request METHOD TARGET`, `left DO` when a client went away before the answer's end,
`done DO`, `term`.
"""

import gzip
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time

PORT = int(sys.argv[1])
OPTIONS = dict(word.split("=", 1) for word in sys.argv[2:])

SAYINGS = OPTIONS.get("said", "").split("|")


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def on_term(_signal: int, _frame: object) -> None:
    say("term")
    time.sleep(float(OPTIONS.get("stop", "0")))
    os._exit(0)


class Left(Exception):
    """The client went away."""


class Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.answered = 0

    def receive(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        self.buffer += data

    def request(self) -> tuple[str, str, list, bytes]:
        while b"\r\n\r\n" not in self.buffer:
            self.receive()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = [tuple(line.split(": ", 1)) for line in lines]
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        if "deaf" in OPTIONS and length > int(OPTIONS["deaf"]):
            say("deaf")  # and reads no further, while its system buffers some of what comes
            time.sleep(1000)
        while len(self.buffer) < length:
            self.receive()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return method, target, headers, body

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError:
            raise Left from None

    def head(
        self, status: int = 200, kind: str = "application/json", length: int | None = None, more: tuple = ()
    ) -> None:
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {kind}", framing, *more, "", ""]
        self.send("\r\n".join(lines).encode())

    def answer(self, data: object, status: int = 200, more: tuple = ()) -> None:
        body = json.dumps(data).encode()
        self.head(status, length=len(body), more=more)
        self.send(body)

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self) -> None:
        self.send(b"0\r\n\r\n")

    def wait(self, seconds: float) -> None:
        """Wait, unless the client goes away first."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.sock], [], [], left)[0] and not self.peeked():
                raise Left

    def peeked(self) -> bytes:
        try:
            return self.sock.recv(65536, socket.MSG_PEEK)
        except OSError:  # reset: not all that was sent had been read
            return b""


def frame(number: int) -> bytes:
    choice = {"index": 0, "delta": {"content": f"word{number} "}, "finish_reason": None}
    data = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


LAST = (
    b'data: {"id":"1","object":"chat.completion.chunk","created":0,"model":"m",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
STREAM = "text/event-stream"


def do_echo(client: Client, wish: dict, request: dict) -> None:
    client.answer(
        {**request, "pid": os.getpid()}, more=("X-Engine: obedient", "Connection: X-Hop", "X-Hop: 1")
    )


def do_chat(client: Client, wish: dict, request: dict) -> None:
    message = {"role": "assistant", "content": "word0"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    head = {"id": "1", "object": "chat.completion", "created": 0, "model": wish["model"]}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    client.answer({**head, "choices": [choice], "usage": usage})


def do_said(client: Client, wish: dict, request: dict) -> None:
    """Answer with status 200 and what the option `said` has (one after the other of what `|` separates).

    Half of it where `half` is set.
    """
    SAYINGS.append(SAYINGS.pop(0))
    body = SAYINGS[-1].encode()
    client.head(length=len(body) * 2 if "half" in OPTIONS else len(body))
    client.send(body)
    if "half" in OPTIONS:
        raise EOFError


def do_status(client: Client, wish: dict, request: dict) -> None:
    client.answer(
        {"error": {"message": "no, says the engine"}}, wish.get("status", 429), ("X-Engine: obedient",)
    )


def do_stream(client: Client, wish: dict, request: dict) -> None:
    client.head(kind=STREAM)
    for number in range(wish.get("count", 3)):
        client.chunk(frame(number))
        client.wait(wish.get("every", 0))
    client.chunk(LAST)
    client.end()


def do_slow(client: Client, wish: dict, request: dict) -> None:
    """Think for a while before anything is answered."""
    client.wait(wish["seconds"])
    do_stream(client, wish, request)


def do_late(client: Client, wish: dict, request: dict) -> None:
    """Begin an answer at once, and think then."""
    client.head(kind=STREAM)
    client.wait(wish["seconds"])
    client.chunk(frame(0) + LAST)
    client.end()


def do_hang(client: Client, wish: dict, request: dict) -> None:
    client.wait(1000)


def do_head(client: Client, wish: dict, request: dict) -> None:
    client.head(kind=STREAM)
    client.wait(1000)


def do_flood(client: Client, wish: dict, request: dict) -> None:
    client.head(kind=STREAM)
    while True:
        client.chunk(frame(0) * 500)


def do_break(client: Client, wish: dict, request: dict) -> None:
    """Break off between two frames, or within one where `half` is set."""
    client.head(kind=STREAM)
    client.chunk(frame(0) + (frame(1)[:20] if wish.get("half") else b""))
    raise EOFError


def do_short(client: Client, wish: dict, request: dict) -> None:
    """Promise more than comes."""
    client.head(kind=wish.get("kind", "application/json"), length=1000)
    client.send(frame(0))
    raise EOFError


def do_messages(client: Client, wish: dict, request: dict) -> None:
    """Begin to speak Anthropic's dialect, and break off."""
    client.head(kind=STREAM)
    client.chunk(b'event: message_start\ndata: {"type":"message_start"}\n\n')
    raise EOFError


def do_abort(client: Client, wish: dict, request: dict) -> None:
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise EOFError


def do_garbage(client: Client, wish: dict, request: dict) -> None:
    client.send(b"what do you want?\r\n\r\n")
    raise EOFError


def do_unframed(client: Client, wish: dict, request: dict) -> None:
    """Answer as HTTP/1.0 does: the end of the connection is the end of the body."""
    kind = wish.get("kind", STREAM)
    client.send(f"HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\n\r\n{wish['said']}".encode())
    raise EOFError


def do_gzip(client: Client, wish: dict, request: dict) -> None:
    body = gzip.compress(frame(0) + LAST)
    client.head(kind=STREAM, length=len(body), more=("Content-Encoding: gzip",))
    client.send(body)


def do_die(client: Client, wish: dict, request: dict) -> None:
    os._exit(7)


def serve(client: Client) -> None:
    method, target, headers, body = client.request()
    if "closes" in OPTIONS and client.answered:
        raise EOFError
    path = target.partition("?")[0]
    if path == "/health":
        client.answer({"status": "ok"})
        return
    if path == "/v1/models":
        names = [name for name in OPTIONS.get("models", "").split(",") if name]
        client.answer({"object": "list", "data": [{"id": name} for name in names]})
        return
    say(f"request {method} {target}")
    if "plain" in OPTIONS and path.startswith(("/v1/messages", "/v1/responses")):
        client.answer({"error": "File Not Found"}, 404)
        return
    try:
        wish = json.loads(body)
    except ValueError:
        wish = {}
    wish = wish if isinstance(wish, dict) else {}
    is_translated = "do" not in wish and path in ("/v1/chat/completions", "/v1/embeddings")
    action = wish.get("do") or (OPTIONS.get("translated", "echo") if is_translated else "echo")
    request = {"method": method, "target": target, "headers": headers, "body": body.decode("latin-1")}
    try:
        globals()[f"do_{action}"](client, wish, request)
    except Left:
        say(f"left {action}")
        raise EOFError from None
    say(f"done {action}")
    client.answered += 1


def attend(sock: socket.socket) -> None:
    client = Client(sock)
    try:
        while True:
            serve(client)
    except (OSError, EOFError):
        sock.close()


def main() -> None:
    signal.signal(signal.SIGTERM, on_term)
    time.sleep(float(OPTIONS.get("delay", "0")))
    if "fail" in OPTIONS:
        say(OPTIONS["fail"])
        sys.exit(3)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", PORT))
        listener.listen(128)
        say("up")
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=attend, args=(sock,), daemon=True).start()


main()
