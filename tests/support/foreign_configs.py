"""Other routers' configurations, in the shapes that their documents show."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

SWAP = """\
healthCheckTimeout: 500
logLevel: info
logTimeFormat: rfc3339
logToStdout: proxy
logRequests: true
store: {path: /tmp/x.sqlite}
metricsMaxInMemory: 1000
captureBuffer: 15
ui: {activity: {session_id: [X-Session-ID]}}
performance: {every: 15s}
startPort: 10001
sendLoadingState: true
includeAliasesInList: true
globalTTL: 0
unloadTimeout: 20
macros:
  server: /opt/llama-server --port ${PORT}
apiKeys: ["${env.KEY}"]
upstream: {ignorePaths: [x]}
profiles:
  coding: {pins: {a: big}}
  old: [small, tiny]
selectors:
  best: {strategy: pin, targets: [big], name: Best, description: x, metadata: {a: 1}, unlisted: true}
  warm: {strategy: warm, targets: [big, small], settings: {spillover: 4}}
models:
  big:
    macros: {temp: 0.7}
    cmd: ${server} -m /big.gguf
    cmdStop: kill ${PID}
    name: Big
    description: thinks
    env: [CUDA_VISIBLE_DEVICES=0]
    proxy: http://127.0.0.1:${PORT}
    checkEndpoint: /health
    ttl: 60
    unloadTimeout: 10
    compat: {ignoreWebsockets: true}
    useModelName: openai/big
    filters:
      stripParams: top_p
      strip_params: top_k
      setParams: {temperature: "${temp}"}
      setParamsByID: {"${MODEL_ID}:high": {n: 1}}
    aliases: [gpt-4o-mini]
    metadata: {port: "${PORT}"}
    concurrencyLimit: 4
    sendLoadingState: false
    timeouts: {connect: 30, keepalive: 0, responseHeader: 60, tlsHandshake: 10, expectContinue: 1, idleConn: 90}
    capabilities: {in: [text, image], out: [text], tools: true, reranker: true, context: 32000}
  small: {unlisted: true, checkEndpoint: none, cmd: "${server} -m /s.gguf"}
  tiny: {proxy: "http://127.0.0.1:9000/v1", cmd: server --port 9000}
  box: {cmd: "podman run -d --rm --name box -p ${PORT}:8080 image"}
hooks: {on_startup: {preload: [best]}}
routing:
  router:
    use: group
    settings:
      groups:
        pair: {swap: false, exclusive: true, members: [small, tiny]}
        forever: {swap: true, exclusive: false, persistent: true, members: [box]}
        beside: {exclusive: false, members: [big, nobody]}
      matrix: {sets: {a: big}}
  scheduler: {use: fifo, settings: {fifo: {priority: {big: 1}}}}
peers:
  cloud: {proxy: "https://example.org", apiKey: "${env.PEER}", models: [x]}
"""

MATRIX = """\
models:
  a: {cmd: "s --port ${PORT}"}
  b: {cmd: "s --port ${PORT}"}
  c: {cmd: "s --port ${PORT}"}
matrix:
  vars: {x: a}
  evict_costs: {a: 5}
  sets: {one: "(x | b) & c"}
"""

PRESETS = """\
version = 1

; shared by all
[*]
c = 8192
n-gpu-layers = 8

[ggml-org/MY-MODEL-GGUF:Q8_0]
chat-template = chatml
n-gpu-layers = 123
jinja = true       ; a switch
c = 4096
LLAMA_ARG_CACHE_RAM = 0
model-draft = ./draft.gguf
model-draft = /models/draft.gguf

[custom_model]
model = /models/my-awesome-model-Q4_K_M.gguf
mmproj = /models/mmproj.gguf
no-mmap = true
mlock = false
context-shift = off
load-on-startup = true
stop-timeout = 5
dedup-cache-models = true
alias = other
LLAMA_ARG_CTX_SIZE = 16384
"""

LOCAL = """\
host: 0.0.0.0
port: 8080
api_keys: [secret-key]
log_level: WARNING
log_file: logs/router.log
state_file: state.json
swap_keepalive_enabled: true
swap_keepalive_interval_s: 4
drain_timeout_s: 20
swap_memory_settle_timeout_s: 30
upstream_connect_timeout_s: 12
allow_destructive_ollama_api: true
discover:
  enabled: true
  collision: config_order
  port_probe: {enabled: false}
