"""Real Chromium in front of a real router: skipped where there is no Chromium, or no Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import RouterStarter, RunningRouter

from engine_router.web import assets

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def start_router(tmp_path: Path) -> Iterator[RouterStarter]:
    """Starts a router with a configuration."""
    running: list[RunningRouter] = []

    def start(config: str) -> RunningRouter:
        folder = tmp_path / f"router{len(running)}"
        folder.mkdir()
        running.append(RunningRouter(folder, config))
        running[-1].start()
        return running[-1]

    try:
        yield start
    finally:
        for router in running:
            router.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser."""
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    if not (assets.PAGE / "index.html").is_file():
        pytest.skip("the page was not built")
    with api.sync_playwright() as playwright:
        # As root, and in containers, Chromium has no sandbox of its own.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser
        browser.close()
