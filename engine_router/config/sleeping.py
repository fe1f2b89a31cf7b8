"""Faults of an engine's `sleep` that can be seen before anything is started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Final

from engine_router.config.any_engine import AnyEngineConfig
from engine_router.config.engine_tables import SleepConfig
from engine_router.config.engines import OllamaConfig, RemoteConfig, StartedConfig
from engine_router.config.faults import Fault
from engine_router.config.kubernetes import KubernetesConfig
from engine_router.config.pools import PoolConfig
from engine_router.config.unified import is_unified

_DEV_MODE: Final = "VLLM_SERVER_DEV_MODE"
_SGLANG_FLAGS: Final = {
    "--enable-memory-saver": "does not sleep",
    "--enable-weights-cpu-backup": "wakes without its weights",
}


def sleep_faults(
    engine: AnyEngineConfig, path: str, pool: PoolConfig, environ: Mapping[str, str] = os.environ
) -> Iterator[Fault]:
    """Yield what is wrong with the `sleep` of an engine.

    Args:
        path: of the engine in the file.
        pool: whose memory it uses.
        environ: what the engine inherits.
    """
    if isinstance(engine, (OllamaConfig, RemoteConfig, KubernetesConfig)) or engine.sleep is None:
        return
    sleep, place = engine.sleep, f"{path}.sleep"
    yield from _call_faults(sleep, place)
    if sleep.kind != "custom" and is_unified(pool.unified, pool.gauge):
        yield from _unified_faults(sleep, place)
    if isinstance(engine, StartedConfig):
        yield from _command_faults(engine, sleep, path, environ)


def _call_faults(sleep: SleepConfig, place: str) -> Iterator[Fault]:
    if sleep.kind != "vllm" and sleep.level != 1:
        yield f"{place}.level", 'only vLLM has levels; leave it out, or say kind = "vllm"'
    if sleep.kind != "custom":
        calls = {"path": sleep.path, "body": sleep.body, "wake": sleep.wake, "asleep_path": sleep.asleep_path}
        for key, value in calls.items():
            if value:
                yield f"{place}.{key}", f'not allowed with kind = "{sleep.kind}"; use kind = "custom"'
        return
    if sleep.path is None:
        yield f"{place}.path", 'missing; kind = "custom" needs the call that puts the engine to sleep'
    if not sleep.wake:
        yield f"{place}.wake", 'missing; kind = "custom" needs the calls that wake the engine'


def _unified_faults(sleep: SleepConfig, place: str) -> Iterator[Fault]:
    remedy = "if this pool's GPU has a memory of its own, say so with unified = false in its [pools] table"
    if sleep.kind == "sglang":
        reason = (
            "SGLang keeps the weights in main memory while it sleeps, which the GPU of this pool uses too"
        )
        yield f"{place}.kind", f"{reason}, so that hardly anything is freed: leave sleep out; {remedy}"
    elif sleep.level == 1:
        reason = "1 parks the weights in main memory, which the GPU of this pool uses too"
        yield f"{place}.level", f"{reason}, so that nothing is freed: use level = 2; {remedy}"
    elif not sleep.verify:
        reason = "vLLM has failed to wake, or woken to gibberish, where the GPU uses main memory"
        yield f"{place}.verify", f"{reason}, so every wake has to be verified: leave it out; {remedy}"


def _command_faults(
    engine: StartedConfig, sleep: SleepConfig, path: str, environ: Mapping[str, str]
) -> Iterator[Fault]:
    """Yield what a command lacks that can be seen to run vLLM or SGLang itself; a script may add anything."""
    if sleep.kind == "vllm" and _runs(engine.argv, "vllm"):
        if "--enable-sleep-mode" not in engine.argv:
            yield f"{path}.argv", "vLLM does not sleep unless it is started with it: add --enable-sleep-mode"
        is_on = f"{_DEV_MODE}=1" in engine.argv or "1" in (engine.env.get(_DEV_MODE), environ.get(_DEV_MODE))
        if not is_on:
            yield f"{path}.env", f'vLLM has no calls to sleep without it: add env = {{ {_DEV_MODE} = "1" }}'
    if sleep.kind == "sglang" and _runs(engine.argv, "sglang"):
        for flag, fault in _SGLANG_FLAGS.items():
            if flag not in engine.argv:
                yield f"{path}.argv", f"SGLang {fault} unless it is started with it: add {flag}"


def _runs(argv: Sequence[str], program: str) -> bool:
    return any(PurePath(word).name == program or word.startswith(f"{program}.") for word in argv)
