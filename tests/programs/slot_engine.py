"""A server with llama.cpp's slots, and no model: what it says depends on the whole prompt, and on nothing else.

Usage: slot_engine.py PORT LOG [--slot-save-path FOLDER] [slots=N] [build=NAME] [fault=FAULT]

Each call that concerns a slot is a line of LOG. A slot holds the characters of its prompt, which are its tokens, and
answers tell as llama.cpp does how many of them were there already (`timings.cache_n`). They do not tell how long the
others took, so that whatever is saved pays. Faults:

silent   a restore says that it worked, and restores nothing
full     a save writes a part of the file and fails, as on a full disk
refuse   slots cannot be saved at all (501), as with a projector
hang     a save never comes to its end
die      after its first restore it takes no more connections, and ends soon after
gate     a chat is not answered before there is a file beside the log: LOG with .open at its end
"""

import hashlib
import json
import os
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PORT, LOG = int(sys.argv[1]), Path(sys.argv[2])
FOLDER = Path(sys.argv[sys.argv.index("--slot-save-path") + 1]) if "--slot-save-path" in sys.argv else Path()
OPTIONS = dict(word.split("=", 1) for word in sys.argv[3:] if "=" in word)
FAULT = OPTIONS.get("fault", "")
SLOTS = [""] * int(OPTIONS.get("slots", "1"))
LOCK = threading.Lock()


def note(line: str) -> None:
    with LOCK, LOG.open("a") as log:
        log.write(f"{line}\n")


def common(one: str, other: str) -> int:
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/props":
            told = {"total_slots": len(SLOTS), "build_info": OPTIONS.get("build", "b1"), "model_path": ""}
            self.answer(told)
        else:
            self.answer({"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        url = urlsplit(self.path)
        if url.path.startswith("/slots/"):
            self.slot(int(url.path.rpartition("/")[2]), parse_qs(url.query)["action"][0], body)
            return
        if "messages" not in body:
            self.answer({"error": {"message": "no messages"}}, 400)
            return
        if "cache_salt" in body:
            note(f"salt {body['cache_salt']}")
        prompt = "".join(f"{said['role']}: {said['content']}\n" for said in body["messages"])
        number = body.get("id_slot", 0)
        cached = common(SLOTS[number], prompt) if body.get("cache_prompt", True) else 0
        note(f"chat in {number}, {cached} of {len(prompt)} there")
        SLOTS[number] = prompt
        while FAULT == "gate" and not LOG.with_suffix(".open").exists():
            time.sleep(0.01)
        text = hashlib.sha256(prompt.encode()).hexdigest()
        message = {"role": "assistant", "content": text}
        timings = {"cache_n": cached, "prompt_n": len(prompt) - cached, "predicted_n": 8}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.answer({"choices": [choice], "timings": timings})

    def slot(self, number: int, action: str, body: dict[str, Any]) -> None:
        note(f"{action} {number}")
        path = FOLDER / str(body.get("filename"))
        if action == "save":
            self.save(number, path)
        elif action == "restore":
            try:
                held = json.loads(path.read_text())
            except (OSError, ValueError):
                self.answer({"error": {"message": "Unable to restore slot"}}, 400)
                return
            SLOTS[number] = "" if FAULT == "silent" else held
            dies = FAULT == "die" and not (told := LOG.with_suffix(".died")).exists()
            if dies:
                told.touch()
                SERVER.socket.shutdown(socket.SHUT_RDWR)  # at once: another thread waits for it
                SERVER.socket.close()
                threading.Timer(2.0, os._exit, [1]).start()  # once the request was refused, which comes next
            self.answer({"n_restored": len(held), "n_read": path.stat().st_size})
        else:
            SLOTS[number] = ""
            self.answer({"n_erased": 1})

    def save(self, number: int, path: Path) -> None:
        if FAULT == "refuse":
            self.answer({"error": {"message": "This feature is not supported by multimodal"}}, 501)
            return
        text = json.dumps(SLOTS[number])
        path.write_text(text[: len(text) // 2] if FAULT in ("full", "hang") else text)
        if FAULT == "hang":
            threading.Event().wait()
        if FAULT == "full":
            self.answer({"error": {"message": "Unable to save slot"}}, 500)
            return
        self.answer({"n_saved": len(SLOTS[number]), "n_written": len(text)})

    def answer(self, data: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


SERVER = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
SERVER.serve_forever()
