"""Measure how soon the page appears in a real Chromium, with an empty cache and with a warm one.

Needs an interpreter that has engine_router and Playwright, and Chromium: nox -s browser brings what it needs but for the last.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_PATIENCE_S = 60.0
# When something was painted, and when the view stood there, in milliseconds since the address was asked for.
_LOOK = """new Promise((tell) => {
  const look = () => {
    const paint = performance.getEntriesByType("paint").find((entry) => entry.name === "first-contentful-paint");
    if (!paint || !document.querySelector("main .card")) return setTimeout(look, 5);
    tell([paint.startTime, performance.now(), performance.getEntriesByType("navigation")[0].responseEnd]);
  };
  look();
})"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench paint", description=__doc__)
    parser.add_argument("--models", type=int, default=200, help="models that the router has (default: 200)")
    parser.add_argument("--rounds", type=int, default=10, help="browsers that are started (default: 10)")
    parser.add_argument("--view", default="", help='such as "models" or "activity" (default: the first one)')
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        router, url = started(Path(folder), options.models)
        try:
            cold, warm = measured(f"{url}#/{options.view}", options.rounds, options.chromium)
        finally:
            router.terminate()
            router.wait()
    for name, rounds in (("empty cache", cold), ("warm cache", warm)):
        for index, what in enumerate(
            ("first contentful paint", "the view stands there", "the page was read")
        ):
            times = [times[index] for times in rounds]
            print(f"{name}: {what}: least {min(times):.0f} ms, median {statistics.median(times):.0f} ms")
    return 0


def started(folder: Path, models: int) -> tuple[subprocess.Popen[bytes], str]:
    """Start a router with models that nothing serves."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    names = json.dumps([f"team/model-{number}:q4" for number in range(models)])
    (folder / "engines.toml").write_text(
        f'state_file = "{folder / "state.json"}"\n[engines.many]\ntype = "http"\nbase_url = "http://127.0.0.1:9"\n'
        f'discover = false\nmodels = {names}\nunload.path = "/unload"\nloaded.path = "/loaded"\n'
    )
    command = [sys.executable, "-m", "engine_router", "serve", "-c", str(folder / "engines.toml")]
    quiet = subprocess.DEVNULL
    router = subprocess.Popen([*command, "--port", str(port)], stdout=quiet, stderr=quiet)
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and router.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/health")
            connection.getresponse().read()
        except OSError:
            time.sleep(0.05)
        else:
            return router, f"http://127.0.0.1:{port}/"
    router.kill()
    router.wait()
    sys.exit("scripts/bench paint: the router does not start; is engine_router installed here?")


def measured(url: str, rounds: int, chromium: str) -> tuple[list[Any], list[Any]]:
    """Return what each round saw with an empty cache, and then with what was read before."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - --help works without

    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    cold, warm = [], []
    with sync_playwright() as playwright:
        for _ in range(rounds):
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox"] if is_root else []
            )
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            for kept in (cold, warm):
                page.goto("about:blank")
                page.goto(url, wait_until="commit")
                kept.append(page.evaluate(_LOOK))
            browser.close()
    return cold, warm
