"""A router in a process of its own, and tabs of a browser that looks at it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.ports import free_port

PROGRAMS = Path(__file__).parents[1] / "programs"
PATIENCE_MS = 120_000  # on a machine that is busy with something else
STARTED_WITHIN_S = 100.0


class RunningRouter:
    """A router in a process of its own."""

    def __init__(self, folder: Path, config: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._folder, self.path = folder, folder / "engines.toml"
        self.path.write_text(f'state_file = "{folder}/state.json"\n{config}', "utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "engine_router",
            "serve",
            "-c",
            str(self.path),
            "--port",
            str(self.port),
        ]
        with (self._folder / "router.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + STARTED_WITHIN_S
        while True:
            try:
                httpx.get(f"{self.url}health", trust_env=False).raise_for_status()
            except httpx.HTTPError:
                assert self._process.poll() is None, (self._folder / "router.log").read_text("utf-8")
                assert time.monotonic() < deadline, "the router does not start"
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


RouterStarter = Callable[[str], RunningRouter]


def talking(name: str, *options: str, settings: str = "") -> str:
    """Return the configuration of an engine without a model."""
    argv = [sys.executable, str(PROGRAMS / "talking_engine.py"), "{port}", *options]
    return f'[engines.{name}]\ntype = "process"\nargv = {argv!r}\nmodels = ["{name}-model"]\ndiscover = false\n{settings}\n'


def expect(shown: Any) -> Any:
    """Return what waits until a page, or a part of one, is as it should be: what is shown comes a moment after a click."""
    expecting = pytest.importorskip("playwright.sync_api").expect
    expecting.set_options(timeout=PATIENCE_MS)
    return expecting(shown)


class Watched:
    """A tab, and what should not happen in one: errors, dialogs of scripts, requests to elsewhere."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.faults: list[str] = []
        self.expected: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", self._on_console)
        page.on("dialog", self._on_dialog)
        page.on("request", self._on_request)

    def _on_console(self, message: Any) -> None:
        if message.type == "error" and not any(text in message.text for text in self.expected):
            self.faults.append(f"console: {message.text}")

    def _on_dialog(self, dialog: Any) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.faults.append(f"request: {request.url}")


@contextmanager
def tab(browser: Any, **options: Any) -> Iterator[Watched]:
    """Open a tab of its own, and see at the end that nothing went wrong in it."""
    options = {"viewport": {"width": 1280, "height": 800}, **options}
    context = browser.new_context(**options)
    watched = Watched(context.new_page())
    try:
        yield watched
    finally:
        context.close()
    assert not watched.faults, watched.faults
