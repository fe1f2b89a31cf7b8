"""Configurations of smaller routers, key by key, in the shapes that their documents show."""

from __future__ import annotations

import json

from support.foreign_configs import (
    CONFIG_YML,
    CUSTOM,
    MODELS_YML,
    PROXY,
)
from support.migration import imported

from engine_router.config import HttpConfig, SystemdConfig

CARRIED, APPROXIMATED, LOST = "carried over", "approximated", "lost"

# RouterModelCustom.


def test_router_model_custom() -> None:
    found = imported(json.dumps(CUSTOM, indent=2))
    config = found.config
    assert found.draft.source == "RouterModelCustom"
    assert (config.server.host, config.server.port) == (("0.0.0.0",), 8000)
    engine = found.process("llama")
    assert engine.argv[:3] == ("/path/to/llama-server", "--model", "{path}")
    assert engine.argv[-7:] == ("--threads", "8", "--parallel", "2", "--flash-attn", "on", "{args}")
    assert engine.env == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert (config.pools["default"].mode, config.pools["default"].max_resident) == ("budget", 3)
    assert (config.scheduling.preload, config.scheduling.max_queue_per_model) == ("all", 500)
    assert config.scheduling.idle_timeout_s == 0
    assert config.models["qwen-7b"].args == ("--n-gpu-layers", "99")
    assert config.models["qwen-7b"].context_length == 8192
    embedder = config.models["embedder"]
    assert embedder.capabilities == ("embedding",)
    assert embedder.args == (
        "--n-gpu-layers",
        "0",
        "--cache-type-k",
        "q8_0",
        "--cache-type-v",
        "q4_0",
        "--embedding",
    )
    outcomes = {
        "system.max_concurrent_models": APPROXIMATED,
        "system.enable_idle_timeout": CARRIED,
        "system.request_timeout_sec": LOST,
        "system.vram_multiplier": LOST,
        "system.gpu_devices": CARRIED,
        "models.embedder.params.odd": LOST,
        "models.embedder.params.type_k": CARRIED,
    }
    assert {place: found.outcome(place) for place in outcomes} == outcomes


def test_router_model_custom_with_its_defaults() -> None:
    data = {
        "system": {
            "base_models_path": "/m/",
            "use_mmap": False,
            "preload_models": ["a", "who"],
            "wait_ready_sec": 99,
        },
        "models": {"a": {"model_path": "a.gguf"}, "b": {"model_path": "C:\\m\\b.gguf"}},
    }
    found = imported(json.dumps(data))
    assert found.config.models["a"].path == "/m/a.gguf"
    assert found.config.models["b"].path == "C:\\m\\b.gguf"
    assert "--no-mmap" in found.process("llama").argv
    assert found.process("llama").start_timeout_s == 99
    assert found.config.scheduling.idle_timeout_s == 300
    assert found.config.scheduling.preload == ("a",)


# The router for Open WebUI.


def test_the_router_for_open_webui() -> None:
    found = imported(CONFIG_YML, MODELS_YML)
    server = found.config.server
    assert (server.port, server.show_progress, server.footer) == (8003, True, True)
    sglang, llama, tabby = (found.config.engines[name] for name in ("sglang", "llamacpp", "tabbyapi"))
    assert isinstance(sglang, SystemdConfig)
    assert (sglang.unit, sglang.scope, sglang.base_url) == (
        "sglang.service",
        "system",
        "http://localhost:30001",
    )
    assert (sglang.ready_path, sglang.start_timeout_s) == ("/health_generate", 240)
    assert sglang.drop_in is not None
    assert sglang.drop_in.exec_start == ("{path}",)
    assert found.config.models["mistral-large-2411-awq"].path == "/opt/start_mistral.sh"
    assert llama.base_url == "http://127.0.0.1:8085"
    assert isinstance(tabby, SystemdConfig)
    assert tabby.config_file is not None
    assert tabby.config_file.path == "~/tabbyAPI/config.yml"
    assert tabby.config_file.set == {"model.model_name": "{model}"}
    assert (tabby.unit, tabby.base_url) == ("tabbyapi.service", "http://localhost:5000")
    assert tabby.warm_up is not None
    assert found.config.models["magnum-exl2"].upstream == "Magnum-123B-4.0bpw"
    outcomes = {
        "router_port": CARRIED,
        "model_load_timeout": CARRIED,
        "backends.sglang.port": CARRIED,
        "backends.sglang.service": CARRIED,
        "backends.tabbyapi.service": CARRIED,
        "mistral-large-2411-awq.script": CARRIED,
        "mistral-large-2411-awq.service": CARRIED,
        "magnum-exl2.model_name": CARRIED,
        "magnum-exl2.service": CARRIED,
        "odd.backend": LOST,
    }
    assert {place: found.outcome(place) for place in outcomes} == outcomes


