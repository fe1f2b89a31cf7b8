"""Whether any body breaks the router: requests in three dialects, mutated, sent to both tiers.

Bytes are flipped, cut, doubled and moved; members get other types, lengths and names. Every request has to get an
answer, which is never a 500 but where the engine gave one, and the router's log no traceback. The exit status is 1
otherwise. Everything stays on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from benchmarks import environments, routers
from benchmarks.environments import Missing, say
from benchmarks.faults import TRACEBACK
from benchmarks.faults.answers import ERRORS, PATHS, on_wire, read_answer, request_of
from benchmarks.lab import Failed, Lab
from benchmarks.routers import InstantEngines

MODEL = "alpha"
WORKERS = 8
ANSWER_WITHIN_S = 30.0
MAX_BYTES = 20_000
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1e308,
        2**70,
        0.5,
        "",
        " ",
        "\ud800",
        "\u0000",
        "a" * 3000,
        [],
        {},
        [[]],
        [None],
    ),
    *(
        [{}],
        {"a": None},
        ["x", 1],
        {"type": "text"},
        {"role": "user"},
        [{"type": "image_url"}],
        "data:x;base64,%%",
    ),
)
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
MORE: tuple[dict[str, Any], ...] = (
    {"tools": [TOOL], "tool_choice": "auto", "temperature": 0.5, "stop": ["x"], "max_tokens": 5},
    {
        "options": {"num_predict": 3, "stop": ["a"], "temperature": 1},
        "format": {"type": "object"},
        "keep_alive": "5m",
    },
    {"system": [{"type": "text", "text": "s"}], "thinking": {"type": "enabled", "budget_tokens": 10}},
    {
        "instructions": "i",
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "low"},
        "store": False,
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image", "source": {}}]}
        ]
    },
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
    {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}]},
)


def mutated(chance: random.Random, path: str) -> bytes:
    """Return the body of a request with one to four things wrong with it."""
    data = request_of(path, MODEL, stream=chance.random() < 0.5)
    for more in chance.sample(MORE, chance.randint(0, 2)):
        data.update(json.loads(json.dumps(more)))
    if chance.random() < 0.7:
        for _ in range(chance.randint(1, 4)):
            _change(chance, data)
        return json.dumps(data).encode()[:MAX_BYTES]
    body = bytearray(json.dumps(data).encode())
    for _ in range(chance.randint(1, 4)):
        at, until = sorted((chance.randint(0, len(body)), chance.randint(0, len(body))))
        kind = chance.randint(0, 4)
        if kind == 0 and body:
            body[min(at, len(body) - 1)] = chance.randrange(256)
        elif kind == 1:
            del body[at : min(until, at + 8)]
        elif kind == 2:
            body[at:at] = body[at:until]
        elif kind == 3:
            body[at:at] = bytes(chance.randrange(256) for _ in range(4))
        else:
            del body[at:]
    return bytes(body[:MAX_BYTES])


def _change(chance: random.Random, data: dict[str, Any]) -> None:
    """Change one member, somewhere."""
    at: Any = data
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = chance.choice(keys)
        if isinstance(at[key], (dict, list)) and at[key] and chance.random() < 0.7:
            at = at[key]
            continue
        kind = chance.randint(0, 3)
        if kind == 0 and isinstance(at, dict):
            at[str(chance.choice(("x", "type", "content", "\n", "model", "name")))] = at.pop(key)
        elif kind == 1:
            del at[key]
        elif key != "model" or chance.random() < 0.1:  # an unknown model tests nothing further
            at[key] = copy.deepcopy(chance.choice(VALUES))
        return


class Client:
    """Sends mutated bodies to one port, so many and for so long at most."""

    def __init__(self, port: int, requests: int, until: float, seed: int) -> None:
        self.port, self.left, self.until = port, requests, until
        self.chance = random.Random(seed)
        self.statuses: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    async def run(self) -> None:
        await asyncio.gather(*(self.work() for _ in range(WORKERS)))

    async def work(self) -> None:
        while self.left > 0 and time.monotonic() < self.until:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            with closing(writer):
                while self.left > 0 and time.monotonic() < self.until:
                    self.left -= 1
                    path = self.chance.choice(PATHS)
                    body = mutated(self.chance, path)
                    writer.write(on_wire(path, body))
                    try:
                        answer = await asyncio.wait_for(read_answer(reader), ANSWER_WITHIN_S)
                    except (asyncio.TimeoutError, OSError, EOFError) as error:
                        self.errors[f"{path} {body[:1000]!r}: {error!r}"] += 1
                        break
                    self.statuses[str(answer.status)] += 1
                    if answer.status not in (*ERRORS, 200):
                        self.errors[f"{path} {body[:1000]!r}: {answer.status} {answer.body[:200]!r}"] += 1
                    if not answer.is_whole:
                        break


def run(lab: Lab, options: argparse.Namespace) -> tuple[Counter[str], list[str]]:
    python = environments.engine_router()
    statuses: Counter[str] = Counter()
    found: list[str] = []
    for number, label in enumerate(("fast", "ordinary")):
        router = routers.open_router(
            lab, routers.ours(python), InstantEngines(python, [MODEL]), label, fast=label == "fast"
        )
        until = time.monotonic() + options.seconds / 2
        client = Client(router.port, options.requests // 2, until, options.seed + number)
        asyncio.run(client.run())
        statuses += client.statuses
        found += [f"{label} tier: {count} times {words}" for words, count in client.errors.items()]
        if router.process.poll() is not None:
            found.append(f"the router ended with status {router.process.returncode}")
        lab.stop(router.process, within_s=30)
        log = (lab.folder / f"{label}-engine_router.out").read_text(errors="replace")
        if TRACEBACK in log:
            found.append(
                f"{label} tier: {log.count(TRACEBACK)} tracebacks: {log[log.index(TRACEBACK) :][:2000]}"
            )
    return statuses, found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench mutations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=200_000, metavar="N", help="at most (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1200.0, metavar="S", help="at most (%(default)g)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random bodies (%(default)s)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with closing(Lab()) as lab:
            statuses, found = run(lab, options)
    except (Missing, Failed) as error:
        say(str(error))
        return 1
    print(f"{sum(statuses.values())} requests: " + ", ".join(f"{n} {s}" for s, n in sorted(statuses.items())))
    for words in found[:20]:
        say(f"WRONG: {words}")
    return 1 if found else 0
