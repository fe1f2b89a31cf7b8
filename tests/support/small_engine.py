"""A process engine whose program is the small engine of the tests."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from engine_router.config import ProcessConfig
from engine_router.engines.process.process_engine import ProcessEngine
from engine_router.upstream.control_client import control_client

PROGRAM = str(Path(__file__).parent.parent / "programs" / "small_engine.py")
PYTHON = [sys.executable, "-I", "-S"]


def command(*options: str) -> list[str]:
    return [*PYTHON, PROGRAM, *options]


def config(*options: str, **settings: Any) -> ProcessConfig:
    # None of these ends within a test, unless the test says so.
    settings = {"start_timeout_s": 1000.0, "stop_timeout_s": 1000.0, "grace_s": 700.0, **settings}
    return ProcessConfig(argv=tuple(command(*options)), **settings)


@asynccontextmanager
async def an_engine(settings: ProcessConfig, **more: Any) -> AsyncIterator[ProcessEngine]:
    with trio.fail_after(500):  # more than a clock jumps in any test
        async with control_client() as client:
            yield ProcessEngine("small", settings, client, **more)


@asynccontextmanager
async def the_engine(*options: str, **settings: Any) -> AsyncIterator[ProcessEngine]:
    async with an_engine(config("port={port}", *options, **settings)) as engine:
        yield engine
