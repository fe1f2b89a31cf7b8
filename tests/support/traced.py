"""A router whose traces go to a collector of the test's own."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from engine_router import Router, open_router
from engine_router.config import parse_config
from support.asgi import Received, ask
from support.collector import Collector, GotSpan
from support.served import ask as ask_over_a_socket
from support.served import served

LIMIT_S = 200.0
PROGRAM = Path(__file__).parents[1] / "programs" / "obedient_engine.py"
CHAT = "/v1/chat/completions"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
"""The `traceparent` of a client that records its trace."""


@asynccontextmanager
async def tracing(
    tmp_path: Path, more: str = "", *, fast: bool = False
) -> AsyncIterator[tuple[Router, Any, Collector]]:
    """Run a router with two engines that sends its traces to a collector; yield both, and what asks the router.

    All spans have come when the block has ended.
    """
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}"])
    async with Collector().listening() as collector:
        text = f"""
            state_file = {json.dumps(str(tmp_path / "state.json"))}
            server.shutdown_timeout_s = 0.1
            server.fast_path = {json.dumps(fast)}
            history.enabled = false
            traces.endpoint = "{collector.url}"
            pools.default.gauge = "none"
            engines.e = {{ type = "process", argv = {argv}, models = ["m"] }}
            engines.other = {{ type = "process", argv = {argv}, models = ["o"] }}
            {more}
            """
        with trio.fail_after(LIMIT_S):
            async with open_router(parse_config(text)) as router:
                if fast:
                    async with served(router) as url:
                        yield router, functools.partial(ask_over_a_socket, url), collector
                else:
                    yield router, functools.partial(ask, router.app), collector


def only(spans: list[GotSpan], name: str) -> GotSpan:
    """Return the one span of a name."""
    (found,) = [span for span in spans if span.name == name]
    return found


def told(answer: Received) -> dict[str, str]:
    """Return the headers that an engine got which echoes them; more of one name are joined."""
    found: dict[str, str] = {}
    for name, value in answer.json()["headers"]:
        found[name.lower()] = ",".join(filter(None, (found.get(name.lower()), value)))
    return found
