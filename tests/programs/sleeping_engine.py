"""An engine without a model that sleeps and wakes as vLLM's and SGLang's documentation says.

Usage: sleeping_engine.py NAME=VALUE ...

port=N        where it listens
kind=NAME     vllm or sglang
dev=0         vLLM without VLLM_SERVER_DEV_MODE: it does not know the calls
deaf=1        it says yes to a sleep, and does not fall asleep
busy=SECONDS  how long it has requests left behind after its start; SGLang's scheduler dies of a release then
slow=PATH     a path that takes SECONDS of `for`, without its query
fail=PATH     a path that is answered with 500
for=SECONDS   see slow
wait=SECONDS  waits before it listens
chat=no       it knows no chats
chat=fickle   it never answers a chat twice in the same way
calls=FILE    where it writes each call, one in a line, after `start`
ignore=1      ignores SIGTERM

Its memory is made of two parts: weights, which are `loaded`, `parked` in main memory, `gone`, or `empty` (there again,
but without their content), and a cache, which is there or not. GET /say, and a chat, answer `sense` only if both are in
order.
Asleep it looks as well as awake to whoever asks /health or /v1/models, as the real ones do.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from urllib.parse import parse_qs, urlsplit

OPTIONS = dict(word.split("=", 1) for word in sys.argv[1:])
BEGAN = time.monotonic()
KIND = OPTIONS.get("kind", "vllm")
STATE = {"weights": "loaded", "cache": True, "asleep": False}


def note(text: str) -> None:
    if "calls" in OPTIONS:
        with open(OPTIONS["calls"], "a", encoding="ascii") as file:  # noqa: PTH123 - pathlib would double the start-up time
            file.write(f"{text}\n")


def is_busy() -> bool:
    return time.monotonic() - BEGAN < float(OPTIONS.get("busy", "0"))


def vllm(path: str, query: dict[str, list[str]], body: object) -> tuple[int, object]:
    if OPTIONS.get("dev") == "0":
        return 404, {"detail": "Not Found"}
    if path == "/is_sleeping":
        return 200, {"is_sleeping": STATE["asleep"]}
    if path == "/sleep" and "deaf" not in OPTIONS:
        deep = query.get("level", ["1"])[0] == "2"
        STATE.update(asleep=True, weights="gone" if deep else "parked", cache=False)
    elif path == "/wake_up":
        tags = query.get("tags", ["weights", "kv_cache"])
        if "weights" in tags:
            STATE["weights"] = {"parked": "loaded", "gone": "empty"}.get(STATE["weights"], STATE["weights"])
        if "kv_cache" in tags:
            STATE["cache"] = True
        STATE["asleep"] = not (STATE["cache"] and STATE["weights"] in ("loaded", "empty"))
    elif path == "/collective_rpc" and body == {"method": "reload_weights"}:
        if STATE["weights"] != "empty":
            return 500, {"detail": "no memory to load into"}
        STATE["weights"] = "loaded"
    return 200, None


def sglang(path: str, query: dict[str, list[str]], body: object) -> tuple[int, object]:
    if path == "/flush_cache":
        return (400, {"error": "there are running requests"}) if is_busy() else (200, None)
    if body is None:
        return 422, {"detail": "a body is required"}
    if path == "/release_memory_occupation":
        if is_busy():
            os._exit(134)
        STATE.update(weights="parked", cache=False)
    elif path == "/resume_memory_occupation":
        STATE.update(weights="loaded", cache=True)
    return 200, None


def answer(target: str, body: object) -> tuple[int, object]:
    url = urlsplit(target)
    if url.path.startswith("/exit/"):
        os._exit(int(url.path.removeprefix("/exit/")))
    said = "sense" if STATE["weights"] == "loaded" and STATE["cache"] else "nonsense"
    if url.path == "/say":
        return 200, said
    if url.path == "/state":
        return 200, STATE
    if url.path in ("/health", "/v1/models"):
        return 200, {"data": [{"id": "m"}]}
    if url.path != "/is_sleeping":
        note(target)
    if url.path == OPTIONS.get("slow"):
        time.sleep(float(OPTIONS["for"]))
    if url.path == OPTIONS.get("fail"):
        return 500, {"error": "out of memory"}
    if url.path == "/v1/chat/completions" and OPTIONS.get("chat") != "no":
        content = f"{said} {time.monotonic_ns()}" if OPTIONS.get("chat") == "fickle" else said
        return 200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}
    return (vllm if KIND == "vllm" else sglang)(url.path, parse_qs(url.query), body)


def attend(connection: socket.socket) -> None:
    with connection:
        request = b""
        while b"\r\n\r\n" not in request and (data := connection.recv(4096)):
            request += data
        head, _, body = request.partition(b"\r\n\r\n")
        if not head:
            return
        fields = [line.split(b":") for line in head.lower().split(b"\r\n")[1:]]
        length = next((int(field[1]) for field in fields if field[0] == b"content-length"), 0)
        while len(body) < length:
            body += connection.recv(4096)
        status, data = answer(head.split()[1].decode(), json.loads(body) if body else None)
        text = b"" if data is None else json.dumps(data).encode()
        lines = f"HTTP/1.1 {status} X\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
        with contextlib.suppress(OSError):
            connection.sendall(lines.encode() + text)


def main() -> None:
    if "ignore" in OPTIONS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("start")
    os.write(1, b"started\n")
    time.sleep(float(OPTIONS.get("wait", "0")))
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(OPTIONS["port"])))
    listener.listen(16)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=attend, args=(connection,), daemon=True).start()


main()
