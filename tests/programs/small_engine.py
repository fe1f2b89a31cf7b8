"""A small HTTP server to be started as an engine: up in milliseconds, and as well or badly behaved as told.

Usage: small_engine.py NAME=VALUE ...

port=N            where it listens; without it, it does not
host=ADDRESS      the address where it listens; loopback without it
say=TEXT          printed first; `\\n`, `\\r` and `\\xNN` are understood
exit=N            exits at once with this code
wait=SECONDS      waits before it listens
loading=SECONDS   answers 503 for so long
deaf=1            accepts connections and never answers
ignore=SIGTERM    a signal to ignore
stop=SECONDS      how long it goes on after SIGTERM
models=A,B        what it lists
lose=KIND         starts a child that outlives it unless it is killed: `group` stays in its process group,
                  `session` leaves it, `orphan` leaves it by a double fork, `zombie` is dead but never waited
                  for, `own` leaves it and ends when asked, `worker` runs the same command and holds the same socket
shm=NAME          makes a file of 1 MB in /dev/shm, and maps it; `hold:NAME` makes it and holds it open only,
                  `read:NAME` maps a file that is there for reading; several with commas
mb=N              holds so many MiB of memory
pids=FILE         where it writes its own process id and those of its children, one in a line

GET /exit/N makes it exit with a code, /say/TEXT print, /shm/NAME share memory, /argv tell its arguments, /env/NAME a variable.
"""

import json
import mmap
import os
import signal
import socket
import sys
import time

OPTIONS = dict(word.split("=", 1) for word in sys.argv[1:])
BEGAN = time.monotonic()
HELD = bytearray(b"x") * (int(OPTIONS.get("mb", "0")) * 2**20)


def say(text: str) -> None:
    os.write(1, text.encode("ascii").decode("unicode_escape").encode("latin-1") + b"\n")


def note() -> None:
    if "pids" in OPTIONS:
        with open(OPTIONS["pids"], "a", encoding="ascii") as file:  # noqa: PTH123 - pathlib would double the start-up time
            file.write(f"{os.getpid()}\n")


def linger() -> None:
    while True:
        time.sleep(60)


def lose(kind: str) -> None:
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        if kind == "zombie":
            note()
            os._exit(0)
        if kind in ("session", "orphan", "own"):
            os.setsid()
        if kind == "orphan" and os.fork() != 0:
            os._exit(0)
        if kind == "worker":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            note()
            os.close(writing)
            return
        note()
        signal.signal(signal.SIGTERM, end if kind == "own" else signal.SIG_IGN)
        os.close(writing)  # the parent goes on when the child has settled, not before
        linger()
    os.close(writing)
    os.read(reading, 1)
    if kind == "orphan":
        os.wait()


MAPPED = []


def share(shared: str) -> None:
    how, _, name = shared.rpartition(":")
    is_read = how == "read"
    file = os.open(f"/dev/shm/{name}", os.O_RDONLY if is_read else os.O_RDWR | os.O_CREAT, 0o600)
    if not is_read:
        os.write(file, bytes(1 << 20))
    if how != "hold":
        MAPPED.append(
            mmap.mmap(file, 1 << 20, prot=mmap.PROT_READ if is_read else mmap.PROT_READ | mmap.PROT_WRITE)
        )
        os.close(file)


def answer(path: str) -> tuple[int, object]:
    word, _, rest = path.lstrip("/").partition("/")
    if word == "exit":
        say(f"exit {rest}")
        os._exit(int(rest))
    if word == "say":
        say(rest)
    if word == "shm":
        share(rest)
    if word == "env":
        return 200, os.environ.get(rest)
    if word == "argv":
        return 200, sys.argv[1:]
    if time.monotonic() - BEGAN < float(OPTIONS.get("loading", "0")):
        return 503, {"status": "loading"}
    if path == "/v1/models":
        models = [name for name in OPTIONS.get("models", "").split(",") if name]
        return 200, {"data": [{"id": name} for name in models]}
    if path == "/broken/aloud":
        os.write(1, b"broken\n")
    if path in ("/broken", "/broken/aloud"):
        return 500, {"error": "broken"}
    return 200, {"status": "ok", "engine": {"state": "ready"}}


def serve() -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((OPTIONS.get("host", "127.0.0.1"), int(OPTIONS["port"])))
    listener.listen(16)
    if OPTIONS.get("lose") == "worker":
        lose("worker")
    held = []
    while True:
        connection, _ = listener.accept()
        if "deaf" in OPTIONS:
            held.append(connection)
            continue
        with connection:
            request = b""
            while b"\r\n\r\n" not in request and (data := connection.recv(4096)):
                request += data
            if not request:
                continue
            status, data = answer(request.split()[1].decode())
            body = json.dumps(data).encode()
            head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)


def end(_signal: int, _frame: object) -> None:
    say("asked to end")
    time.sleep(float(OPTIONS.get("stop", "0")))
    os._exit(0)


def main() -> None:
    if "ignore" in OPTIONS:
        signal.signal(getattr(signal, OPTIONS["ignore"]), signal.SIG_IGN)
    elif "stop" in OPTIONS:
        signal.signal(signal.SIGTERM, end)
    note()
    if "say" in OPTIONS:
        say(OPTIONS["say"])
    if "exit" in OPTIONS:
        os._exit(int(OPTIONS["exit"]))
    if OPTIONS.get("lose", "worker") != "worker":
        lose(OPTIONS["lose"])
    for shared in filter(None, OPTIONS.get("shm", "").split(",")):
        share(shared)
    time.sleep(float(OPTIONS.get("wait", "0")))
    if "port" not in OPTIONS:
        linger()
    serve()


main()
