"""`engine-router demo --once`: a chat with each model through real HTTP, and what the swaps took."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import httpx
import trio

from engine_router.cli.formatting import seconds
from engine_router.cli.terminal import Table, say
from engine_router.events import Event, SwapEnded
from engine_router.router import Router

GIBBERISH = "What the models say is gibberish, as expected: their weights are random."
ROUNDS = 3
TIMEOUT_S = 120
PHASES = ("drain", "stop", "settle", "start")
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 60}


class _ChatFailed(Exception):
    pass


async def chat_with_each(router: Router, urls: Sequence[str]) -> int:
    """Chat with one model after the other, in turn, then show the swaps. Return the exit code."""
    swaps: list[SwapEnded] = []

    def note(event: Event) -> None:
        if isinstance(event, SwapEnded):
            swaps.append(event)

    router.hub.listen(note)
    models = [target.model for target in router.registry.targets()]
    say(f"\n{GIBBERISH}")
    try:
        async with httpx.AsyncClient(base_url=urls[0], timeout=TIMEOUT_S, trust_env=False) as client:
            for turn in range(ROUNDS):
                await _chat(client, models[turn % len(models)])
    except (_ChatFailed, httpx.HTTPError) as error:
        say(f"\nengine-router: {str(error) or repr(error)}", to=sys.stderr)
        return 1
    say()
    _table(swaps).show()
    return 0 if all(swap.result == "ok" for swap in swaps) and len(swaps) == ROUNDS else 1


async def _chat(client: httpx.AsyncClient, model: str) -> None:
    say(f"\n{model}: ", end="")
    began, first, words = trio.current_time(), None, 0
    async with client.stream("POST", "/v1/chat/completions", json={**CHAT, "model": model}) as answer:
        if answer.status_code != 200:
            raise _ChatFailed(f"{answer.status_code}: {(await answer.aread()).decode('utf-8', 'replace')}")
        async for line in answer.aiter_lines():
            if text := _text(line):
                first = trio.current_time() if first is None else first
                words += 1
                say(text, end="")
    if first is None:
        raise _ChatFailed(f"{model} said nothing")
    say(
        f"\n  [first token after {seconds(first - began)}, {words} in {seconds(trio.current_time() - first)}]"
    )


def _text(line: str) -> str:
    """Return the text in a line of the stream; comments and the end have none."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return ""
    frame = json.loads(data)
    if "error" in frame:
        raise _ChatFailed(frame["error"]["message"])
    return "".join(choice["delta"].get("content") or "" for choice in frame["choices"])


def _table(swaps: Sequence[SwapEnded]) -> Table:
    rows = [
        (
            f"{swap.source or '(empty)'} -> {swap.target or '(empty)'}",
            *(seconds(swap.phases[phase]) if phase in swap.phases else "-" for phase in PHASES),
            seconds(swap.duration_s),
            "" if swap.result == "ok" else swap.result,
        )
        for swap in swaps
    ]
    return Table(("Swap", *PHASES, "in all", ""), rows, frozenset(range(1, 6)))