engines:
  llamacpp:
    type: generic_process
    base_url: http://127.0.0.1:8080
    start_cmd: ["/usr/local/bin/llama-server", "-m", "/models/foo.gguf", "--port", "8080"]
    env: {A: "1"}
    cwd: /tmp
    ready_path: /health
    ready_check: status==ok
    start_timeout_s: 300
    stop_signal: 2
    stop_timeout_s: 30
    process_pattern: llama-server
    log_file: /tmp/llama.log
    control_headers: {X-Key: k}
    discover_models: true
    served_models: [my-model]
    tags_cache_ttl_s: 30.0
  shell:
    type: generic_process
    base_url: http://127.0.0.1:8082
    start_cmd: cd /opt && ./serve.sh
  tabby:
    type: api_swap
    base_url: http://127.0.0.1:5000
    health_path: /v1/model
    load_path: /v1/model/load
    load_body: {model_name: "{model}"}
    unload_path: /v1/model/unload
    loaded_path: /v1/model
    loaded_models_key: data
    loaded_name_key: id
    loaded_filter: state==loaded
    load_timeout_s: 100
    unload_timeout_s: 50
    control_headers: {x-admin-key: admin-key}
  lmstudio:
    type: api_swap
    base_url: http://127.0.0.1:1234
    unload_path: /api/v1/models/unload
    unload_body: {instance_id: "{model}"}
    loaded_path: /api/v1/models
    loaded_models_key: data
    loaded_name_key: id
  ollama:
    type: ollama
    base_url: http://127.0.0.1:11434
    health_path: /api/tags
    unload_timeout_s: 60
  ds4:
    type: ds4
    base_url: http://172.17.0.1:8099
    systemd_user_unit: ds4.service
    health_path: /v1/models
    start_timeout_s: 240
    stop_timeout_s: 45
  off: {type: ollama, enabled: false}
  nothing: {type: api_swap, base_url: "http://127.0.0.1:1"}
  odd: {type: what}
models:
  - {id: qwen2.5-7b-instruct, engine: llamacpp, display_name: Qwen, context_length: 32768}
  - id: my-tabby-model
    engine: tabby
    disable_thinking_below_max_tokens: 1000
    memory_gb: 12
    capabilities: [tool_use, vision, coding]
    quality_tier: 3
    smart_enabled: false
  - {id: gone, engine: off}
aliases:
  gpt-4o-mini: qwen2.5-7b-instruct
smart:
  aliases: [smart, auto]
  policy: fast
  swap_margin: 0.1
"""

LLAMA_ROUTER: Final[Mapping[str, Any]] = {
    "version": "1.0",
    "router": {
        "host": "127.0.0.1",
        "port": 8082,
        "base_port": 50000,
        "connection_timeout_s": 5,
        "read_timeout_s": 600,
        "admin_token": "t0ken",
    },
    "default_spawn": {
        "command": ["llama-server", "--ctx-size", "4096", "--n-gpu-layers", "99"],
        "proxy_endpoints": ["/v1/", "/health"],
        "health_endpoint": "/health",
    },
    "models": [
        {"name": "Qwen3-8B-Q4_K_M.gguf", "path": "/hub/qwen.gguf", "state": "auto", "group": ""},
        {"name": "qwen3-8b-q8", "path": "/models/q8.gguf", "state": "manual", "group": "8b-models"},
        {
            "name": "llava",
            "path": "/models/llava.gguf",
            "state": "manual",
            "spawn": {
                "command": ["llama-server", "--mmproj", "/models/mmproj.gguf"],
                "proxy_endpoints": ["/v1/"],
                "health_endpoint": "/ready",
            },
        },
        {"path": "/nameless"},
    ],
}

CUSTOM: Final[Mapping[str, Any]] = {
    "api": {"host": "0.0.0.0", "port": 8000, "cors_origins": ["http://localhost:3000"]},
    "system": {
        "llama_server_path": "/path/to/llama-server",
        "max_concurrent_models": 3,
        "preload_models": ["*"],
        "enable_idle_timeout": False,
        "idle_timeout_sec": 300,
        "request_timeout_sec": 120,
        "gpu_devices": [0, 1],
        "parallel_requests": 2,
        "cpu_threads": 8,
        "flash_attention": "on",
        "max_queue_size_per_model": 500,
        "vram_multiplier": 1.1,
    },
    "models": {
        "qwen-7b": {"model_path": "/path/qwen-7b.gguf", "params": {"n_gpu_layers": 99, "n_ctx": 8192}},
        "embedder": {
            "model_path": "/path/e.gguf",
            "params": {"n_gpu_layers": -1, "embedding": True, "type_k": "q8_0", "type_v": "q4_0", "odd": 1},
        },
    },
}

MODELS_YML = """
mistral-large-2411-awq:
  backend: sglang
  script: /opt/start_mistral.sh
  service: sglang.service
qwen-gguf:
  backend: llamacpp
  script: /opt/start_qwen.sh
  service: llamacpp.service
