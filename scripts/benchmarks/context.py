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
    found: list[tuple[Turn, Turn]] = []
    async with (
        engine_router.open_router(configuration(folder, options, keep=True)) as keeping,
        engine_router.open_router(configuration(folder, options, keep=False)) as plain,
        served(keeping) as keeping_url,
        served(plain) as plain_url,
    ):
        notices = keeping.hub.subscribe(RouterNotice)
        for number in range(options.rounds):  # one after the other, so that both meet the same machine
            with_it = await turn(keeping, keeping_url, options, number)
            found.append((with_it, await turn(plain, plain_url, options, number)))
            words = [f"{one.first_s:.3f} s ({one.reused} tokens reused)" for one in found[-1]]
            print(f"{number + 1}: {words[0]}, without {words[1]}", flush=True)
        for notice in notices.take():
            print(notice.message)
    return report(found)


def report(found: list[tuple[Turn, Turn]]) -> int:
    for words, of_one in (("with keep_context", 0), ("without", 1)):
        turns = [both[of_one] for both in found]
        print(
            f"{words}: {_median([one.first_s for one in turns])} s to the first token, "
            f"{_median([one.behind_start_s for one in turns])} s of them behind the start; "
            f"{min(one.reused for one in turns)} to {max(one.reused for one in turns)} of "
            f"{turns[0].tokens} tokens reused (median and range of {len(turns)})"
        )
    whole = [one.first_s / other.first_s for one, other in found]
    behind = [one.behind_start_s / other.behind_start_s for one, other in found]
    print(f"ratio: {_median(whole)} with the start, {_median(behind)} behind it")
    same = sum(one.text == other.text for one, other in found)
    print(f"the same text at temperature 0: {same} of {len(found)}")
    return 0 if same == len(found) else 1


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
        argv = [
            *program,
            "--port",
            "{port}",
            "-lv",
            "0",
            "-c",
            str(2 * options.tokens),
            "-np",
            "1",
            "-t",
            "1",
        ]
        lines += [
            f"[engines.{name}]",
            'type = "process"',
            f"argv = {json.dumps(argv)}",
            f'models = ["{name}"]',
        ]
        lines += [f"keep_context = {json.dumps(keep)}"]
    return parse_config("\n".join(lines))


async def turn(router: engine_router.Router, url: str, options: argparse.Namespace, number: int) -> Turn:
    """Talk to A, to B, and to A again; return the last of these turns."""
    ends = router.hub.subscribe(RequestEnded)
    dice, text = random.Random(number), ""
    while len(text) < options.tokens:  # a token for each byte
        text += f"{dice.choice(WORDS)} "
    first = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": text}]
    more = [{"role": "assistant", "content": "okay"}, {"role": "user", "content": "Go on."}]
    for model, messages in (("a", first), ("b", first[:1] + more), ("a", first + more)):
        body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0, "stream": True}
        answer = await ask(url, "POST", "/v1/chat/completions", body=body)
        ended = await anext(ends)
    told = (ended.first_token_s, ended.queue_wait_s, ended.tokens_in, ended.tokens_cached)
    if answer.status != 200 or None in told:
        raise SystemExit(f"no answer with figures: {answer.body[-1000:]!r}")
    first_s, wait_s, tokens, reused = told
    return Turn(first_s, first_s - wait_s, tokens, reused, text_in(answer.body))


def text_in(body: bytes) -> str:
    """Return the text of a streamed chat."""
    frames = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: {")]
    choices = [choice for frame in frames for choice in json.loads(frame)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
