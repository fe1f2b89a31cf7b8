"""A start imports what it needs, and a router at rest rests: counted, never timed."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import trio
import trio.testing

from engine_router import open_router
from engine_router.cli.running import scanning
from engine_router.config import parse_config
from engine_router.server.serve import listen, serve

WEB = {"quart", "flask", "werkzeug", "jinja2", "hypercorn", "h2", "wsproto", "asyncio"}
CLIENTS = {"httpx", "httpcore", "h11", "rich", "click", "prometheus_client", "platformdirs"}
KINDS = {"process_engine", "http_engine", "ollama_engine", "systemd_engine"}
MORE = {
    "http": 'unload.path = "/u", loaded.path = "/l"',
    "ollama": "discover = true",
    "systemd": 'unit = "no-such.service"',
}

# Prints the modules that a command imported, whatever it did.
COMMAND = """
import atexit, gc, runpy, sys
atexit.register(lambda: print("\\n", "gc=%s" % gc.isenabled(), *sorted(sys.modules)))
sys.argv = ["engine-router", *{arguments!r}]
runpy.run_module("engine_router", run_name="__main__")
"""
# Runs a router as `serve` does, asks it, and prints what was imported by then, and how much is frozen.
SERVE = """
import gc, sys
import trio
from engine_router.cli.running import run_router
from engine_router.config import parse_config
from engine_router.server.serve import listen


async def job(router, urls):
    for target in (b"/health", b"/status", b"/v1/models", b"/api/version", b"/api/tags", b"/api/ps"):
        stream = await trio.open_tcp_stream("127.0.0.1", int(urls[0].rpartition(":")[2]))
        await stream.send_all(b"GET %b HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n" % target)
        answer = b"".join([data async for data in stream])
        assert answer.startswith(b"HTTP/1.1 200"), answer
    print(gc.isenabled() and gc.get_freeze_count() > 10_000, *sorted(sys.modules))
    return 0


config = parse_config({text!r})
run_router(config, listen(config.server, 0), announce=lambda *_: None, last_words=lambda: None, job=job)
"""
CONFIG = """
state_file = "/dev/null/state.json"
pools.default.gauge = "none"
[engines.a]
type = "process"
argv = ["sleep", "1000"]
base_url = "http://127.0.0.1:9"
models = ["m"]
"""


def words_of(code: str) -> list[str]:
    """Run a program; return the words of its last line."""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.stdout, ran.stderr
    return ran.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["serve", "--help"]])
def test_what_needs_no_configuration_imports_next_to_nothing(arguments: list[str]) -> None:
    imported = set(words_of(COMMAND.format(arguments=arguments)))
    assert not imported & {*WEB, *CLIENTS, "trio", "cattrs", "tomli", "psutil", "ssl", "http", "email"}
    ours = {name for name in imported if name.startswith("engine_router")}
    assert len(ours) <= 30


def test_what_asks_a_router_imports_no_router(tmp_path: Path) -> None:
    file = tmp_path / "engines.toml"
    file.write_text(f"server.port = 9\n{CONFIG}")
    imported = set(words_of(COMMAND.format(arguments=["status", "--config", str(file)])))
    assert {"engine_router.cli.status", "gc=True"} <= imported
    assert not imported & {*WEB, *CLIENTS, "trio", "psutil", "engine_router.router"}


def test_a_router_serves_before_the_app_is_loaded() -> None:
    is_frozen, *imported = words_of(SERVE.format(text=CONFIG))
    assert is_frozen == "True"
    assert "engine_router.server.fast_connection" in imported
    assert not {*imported} & {*WEB, *CLIENTS}
    assert {name.rpartition(".")[2] for name in imported} & KINDS == {"process_engine"}
    assert "engine_router.models.scan.scanner" not in imported


@pytest.mark.parametrize("kind", ["http", "ollama", "systemd"])
def test_a_router_loads_the_kinds_of_engines_that_it_has(kind: str) -> None:
    engine = f'{{ type = "{kind}", base_url = "http://127.0.0.1:9", models = ["m"], {MORE[kind]} }}'
    text = f'state_file = "/dev/null/s"\npools.default.gauge = "none"\nengines.a = {engine}'
    _, *imported = words_of(SERVE.format(text=text))
    assert {name.rpartition(".")[2] for name in imported} & KINDS == {f"{kind}_engine"}
    assert not {*imported} & {"quart", "hypercorn"}


class Wakes(trio.abc.Instrument):
    """Notes when tasks ran."""

    def __init__(self) -> None:
        self.times: set[float] = set()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.times.add(trio.current_time())


async def test_a_router_at_rest_wakes_at_most_once_a_second(autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05  # threads have to come to their end
    with trio.fail_after(1000):
        async with open_router(parse_config(CONFIG)) as router, trio.open_nursery() as nursery:
            sockets = listen(router.config.server, 0)

            async def run(task_status: trio.TaskStatus[list[str]]) -> None:
                await serve(router, sockets=sockets, task_status=task_status)

            await nursery.start(run)
            await trio.sleep(100)
            wakes, began = Wakes(), trio.current_time()
            trio.lowlevel.add_instrument(wakes)
            await trio.sleep(120)
            trio.lowlevel.remove_instrument(wakes)
            nursery.cancel_scope.cancel()
    assert len(wakes.times) <= 120
    every = sorted(wakes.times)
    assert all(
        len([t for t in every if begin <= t - began < begin + 10]) <= 10 for begin in range(0, 120, 10)
    )


def test_what_is_garbage_at_a_scan_is_found_later() -> None:
    class Node:
        """An object in a cycle."""

        def __init__(self) -> None:
            self.itself = self

    found = []
    try:
        with scanning():  # the first one leaves much out of later searches
            pass
        for _ in range(20):
            found.append(weakref.ref(Node()))
            with scanning():
                pass
        gc.collect()
        assert [reference for reference in found if reference() is not None] == []
    finally:
        gc.unfreeze()
