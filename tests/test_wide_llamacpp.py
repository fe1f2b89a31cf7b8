"""Real llama.cpp on two pools of declared budgets: one model across both, one on each, and a kill in the middle."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import trio
from support.served import ask, served

import engine_router
from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.events import Event, ResidentDied

WHEELS = ("gguf", "numpy", "xllamacpp")
MISSING = [name for name in WHEELS if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extra llamacpp (missing: {', '.join(MISSING)})"),
    pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL"),
]

LIMIT_S = 400.0
SPANS = {"zero": ("gpu0",), "one": ("gpu1",), "wide": ("gpu0", "gpu1")}
ROUNDS = 4


def configuration(folder: Path) -> engine_router.Config:
    program = [sys.executable, "-m", "engine_router.llamacpp", "-m", "{path}", "--alias", "{model}"]
    argv = [*program, "--port", "{port}", "-lv", "0", "-c", "512", "-t", "1"]
    lines = [
        'state_file = "/dev/null/state.json"',
        "[server]\nshutdown_timeout_s = 0.5\n[scheduling]\nmax_wait_s = 3\nhold_s = 0",
        *(
            f'[pools.gpu{number}]\ngauge = "none"\nmode = "budget"\nbudget_gb = 1\ngpu = {number}'
            for number in (0, 1)
        ),
        f'[engines.gguf]\ntype = "process"\nargv = {json.dumps(argv)}\npool = "gpu0"',
    ]
    for seed, (name, pools) in enumerate(SPANS.items()):
        path = write_tiny_gguf(folder / f"{name}.gguf", seed=seed)
        lines += [f'[models.{name}]\nengine = "gguf"\npath = {json.dumps(str(path))}']
        lines += [f"pools = {json.dumps(pools)}\nmemory_gb = {0.6 * len(pools)}"]
    return parse_config("\n".join(lines))


async def test_three_clients_are_served_across_two_pools_though_one_model_is_killed(tmp_path: Path) -> None:
    deaths: list[Event] = []
    statuses: dict[str, list[int]] = {name: [] for name in SPANS}
    with trio.fail_after(LIMIT_S):
        async with engine_router.open_router(configuration(tmp_path)) as router, served(router) as url:
            router.hub.listen(deaths.append, ResidentDied)

            def present(pool: str) -> set[str]:
                return {str(status.resident.model) for status in router.read_model.pool(pool).residents}

            async def client(model: str) -> None:
                for _ in range(ROUNDS):
                    body = {"model": model, "prompt": "ab", "max_tokens": 8, "temperature": 0}
                    answer = await ask(url, "POST", "/v1/completions", body=body)
                    statuses[model].append(answer.status)
                    for pool in ("gpu0", "gpu1"):
                        assert len(present(pool)) <= 1, "two lie in a pool that has room for one"

            async with trio.open_nursery() as nursery:
                for model in SPANS:
                    nursery.start_soon(client, model)
            assert statuses == dict.fromkeys(SPANS, [200] * ROUNDS)

            async def kill() -> None:
                """End the wide one while it writes."""
                wide = ResidentId("gguf", "wide")
                while not router.read_model.resident(wide).leases:
                    await trio.sleep(0.001)
                endpoint = router.read_model.resident(wide).endpoint
                assert endpoint is not None
                assert endpoint.pid is not None
                assert present("gpu0") == present("gpu1") == {"wide"}
                os.kill(endpoint.pid, signal.SIGKILL)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill)
                body = {"model": "wide", "prompt": "ab", "max_tokens": 400, "ignore_eos": True}
                assert (await ask(url, "POST", "/v1/completions", body=body)).status == 502
            async with trio.open_nursery() as nursery:
                for model in SPANS:
                    nursery.start_soon(client, model)
    assert statuses == dict.fromkeys(SPANS, [200] * (2 * ROUNDS))
    assert [(event.resident, event.pools) for event in deaths if isinstance(event, ResidentDied)] == [
        ("gguf/wide", ("gpu0", "gpu1"))
    ]
