"""The prefix cache of an engine: what it keeps of the prompts that it has read, and what of that survives.

Read from its command and variables, never asked. The sources are the engines' documentation and code: vLLM's sleep mode
forgets the KV cache at both levels; SGLang has to flush its caches before it releases memory, and those that HiCache
holds in main memory go with them; LMCache keeps the index of its local disk in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from engine_router.config import AnyEngineConfig, ProcessConfig, StartedConfig
from engine_router.engines.command_options import may_keep_context, value_of
from engine_router.engines.server_command import ServerCommand, server_command

_TRANSFER: Final = "--kv-transfer-config"
_OFFLOADING: Final = ("--kv-offloading-size", "--kv-offloading-backend")
_HICACHE: Final = "--enable-hierarchical-cache"
_HICACHE_STORE: Final = "--hicache-storage-backend"
_IN_PROCESS: Final = ("LMCacheConnectorV1", "LMCacheConnectorV1Dynamic")
_OUT_OF_PROCESS: Final = "LMCacheMPConnector"
_REMOTE: Final = "LMCACHE_REMOTE_URL"
_DISK: Final = "LMCACHE_LOCAL_DISK"
_FILE: Final = "LMCACHE_CONFIG_FILE"
_SEED: Final = "PYTHONHASHSEED"
_CONNECT: Final = """--kv-transfer-config '{"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}'"""

_LOST_ON_DISK: Final = (
    f"what LMCache writes to {_DISK} is not found again after a stop, for its index lies in memory: keep it in a store "
    f'of its own, such as {_REMOTE} = "redis://127.0.0.1:6379"'
)
_NOT_FOUND_AGAIN: Final = (
    "LMCache may not find again after a stop what it has stored, unless hashes stay the same: "
    f'add {_SEED} = "0"'
)
_OFFLOADED_AND_ASLEEP: Final = (
    "vLLM 0.22 has crashed at the first request after a wake with its native offloading, and later versions empty that "
    "when they fall asleep: use LMCache, or leave one of the two out"
)


@frozen(kw_only=True)
class PrefixCache:
    """What an engine keeps of the prompts that it has read.

    Attributes:
        kept_by: what keeps it: the engine itself, LMCache, HiCache, or `keep_context`.
        survives_sleep: it is still there after sleep; None where that is not known.
        survives_stop: it is still there after a stop and a start; None where that is not known.
        words: where it lies, and until when.
    """

    kept_by: str
    survives_sleep: bool | None
    survives_stop: bool | None
    words: str


_VLLM: Final = PrefixCache(
    kept_by="vLLM",
    survives_sleep=False,
    survives_stop=False,
    words="in the GPU's memory: sleep of either level and a stop empty it",
)
_VLLM_OFFLOADED: Final = PrefixCache(
    kept_by="vLLM",
    survives_sleep=False,
    survives_stop=False,
    words="in main memory, too (native offloading): current versions empty that when they fall asleep",
)
_SGLANG: Final = PrefixCache(
    kept_by="SGLang",
    survives_sleep=False,
    survives_stop=False,
    words="in the GPU's memory: sleep and a stop empty it",
)
_HICACHE_MEMORY: Final = PrefixCache(
    kept_by="HiCache",
    survives_sleep=False,
    survives_stop=False,
    words=f"in main memory: sleep and a stop empty it; {_HICACHE_STORE} would keep it",
)
_KEPT_CONTEXT: Final = PrefixCache(
    kept_by="keep_context",
    survives_sleep=None,
    survives_stop=True,
    words="in files of the router's, within the limits of [context]",
)


def prefix_cache_of(engine: AnyEngineConfig) -> PrefixCache | None:
    """Return what is known of an engine's prefix cache; None where nothing is. Reads no file."""
    command = _command(engine)
    if command is None:
        return None
    match command.kind.name:
        case "vLLM":
            return _of_vllm(command)
        case "SGLang":
            return _of_sglang(command)
        case "oMLX":
            return _of_omlx(command)
        case _:
            is_kept = (
                isinstance(engine, ProcessConfig) and engine.keep_context and may_keep_context(engine.argv)
            )
            return _KEPT_CONTEXT if is_kept else None


def keeps_context(engine: AnyEngineConfig) -> bool:
    """Tell whether an engine still has what it has read when it comes back after it made way for another."""
    cache = prefix_cache_of(engine)
    if cache is None:
        return False
    sleeps = isinstance(engine, StartedConfig) and engine.sleep is not None
    return bool(cache.survives_stop or (sleeps and cache.survives_sleep))


def loses_by_stop(engine: AnyEngineConfig) -> bool:
    """Tell whether an engine still has what it has read after sleep, and not after a stop."""
    cache = prefix_cache_of(engine)
    sleeps = isinstance(engine, StartedConfig) and engine.sleep is not None
    return cache is not None and sleeps and bool(cache.survives_sleep) and not cache.survives_stop


