"""An engine that has nothing but metrics, and answers for them what a file says.

Usage: metrics_engine.py PORT FILE

FILE has JSON: status, type, encoding (none when absent), body (a text), repeat (how often the body is sent), rest (what
it does instead of the answer's end: `hang`, or `break`), all optional, besides `latin` for bytes that are no UTF-8.

As uvicorn does, it ends after SIGTERM once all its connections are closed. Lines on stdout: `up`, `request METHOD TARGET`,
with the length of the key that came with it, `gone` when a client went away before the answer's end, `term`.
"""

import json
import os
import signal
import socket
import sys
import threading
import time

PORT, FILE = int(sys.argv[1]), sys.argv[2]
CONNECTIONS: set[int] = set()


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def on_term(_signal: int, _frame: object) -> None:
    say("term")
    while CONNECTIONS:
        time.sleep(0.01)
    os._exit(0)


def read_head(sock: socket.socket) -> tuple[str, str]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            return "", ""
        data += piece
    first, *lines = data.decode("latin-1").split("\r\n")
    keys = [line.partition(": ")[2] for line in lines if line.lower().startswith("authorization:")]
    return first.removesuffix(" HTTP/1.1"), "".join(keys)


def answer(sock: socket.socket, target: str) -> None:
    if "metrics" not in target:
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        return
    with open(FILE, encoding="utf-8") as file:  # noqa: PTH123 - pathlib would double the start-up time
        said = json.load(file)
    body = said["latin"].encode("latin-1") if "latin" in said else said.get("body", "").encode()
    head = [f"HTTP/1.1 {said.get('status', 200)} Said", f"content-type: {said.get('type', 'text/plain')}"]
    if "encoding" in said:
        head.append(f"content-encoding: {said['encoding']}")
    if "rest" in said:
        head.append(f"content-length: {len(body) + 1000}")
    sock.sendall("\r\n".join([*head, "connection: close", "", ""]).encode())
    for _ in range(said.get("repeat", 1)):
        sock.sendall(body)
    if said.get("rest") == "hang" and not sock.recv(1):
        say("gone")


def serve(sock: socket.socket, number: int) -> None:
    try:
        target, key = read_head(sock)
        if target:
            if "/health" not in target:
                say(f"request {target} {len(key) or ''}".rstrip())
            answer(sock, target)
    except OSError:
        say("gone")
    finally:
        sock.close()
        CONNECTIONS.discard(number)


signal.signal(signal.SIGTERM, on_term)
listener = socket.create_server(("127.0.0.1", PORT), backlog=64)
say("up")
while True:
    connection, _ = listener.accept()
    CONNECTIONS.add(connection.fileno())
    threading.Thread(target=serve, args=(connection, connection.fileno()), daemon=True).start()
