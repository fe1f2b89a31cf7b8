"""Three real engines under a budget that has room for two, watched from outside."""

from __future__ import annotations

import collections
import importlib.util
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
from attrs import define, field
from support.memory_watch import Watch
from support.served import served

import engine_router
from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.events import Event, ResidentReady
from engine_router.memory import MemoryReading

WHEELS = ("gguf", "numpy", "xllamacpp")
MISSING = [name for name in WHEELS if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extra llamacpp (missing: {', '.join(MISSING)})"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

MB = 10**6
LIMIT_S = 200.0
LAYERS = {"small": 3, "middle": 4, "large": 6}
WIDTH = 1024
WEIGHTS = {name: 40 * layers * WIDTH**2 for name, layers in LAYERS.items()}
"""126, 168 and 252 MB in the layers alone; each needs some 30 MB more."""

BUDGET_BYTES = 504 * MB
"""For any two of them, with a margin of 25 MB; all three would need 630 MB."""

PROMPTS = ("ab", "the", "no", "we")
SEED = 20260801
ROUNDS = ((1, 30), (4, 70), (12, 100))
"""How many clients at a time make how many requests."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("three-models")
    files = [
        write_tiny_gguf(folder / f"{name}.gguf", layers=layers, width=WIDTH, seed=layers)
        for name, layers in LAYERS.items()
    ]
    yield folder
    for file in files:  # half a gigabyte, of no use to whoever looks into a failure
        file.unlink()


class Card:
    """The gauge of a memory that is as large as the budget, and has nobody in it but the engines."""

    name = "card"

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    async def read(self) -> MemoryReading:
        sizes = await trio.to_thread.run_sync(self._watch.sizes)
        return MemoryReading(BUDGET_BYTES - sum(sizes), BUDGET_BYTES)


def configuration(folder: Path) -> engine_router.Config:
    """Configure a template. Of the largest model is said what it needs; of the others the files, then the gauge."""
    argv = [sys.executable, "-m", "engine_router.llamacpp", "-m", "{path}", "--alias", "{model}"]
    argv += ["--port", "{port}", "-lv", "0", "-c", "512", "-np", "2", "-t", "1"]
    argv += ["--no-mmap", "--cache-ram", "0"]  # all of it is the process's own, and nothing is added later
    models = "".join(
        f'[models.{name}]\nengine = "gguf"\npath = {json.dumps(str(folder / name))[:-1]}.gguf"\n'
        for name in LAYERS
    )
    return parse_config(f"""
        state_file = "/dev/null/state.json"
        [scheduling]
        max_wait_s = 2
        [pools.default]
        mode = "budget"
        budget_gb = {BUDGET_BYTES / 1e9}
        [engines.gguf]
        type = "process"
        argv = {json.dumps(argv)}
        {models}
        memory_gb = 0.29
    """)


@define
class Answers:
    """What was answered, and what it took."""

    client: httpx.AsyncClient
    texts: dict[tuple[str, str], set[str]] = field(factory=lambda: collections.defaultdict(set))
    count: int = 0

    async def ask(self, model: str, prompt: str) -> None:
        body = {"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0}
        answer = await self.client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert said["model"] == model
        assert said["usage"]["completion_tokens"] == 4
        self.texts[model, prompt].add(said["choices"][0]["text"])
        self.count += 1

    async def ask_all(self, wanted: list[tuple[str, str]], clients: int) -> None:
        """Let so many clients ask, each as soon as its last request is answered."""
        rest = iter(wanted)

        async def client() -> None:
            for model, prompt in rest:
                await self.ask(model, prompt)

        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(client)


@define
class Seen:
    """What was seen from outside.

    Attributes:
        peak_bytes: the most that all engines had together.
        longest_s: the longest time between two looks.
        present: how often so many engines were seen.
        loaded: how often so many were seen that had their model.
    """

    peak_bytes: int = 0
    longest_s: float = 0.0
    present: collections.Counter[int] = field(factory=collections.Counter)
    loaded: collections.Counter[int] = field(factory=collections.Counter)


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Seen]:
    """Watch the engines from a process of its own; what it saw is known at the end."""
    command = [
        sys.executable,
        str(Path(__file__).parent / "support" / "memory_watch.py"),
        str(folder),
        str(100 * MB),
    ]
    watcher = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert watcher.stdin is not None
    assert watcher.stdout is not None
    seen = Seen()
    async with watcher.stdin, watcher.stdout:
        try:
            yield seen
        finally:
            await watcher.stdin.aclose()
        said = json.loads(b"".join([part async for part in watcher.stdout]))
        await watcher.wait()
    seen.peak_bytes, seen.longest_s = said["peak_bytes"], said["longest_s"]
    for kind in ("present", "loaded"):
        getattr(seen, kind).update({int(count): often for count, often in said[kind].items()})


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


async def test_the_sum_of_what_is_resident_never_passes_the_budget(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(SEED)
    card = Card(Watch(str(folder)))
    monkeypatch.setattr("engine_router.composition.gauges_of", lambda _: {"default": card})
    starts: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, ResidentReady):
            starts.append(event.resident)

    with trio.fail_after(LIMIT_S):
        async with (
            watched(folder) as seen,
            engine_router.open_router(configuration(folder)) as router,
            served(router) as url,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=LIMIT_S) as client,
        ):
            router.hub.listen(listen)
            answers = Answers(client)
            for clients, count in ROUNDS:
                began, before = time.monotonic(), len(starts)
                wanted = [(dice.choice(list(LAYERS)), dice.choice(PROMPTS)) for _ in range(count)]
                await answers.ask_all(wanted, clients)
                took = f"{len(starts) - before} starts, {time.monotonic() - began:.1f} s"
                say(f"{clients} clients, {count} requests: {took}")
    took = {name: router.state.of(ResidentId("gguf", name)).footprint_bytes for name in LAYERS}
    say(f"measured: {took}")
    say(f"of {BUDGET_BYTES / MB:.0f} MB at most {seen.peak_bytes / MB:.1f} MB were used; {seen}")

    assert answers.count == 200
    assert {len(texts) for texts in answers.texts.values()} == {1}  # the same model says the same
    for prompt in PROMPTS:
        assert len({answers.texts[model, prompt].copy().pop() for model in LAYERS}) > 1, prompt
    assert WEIGHTS["middle"] + WEIGHTS["large"] < seen.peak_bytes <= BUDGET_BYTES
    assert set(seen.present) <= {0, 1, 2}
    for name, size in took.items():  # none was disturbed by another's coming or going
        assert size is None or WEIGHTS[name] < size < WEIGHTS[name] + 40 * MB, name
    assert seen.loaded[2] > seen.loaded.total() / 5
    assert len(LAYERS) < len(starts) < 100
