"""What an engine can tell of a start before anybody is stopped for it."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.scripted import ScriptedTabby

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.engines.process.start import missing
from engine_router.errors import EngineStartFailed, RouterError

PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"


def process(name: str, *argv: str, more: str = "") -> str:
    return f'[engines.{name}]\ntype = "process"\nargv = {json.dumps(argv)}\nmodels = ["{name}"]\n{more}\n'


def works(name: str) -> str:
    return process(name, sys.executable, "-I", "-S", str(PROGRAM), "{port}")


@asynccontextmanager
async def routing(*tables: str) -> AsyncIterator[Router]:
    text = "\n".join(
        [
            'state_file = "/dev/null/state.json"\n[server]\nshutdown_timeout_s = 0.1',
            '[pools.default]\ngauge = "none"',
            *tables,
        ]
    )
    with trio.fail_after(200):
        async with open_router(parse_config(text)) as router:
            yield router


async def refusal(router: Router, model: str) -> RouterError:
    with pytest.raises(RouterError) as caught:
        async with router.lease(model):
            pass
    return caught.value


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def http(port: int) -> str:
    return (
        f'[engines.bad]\ntype = "http"\nbase_url = "http://127.0.0.1:{port}"\nmodels = ["bad"]\n'
        'load = { path = "/l" }\nunload = { path = "/u" }\nloaded = { path = "/v1/models", key = "data" }\n'
    )


BAD = {
    "a missing program": (
        process("bad", "no-such-program-anywhere", "{port}"),
        "no-such-program-anywhere was not found",
    ),
    "a missing path": (process("bad", "/no/such/program", "{port}"), "/no/such/program was not found"),
    "a missing folder": (
        process("bad", sys.executable, "{port}", more='cwd = "/no/such/folder"'),
        "/no/such/folder",
    ),
    "a missing model": (
        process("bad", sys.executable, "{port}", "-m", "/no/such.gguf"),
        "model file /no/such.gguf",
    ),
    "a closed port": (http(closed_port()), "is it running"),
    "no daemon": (
        f'[engines.bad]\ntype = "ollama"\nbase_url = "http://127.0.0.1:{closed_port()}"\nmodels = ["bad"]',
        "is it running",
    ),
}


@pytest.mark.parametrize("fault", BAD)
async def test_the_resident_stays_where_the_next_cannot_start(fault: str) -> None:
    table, words = BAD[fault]
    async with routing(works("good"), table) as router:
        async with router.lease("good") as lease:
            before = lease.base_url
        error = await refusal(router, "bad")
        assert isinstance(error, EngineStartFailed)
        assert words in str(error)
        async with router.lease("good") as lease:
            assert lease.base_url == before
        assert len(router.supervisor.residents()) == 1


async def test_a_server_that_is_started_meanwhile_is_used_at_once() -> None:
    port = closed_port()
    table = http(port).replace(
        'loaded = { path = "/v1/models", key = "data" }', 'loaded = { path = "/v1/model" }'
    )
    table = table.replace('"/l" }', '"/v1/model/load", body = { model_name = "{model}" } }')
    table = table.replace('"/u"', '"/v1/model/unload"').replace(
        "models =", 'headers = { Authorization = "Bearer tabby-admin-key" }\nmodels ='
    )
    async with routing(table, "[scheduling]\nfailed_start_memory_s = 300.0") as router:
        assert "is it running" in str(await refusal(router, "bad"))
        resident = router.registry.resolve("bad").resident
        while not router.supervisor.domain(resident).ledger.failures()[resident].was_seen:
            await trio.sleep(0.01)
        error = await refusal(router, "bad")
        assert "remembered" in str(error)
        assert error.retry_after_s is not None
        assert 1 <= error.retry_after_s <= 300
        async with ScriptedTabby("bad").running(port) as server:
            async with router.lease("bad"):
                assert server.loaded
            await router.supervisor.until_unloaded(resident)


def test_what_is_there_is_not_missing(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"")
    assert missing([sys.executable, "-m", str(model)], None, {}) is None
    assert missing([sys.executable, "-m", "model.gguf"], str(tmp_path), {}) is None
    assert missing([sys.executable, "--model", "organisation/name"], None, {}) is None
    assert missing([sys.executable], str(tmp_path), {"PATH": "/nowhere"}) is None