magnum-exl2:
  backend: tabby
  script: null
  service: tabbyapi.service
  model_name: Magnum-123B-4.0bpw
odd: {backend: what}
"""

CONFIG_YML = """
title: "LLM Router"
log_level: "INFO"
router_port: 8003
model_load_timeout: 240
backends:
  sglang: {host: localhost, port: 30001, service: sglang.service, health_endpoint: /health_generate}
  tabbyapi: {host: localhost, port: 5000, service: tabbyapi.service, health_endpoint: /health}
"""

PROXY = """\
/* resources are MB */
{
  "DefaultServiceUrl": "http://localhost:{{.PORT}}/",
  "OpenAiApi": {"ListenPort": "7070",},
  "ManagementApi": {"ListenPort": "7071"},
  "MaxTimeToWaitForServiceToCloseConnectionBeforeGivingUpSeconds": 1200,
  "ClientRequestBufferLimitBytes": 16777216,
  "ShutDownAfterInactivitySeconds": 120,
  "LogLevel": "Debug", "OutputServiceLogs": true,
  "ResourcesAvailable": {
    "VRAM-GPU-1": 24000, // MB
    "RAM": {"CheckCommand": "awk '{print 1}' /proc/meminfo", "CheckWhenNotEnoughIntervalMilliseconds": 1000},
    "CPU": 8,
  },
  "Services": [
    {
      "Name": "automatic1111",
      "ListenPort": "7860",
      "ProxyTargetHost": "localhost", "ProxyTargetPort": "17860",
      "Command": "/opt/webui.sh", "Args": "--port 17860", "WorkDir": "/opt",
      "ShutDownAfterInactivitySeconds": 600, "RestartOnConnectionFailure": true,
      "ResourceRequirements": {"VRAM-GPU-1": 2000, "RAM": 30000},
    },
    {
      "Name": "Gemma-27B", "OpenAiApi": true, "OpenAiApiModels": ["gemma", "gemma-27b"],
      "ProxyTargetHost": "localhost", "ProxyTargetPort": "18081",
      "Command": "/opt/llama-server", "Args": "-m /opt/Gemma.gguf --port 18081",
      "ServiceUrl": "http://gemma/",
      "HealthcheckCommand": "curl --fail http://localhost:18081/health", "HealthcheckIntervalMilliseconds": 200,
      "LogFilePath": "/var/log/gemma.log", "StartupTimeoutMilliseconds": 60000,
      "ResourceRequirements": {"RAM": 3000},
    },
    {
      "Name": "ComfyUI", "ListenPort": "8188", "TargetPort": "18188",
      "Command": "docker", "Args": "run -d --rm -w /x --name comfyui -p 18188:8188 image sh -c 'cd /x && y'",
      "KillCommand": "docker kill comfyui", "ConsiderStoppedOnProcessExit": false, "ServiceUrl": null,
    },
    {"Name": "lost", "Command": "x"},
  ],
}
"""


EXAMPLES: Final[Mapping[str, Sequence[Sequence[str]]]] = {
    "llama-swap": [[SWAP], [MATRIX]],
    "llama.cpp presets": [
        [PRESETS],
        ["[*]\nmodels-dir = /m\nmodels-max = 2\nhost = 0.0.0.0\n[x]\nhf-repo = a/b\nno-mmap = true\n"],
    ],
    "local-engine-router": [
        [LOCAL],
        [
            "ds4: {control: process, serve_script: /x, log_file: /l}\nrouting_mode: manual\nmodels: [{id: a, engine: ds4}]\n"
        ],
    ],
    "llama-router": [[json.dumps(LLAMA_ROUTER)]],
    "RouterModelCustom": [[json.dumps(CUSTOM)]],
    "Open WebUI router": [[CONFIG_YML, MODELS_YML]],
    "large-model-proxy": [[PROXY]],
}
"""Files of each router, with the keys that its documents have; two where it has two files."""

OWN_NAMES: Final = frozenset(
    (
        *(
            "off",
            "nothing",
            "odd",
            "models",
            "Services",
            "RAM",
            "CPU",
            "VRAM-GPU-1",
            "cloud",
            "coding",
            "old",
        ),
        *("ggml-org/MY-MODEL-GGUF:Q8_0", "model-draft"),
    )
)
"""Keys above that are names, or have no meaning of their own."""


def key_of(place: str) -> str:
    """Return the last key of a place such as `models.a.cmd`; of an item of a list, the list's."""
    parts = re.findall(r'"(?:[^"\\]|\\.)*"|[^.\[\]]+', re.sub(r"\[\d+\]", "", place))
    return parts[-1].strip('"') if parts else ""
