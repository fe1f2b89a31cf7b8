"""The doctor's examination: what works on this machine and what does not, each finding with its remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import psutil
import trio
from attrs import frozen

from engine_router import __version__
from engine_router.config import Config, ContainerConfig, ProcessConfig, StartedConfig, trace_settings
from engine_router.config.memories import spans_of
from engine_router.config.template import ModelArguments, model_command
from engine_router.config.values import expanded
from engine_router.engines.container.daemon import Daemon, DaemonError
from engine_router.engines.container.sockets import NoSocket, find_socket
from engine_router.engines.ports import described, is_taken, owner_of
from engine_router.guards.commands import run_command
from engine_router.guards.foreign_text import shown
from engine_router.memory.reading import GaugeUnreadable
from engine_router.models.estimate import estimate_of
from engine_router.models.header_memory import HeaderMemory
from engine_router.models.scan import NOT_THERE, PlaceState, ScanResult
from engine_router.residency.measurements import state_file_of
from engine_router.residency.settings import gauges_of, pools_of
from engine_router.setup.hardware import Hardware
from engine_router.setup.programs import ask_version, missing_for
from engine_router.telemetry.traces.sender import refusal
from engine_router.upstream.control_client import control_client

Grade = Literal["ok", "note", "problem"]

VERSION_S: Final = 5.0
"""Seconds for a program to say its version."""
DAEMON_S: Final = 5.0
"""Seconds for the daemon that runs containers to answer."""
GAUGE_S: Final = 10.0
"""Seconds for a gauge to answer."""

_OLDEST_TIME: Final = 1_767_225_600.0  # 2026-01-01: a clock before that is wrong
_LITTLE_BYTES: Final = 2 * 10**9
# Two gauges that read the same memory may differ by so much of all of it.
_SAME: Final = 0.1
_PACKAGES: Final = ("trio", "quart-trio", "hypercorn", "httpx")
_BROKEN_SHOWN: Final = 10


@frozen
class Finding:
    """One line of the examination.

    Attributes:
        grade: ok; note: works, but not as it could; problem: something will not work.
        subject: what was looked at.
        words: what was found.
        remedy: what helps; empty where nothing has to be done.
    """

    grade: Grade
    subject: str
    words: str
    remedy: str = ""


def of_software(version: Callable[[str], str] = importlib.metadata.version) -> Iterator[Finding]:
    """Yield what is found about Python and the packages."""
    found: list[str] = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("problem", "Packages", f"{package} is missing", "install engine-router again")
    yield Finding(
        "ok",
        "Python",
        f"{platform.python_version()} on {sys.platform}, engine-router {__version__}; {', '.join(found)}",
    )


def of_clock(now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Yield what is found about the clock: TLS, logs and learned times go by it."""
    if now() < _OLDEST_TIME:
        said = time.strftime("%Y-%m-%d", time.gmtime(now()))
        yield Finding(
            "problem", "Clock", f"says {said}", "set it, or let the system set it (timedatectl set-ntp true)"
        )


def of_hardware(hardware: Hardware) -> Iterator[Finding]:
    """Yield what is found about the GPUs."""
    for gpu in hardware.gpus:
        size = f", {gpu.memory_bytes / 1e9:.0f} GB" if gpu.memory_bytes else ""
        shared = ", which uses the main memory" if hardware.is_unified and not gpu.memory_bytes else ""
        yield Finding("ok", "GPU", f"{gpu.name}{size}{shared}")
    for words in hardware.unknown:
        yield Finding("problem", "GPU", f"not known: {words}", "see docs/getting-started.md, Install")
    if not hardware.gpus and not hardware.unknown:
        yield Finding(
            "note", "GPU", "none was found: models run on the CPU", "where there is one, install its driver"
        )


async def of_gauges(
    config: Config, hardware: Hardware, totals: dict[str, int] | None = None
) -> AsyncIterator[Finding]:
    """Yield what the gauge of each pool says, beside a second source.

    Args:
        totals: is told all the memory of each pool, in bytes, where its gauge knows.
    """
    pools = pools_of(config)
    for name, gauge in gauges_of(config).items():
        pool = pools[name]
        if pool.gauge == "none" or not any(name in used for used in spans_of(config).values()):
            continue
        subject = f"Memory of pool {name}"
        try:
            with trio.fail_after(GAUGE_S):
                reading = await gauge.read()
        except (GaugeUnreadable, trio.TooSlowError) as error:
            words = str(error) or f"no answer within {GAUGE_S:g} s"
            yield Finding(
                "problem", subject, f"gauge {gauge.name}: {words}", f"choose another gauge in [pools.{name}]"
            )
            continue
        if totals is not None and reading.total_bytes:
            totals[name] = reading.total_bytes
        total = f" of {reading.total_bytes / 1e9:.1f}" if reading.total_bytes else ""
        yield Finding(
            "ok", subject, f"gauge {gauge.name}: {reading.available_bytes / 1e9:.1f}{total} GB are free"
        )
        if hardware.is_cuda_unified and pool.gauge not in ("memfree", "command"):
            yield Finding(
                "problem", subject, "this GPU counts the page cache as used, which this gauge does not",
                f'gauge = "memfree" in [pools.{name}]',
            )  # fmt: skip
        if gauge.name == "memavailable" and reading.total_bytes:
            other = (await trio.to_thread.run_sync(psutil.virtual_memory)).available
            if abs(other - reading.available_bytes) > _SAME * reading.total_bytes:
                yield Finding(
                    "note",
                    subject,
                    f"psutil says {other / 1e9:.1f} GB",
                    "a limit of a container may be the cause",
                )