def test_the_models_of_the_router_for_open_webui_alone_or_in_one_file() -> None:
    assert imported(MODELS_YML).config.engines["llamacpp"].start_timeout_s == 180
    models = {
        "kat": {"backend": "llamacpp", "model_path": "/m/kat.gguf"},
        "r1": {"backend": "sglang", "model_path": "/m/r1"},
        "l3": {"backend": "tabbyapi", "model_path": "exl2/L3"},
    }
    models["s"] = {"backend": "sglang", "script": "/s.sh"}
    settings = {"router_port": 8002, "backends": {"sglang": {"port": 1}}, "tabby_config_path": "/t/c.yml"}
    found = imported(json.dumps({**settings, "models": models}))
    assert found.process("kat").argv == (
        *("llama-server", "-ngl", "999", "-m", "/m/kat.gguf"),
        *("--host", "127.0.0.1", "--port", "{port}"),
    )
    assert found.process("r1").argv[:5] == ("python", "-m", "sglang.launch_server", "--model-path", "/m/r1")
    assert found.config.models["l3"].upstream == "L3"
    assert isinstance(found.config.engines["tabbyapi"], HttpConfig)  # no unit is known
    assert found.process("s").argv == ("/s.sh",)

    models["l3"]["service"] = "tabby"
    tabby = imported(json.dumps({**settings, "models": models})).config.engines["tabby"]
    assert isinstance(tabby, SystemdConfig)
    assert tabby.config_file is not None
    assert (tabby.unit, tabby.config_file.path) == ("tabby.service", "/t/c.yml")


# large-model-proxy.


def test_large_model_proxy() -> None:
    found = imported(PROXY)
    config = found.config
    assert found.draft.source == "large-model-proxy"
    assert (config.server.port, config.log.level) == (7070, "debug")
    assert (config.scheduling.idle_timeout_s, config.scheduling.drain_timeout_s) == (120, 1200)
    gpu, ram = config.pools["VRAM-GPU-1"], config.pools["RAM"]
    assert (gpu.mode, gpu.budget_gb, gpu.gauge) == ("budget", 24, "none")
    assert (ram.gauge, ram.budget_gb) == ("command", "auto")
    assert ram.command is not None
    assert ram.command[2] == "echo $(( $(awk '{print 1}' /proc/meminfo) * 1000000 ))"
    web = found.process("automatic1111")
    assert (web.pool, web.memory_gb, web.cwd, web.idle_timeout_s) == ("VRAM-GPU-1", 2, "/opt", 600)
    assert (web.base_url, web.ready_check) == ("http://localhost:17860", "port")
    assert config.models["automatic1111"].unlisted
    gemma = found.process("Gemma-27B")
    assert (gemma.models, gemma.ready_path, gemma.start_timeout_s) == (("gemma", "gemma-27b"), "/health", 60)
    assert (gemma.pool, gemma.memory_gb, gemma.log_file) == ("RAM", 3, "/var/log/gemma.log")
    comfy = found.process("ComfyUI")
    assert comfy.argv[:3] == ("docker", "run", "--rm")
    assert (comfy.stop_command, comfy.kill_command) == (
        ("docker", "kill", "comfyui"),
        ("docker", "rm", "-f", "comfyui"),
    )
    assert "lost" not in config.engines
    outcomes = {
        "DefaultServiceUrl": LOST,
        "OpenAiApi.ListenPort": APPROXIMATED,
        "ManagementApi": LOST,
        "MaxTimeToWaitForServiceToCloseConnectionBeforeGivingUpSeconds": CARRIED,
        "ClientRequestBufferLimitBytes": LOST,
        "OutputServiceLogs": LOST,
        "LogLevel": CARRIED,
        "ResourcesAvailable.VRAM-GPU-1.Amount": APPROXIMATED,
        "ResourcesAvailable.RAM.CheckCommand": APPROXIMATED,
        "ResourcesAvailable.CPU": LOST,
        "Services[0].ListenPort": LOST,
        "Services[0].ResourceRequirements": APPROXIMATED,
        "Services[0].Workdir": CARRIED,
        "Services[1].HealthcheckCommand": APPROXIMATED,
        "Services[1].HealthcheckIntervalMilliseconds": CARRIED,
        "Services[1].ResourceRequirements": CARRIED,
        "Services[1].ServiceUrl": LOST,
        "Services[2].Args": APPROXIMATED,
        "Services[2].KillCommand": CARRIED,
        "Services[2].ConsiderStoppedOnProcessExit": CARRIED,
        "Services[3]": LOST,
    }
    assert {place: found.outcome(place) for place in outcomes} == outcomes
    assert found.line("Services[0].Workdir") == 20
