"""Services of compose files, taken over by container engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_router.config import ContainerConfig, parse_config
from engine_router.config.compose import service_options
from engine_router.errors import ConfigError

COMPOSE = """
name: stack
x-common: &common
  ipc: host
  restart: unless-stopped
services:
  vllm:
    <<: *common
    image: vllm/vllm-openai:${TAG:-v0.11}
    command: >
      --model Qwen/Qwen3-8B --max-model-len ${CTX-8192}
    environment:
      HF_TOKEN: ${HF_TOKEN}
      VERBOSE: true
      PASSED_ON:
    env_file: [more.env]
    volumes:
      - ./models:/models:ro
      - cache:/root/.cache
      - type: bind
        source: /data
        target: /data
        read_only: true
    ports:
      - "8000:8000"
      - target: 9000
        published: 9001
        host_ip: 0.0.0.0
    shm_size: 16gb
    stop_grace_period: 1m30s
    ulimits: { memlock: -1, nofile: { soft: 1024, hard: 2048 } }
    cap_add: [SYS_PTRACE]
    deploy:
      resources:
        reservations:
          devices:
            - driver: nvidia
              count: 1
              capabilities: [gpu]
  rocm:
    image: rocm
    command: ["serve", "--price", "$$5"]
    network_mode: host
    devices: ["/dev/kfd", "/dev/dri:/dev/dri"]
    user: 1000:1000
  built: { build: . }
  odd: { image: x, credential_spec: y }
  random: { image: x, ports: ["8000"] }
  strict: { image: "${MUST:?say which}" }
volumes:
  cache:
"""


@pytest.fixture
def compose(tmp_path: Path) -> Path:
    (tmp_path / "compose.yml").write_text(COMPOSE)
    (tmp_path / ".env").write_text("# of this stack\nTAG='v0.12'\nexport HF_TOKEN=abc # mine\n")
    (tmp_path / "more.env").write_text("VERBOSE=false\nMORE=1\n")
    return tmp_path / "compose.yml"


def engine(text: str) -> ContainerConfig:
    found = parse_config(f'[engines.a]\ntype = "container"\n{text}').engines["a"]
    assert isinstance(found, ContainerConfig)
    return found


def test_a_service_is_taken_over(compose: Path) -> None:
    found = engine(f'compose = "{compose}:vllm"')
    assert found.image == "vllm/vllm-openai:v0.12"
    assert found.command == ("--model", "Qwen/Qwen3-8B", "--max-model-len", "8192")
    assert found.env == {"VERBOSE": "true", "MORE": "1", "HF_TOKEN": "abc"}
    assert found.volumes == (
        f"{compose.parent}/models:/models:ro",
        "stack_cache:/root/.cache",
        "/data:/data:ro",
    )
    assert found.ports == ("8000:8000", "0.0.0.0:9001:9000")
    assert found.base_url == "http://127.0.0.1:8000"
    assert (found.ipc, found.shm_size, found.gpus, found.grace_s) == ("host", 16 << 30, 1, 90.0)
    assert found.host_config == {
        "Ulimits": [
            {"Name": "memlock", "Soft": -1, "Hard": -1},
            {"Name": "nofile", "Soft": 1024, "Hard": 2048},
        ],
        "CapAdd": ["SYS_PTRACE"],
    }


def test_the_options_of_the_engine_come_first(compose: Path) -> None:
    found = engine(
        f'compose = "{compose}:vllm"\nimage = "mine"\nports = ["{{port}}:8000"]\nenv = {{ MORE = "2" }}\n'
        "host_config = { Init = true }"
    )
    assert (found.image, found.base_url, found.ports) == ("mine", None, ("{port}:8000",))
    assert found.env == {"VERBOSE": "true", "MORE": "2", "HF_TOKEN": "abc"}
    assert {*found.host_config} == {"Ulimits", "CapAdd", "Init"}


def test_another_service(compose: Path) -> None:
    found = engine(f'compose = "{compose}:rocm"\nbase_url = "http://127.0.0.1:8000"')
    assert found.command == ("serve", "--price", "$5")
    assert (found.network, found.devices) == ("host", ("/dev/kfd", "/dev/dri:/dev/dri"))
    assert found.user == "1000:1000"


def test_the_environment_comes_before_the_file_beside_it(compose: Path) -> None:
    found = service_options(f"{compose}:vllm", {"TAG": "v1", "PASSED_ON": "yes", "CTX": ""})
    assert found["image"] == "vllm/vllm-openai:v1"
    assert found["env"]["PASSED_ON"] == "yes"
    assert found["command"] == ["--model", "Qwen/Qwen3-8B", "--max-model-len"]


@pytest.mark.parametrize(
    ("service", "words"),
    [
        (":absent", 'has no service "absent"; its services: '),
        ("", 'expected "FILE:SERVICE"'),
        (":built", "it names no image; build it"),
        (":odd", "credential_spec is not understood"),
        (":random", "has no port of this machine"),
        (":strict", "the variable MUST is not set: say which"),
        (".not:x", "cannot be read: No such file"),
    ],
)
def test_what_cannot_be_taken_over_is_told(service: str, words: str, compose: Path) -> None:
    reference = f"{compose}{service}" if service else "vllm"
    with pytest.raises(ConfigError) as caught:
        engine(f'compose = "{reference}"')
    (fault,) = caught.value.faults
    assert fault[0] == "engines.a.compose"
    assert words in fault[1]