async def of_programs(config: Config) -> AsyncIterator[Finding]:
    """Yield whether each engine's program is there, and the version that it says."""
    for name, engine in config.engines.items():
        if not isinstance(engine, ProcessConfig) or "{" in engine.argv[0]:
            continue
        program = str(expanded(engine.argv[0]))
        path = shutil.which(program, path=engine.env.get("PATH") or os.environ.get("PATH"))
        if path is None:
            yield Finding(
                "problem",
                f"Engine {name}",
                f"{shown(program)} is not found",
                "install it, or give its whole path in argv",
            )
            continue
        done = await ask_version((path, *engine.argv[1:]), timeout_s=VERSION_S)
        if missing := missing_for(engine.argv, done):
            words, _, remedy = missing.rpartition(": ")
            yield Finding("problem", f"Engine {name}", shown(words), shown(remedy))
            continue
        line = next(iter(done.output.splitlines() or done.said.splitlines()), "") if done.code == 0 else ""
        yield Finding("ok", f"Engine {name}", shown(path) + (f": {shown(line)}" if line else ""))


async def of_containers(config: Config) -> AsyncIterator[Finding]:
    """Yield whether the daemon of each container engine answers, and has its image."""
    for name, engine in config.engines.items():
        if not isinstance(engine, ContainerConfig) or engine.image is None:
            continue
        subject = f"Engine {name}"
        try:
            daemon = Daemon(await trio.to_thread.run_sync(find_socket, engine.socket))
            with trio.move_on_after(DAEMON_S) as scope:
                await daemon.greet()
                image = None if "{" in engine.image else await daemon.image(engine.image)
        except (NoSocket, DaemonError) as error:
            words, _, remedy = str(error).partition("; ")
            yield Finding("problem", subject, shown(words, 200), remedy)
            continue
        if scope.cancelled_caught:
            yield Finding("problem", subject, f"the daemon at {daemon.socket} does not answer", "restart it")
            continue
        what = f"Podman {daemon.release}" if daemon.is_podman else "Docker"
        if image is not None or "{" in engine.image:
            yield Finding("ok", subject, f"{what} at {daemon.socket} has {shown(engine.image)}")
        elif engine.pull == "never":
            words = f"{what} at {daemon.socket} has no image {shown(engine.image)}"
            yield Finding("problem", subject, words, 'pull it, or set pull = "missing"')
        else:
            words = f"{what} at {daemon.socket} has no image {shown(engine.image)} yet"
            yield Finding("note", subject, words, "the first start pulls it; pull it now, and that is faster")


async def of_ports(config: Config, *, is_running: bool) -> AsyncIterator[Finding]:
    """Yield who has the ports that the router and its engines want.

    Args:
        is_running: the router itself answers.
    """
    port = config.server.port
    here = f"http://127.0.0.1:{port}"
    if is_running:
        yield Finding("ok", "Router", f"runs and answers at port {port}")
    elif await is_taken(here):
        yield Finding(
            "problem",
            "Router",
            f"port {port} is in use by {described(await owner_of(port))}",
            "stop that, or change server.port",
        )
    else:
        yield Finding("note", "Router", f"does not run; port {port} is free", "engine-router serve")


def of_keys(config: Config, *, is_open: bool) -> Iterator[Finding]:
    """Yield whether strangers can use the models.

    Args:
        is_open: other machines reach the router, and need no key.
    """
    hosts = ", ".join(config.server.host)
    if is_open:
        yield Finding(
            "problem", "Access", f"anybody who reaches {hosts} can use the models", "set server.api_keys"
        )
    else:
        count = len(config.server.api_keys)
        yield Finding(
            "ok", "Access", f"listens on {hosts}" + (f", {count} keys" if count else ", no key is asked for")
        )


def needs_of(config: Config) -> dict[str, int]:
    """Return the estimated memory of each model whose files tell of it, in bytes. Blocks: it reads their headers."""
    headers = HeaderMemory()
    found: dict[str, int] = {}
    for name, model in config.models.items():
        engine = config.engines[model.engine]
        if not isinstance(engine, StartedConfig):
            continue
        arguments = ModelArguments.of(model)
        values = {"port": "0", **arguments.values(model.upstream or name)}
        argv = model_command(engine.argv, arguments, values)
        try:
            guess = estimate_of(engine, argv, values, headers.read)
        except (OSError, ValueError):
            continue  # the scan, or a warning, says what is wrong with it
        if guess is not None:
            found[name] = guess.need_bytes
    return found


