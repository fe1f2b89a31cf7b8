"""A router with keys of every kind, in front of real processes."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from engine_router import Router, open_router
from engine_router.config import parse_config
from support.asgi import Received
from support.served import RawClient

LIMIT_S = 200.0
CHAT, MESSAGES, OLLAMA_CHAT = "/v1/chat/completions", "/v1/messages", "/api/chat"
DIALECTS = (CHAT, MESSAGES, OLLAMA_CHAT)
PROGRAMS = Path(__file__).parents[1] / "programs"
KEYS = """
    "root-key",
    { name = "boss", key = "boss-key", admin = true },
    { name = "guest", key = "guest-key" },
    { name = "narrow", key = "narrow-key", models = ["small*"], priority = "normal" },
    { name = "single", key = "single-key", max_in_flight = 1 },
"""
ADMINS = ("root-key", "boss-key")
OTHERS = ("guest-key", "narrow-key")


def engine(name: str, *, program: str = "obedient_engine.py", models: tuple[str, ...] = ()) -> str:
    """Return the table of an engine whose process starts within a moment."""
    argv = [
        sys.executable,
        *(["-I", "-S"] if program == "obedient_engine.py" else []),
        str(PROGRAMS / program),
    ]
    return f"""
        [engines.{name}]
        type = "process"
        memory_gb = 1
        argv = {json.dumps([*argv, "{port}"])}
        models = {json.dumps(models or (name,))}
    """


def keyed_text(*engines: str, keys: str = KEYS, more: str = "", fast: bool = True) -> str:
    """Return a configuration with keys, in one pool where several engines may stay."""
    return f"""
        state_file = "/dev/null/state.json"
        [pools.default]
        gauge = "none"
        mode = "budget"
        budget_gb = 100
        [server]
        shutdown_timeout_s = 0.1
        fast_path = {str(fast).lower()}
        api_keys = [{keys}]
        {more}
        {"".join(engines or (engine("small"), engine("other")))}
    """


@asynccontextmanager
async def keyed(*engines: str, keys: str = KEYS, more: str = "", fast: bool = True) -> AsyncIterator[Router]:
    """Run a router with keys, for a limited time; its engines are `small` and `other` where none are given."""
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(keyed_text(*engines, keys=keys, more=more, fast=fast))) as router:
            yield router


async def said(
    url: str, key: str | None, method: str, target: str, body: object = None, headers: Sequence[str] = ()
) -> Received:
    """Send a request with a key, and return the answer."""
    async with RawClient.to(url) as client:
        data = b"" if body is None else json.dumps(body).encode()
        lines = [] if key is None else [f"Authorization: Bearer {key}"]
        await client.request(method, target, data, headers=[*lines, *headers])
        return await client.answer(method)


def chat(model: str, **more: object) -> dict[str, object]:
    """Return the body of a chat that its engine echoes, unless `do` says otherwise."""
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "do": "echo", **more}


async def refused(url: str, target: str, headers: Mapping[str, str]) -> int:
    """Open a WebSocket, which need not be let in; return the status of the answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    async with RawClient.to(url) as client:
        await client.send("\r\n".join([*lines, "", ""]).encode())
        return int((await client.until(b"\r\n\r\n")).split()[1])
