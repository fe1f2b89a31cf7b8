"""RouterModelCustom's `config.json`."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final

from engine_router.guards.documents import Document
from engine_router.setup.migrate.draft import Draft, Entry
from engine_router.setup.migrate.sections import Section

NAME: Final = "RouterModelCustom"

_ENGINE: Final = "llama"
_MOST_MODELS: Final = 3
_IDLE_S: Final = 300
_PARAMS: Final = {
    "n_gpu_layers": "--n-gpu-layers",
    "type_k": "--cache-type-k",
    "type_v": "--cache-type-v",
    "rope_freq_base": "--rope-freq-base",
    "chat_template": "--chat-template",
    "batch_override": "--batch-size",
    "parallel_override": "--parallel",
}


def read(document: Document) -> Draft:
    """Turn a `config.json` into a draft: one engine that is started for each model."""
    draft = Draft(NAME)
    root = Section.root(document, draft)
    for key in root.data:
        if key.startswith("_"):
            root.carried(key, "a comment")
    _add_api(root, draft)
    system = root.section("system") or root.inner("system", {})
    draft.engines[_ENGINE] = _engine(system)
    _add_residency(system, draft)
    folder = system.text("base_models_path")
    system.carried("base_models_path", "put in front of each path")
    for name, model in root.sections("models"):
        _add_model(name, model, folder, draft)
        model.finish()
    _lose(system)
    system.finish()
    root.finish()
    return draft


def _add_api(root: Section, draft: Draft) -> None:
    api = root.section("api")
    if api is None:
        return
    if host := api.text("host"):
        draft.server.values["host"] = host
        api.carried("host", "server.host")
    if port := api.whole("port"):
        draft.server.values["port"] = port
        api.carried("port", "server.port")
    if origins := api.texts("cors_origins"):
        draft.server.values["cors_origins"] = origins
        api.carried("cors_origins", "server.cors_origins")
    api.finish()


def _engine(system: Section) -> Entry:
    argv = [system.text("llama_server_path") or "llama-server", "--model", "{path}"]
    system.carried("llama_server_path", "the program in argv")
    argv += ["--host", "127.0.0.1", "--port", "{port}", "--ctx-size", "{ctx}", "--jinja"]
    if (threads := system.whole("cpu_threads")) is not None:
        argv += ["--threads", str(threads)]
        system.carried("cpu_threads", "--threads")
    if (parallel := system.whole("parallel_requests")) is not None:
        argv += ["--parallel", str(parallel)]
        system.carried("parallel_requests", "--parallel")
    if (attention := system.text("flash_attention")) is not None:
        argv += ["--flash-attn", attention]
        system.carried("flash_attention", "--flash-attn")
    if system.flag("use_mmap") is False:
        argv.append("--no-mmap")
    system.carried("use_mmap", "--no-mmap where it is false")
    values: dict[str, Any] = {"type": "process", "argv": [*argv, "{args}"], "discover": False}
    if devices := system.texts("gpu_devices"):
        values["env"] = {"CUDA_VISIBLE_DEVICES": ",".join(devices)}
        system.carried("gpu_devices", "CUDA_VISIBLE_DEVICES in env")
    start = max(system.number("timeout_warmup_sec") or 0, system.number("wait_ready_sec") or 0)
    if start:
        values["start_timeout_s"] = start
    system.carried("timeout_warmup_sec", "start_timeout_s")
    system.carried("wait_ready_sec", "start_timeout_s")
    return Entry(values)


def _add_residency(system: Section, draft: Draft) -> None:
    """Add how many models stay, for how long, and which are there from the start."""
    most = system.whole("max_concurrent_models") or _MOST_MODELS
    if most != 1:
        pool = draft.pool("default")
        pool.comment = 'For an NVIDIA card of its own add: gauge = "nvml", and install engine-router[nvidia].'
        pool.values = {"mode": "budget", "max_resident": most}
        if reserve := system.number("min_vram_required"):
            pool.values["reserve_gb"] = reserve / 1000
    system.approximated(
        "max_concurrent_models",
        "pools.default: mode and max_resident; memory is read as main memory",
        'for an NVIDIA card set gauge = "nvml" there',
    )
    system.carried("min_vram_required", "reserve_gb of pools.default")
    if system.flag("enable_idle_timeout") is False:
        system.carried("enable_idle_timeout", "models stay until their memory is needed")
        system.carried("idle_timeout_sec", "not in use")
    else:
        draft.scheduling.values["idle_timeout_s"] = system.number("idle_timeout_sec") or _IDLE_S
        system.carried("enable_idle_timeout", "scheduling.idle_timeout_s")
        system.carried("idle_timeout_sec", "scheduling.idle_timeout_s")
    if wanted := system.texts("preload_models"):
        draft.scheduling.values["preload"] = "all" if "*" in wanted else wanted
        system.carried("preload_models", "scheduling.preload")
    if most_waiting := system.whole("max_queue_size_per_model"):
        draft.scheduling.values["max_queue_per_model"] = most_waiting
        system.carried("max_queue_size_per_model", "scheduling.max_queue_per_model")


def _add_model(name: str, model: Section, folder: str | None, draft: Draft) -> None:
    path = model.text("model_path")
    if path is None:
        model.lost("", words="it has no model_path")
        return
    model.carried("model_path", "path")
    values: dict[str, Any] = {"engine": _ENGINE, "path": _joined(folder, path)}
    params = model.section("params")
    if params is not None:
        if context := params.whole("n_ctx"):
            values["context_length"] = context
            params.carried("n_ctx", "context_length, which is {ctx} in argv")
        args = _args(params)
        if params.flag("embedding"):
            args.append("--embedding")
            values["capabilities"] = ["embedding"]
        params.carried("embedding", "--embedding in args, and capabilities")
        if args:
            values["args"] = args
        params.finish()
    draft.models[name] = Entry(values)


def _args(params: Section) -> list[str]:
    args: list[str] = []
    layers = params.raw("n_gpu_layers")
    for key, option in _PARAMS.items():
        if key == "n_gpu_layers" and isinstance(layers, int) and layers < 0:
            args += [option, "0"]
            params.carried(key, f"{option} 0 in args: nothing on the GPU")
        elif (value := params.text(key)) is not None:
            args += [option, value]
            params.carried(key, f"{option} in args")
        else:
            params.carried(key, "not set")
    return args


def _joined(folder: str | None, path: str) -> str:
    if (
        not folder
        or PurePosixPath(path).is_absolute()
        or PureWindowsPath(path).is_absolute()
        or path.startswith("~")
    ):
        return path
    return f"{folder.rstrip('/')}/{path}"


def _lose(system: Section) -> None:
    system.lost(
        "request_timeout_sec",
        "queue_timeout_sec",
        words="an answer, and a wait, may take as long as it likes",
    )
    system.lost("vram_multiplier", words="what a model takes is measured", remedy="memory_gb says it ahead")
    system.lost(
        "keep_warm_models", words="the most popular models have no pin", remedy="pinned = true keeps a model"
    )
    system.lost("preload_delay_sec", words="models are loaded one after the other")
    system.lost(
        *("http_max_keepalive", "http_max_connections", "queue_processor_idle_sec", "model_load_max_retries"),
        words="the router has no such limit",
    )