def totals_of(config: Config, pools: Mapping[str, int]) -> dict[str, int]:
    """Return all the memory that each model may use, in bytes, where its pool's is known."""
    owners = {name: config.engines[model.engine].pool for name, model in config.models.items()}
    return {name: pools[pool] for name, pool in owners.items() if pool in pools}


def of_models(
    result: ScanResult | None, needs: Mapping[str, int], totals: Mapping[str, int]
) -> Iterator[Finding]:
    """Yield what is found in folders of models, and models that need more memory than there is.

    Args:
        result: the scan of the folders; None where there are none.
        needs: estimated memory of models, in bytes.
        totals: all the memory that each of them may use, in bytes, where that is known.
    """
    if result is not None:
        for place, state in result.places.items():
            yield _of_place(place, state)
        broken = [skipped for skipped in result.skipped if skipped.is_fault]
        for skipped in broken[:_BROKEN_SHOWN]:
            yield Finding(
                "problem",
                "File",
                f"{shown(str(skipped.path))}: {skipped.reason}",
                "remove the link" if skipped.path.is_symlink() else "fetch it again, or remove it",
            )
        if len(broken) > _BROKEN_SHOWN:
            yield Finding(
                "problem",
                "File",
                f"{len(broken) - _BROKEN_SHOWN} more cannot be served",
                "see engine-router check",
            )
    for model, need in needs.items():
        total = totals.get(model)
        if total is not None and need > total:
            yield Finding(
                "problem", f"Model {model}", f"needs about {need / 1e9:.1f} GB of {total / 1e9:.1f}",
                "less context (context_length), or a smaller quantization",
            )  # fmt: skip


def _of_place(place: str, state: PlaceState) -> Finding:
    """Return what is found in one place, in the words of `engine-router check`."""
    subject, count = f"Models in {place}", f"{state.models} model{'' if state.models == 1 else 's'}"
    if state.fault is not None:
        words = f"{count}; {state.fault}" if state.models or state.folders else state.fault
        return Finding("problem", subject, words, "see engine-router check")
    return Finding("ok", subject, count) if state.folders else Finding("note", subject, NOT_THERE)


async def of_traces(config: Config, environ: Mapping[str, str] = os.environ) -> AsyncIterator[Finding]:
    """Yield whether a collector takes traces, where they are on: it is posted none, with its key."""
    if (settings := trace_settings(config.traces, environ)) is None:
        return
    async with control_client() as client:
        why = await refusal(client, settings)
    if why is None:
        yield Finding("ok", "Traces", f"{settings.place} takes them")
    else:
        grade: Grade = "problem" if settings.is_in_file else "note"
        yield Finding(grade, "Traces", f"{settings.place}: it {why}", "see [traces] in docs/operations.md")


def of_disks(config: Config, more: Sequence[Path] = ()) -> Iterator[Finding]:
    """Yield how much room there is where the router, or a download, writes."""
    places = [state_file_of(config).parent, *more]
    if config.log.file is not None:
        places.append(expanded(config.log.file).parent)
    if config.history.enabled and config.history.file is not None:
        places.append(expanded(config.history.file).parent)
    seen: set[int] = set()
    for place in places:
        folder = next((folder for folder in (place, *place.parents) if folder.is_dir()), Path("/"))
        try:
            device, free = folder.stat().st_dev, shutil.disk_usage(folder).free
        except OSError as error:
            yield Finding(
                "problem", "Disk", f"{place}: {error.strerror or error}", "make the folder, or name another"
            )
            continue
        if not os.access(folder, os.W_OK):
            yield Finding(
                "problem", "Disk", f"nothing can be written in {folder}", "give your user the right to"
            )
        elif device not in seen:
            seen.add(device)
            grade: Grade = "ok" if free > _LITTLE_BYTES else "problem"
            yield Finding(
                grade,
                "Disk",
                f"{free / 1e9:.1f} GB are free at {folder}",
                "" if grade == "ok" else "make room",
            )


async def of_lingering(environ: Mapping[str, str] = os.environ) -> AsyncIterator[Finding]:
    """Yield whether a unit of the user's goes on, and starts, without anybody logged in."""
    folder = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"
    if sys.platform != "linux" or not (folder / "engine-router.service").exists():
        return
    user = environ.get("USER") or str(os.getuid())
    done = await run_command(["loginctl", "show-user", user, "-p", "Linger", "--value"], timeout_s=VERSION_S)
    if done.code == 0 and done.output.strip() == "yes":
        yield Finding("ok", "Service", "engine-router.service runs without anybody logged in")
    else:
        yield Finding(
            "note", "Service", "engine-router.service ends when you log out", f"loginctl enable-linger {user}"
        )
