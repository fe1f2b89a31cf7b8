"""A second real engine: mlx_lm.server on a tiny model, run as engines.toml.example says."""

import importlib.util
import json
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trio
from support.served import served

import engine_router
from engine_router.config import parse_config
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.events import ResidentDied, SwapEnded
from engine_router.setup.presets import PresetValues, filled, find_preset

SCRIPTS = sysconfig.get_path("scripts")
SERVER = shutil.which("mlx_lm.server", path=SCRIPTS) or ""
MISSING = [name for name in ("mlx_lm", "gguf", "xllamacpp") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING) or not SERVER, reason=f"needs nox -s mlx (missing: {MISSING})"),
]

LIMIT_S = 400.0
MODEL = (
    "community/tiny"  # both the path of the folder, seen from the engine's directory, and the model's name
)
HELLO = [{"role": "user", "content": "Good morning"}]
CONTEXT = 16384
WORDS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_tiny_mlx(folder: Path, source: Path) -> None:
    """Write the weights and the vocabulary of a tiny GGUF model as a folder that MLX loads.

    The model never ends a text by itself, so what an answer holds depends on the request alone.
    """
    import gguf  # noqa: PLC0415
    import mlx.core as mx  # noqa: PLC0415

    reader = gguf.GGUFReader(source)
    weights = {}
    for tensor in reader.tensors:
        *block, word, _ = tensor.name.split(".")
        prefix = f"model.layers.{block[1]}." if block else ""
        weights[f"{prefix}{WORDS[word]}.weight"] = mx.array(tensor.data)
    output = weights["lm_head.weight"]
    output[257] = output[0]  # the token that ends a text gets the weights of a byte that never follows
    names = reader.get_field("tokenizer.ggml.tokens").contents()
    template = reader.get_field("tokenizer.chat_template").contents()
    vocabulary, (layers, width) = len(names), (2, output.shape[1])
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    texts = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": width,
            "num_hidden_layers": layers,
            "intermediate_size": 2 * width,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": width,
            "rms_norm_eps": 1e-5,
            "vocab_size": vocabulary,
            "max_position_embeddings": CONTEXT,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 256,
            "eos_token_id": 257,
        },
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": number,
                    "content": names[number],
                    "special": True,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                }
                for number in (256, 257)
            ],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "vocab": {name: number for number, name in enumerate(names)},
                "merges": [],
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": names[256],
            "eos_token": names[257],
            "chat_template": template,
        },
    }
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content), "utf-8")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a directory with the same model for both engines."""
    home = tmp_path_factory.mktemp("models")
    gguf = write_tiny_gguf(home / "tiny.gguf", context_length=CONTEXT)
    write_tiny_mlx(home / MODEL, gguf)
    return home


def mlx_engine(name: str, home: Path, path: str, start_timeout_s: int = 300) -> str:
    argv = [SERVER, "--model", path, "--host", "127.0.0.1", "--port", "{port}"]
    return f"""
        [engines.{name}]
        type = "process"
        argv = {json.dumps(argv)}
        cwd = {json.dumps(str(home))}
        env = {{HF_HUB_OFFLINE = "1"}}
        models = [{json.dumps(path)}]
        start_timeout_s = {start_timeout_s}
        discover = false
        ready_path = "/health"
    """


def configuration(home: Path) -> engine_router.Config:
    llama = [
        sys.executable,
        "-m",
        "engine_router.llamacpp",
        "-m",
        str(home / "tiny.gguf"),
        "--port",
        "{port}",
    ]
    return parse_config(f"""
        state_file = "/dev/null/state.json"
        server.shutdown_timeout_s = 0.5
        scheduling.failed_start_memory_s = 0.0
        {mlx_engine("mlx", home, MODEL)}
        {mlx_engine("broken", home, "./nowhere", 12)}
        [engines.llama]
        type = "process"
        argv = {json.dumps([*llama, "--alias", "llama", "-lv", "0", "-t", "1"])}
        models = ["llama"]
    """)


@asynccontextmanager
async def running(home: Path) -> AsyncIterator[tuple[engine_router.Router, httpx.AsyncClient]]:
    with trio.fail_after(LIMIT_S):
        async with (
            engine_router.open_router(configuration(home)) as router,
            served(router) as url,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=300) as client,
        ):
            yield router, client


def body(model: str = MODEL, *, stream: bool = False, **more: object) -> dict[str, Any]:
    return {"model": model, "messages": HELLO, "stream": stream, "max_tokens": 8, "temperature": 0, **more}


def events(text: str) -> list[dict[str, Any]]:
    """Return what the events of a stream hold."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(entry) for entry in data if entry != "[DONE]"]


def pid_of(router: engine_router.Router) -> int:
    (life,) = router.supervisor.domains["default"].tasks.values()
    assert life.endpoint is not None
    assert life.endpoint.pid is not None
    return life.endpoint.pid


