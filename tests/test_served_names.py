"""Which models a command serves, and under which names, as each engine documents its options."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_router.guards.limits import MAX_PRESET_BYTES, MODEL_NAME_CHARS, SERVED_NAMES
from engine_router.models.served_files import models_in_files
from engine_router.models.served_names import ServedModels, served_models

CACHED = "/h/models--Qwen--Qwen3-8B/snapshots/0a1b"

# A command; the ids of its models, each with "=NAME" where its engine wants another, and "+NAME" for each alias.
COMMANDS = [
    ("llama-server -m /w/Qwen3-8B-Q4_K_M.gguf --port {port}", "Qwen3-8B-Q4_K_M"),
    (r"C:\\l\\llama-server.exe --model=D:\\w\\Qwen3-8B.gguf", "Qwen3-8B"),
    ("llama-server -m w/Big-Q8_0-00001-of-00003.gguf", "Big-Q8_0"),
    ("llama-server -m /w/x.gguf -a zeta,alpha", "zeta+alpha"),
    ("llama-server -m /w/x.gguf --alias q --alias r", "r"),
    ("llama-server -hf ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"),
    ("llama-server --hf-repo u/r -hff x-Q4_0.gguf", "x-Q4_0"),
    ("llama-server -mu https://hf.co/u/r/resolve/main/x.gguf?download=true", "x"),
    ("llama-server -dr ai/smollm2:135M-Q4_0", "ai/smollm2:135M-Q4_0"),
    ("llama-server --port 1", ""),
    ("llama-server -m", ""),
    ("llama-server -m --port 1", ""),
    ("python -m engine_router.llamacpp -m /w/tiny.gguf", "tiny"),
    ("vllm serve Qwen/Qwen3-32B-AWQ --port 1", "Qwen/Qwen3-32B-AWQ"),
    ("vllm serve /w/qwen", "qwen=/w/qwen"),
    (f"vllm serve {CACHED}", f"Qwen/Qwen3-8B={CACHED}"),
    ("vllm serve /w/qwen --served-model-name a b --port 1", "a+b"),
    ("vllm serve Q/x --lora-modules sql=/l/1 chat=/l/2 --port 1", "Q/x sql chat"),
    ("python3 -m vllm.entrypoints.openai.api_server --model Q/x --served_model_name=y", "y"),
    ("python -m sglang.launch_server --model-path /w/q --served-model-name q2", "q2"),
    ("python koboldcpp.py --model /w/x-Q4_K_S.gguf 5001", "x-Q4_K_S=koboldcpp/x-Q4_K_S"),
    ("koboldcpp /w/x.gguf", "x=koboldcpp/x"),
    ("python -m llama_cpp.server --model /w/x.gguf --model_alias y", "y"),
    ("mlx_lm.server --model mlx-community/Qwen3-4bit", "mlx-community/Qwen3-4bit"),
    ("mlx_lm.server --model /w/mlx", "mlx=/w/mlx"),
    ("max serve --model-path Q/x", "Q/x"),
    ("transformers serve /w/q --host 127.0.0.1", "q=/w/q"),
    ("infinity_emb v2 --model-id /w/e --served-model-name e5 --model-id b/y --served-model-name y", "e5 y"),
    ("text-embeddings-router --model-id BAAI/bge", "BAAI/bge"),
    ("ramalama serve --port 1 ollama://smollm:135m", "smollm:135m"),
    ("ramalama serve hf://u/r/x.gguf", "x"),
    ("local-ai run phi-2 --port 1", "phi-2"),
    ("python main.py --model-name my-exl2", "my-exl2"),
    ("./my-server --model /w/x.gguf --ctx-size 10", "x"),
    ("python -m my.server", ""),
    ("python -m my.server --model /w/y", "y"),
    ("sleep 100", ""),
    # In a shell
    ("bash -c 'cd /w && source v/bin/activate && exec vllm serve X/y --port {port} > log 2>&1'", "X/y"),
    ("sh -lc 'FOO=1 llama-server -m /w/x.gguf --alias q | tee log'", "q"),
    ("bash -c 'my-server --model x'", "x"),
    ("bash -c 'prepare --model x; my-server'", ""),
    ("bash -c 'llama-server -m $MODEL'", ""),
    ("bash -c 'm=$(pick); vllm serve X/y'", ""),
    ("bash -c 'vllm serve \"X'", ""),
    ("bash -c", ""),
    ("bash start.sh", ""),
    ("env LLAMA_ARG_ALIAS=q nice llama-server -m /w/x.gguf", "q"),
    # In a container
    ("docker run --rm --gpus all -p 8000:8000 -v /m:/m vllm/vllm-openai:v0.9 --model /m/x --served-model-name a b", "a+b"),
    ("docker run -it --name m ghcr.io/ggml-org/llama.cpp:server-cuda -m /m/koboldcpp-x.gguf", "koboldcpp-x"),
    ("sudo podman --remote run --replace --network=host -e LLAMA_ARG_HF_REPO=u/r:Q4 quay.io/me/mine", "u/r:Q4"),
    ("docker run -eLLAMA_ARG_MODEL=/m/x.gguf --env LLAMA_ARG_ALIAS=q mine -c 5", "q"),
    ("docker run --entrypoint vllm me/mine serve X/y", "X/y"),
    ("docker run me/mine python3 -m sglang.launch_server --model-path X/y", "X/y"),
    ("docker run me/mine bash -c 'exec vllm serve X/y'", "X/y"),
    ("docker run -e MODEL_ID=BAAI/bge ghcr.io/huggingface/text-embeddings-inference:cpu-1.8", "BAAI/bge"),
    ("docker run localai/localai:latest phi-2", "phi-2"),
    ("docker run -p", ""),
    ("docker start mine", ""),
]  # fmt: skip


def written(served: ServedModels) -> str:
    """Return the models as they are written above."""
    return " ".join(
        model.name
        + (f"={model.upstream}" if model.upstream != model.name else "")
        + "".join(f"+{alias}" for alias in model.aliases)
        for model in served.models
    )


@pytest.mark.parametrize(("command", "models"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_names_its_models(command: str, models: str) -> None:
    assert written(served_models(shlex.split(command), {})) == models


def test_what_people_may_call_a_file_leads_to_its_model() -> None:
    (model,) = served_models(["llama-server", "-m", "/w/Qwen3-8B-Q4_K_M.gguf"], {}).models
    assert set(model.names) == {
        "Qwen3-8B-Q4_K_M", "Qwen3-8B-Q4_K_M.gguf", "/w/Qwen3-8B-Q4_K_M.gguf", "qwen3-8b:q4_k_m",
    }  # fmt: skip
    (model,) = served_models(["vllm", "serve", "Qwen/Qwen3-8B"], {}).models
    assert set(model.names) == {"Qwen/Qwen3-8B", "Qwen3-8B", "hf.co/Qwen/Qwen3-8B"}


def test_the_environment_counts_less_than_the_command() -> None:
    env = {"LLAMA_ARG_MODEL": "/w/x.gguf", "LLAMA_ARG_ALIAS": "from-env"}
    assert written(served_models(["llama-server"], env)) == "from-env"
    assert written(served_models(["llama-server", "--alias", "own"], env)) == "own"
    assert written(served_models(["docker", "run", "ghcr.io/x/llama.cpp:server"], env)) == ""
    passed = ["docker", "run", "-e", "LLAMA_ARG_ALIAS", "ghcr.io/x/llama.cpp:server"]
    assert written(served_models(passed, env)) == "from-env"


def test_names_that_cannot_be_used_are_left_out() -> None:
    long = "n" * (MODEL_NAME_CHARS + 1)
    argv = ["llama-server", "-m", "/w/{model}.gguf", "-a", f"a\x1b[31m,{long},,{{port}},ok, spaced "]
    assert written(served_models(argv, {})) == "ok+spaced"
    adapters = [f"l{number}=/x" for number in range(1000)]
    assert (
        len(served_models(["vllm", "serve", "Q/x", "--lora-modules", *adapters], {}).models) == SERVED_NAMES
    )


WORDS = [
    *(["llama-server", "vllm", "serve", "docker", "podman", "run", "bash", "sh", "-c", "-lc", "-m", "--model", "--alias", "-a", "-hf", "--served-model-name", "-e"]),
    *(["--env", "--entrypoint", "-it", "-p", "image:tag", "--models-preset", "--models-dir", "--lora-modules", "a=b", "x.gguf", "/w/x.gguf", "env", "A=b"]),
    *(["infinity_emb", "v2", "--model-id", "--", "-", "=", "''", "--model=", "-e=", '"', "'", "\\", ";", "&&", "|", ">", "$(", "{port}"]),
    *(CACHED, "", "\x00", "\ud800", "//", "C:\\", "models--a--b/snapshots/", "hf://", "x" * 600, "cd /w && vllm serve Q/x"),
]  # fmt: skip


@given(
    st.lists(st.sampled_from(WORDS) | st.text(max_size=20), max_size=12),
    st.dictionaries(st.sampled_from(["LLAMA_ARG_MODEL", "LLAMA_ARG_ALIAS", "MODEL_ID"]), st.sampled_from(WORDS)),
)  # fmt: skip
def test_any_command_is_read(argv: list[str], env: dict[str, str]) -> None:
    for model in served_models(argv, env).models:
        for name in model.names:
            assert 0 < len(name) <= MODEL_NAME_CHARS
            assert name.isprintable()


# llama.cpp's router mode

PRESETS = """\
version = 1
; a comment
[*]
c = 4096
alias = nobody