def prefix_cache_hints(engine: AnyEngineConfig) -> Iterator[tuple[str, str]]:
    """Yield what will not be kept though it looks so, each as (key of the engine's table, words)."""
    command = _command(engine)
    if command is None or command.kind.name != "vLLM":
        return
    variables = command.variables
    given = next((name for name in variables if name.startswith("LMCACHE_")), None)
    connectors = set(_connectors(command.words))
    in_process = not connectors.isdisjoint(_IN_PROCESS)
    if given is not None and not _has_lmcache(command.words):
        yield "argv", f"{given} is set, but vLLM does not use LMCache without its connector: add {_CONNECT}"
    elif in_process and _DISK in variables and _REMOTE not in variables:
        yield "env", _LOST_ON_DISK
    elif in_process and _REMOTE in variables and _SEED not in variables:
        yield "env", _NOT_FOUND_AGAIN
    if _is_offloaded(command.words, connectors) and isinstance(engine, StartedConfig) and engine.sleep:
        yield "sleep", _OFFLOADED_AND_ASLEEP


def _command(engine: AnyEngineConfig) -> ServerCommand | None:
    return server_command(engine.argv, engine.env) if isinstance(engine, StartedConfig) else None


# vLLM


def _of_vllm(command: ServerCommand) -> PrefixCache:
    connectors = set(_connectors(command.words))
    if _OUT_OF_PROCESS in connectors:
        return PrefixCache(
            kept_by="LMCache",
            survives_sleep=True,
            survives_stop=True,
            words="in LMCache's own server, for as long as that runs",
        )
    if _has_lmcache(command.words):
        return _of_lmcache(command.variables)
    return _VLLM_OFFLOADED if _is_offloaded(command.words, connectors) else _VLLM


def _of_lmcache(variables: Mapping[str, str]) -> PrefixCache:
    """Return what LMCache keeps that runs within its engine: main memory goes with the process, a store stays."""
    if _REMOTE in variables:
        survives_stop, words = True, f"in main memory and in the store of {_REMOTE}, which outlives a stop"
    elif _FILE in variables:
        survives_stop, words = None, f"where {_FILE} says; a stop leaves only what is in a remote_url of it"
    else:
        survives_stop, words = False, f"in main memory: a stop empties it; {_REMOTE} would keep it"
    return PrefixCache(kept_by="LMCache", survives_sleep=True, survives_stop=survives_stop, words=words)


def _has_lmcache(words: Sequence[str]) -> bool:
    return value_of(words, _OFFLOADING[1:]) == "lmcache" or any(
        name.startswith("LMCache") for name in _connectors(words)
    )


def _is_offloaded(words: Sequence[str], connectors: set[str]) -> bool:
    """Tell whether vLLM itself puts its cache into main memory."""
    is_native = value_of(words, _OFFLOADING[:1]) is not None and not _has_lmcache(words)
    return is_native or "OffloadingConnector" in connectors


def _connectors(words: Sequence[str]) -> Iterator[str]:
    """Yield the names of a vLLM's connectors; those that a MultiConnector has, too."""
    if (name := value_of(words, (f"{_TRANSFER}.kv_connector",))) is not None:
        yield name
    try:
        settings: Any = json.loads(value_of(words, (_TRANSFER,)) or "{}")
    except (ValueError, RecursionError):
        return
    if not isinstance(settings, dict):
        return
    extra = settings.get("kv_connector_extra_config")
    inner = extra.get("connectors") if isinstance(extra, dict) else None
    for each in (settings, *(inner if isinstance(inner, list) else ())):
        name = each.get("kv_connector") if isinstance(each, dict) else None
        if isinstance(name, str):
            yield name


# Others


def _of_sglang(command: ServerCommand) -> PrefixCache:
    words = command.words
    if "--enable-lmcache" in words:
        return _of_lmcache(command.variables)
    if _HICACHE not in words:
        return _SGLANG
    store = value_of(words, (_HICACHE_STORE,))
    if store is None:
        return _HICACHE_MEMORY
    where = "in files" if store == "file" else f"in a store ({store}), for as long as that runs"
    return PrefixCache(kept_by="HiCache", survives_sleep=True, survives_stop=True, words=where)


def _of_omlx(command: ServerCommand) -> PrefixCache:
    is_on_disk = value_of(command.words, ("--paged-ssd-cache-dir",)) is not None
    words = "in files of its own" if is_on_disk else "in memory; --paged-ssd-cache-dir would keep it"
    return PrefixCache(kept_by="oMLX", survives_sleep=None, survives_stop=is_on_disk, words=words)
