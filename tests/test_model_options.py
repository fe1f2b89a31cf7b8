"""What engines' command lines say about their model, as each engine documents its options."""

import shlex

import hypothesis
import pytest
from hypothesis import strategies as st

from engine_router.engines.command_options import amount, model_options, value_of

# A command, the engine, its model, its context; "v" and "e" for what takes images and what embeds.
COMMANDS = [
    ("llama-server -m /w/x.gguf -c 4096 --port 1", "llama.cpp", "/w/x.gguf", 4096, ""),
    ("/opt/llama-server.exe --model=/w/x.gguf --ctx-size=4096", "llama.cpp", "/w/x.gguf", 4096, ""),
    ("llama-server -m x.gguf -c 0 --mmproj p.gguf", "llama.cpp", "x.gguf", None, "v"),
    ("llama-server -m x.gguf --embeddings", "llama.cpp", "x.gguf", None, "e"),
    ("python -m engine_router.llamacpp -m x.gguf -c 512", "llama.cpp", "x.gguf", 512, ""),
    ("vllm serve /w/qwen --max-model-len 8192", "vLLM", "/w/qwen", 8192, ""),
    ("vllm serve Qwen/Qwen3-32B-AWQ --port {port} --served-model-name q", "vLLM", "Qwen/Qwen3-32B-AWQ", None, ""),
    ("vllm serve --port 1 --model /w/qwen --max_model_len=32k", "vLLM", "/w/qwen", 32000, ""),
    ("vllm serve /w/bge --runner pooling", "vLLM", "/w/bge", None, "e"),
    ("vllm serve /w/bge --task embed", "vLLM", "/w/bge", None, "e"),
    ("vllm serve /w/qwen --task generate --runner generate", "vLLM", "/w/qwen", None, ""),
    ("vllm serve --port 1", "vLLM", None, None, ""),
    ("python3 -m vllm.entrypoints.openai.api_server --model /w/q --max-model-len 1K", "vLLM", "/w/q", 1024, ""),
    ("env A=b nice -n 5 uv run vllm serve /w/q", "vLLM", "/w/q", None, ""),
    ("python -m sglang.launch_server --model-path /w/q --context-length 2048", "SGLang", "/w/q", 2048, ""),
    ("sglang serve --model-path /w/q --is-embedding", "SGLang", "/w/q", None, "e"),
    ("koboldcpp --model /w/x.gguf --skiplauncher", "KoboldCpp", "/w/x.gguf", 4096, ""),
    ("python koboldcpp.py /w/x.gguf 5001 --contextsize 16384 --mmproj p", "KoboldCpp", "/w/x.gguf", 16384, "v"),
    (r"C:\k\koboldcpp_nocuda.exe --model x.gguf", "KoboldCpp", "x.gguf", 4096, ""),
    ("python -m llama_cpp.server --model /w/x.gguf --n_ctx 1024", "llama-cpp-python", "/w/x.gguf", 1024, ""),
    ("python -m llama_cpp.server --model /w/x.gguf", "llama-cpp-python", "/w/x.gguf", 2048, ""),
    ("python -m llama_cpp.server --model x --n_ctx 0 --embedding true", "llama-cpp-python", "x", None, "e"),
    ("python -m llama_cpp.server --model x --embedding False", "llama-cpp-python", "x", 2048, ""),
    ("python -m llama_cpp.server --model x --clip_model_path c", "llama-cpp-python", "x", 2048, "v"),
    ("mlx_lm.server --model /w/mlx --port 1", "MLX", "/w/mlx", None, ""),
    ("python -m mlx_lm server --model /w/mlx", "MLX", "/w/mlx", None, ""),
    ("omlx serve --model-dir /w --port 1", "oMLX", None, None, ""),
    ("max serve --model-path /w/q --max-length 2048", "MAX", "/w/q", 2048, ""),
    ("max serve --model /w/e --task embeddings_generation", "MAX", "/w/e", None, "e"),
    ("transformers serve /w/q --host 127.0.0.1", "transformers", "/w/q", None, ""),
    ("infinity_emb v2 --model-id /w/e --port 1", "infinity", "/w/e", None, "e"),
    ("text-embeddings-router --model-id /w/e", "text-embeddings-inference", "/w/e", None, "e"),
    ("ramalama serve --ctx-size 4096 --port 1 file:///w/x.gguf", "ramalama", "/w/x.gguf", 4096, ""),
    ("ramalama serve ollama://smollm:135m", "ramalama", "ollama://smollm:135m", None, ""),
    ("local-ai run --models-path /w --context-size 1024", "LocalAI", None, 1024, ""),
    ("./my-server --model /w/x.gguf --ctx-size 10 --mmproj p", "", "/w/x.gguf", 10, "v"),
    ("python -m my.module --model /w/x", "", "/w/x", None, ""),
    ("docker run --rm vllm/vllm-openai:latest --model /w/x --max-model-len 7", "", "/w/x", 7, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "kind", "model", "context", "kinds"), COMMANDS, ids=[c[0] for c in COMMANDS]
)
def test_each_engine_is_read_by_its_own_options(
    command: str, kind: str, model: str | None, context: int | None, kinds: str
) -> None:
    argv = command.split() if "\\" in command else shlex.split(command)
    found = model_options(argv)
    assert (found.kind.name, found.model, found.context_length) == (kind, model, context)
    assert (found.vision, found.embedding) == ("v" in kinds, "e" in kinds)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("8192", 8192), ("32k", 32000), ("1K", 1024), ("1.5k", 1500), ("0", None), ("auto", None), ("-1", None), (None, None), ("9" * 5000, None)],
)  # fmt: skip
def test_amounts(text: str | None, tokens: int | None) -> None:
    assert amount(text) == tokens


@hypothesis.given(
    st.lists(
        st.sampled_from([*"ab", "", "-m", "--model", "vllm", "serve", "-c", "=", "--model=", "5"]), max_size=8
    )
)
def test_any_command_is_read(argv: list[str]) -> None:
    found = model_options(argv)
    assert found.model is None or any(found.model in word for word in argv)
    assert value_of(argv, ("--none",)) is None
