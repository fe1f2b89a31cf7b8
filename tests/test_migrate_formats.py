"""The other routers' configurations, key by key, in the shapes that their documents show."""

from __future__ import annotations

import json

import pytest
from support.foreign_configs import (
    LLAMA_ROUTER,
    LOCAL,
    PRESETS,
)
from support.migration import imported

from engine_router.config import HttpConfig, OllamaConfig, SystemdConfig
from engine_router.guards.documents import Unreadable

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
