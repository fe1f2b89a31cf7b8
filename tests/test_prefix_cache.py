"""What engines keep of the prompts that they have read: recognised from a command, and what of it survives."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from support.served import ask, served

from engine_router import open_router
from engine_router.config import AnyEngineConfig, Config, parse_config
from engine_router.engines.base import ResidentId
from engine_router.events import RequestEnded
from engine_router.models.config_warnings import warnings
from engine_router.models.prefix_cache import keeps_context, prefix_cache_of
from engine_router.residency.settings import traits_of

PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"
VLLM = ("vllm", "serve", "Qwen/Qwen3-8B", "--port", "{port}")
SGLANG = ("python", "-m", "sglang.launch_server", "--model-path", "Qwen/Qwen3-8B", "--port", "{port}")
HICACHE = (*SGLANG, "--enable-hierarchical-cache")
LLAMA = ("llama-server", "-m", "x.gguf", "--port", "{port}")
REMOTE = {"LMCACHE_REMOTE_URL": "redis://127.0.0.1:6379"}


def connector(name: str) -> tuple[str, str]:
    return "--kv-transfer-config", json.dumps({"kv_connector": name, "kv_role": "kv_both"})


LMCACHE = (*VLLM, *connector("LMCacheConnectorV1"))
SEVERAL = {
    "kv_connector": "MultiConnector",
    "kv_connector_extra_config": {
        "connectors": [{"kv_connector": "NixlConnector"}, {"kv_connector": "LMCacheConnectorV1"}]
    },
}


def configured(argv: Sequence[str], env: Mapping[str, str] | None = None, more: str = "") -> Config:
    words = f"argv = {json.dumps(list(argv))}\n"
    variables = "".join(f"{name} = {json.dumps(value)}\n" for name, value in (env or {}).items())
    text = f'[engines.a]\ntype = "process"\n{words}models = ["m"]\n{more}\n[engines.a.env]\n{variables}'
    return parse_config(text)


def engine(argv: Sequence[str], env: Mapping[str, str] | None = None, more: str = "") -> AnyEngineConfig:
    return configured(argv, env, more).engines["a"]


# A command, its variables, who keeps the cache, and whether it survives sleep and a stop.
CACHES = {
    "vllm": (VLLM, {}, "vLLM", False, False),
    "vllm, native": ((*VLLM, "--kv-offloading-size", "8"), {}, "vLLM", False, False),
    "vllm, native connector": ((*VLLM, *connector("OffloadingConnector")), {}, "vLLM", False, False),
    "lmcache": (LMCACHE, {}, "LMCache", True, False),
    "lmcache, dotted": (
        (*VLLM, "--kv-transfer-config.kv_connector", "LMCacheConnectorV1"),
        {},
        "LMCache",
        True,
        False,
    ),
    "lmcache, one of several": (
        (*VLLM, "--kv-transfer-config", json.dumps(SEVERAL)),
        {},
        "LMCache",
        True,
        False,
    ),
    "lmcache, offloading": (
        (*VLLM, "--kv-offloading-backend", "lmcache", "--kv-offloading-size", "8"),
        {},
        "LMCache",
        True,
        False,
    ),
    "lmcache, store": (LMCACHE, REMOTE, "LMCache", True, True),
    "lmcache, disk": (LMCACHE, {"LMCACHE_LOCAL_DISK": "/w/cache"}, "LMCache", True, False),
    "lmcache, file": (LMCACHE, {"LMCACHE_CONFIG_FILE": "/w/l.yaml"}, "LMCache", True, None),
    "lmcache, server": ((*VLLM, *connector("LMCacheMPConnector")), {}, "LMCache", True, True),
    "lmcache, in a shell": (
        ("sh", "-c", f"LMCACHE_REMOTE_URL=x exec {shlex.join(LMCACHE)}"),
        {},
        "LMCache",
        True,
        True,
    ),
    "not json": ((*VLLM, "--kv-transfer-config", "[" * 100_000), {}, "vLLM", False, False),
    "not an object": ((*VLLM, "--kv-transfer-config", '["LMCache"]'), {}, "vLLM", False, False),
    "sglang": (SGLANG, {}, "SGLang", False, False),
    "sglang, lmcache": ((*SGLANG, "--enable-lmcache"), REMOTE, "LMCache", True, True),
    "hicache": (HICACHE, {}, "HiCache", False, False),
    "hicache, files": ((*HICACHE, "--hicache-storage-backend", "file"), {}, "HiCache", True, True),
    "hicache, store": ((*HICACHE, "--hicache-storage-backend=mooncake"), {}, "HiCache", True, True),
    "omlx": (("omlx", "serve", "--port", "{port}", "--model-dir", "/w"), {}, "oMLX", None, False),
    "omlx, files": (
        ("omlx", "serve", "--port", "{port}", "--model-dir", "/w", "--paged-ssd-cache-dir", "/w/c"),
        {},
        "oMLX",
        None,
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CACHES.values(), ids=CACHES)
def test_what_survives_is_read_from_the_command(
    case: tuple[Sequence[str], Mapping[str, str], str, bool | None, bool | None],
) -> None:
    argv, env, kept_by, sleep, stop = case
    cache = prefix_cache_of(engine(argv, env))
    assert cache is not None
    assert (cache.kept_by, cache.survives_sleep, cache.survives_stop) == (kept_by, sleep, stop)
    assert keeps_context(engine(argv, env)) is bool(stop)


def test_a_cache_that_survives_sleep_is_kept_where_the_engine_sleeps() -> None:
    sleep = 'sleep = { kind = "custom", path = "/s", wake = [{ path = "/w" }] }'
    assert keeps_context(engine(LMCACHE, more=sleep))
    assert not keeps_context(engine(VLLM, more=sleep))


def test_kept_context_is_llama_cpps_alone() -> None:
    assert prefix_cache_of(engine(LLAMA)) is None
    kept = prefix_cache_of(engine(LLAMA, more="keep_context = true"))
    assert kept is not None
    assert kept.survives_stop
    omlx = prefix_cache_of(engine(("omlx", "serve", "--port", "{port}"), more="keep_context = true"))
    assert omlx is not None
    assert omlx.kept_by == "oMLX"


def test_the_ledger_is_told_of_it() -> None:
    text = '[engines.{}]\ntype = "process"\nargv = {}\nmodels = ["{}"]\n'
    words = {"kept": (*HICACHE, "--hicache-storage-backend", "file"), "lost": SGLANG}
    config = parse_config("".join(text.format(n, json.dumps(list(argv)), n) for n, argv in words.items()))
    assert {n: traits_of(config, ResidentId(n)).keeps_context for n in words} == {"kept": True, "lost": False}


# What `check` warns of: the key, and a part of the words.
HINTS = {
    "variable without connector": (VLLM, {"LMCACHE_LOCAL_CPU": "True"}, "", "argv", "without its connector"),
    "disk": (LMCACHE, {"LMCACHE_LOCAL_DISK": "/w"}, "", "env", "index lies in memory"),
    "hashes": (LMCACHE, REMOTE, "", "env", "PYTHONHASHSEED"),
    "native and asleep": (
        (*VLLM, "--kv-offloading-size", "8", "--enable-sleep-mode"),
        {"VLLM_SERVER_DEV_MODE": "1"},
        'sleep = { kind = "vllm" }',
        "sleep",
        "native offloading",
    ),
    "omlx": (
        ("omlx", "serve", "--port", "{port}"),
        {},
        "keep_context = true",
        "keep_context",
        "ignored: only llama.cpp",
    ),
    "vllm": (VLLM, {}, "keep_context = true", "keep_context", "ignored: only llama.cpp"),
    "script": (("./mine", "{port}"), {}, "keep_context = true", "keep_context", "does not look like"),
    "fine": (LMCACHE, {**REMOTE, "PYTHONHASHSEED": "0"}, "", "", ""),
    "server": ((*VLLM, *connector("LMCacheMPConnector")), {"LMCACHE_LOCAL_CPU": "True"}, "", "", ""),
}


@pytest.mark.parametrize("case", HINTS.values(), ids=HINTS)
def test_what_will_not_be_kept_is_warned_of(
    case: tuple[Sequence[str], Mapping[str, str], str, str, str],
) -> None:
    argv, env, more, key, part = case
    config = configured(argv, env, more)
    found = {place: words for place, words in warnings(config) if "the program" not in words}
    if not key:
        assert not {place for place in found if place.startswith("engines.a.")}
    else:
        assert part in found[f"engines.a.{key}"]


async def test_status_and_the_models_page_tell(tmp_path: Path) -> None:
    text = (
        f'state_file = "{tmp_path}/state.json"\n[engines.a]\ntype = "process"\n'
        f'argv = {json.dumps(list(HICACHE))}\nmodels = ["m"]\n[engines.b]\ntype = "process"\n'
        f'argv = ["{sys.executable}", "{PROGRAM}", "{{port}}"]\nmodels = ["n"]\n'
    )
    async with open_router(parse_config(text)) as router, served(router) as url:
        status = (await ask(url, "GET", "/status")).json()["engines"]
        model = (await ask(url, "GET", "/admin/models/m")).json()
    assert status["a"]["prefix_cache"] == model["prefix_cache"]
    assert model["prefix_cache"]["kept_by"] == "HiCache"
    assert model["prefix_cache"]["survives_stop"] is False
    assert status["b"]["prefix_cache"] is None


async def test_the_models_page_tells_what_its_residents_cache_has_saved(tmp_path: Path) -> None:
    text = (
        f'state_file = "{tmp_path}/state.json"\n[engines.a]\ntype = "process"\n'
        'argv = ["server", "--model", "{path}", "--port", "{port}"]\n'
        '[models.m]\nengine = "a"\npath = "m"\n[models.n]\nengine = "a"\npath = "n"\n'
    )
    async with open_router(parse_config(text)) as router, served(router) as url:
        for model, cached in (("m", 0), ("n", 0), ("m", 5000)):
            router.hub.publish(
                RequestEnded(
                    at=time.time(),
                    model=model,
                    engine="a",
                    path="/v1/chat/completions",
                    status=200,
                    duration_s=2.0,
                    tokens_in=1000 + cached,
                    tokens_cached=cached,
                    first_token_s=1.0,
                )
            )
        saved = [(await ask(url, "GET", f"/admin/models/{model}")).json()["cache_saved_s"] for model in "mn"]
    assert saved == [pytest.approx(5.0, abs=0.2), 0.0]
