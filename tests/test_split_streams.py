"""A stream whose frames come in parts, at a pace: each client gets its head, then whole frames, then the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.one_engine import before_one_engine

# Sends its answer in the parts that the request's `user` names, each after a pause that a poll notices.
ENGINE = r"""
import json, socket, sys, threading, time


def attend(sock):
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    if not data.startswith(b"POST"):
        sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        return
    parts = json.loads(json.loads(data.partition(b"\r\n\r\n")[2])["user"])
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    for part in parts:
        time.sleep(0.01)
        sock.sendall(head + b"%x\r\n%b\r\n" % (len(part), part.encode()))
        head = b""
    time.sleep(0.01)
    sock.sendall(b"0\r\n\r\n")


with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64) as listener:
    while True:
        sock = listener.accept()[0]
        threading.Thread(target=lambda sock=sock: [attend(sock), sock.close()], daemon=True).start()
"""
STREAMS = {
    "the first frame in two parts": ['data: {"a', '": 1}\n\n', "data: [DONE]\n\n"],
    "every frame in two parts": ['data: {"a', '": 1}\n\ndata: {"b"', ": 2}\n\ndata: [DO", "NE]\n\n"],
    "the line break in two parts": ["data: 1\n", "\ndata: 2\n\n", "data: [DONE]\n", "\n"],
    "whole frames": ["data: 1\n\n", "data: 2\n\n", "data: [DONE]\n\n"],
    "a comment alone": [": hello\n\n", "data: 1\n\n", "data: [DONE]\n\n"],
}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "ordinary"])
async def test_a_stream_that_comes_in_parts(tmp_path: Path, fast: bool) -> None:
    async with before_one_engine(tmp_path, ENGINE, fast=fast) as (_, client):
        for parts in STREAMS.values():
            client.received = b""
            body = json.dumps({"model": "m", "stream": True, "user": json.dumps(parts)}).encode()
            await client.request("POST", "/v1/chat/completions", body)
            await client.until(b"0\r\n\r\n")
            head, _, rest = client.received.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            chunks = rest.split(b"\r\n")
            assert chunks[-3:] == [b"0", b"", b""]
            frames = chunks[1:-3:2]
            assert b"".join(frames).decode() == "".join(parts)
            assert all(frame.endswith(b"\n\n") for frame in frames)
