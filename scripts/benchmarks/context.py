"""Measure what kept context is worth: the first token of a conversation that goes on after a swap, with and without it.

Real llama.cpp (the extra llamacpp) on a model with random weights, large enough for its reading of prompts to be seen.
A conversation with A, a swap to B, and back to A with one more turn; both ways say the same at temperature 0.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import trio
from support.served import ask, served

import engine_router
from engine_router.config import parse_config
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.events import RequestEnded, RouterNotice

WORDS = [
    "sea",
    "ship",
    "wind",
    "sail",
    "rope",
    "mast",
    "deck",
    "port",
    "star",
    "tide",
    "salt",
    "wave",
    "bird",
    "fish",
    "rock",
    "sand",
]


class Turn(NamedTuple):
    """The turn after a swap: seconds to the first token, those of them behind the start, tokens, and the text."""

    first_s: float
    behind_start_s: float
    tokens: int
    reused: int
    text: str


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench context", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="conversations, each with and without")
    parser.add_argument("--tokens", type=int, default=4000, help="length of a conversation")
    parser.add_argument("--layers", type=int, default=6, help="of the model")
    parser.add_argument("--width", type=int, default=512, help="of the model")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return trio.run(measured, Path(folder), options)


async def measured(folder: Path, options: argparse.Namespace) -> int:
    for seed, name in enumerate("ab"):
        size = {"layers": options.layers, "width": options.width} if name == "a" else {}
        write_tiny_gguf(folder / f"{name}.gguf", seed=seed, context_length=2 * options.tokens, **size)
    with_it = await turns(folder, options, keep=True)
    without = await turns(folder, options, keep=False)
    for words, found in (("with keep_context", with_it), ("without", without)):
        print(
            f"{words}: {_median(turn.first_s for turn in found)} s to the first token, "
            f"{_median(turn.behind_start_s for turn in found)} s of them behind the start; "
            f"{min(turn.reused for turn in found)} to {max(turn.reused for turn in found)} of about "
            f"{found[0].tokens} tokens reused (median and range of {len(found)})"
        )
    whole = [one.first_s / other.first_s for one, other in zip(with_it, without, strict=True)]
    behind = [one.behind_start_s / other.behind_start_s for one, other in zip(with_it, without, strict=True)]
    print(f"ratio: {_median(whole)} with the start, {_median(behind)} behind it")
    same = sum(one.text == other.text for one, other in zip(with_it, without, strict=True))
    print(f"the same text at temperature 0: {same} of {len(with_it)}")
    return 0 if same == len(with_it) else 1


def _median(numbers: Sequence[float]) -> str:
    found = sorted(numbers)
    return f"{statistics.median(found):.3f} ({found[0]:.3f} to {found[-1]:.3f})"


def configuration(folder: Path, options: argparse.Namespace, *, keep: bool) -> engine_router.Config:
    lines = [
        f"state_file = {json.dumps(str(folder / f'{keep}' / 'state.json'))}",
        "[context]",
        "min_free_gb = 0.5",
    ]
    for name in "ab":
        program = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(folder / f"{name}.gguf")]
        argv = [*program, "--port", "{port}", "-lv", "0", "-c", str(2 * options.tokens), "-np", "1"]
        lines += [
            f"[engines.{name}]",
            'type = "process"',
            f"argv = {json.dumps(argv)}",
            f'models = ["{name}"]',
        ]
        lines += [f"keep_context = {json.dumps(keep)}"]
    return parse_config("\n".join(lines))


async def turns(folder: Path, options: argparse.Namespace, *, keep: bool) -> list[Turn]:
    found = []
    async with (
        engine_router.open_router(configuration(folder, options, keep=keep)) as router,
        served(router) as url,
    ):
        events, notices = router.hub.subscribe(RequestEnded), router.hub.subscribe(RouterNotice)
        for number in range(options.rounds):
            dice = random.Random(number)
            text = ""
            while len(text) < options.tokens:  # a token for each byte
                text += f"{dice.choice(WORDS)} "
            first = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": text}]
            more = [{"role": "assistant", "content": "okay"}, {"role": "user", "content": "Go on."}]
            for model, messages in (("a", first), ("b", first[:1] + more), ("a", first + more)):
                body = {
                    "model": model,
                    "messages": messages,
                    "max_tokens": 16,
                    "temperature": 0,
                    "stream": True,
                }
                answer = await ask(url, "POST", "/v1/chat/completions", body=body)
                event = await anext(events)
            told = (event.first_token_s, event.queue_wait_s, event.tokens_in, event.tokens_cached)
            if answer.status != 200 or None in told:
                raise SystemExit(f"no answer with figures: {answer.body!r}")
            first_s, wait_s, tokens, reused = told
            found.append(Turn(first_s, first_s - wait_s, tokens, reused, text_in(answer.body)))
        for notice in notices.take():
            print(notice.message)
    return found


def text_in(body: bytes) -> str:
    """Return the text of a streamed chat."""
    frames = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: {")]
    choices = [choice for frame in frames for choice in json.loads(frame)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
