"""The other routers' configurations, key by key, in the shapes that their documents show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.foreign_configs import (
    CONFIG_YML,
    CUSTOM,
    EXAMPLES,
    LLAMA_ROUTER,
    LOCAL,
    MODELS_YML,
    OWN_NAMES,
    PRESETS,
    PROXY,
    key_of,
)
from support.migration import imported

from engine_router.config import HttpConfig, OllamaConfig, SystemdConfig
from engine_router.guards.documents import Unreadable
from engine_router.setup.migrate.migration import UnknownKind

CARRIED, APPROXIMATED, LOST = "carried over", "approximated", "lost"

# llama.cpp's presets.


def test_presets_of_llama_cpp() -> None:
    found = imported(PRESETS)
    assert found.draft.source == "llama.cpp presets"
    model = found.config.models["custom_model"]
    assert (model.path, model.mmproj) == ("/models/my-awesome-model-Q4_K_M.gguf", "/models/mmproj.gguf")
    assert model.context_length == 16384
    assert model.args == ("--n-gpu-layers", "8", "--no-mmap", "--no-context-shift")
    assert found.config.scheduling.preload == ("custom_model",)
    hub = found.process("ggml-org/MY-MODEL-GGUF:Q8_0").argv
    assert hub[1:3] == ("-hf", "ggml-org/MY-MODEL-GGUF:Q8_0")
    assert hub[9:11] == ("-c", "4096")
    assert "--jinja" in hub
    assert hub[-4:] == ("--cache-ram", "0", "--model-draft", "/models/draft.gguf")
    assert found.outcome("custom_model.load-on-startup") == CARRIED
    assert found.outcome("custom_model.model") == CARRIED
    assert found.outcome("custom_model.mlock") == APPROXIMATED
    for key in ("stop-timeout", "dedup-cache-models", "alias"):
        assert found.outcome(f"custom_model.{key}") == LOST, key
    assert found.line("custom_model.alias") == 26


def test_a_folder_of_models_is_scanned_and_sections_are_families() -> None:
    found = imported("[*]\nc = 8192\nmodels-max = 2\n[qwen3*]\ntemp = 0.7\n", models_dir="/models")
    assert found.process("llamacpp").scan == ("/models",)
    assert found.config.families["all"].context_length == 8192
    assert found.config.families["qwen3*"].args == ("--temp", "0.7")
    assert (found.config.pools["default"].mode, found.config.pools["default"].max_resident) == ("budget", 2)
    assert imported("models-dir = /m\n[*]\nngl = 99\n").process("llamacpp").scan == ("/m",)


def test_a_line_of_an_ini_file_that_is_none() -> None:
    with pytest.raises(Unreadable, match=r"line 2.*neither"):
        imported("[a]\nhello\n", kind="llamacpp")


# local-engine-router.


def test_local_engine_router() -> None:
    found = imported(LOCAL)
    config = found.config
    assert found.draft.source == "local-engine-router"
    assert (config.server.host, config.server.port, config.server.api_keys) == (
        ("0.0.0.0",),
        8080,
        ("secret-key",),
    )
    assert config.server.allow_destructive_ollama_api
    assert (config.server.keepalive_interval_s, config.log.level, config.log.file) == (
        4,
        "warning",
        "logs/router.log",
    )
    assert (config.scheduling.drain_timeout_s, config.scheduling.settle_timeout_s) == (20, 30)
    llama = found.process("llamacpp")
    assert llama.argv[0] == "/usr/local/bin/llama-server"
    assert (llama.env, llama.cwd, llama.ready_check, llama.stop_signal) == (
        {"A": "1"},
        "/tmp",
        "status==ok",
        "SIGINT",
    )
    assert (llama.grace_s, llama.stop_timeout_s, llama.connect_timeout_s) == (30, 41, 12)
    assert (llama.models, llama.discover, llama.headers) == (("my-model",), True, {"X-Key": "k"})
    assert found.process("shell").argv == ("sh", "-c", "cd /opt && ./serve.sh")
    tabby = config.engines["tabby"]
    assert isinstance(tabby, HttpConfig)
    assert tabby.load is not None
    assert tabby.load.body == {"model_name": "{model}"}
    assert tabby.unload.headers == {"x-admin-key": "admin-key"}
    assert (tabby.loaded.path, tabby.loaded.key, tabby.loaded.id) == ("/v1/model", "data", "id")
    assert tabby.loaded.filter == {"state": "loaded"}
    assert (tabby.start_timeout_s, tabby.stop_timeout_s) == (100, 50)
    studio = config.engines["lmstudio"]
    assert isinstance(studio, HttpConfig)
    assert studio.unload.body == {"instance_id": "{instance}"}
    assert studio.loaded.instances == "loaded_instances"
    assert isinstance(config.engines["ollama"], OllamaConfig)
    unit = config.engines["ds4"]
    assert isinstance(unit, SystemdConfig)
    assert (unit.unit, unit.scope, unit.ready_path, unit.stop_timeout_s) == (
        "ds4.service",
        "user",
        "/v1/models",
        45,
    )
    model = config.models["my-tabby-model"]
    assert model.disable_thinking_below_max_tokens == 1000
    assert (model.memory_gb, model.capabilities) == (12, ("completion", "tools", "vision"))
    assert config.models["qwen2.5-7b-instruct"].context_length == 32768
    assert config.aliases["gpt-4o-mini"] == config.server.default_model
    assert config.routes["smart"].prefer == config.routes["auto"].prefer == ("qwen2.5-7b-instruct",)
    assert config.engines.keys().isdisjoint({"off", "nothing", "odd"})


@pytest.mark.parametrize(
    ("place", "outcome"),
    [
        ("state_file", LOST),
        ("log_file", APPROXIMATED),
        ("swap_keepalive_enabled", CARRIED),
        ("upstream_connect_timeout_s", CARRIED),
        ("discover.enabled", CARRIED),
        ("discover.port_probe", LOST),
        ("engines.llamacpp.start_cmd", CARRIED),
        ("engines.llamacpp.process_pattern", LOST),
        ("engines.llamacpp.control_headers", APPROXIMATED),
        ("engines.llamacpp.tags_cache_ttl_s", LOST),
        ("engines.llamacpp.stop_signal", CARRIED),
        ("engines.shell.start_cmd", APPROXIMATED),
        ("engines.tabby.health_path", LOST),
        ("engines.tabby.loaded_filter", CARRIED),
        ("engines.lmstudio.unload_body", APPROXIMATED),
        ("engines.off", LOST),
        ("engines.nothing", LOST),
        ("engines.odd.type", LOST),
        ("models[1].quality_tier", LOST),
        ("models[1].smart_enabled", CARRIED),
        ("models[1].capabilities", APPROXIMATED),
        ("models[0].display_name", APPROXIMATED),
        ("models[2]", LOST),
        ("aliases", CARRIED),
        ("smart.aliases", APPROXIMATED),
        ("smart.policy", LOST),
        ("smart.swap_margin", LOST),
    ],
)
def test_what_is_said_of_local_engine_router(place: str, outcome: str) -> None:
    found = imported(LOCAL)
    assert found.outcome(place) == outcome
    assert found.line(place) is not None
    assert "secret-key" not in repr(found.draft.notes)
    assert "admin-key" not in repr(found.draft.notes)


def test_local_engine_router_of_old() -> None:
    text = """
    ds4: {control: process, serve_script: /opt/ds4.sh, base_url: "http://127.0.0.1:8099"}
    ollama: {base_url: "http://127.0.0.1:11434"}
    routing_mode: manual
    models: [{id: big, engine: ds4}]
    """
    found = imported(text)
    assert found.process("ds4").argv == ("/opt/ds4.sh",)
    assert found.config.engines.keys() == {"ds4", "ollama"}
    assert found.config.server.default_model is None
    assert (
        imported("routing_mode: smart\nmodels: [{id: a, engine: ollama}]").config.server.default_model == "a"
    )


def test_the_announcement_of_local_engine_router() -> None:
    text = """
    engines:
      llamacpp:
        type: generic_process
        base_url: http://127.0.0.1:8080
        start_cmd: [llama-server, -m, /models/qwen2.5-7b.gguf, --port, "8080"]
        ready_path: /health
      ollama:
        type: ollama
        base_url: http://127.0.0.1:11434
    models:
      - id: qwen2.5-7b-instruct
        engine: llamacpp
      - id: llama3.1:8b
        engine: ollama
    """
    found = imported(text)
    assert found.config.models.keys() == {"qwen2.5-7b-instruct", "llama3.1:8b"}
    assert LOST not in {note.outcome for note in found.draft.notes}


# llama-router.


def test_llama_router() -> None:
    found = imported(json.dumps(LLAMA_ROUTER, indent=2))
    config = found.config
    assert found.draft.source == "llama-router"
    assert (config.server.host, config.server.port) == (("127.0.0.1",), 8082)
    assert found.process("llama").argv == (
        *("llama-server", "--ctx-size", "4096", "--n-gpu-layers", "99"),
        *("--model", "{path}", "--port", "{port}", "--host", "127.0.0.1"),
    )
    assert found.process("llama").connect_timeout_s == 5
    assert found.process("llava").ready_path == "/ready"
    assert found.process("llava").argv[1:3] == ("--mmproj", "/models/mmproj.gguf")
    assert config.models["llava"].engine == "llava"
    assert config.models["qwen3-8b-q8"].group == ("8b-models",)
    assert config.models["Qwen3-8B-Q4_K_M.gguf"].group is None
    outcomes = {
        "router.base_port": CARRIED,
        "router.read_timeout_s": LOST,
        "router.admin_token": LOST,
        "router.connection_timeout_s": CARRIED,
        "default_spawn.command": CARRIED,
        "default_spawn.proxy_endpoints": CARRIED,
        "models[0].state": APPROXIMATED,
        "models[1].state": CARRIED,
        "models[1].group": CARRIED,
        "models[2].spawn.command": CARRIED,
        "models[3]": LOST,
    }
    assert {place: found.outcome(place) for place in outcomes} == outcomes
    assert "t0ken" not in repr(found.draft.notes)


def test_groups_of_llama_router_alone() -> None:
    models = [
        {"name": "a", "path": "/a", "group": "small"},
        {"name": "b", "path": "/b", "group": "small"},
        {"name": "c", "path": "/c", "group": "large"},
    ]
    found = imported(json.dumps({"models": models}), kind="llama-router")
    assert [model.group for model in found.config.models.values()] == [("small",), ("small",), ("large",)]


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


# All of them.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no settings"),
        ("just words", "holds no settings"),
        ("a: [1", "line 1"),
        ("a: &x [*y]", "undefined alias|is used before"),
        ("a: !!python/object:os.system x", "tag"),
        ('{\n  "a": 1,\n  "b" 2\n}', "line 3.*colon"),
        ('{"a": "x', "no JSON"),
        ("models: {a: {cmd: '\"'}}\nmacros: {b: *c}", "line 2"),
        ("\x00\x01", "no text"),
    ],
)
def test_files_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        imported(text)


def test_a_file_of_nobody() -> None:
    with pytest.raises(UnknownKind, match="not clear whose"):
        imported("colour: blue")
    with pytest.raises(Unreadable, match="one file at a time"):
        imported("macros: {}", "macros: {}")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '*a'] * 9)}]\n" for n in range(9)),
        "models:\n" + "".join(f"  {'  ' * n}a:\n" for n in range(90)) + "  " * 92 + "b: 1",
        "[" * 5000,
        '{"a":' * 5000,
        "{" * 5000,
        "- " * 5000,
    ],
)
def test_bombs_are_refused(text: str) -> None:
    with pytest.raises(Unreadable, match=r"values|deeper|YAML|JSON"):
        imported(text)


def test_a_key_that_stands_twice_is_told() -> None:
    found = imported("models:\n  a: {cmd: 's --port ${PORT}', ttl: 1, ttl: 2}\n")
    assert found.process("a").idle_timeout_s == 2
    assert found.outcome("models.a.ttl") == APPROXIMATED


def test_what_the_loader_refuses_is_left_out_and_told() -> None:
    found = imported(
        """
        models:
          a: {cmd: "s --port ${PORT}", checkEndpoint: "/a b"}
          b: {cmd: "s --port ${PORT}", aliases: [a]}
          c: {cmd: "s", proxy: "ftp://x"}
          d: {cmd: "A=1 s --port ${PORT}"}
        """
    )
    assert found.config.engines.keys() == {"a", "b"}
    assert found.process("a").ready_path == "/health"
    lost = [note.place for note in found.draft.notes if note.outcome == LOST]
    assert {"engines.a.ready_path", "models.b.aliases", "engines.c.base_url", "engines.d.argv"} <= set(lost)


# The page of documentation.


def page_rows() -> dict[str, dict[str, set[str]]]:
    """Return the outcomes of each key, by the sections of docs/migrate.md."""
    page = (Path(__file__).parents[1] / "docs" / "migrate.md").read_text("utf-8")
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    return {
        name: {
            key: set(outcomes.split(", "))
            for key, outcomes in re.findall(r"^\| `([^`]+)` \| ([a-z, ]+) \|", text, re.MULTILINE)
        }
        for name, text in sections.items()
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_says_what_becomes_of_each_key(name: str) -> None:
    found: dict[str, set[str]] = {}
    for texts in EXAMPLES[name]:
        for note in imported(*texts).draft.notes:
            if note.place and key_of(note.place) not in OWN_NAMES:
                found.setdefault(key_of(note.place), set()).add(note.outcome)
    assert page_rows()[name] == found