async def by_openai(client: httpx.AsyncClient) -> list[str]:
    whole = (await client.post("/v1/chat/completions", json=body())).json()
    assert "choices" in whole, whole
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 8
    streamed = await client.post("/v1/chat/completions", json=body(stream=True))
    assert "data: [DONE]" in streamed.text
    choices = [event["choices"][0] for event in events(streamed.text) if event["choices"]]
    assert choices[-1]["finish_reason"] == "length"
    parts = [choice["delta"].get("content") or "" for choice in choices]
    return [whole["choices"][0]["message"]["content"], "".join(parts)]


async def by_ollama(client: httpx.AsyncClient) -> list[str]:
    settings = {"options": {"num_predict": 8, "temperature": 0}}
    whole = (await client.post("/api/chat", json=body(**settings))).json()
    assert (whole["done"], whole["done_reason"], whole["eval_count"]) == (True, "length", 8)
    streamed = await client.post("/api/chat", json=body(stream=True, **settings))
    lines = [json.loads(line) for line in streamed.text.splitlines() if line.strip()]
    assert (lines[-1]["done"], lines[-1]["done_reason"]) == (True, "length")
    return [whole["message"]["content"], "".join(line["message"]["content"] for line in lines)]


async def by_anthropic(client: httpx.AsyncClient) -> list[str]:
    whole = (await client.post("/v1/messages", json=body())).json()
    assert (whole["stop_reason"], whole["usage"]["output_tokens"]) == ("max_tokens", 8)
    streamed = events((await client.post("/v1/messages", json=body(stream=True))).text)
    assert streamed[-1]["type"] == "message_stop"
    deltas = [event["delta"] for event in streamed if event["type"] == "content_block_delta"]
    return [whole["content"][0]["text"], "".join(delta["text"] for delta in deltas)]


async def test_every_dialect_gets_the_same_text_whole_and_streamed(home: Path) -> None:
    async with running(home) as (router, client):
        texts = [text for ask in (by_openai, by_ollama, by_anthropic) for text in await ask(client)]
        assert texts[0]
        assert texts == texts[:1] * 6
        pid = pid_of(router)
        async with router.lease(MODEL) as lease, httpx.AsyncClient(trust_env=False) as direct:
            assert (await direct.get(f"{lease.base_url}/health")).json() == {"status": "ok"}
        assert {life.resident.engine for life in router.supervisor.domains["default"].tasks.values()} == {
            "mlx"
        }
    assert not psutil.pid_exists(pid)


async def test_the_preset_serves_it_under_any_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", SCRIPTS, prepend=os.pathsep)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    block = filled(find_preset("mlx"), PresetValues(path=str(home / MODEL), model="mine"))
    config = parse_config(f'state_file = "/dev/null/state.json"\n{block.text}')
    with trio.fail_after(LIMIT_S):
        async with (
            engine_router.open_router(config) as router,
            served(router) as url,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=300) as client,
        ):
            answer = (await client.post("/v1/chat/completions", json=body("mine"))).json()
            assert answer["choices"][0]["message"]["content"], answer
            listed = (await client.get("/v1/models")).json()["data"]
            assert [entry["id"] for entry in listed] == ["mine"]


async def test_a_wrong_path_is_an_error_with_the_engine_s_last_words(home: Path) -> None:
    async with running(home) as (_, client):
        answer = await client.post("/v1/chat/completions", json=body("./nowhere"))
        message = answer.json()["error"]["message"]
        assert answer.status_code == 503
        assert "engine 'broken'" in message
        assert "nowhere" in message
        assert "GET /health" not in message  # our own probes, which it logs


async def test_it_makes_room_for_llama_cpp_and_comes_back(home: Path) -> None:
    async with running(home) as (router, client):
        for model in (MODEL, "llama", MODEL):
            answer = await client.post("/v1/chat/completions", json=body(model))
            assert answer.json()["choices"][0]["message"]["content"], answer.text
        swaps = [event for event in router.hub.recent if isinstance(event, SwapEnded)]
        assert [(swap.source, swap.target, swap.result) for swap in swaps] == [
            (None, "mlx", "ok"),
            ("mlx", "llama", "ok"),
            ("llama", "mlx", "ok"),
        ]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/messages"])
async def test_a_kill_in_the_middle_of_a_stream_is_said(home: Path, path: str) -> None:
    settings = {"max_tokens": 15000, "options": {"num_predict": 15000}}
    async with running(home) as (router, client):
        received = b""
        await client.post("/v1/chat/completions", json=body())  # so that the first bytes are the engine's
        async with client.stream("POST", path, json=body(stream=True, **settings)) as answer:
            async for part in answer.aiter_raw():
                if not received:
                    os.kill(pid_of(router), signal.SIGKILL)
                received += part
        assert b"engine 'mlx'" in received
        assert b"SIGKILL" in received
        assert [event.resident for event in router.hub.recent if isinstance(event, ResidentDied)] == ["mlx"]
        again = await client.post("/v1/chat/completions", json=body())
        assert again.status_code == 200, again.text