[qwen]
model = /w/Qwen3-8B-Q4_K_M.gguf
--alias = code, "chat"
[ user/repo:Q4_K_M ]
hf-repo = user/repo:Q4_K_M
[qwen]
model = /w/other.gguf
[]
"""


def test_presets_and_folders_name_models(tmp_path: Path) -> None:
    (tmp_path / "p.ini").write_text(PRESETS)
    folder = tmp_path / "models"
    for file in (
        "a-Q4_0.gguf", "mmproj-F16.gguf", "notes.txt", "s-00002-of-00002.gguf", "gemma/g.gguf", "gemma/mmproj.gguf",
        "big/b-00001-of-00002.gguf", "empty/readme.md",
    ):  # fmt: skip
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    served = served_models(["llama-server", "--models-preset", "p.ini", "--models-dir", "models"], {})
    assert served == ServedModels(presets="p.ini", folder="models")
    models = models_in_files(served, tmp_path)
    assert [model.name for model in models] == ["qwen", "user/repo:Q4_K_M", "a-Q4_0", "big", "gemma"]
    assert models[0].aliases == ("code", "chat")
    assert "Qwen3-8B-Q4_K_M" in models[0].spellings
    by_env = served_models(["llama-server"], {"LLAMA_ARG_MODELS_PRESET": "p.ini"})
    assert by_env == ServedModels(presets="p.ini")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[a]\n" * (MAX_PRESET_BYTES // 4 + 1)])
def test_presets_that_are_none_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.ini").write_bytes(content)
    with pytest.raises(ValueError, match=r"p\.ini: not a"):
        models_in_files(ServedModels(presets="p.ini"), tmp_path)
    with pytest.raises(ValueError, match="not a file"):
        models_in_files(ServedModels(presets="/dev/zero"), tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        models_in_files(ServedModels(folder="nowhere"), tmp_path)


def test_files_of_a_container_are_not_looked_for() -> None:
    argv = ["docker", "run", "ghcr.io/x/llama.cpp:server", "--models-dir", "/models"]
    assert served_models(argv, {}) == ServedModels()


@given(st.text())
def test_any_presets_are_read(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("presets")
    (folder / "p.ini").write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ValueError):  # no UTF-8
        models_in_files(ServedModels(presets="p.ini"), folder)
