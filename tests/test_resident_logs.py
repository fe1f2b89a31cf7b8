"""The log of one model among several of an engine, as people read it: by the command and by the route."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import trio
from support.asgi import ask
from support.served import served

from engine_router import open_router
from engine_router.cli import main
from engine_router.config import parse_config

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups")

PROGRAM = str(Path(__file__).parent / "programs" / "small_engine.py")
ARGV = [sys.executable, "-I", "-S", PROGRAM, "port={port}", "say=weights of {model}"]
CONFIG = f"""
    state_file = "/dev/null/state.json"
    [server]
    shutdown_timeout_s = 0.1
    [pools.default]
    gauge = "none"
    [engines.small]
    type = "process"
    argv = {json.dumps(ARGV)}
    [engines.both]
    type = "process"
    argv = {json.dumps([*ARGV[:-1], "say=one engine"])}
    [models.red]
    engine = "small"
    upstream = "r"
    [models.green]
    engine = "small"
    [models.both]
    engine = "small"
"""


async def test_a_model_of_a_template_has_its_own_log(capsys: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(200):
        async with open_router(parse_config(CONFIG)) as router, served(router) as url:

            async def logs(name: str, code: int = 0) -> list[str]:
                assert await trio.to_thread.run_sync(main, ["logs", name, "--url", url]) == code
                told = capsys.readouterr()
                return (told.err if code else told.out).splitlines()

            for model in ("red", "green", "red"):
                async with router.lease(model):
                    pass
            red, green, engine = await logs("red"), await logs("green"), await logs("small")
            assert red.count("weights of r") == 2
            assert green.count("weights of green") == 1
            assert not any("green" in line for line in red)
            assert "weights of r" not in green
            assert engine.count("r | weights of r") == 2
            assert "green | weights of green" in engine
            assert await logs("both") == [], "a name that is an engine's, too, is the engine's"
            assert "model 'gren' not found; did you mean 'green'" in (await logs("gren", 1))[0]
            for query, status in (
                ("model=red&lines=1", 200),
                ("model=x", 404),
                ("model=red&engine=small", 400),
            ):
                assert (await ask(router.app, "GET", "/admin/logs", query=query)).status == status, query
