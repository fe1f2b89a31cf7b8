"""What goes wrong during a run: engines killed and stopped, models unloaded, garbage to reload, no room on the disk."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import resource
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.faults.answers import is_alive

GARBAGE = ("][", "port = 1", "[engines.alpha]\ntype = 'nothing'", "\x00\x01", "a = 1e999", "")
STOPPED_S = (0.1, 2.5)
FULL_S = 0.5
EVERY_S = (0.05, 0.6)


class Disturber:
    """Disturbs a router until it is cancelled.

    Attributes:
        done: how often, by kind.
    """

    def __init__(self, port: int, pid: int, config: Path, starts: Path, seed: int) -> None:
        self.port = port
        self.router = psutil.Process(pid)
        self.config = config
        self.good = config.read_text()
        self.starts = starts
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    def engines(self) -> list[int]:
        """Return the process ids of the engines that run."""
        with suppress(OSError):
            return [
                pid
                for pid in (int(line.split()[1]) for line in self.starts.read_text().splitlines())
                if is_alive(pid)
            ]
        return []

    async def run(self) -> None:
        kinds = [
            self.kill,
            self.kill,
            self.freeze,
            self.hang,
            self.unload,
            self.cancel,
            self.bad_reload,
            self.good_reload,
            self.full_disk,
        ]
        try:
            while True:
                await asyncio.sleep(self.random.uniform(*EVERY_S))
                kind = self.random.choice(kinds)
                await kind()
                self.done[kind.__name__] += 1
        finally:
            self.config.write_text(self.good)
            for pid in self.engines():
                with suppress(OSError):
                    os.kill(pid, signal.SIGCONT)

    async def kill(self) -> None:
        for pid in self.engines()[-1:]:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    async def freeze(self) -> None:
        for pid in self.engines()[-1:]:
            with suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(self.random.uniform(*STOPPED_S))
            with suppress(OSError):
                os.kill(pid, signal.SIGCONT)

    async def hang(self) -> None:
        """Stop an engine for good: health checks have to find that out."""
        for pid in self.engines()[-1:]:
            with suppress(OSError):
                os.kill(pid, signal.SIGSTOP)

    async def unload(self) -> None:
        await self.post("/admin/unload", {})

    async def cancel(self) -> None:
        status, body = await asyncio.to_thread(self._ask, "GET", "/admin/queue", None)
        ids = [entry["id"] for entry in json.loads(body).get("waiting", [])] if status == 200 else []
        if ids:
            await self.post("/admin/cancel", {"id": self.random.choice(ids)})

    async def bad_reload(self) -> None:
        self.config.write_text(self.random.choice(GARBAGE), "latin-1")
        status = await self.post("/admin/reload", {})
        if status is not None and status < 400:
            self.faults["garbage was taken for a configuration"] += 1
        self.config.write_text(self.good)

    async def good_reload(self) -> None:
        changed = self.good.replace("idle_timeout_s = 60", f"idle_timeout_s = {self.random.randint(30, 90)}")
        self.config.write_text(changed)
        await self.post("/admin/reload", {})

    async def full_disk(self) -> None:
        """Let the router write no file for a moment, its state included."""
        limits = self.router.rlimit(resource.RLIMIT_FSIZE)
        self.router.rlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        await asyncio.sleep(FULL_S)
        self.router.rlimit(resource.RLIMIT_FSIZE, limits)

    async def post(self, path: str, body: object) -> int | None:
        status, said = await asyncio.to_thread(self._ask, "POST", path, json.dumps(body).encode())
        if status == 500:
            self.faults[f"{path}: status 500 {said[:200]!r}"] += 1
        return status

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int | None, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        began = time.monotonic()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            self.faults[f"{method} {path}: {error!r} after {time.monotonic() - began:.0f} s"] += 1
            return None, b""
        finally:
            connection.close()
