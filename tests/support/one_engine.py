"""A router in front of one engine, which is a program of the test's own and runs already."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from engine_router import Router, open_router
from engine_router.config import parse_config
from support.served import RawClient, served

LIMIT_S = 200.0


@asynccontextmanager
async def before_one_engine(
    folder: Path, program: str, *, fast: bool, max_body_mb: float = 16
) -> AsyncIterator[tuple[Router, RawClient]]:
    """Serve a router whose model `m`, or `other`, is served by a Python program, and connect to it.

    Args:
        program: its source; its one argument is the port.
    """
    path = folder / "engine.py"
    path.write_text(program)
    argv = json.dumps([sys.executable, "-I", "-S", str(path), "{port}"])
    text = f"""
        state_file = "/dev/null/state.json"
        aliases = {{ other = "m" }}
        [server]
        fast_path = {json.dumps(fast)}
        max_body_mb = {max_body_mb}
        shutdown_timeout_s = 0.1
        [pools.default]
        gauge = "none"
        [engines.e]
        type = "process"
        argv = {argv}
        models = ["m"]
        discover = false
        """
    with trio.fail_after(LIMIT_S):
        async with (
            open_router(parse_config(text)) as router,
            served(router) as url,
            RawClient.to(url) as client,
        ):
            async with router.lease("m"):
                pass
            yield router, client
