"""Kinds of engines, as their command lines show them: one table for each, by its documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from attrs import field, frozen


@frozen(kw_only=True)
class EngineProgram:
    """One kind of engine: how its command is recognised, and the names of its options.

    Attributes:
        name: what people call it.
        programs: what the command, or the module that Python runs, is called, in lower case and without `.exe`
            and `.py`.
        verbs: the words one of which has to follow the program; empty where none has to.
        model: options that take the model, the file or the folder of its weights.
        positional: where the model may stand without an option: "first", among the words behind program and verb;
            "last"; or "" for nowhere.
        context: options that take the number of tokens of context.
        default_context: what it serves when none is given; None for what the model was made for.
        vision: options that take a projector for images.
        embedding: options that make it embed, as `--name`, or as `--name=value` where it takes only that value.
        only_embeds: it serves nothing but embeddings.
        names: options that take the name, or names, under which it serves its model.
        names_are: how one of these holds several: "words" that follow it, a list with "commas", or "one" name only.
        repository: options that take a repository of the hub, `user/repo:quant`.
        file: options that take a file of that repository, or the address of a file.
        adapters: options that take LoRA adapters, `name=path`, each of which it serves under its name.
        presets: options that take an .ini file with a section for each model.
        folder: options that take a folder of models.
        variables: environment variables and the options that they stand for.
        images: what the names of its container images have in them.
        prefix: what it puts before the name of a file to call its model.
        is_strict: it refuses a request that calls the model something else.
        lists_others: it lists what is in a cache, be it served or not.
        serves_several: each of its options for a model adds one.
    """

    name: str
    programs: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    model: tuple[str, ...] = ("--model",)
    positional: str = ""
    context: tuple[str, ...] = ()
    default_context: int | None = None
    vision: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()
    only_embeds: bool = False
    names: tuple[str, ...] = ()
    names_are: Literal["one", "words", "commas"] = "one"
    repository: tuple[str, ...] = ()
    file: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    folder: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(factory=dict)
    images: tuple[str, ...] = ()
    prefix: str = ""
    is_strict: bool = False
    lists_others: bool = False
    serves_several: bool = False


LLAMA_CPP: Final = EngineProgram(
    name="llama.cpp",
    programs=("llama-server", "llamafile", "engine_router.llamacpp"),
    model=("-m", "--model"),
    context=("-c", "--ctx-size"),
    vision=("-mm", "--mmproj"),
    embedding=("--embedding", "--embeddings"),
    names=("-a", "--alias"),
    names_are="commas",
    repository=("-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo"),
    file=("-hff", "--hf-file", "-mu", "--model-url"),
    presets=("--models-preset",),
    folder=("--models-dir",),
    variables={
        "LLAMA_ARG_MODEL": "--model",
        "LLAMA_ARG_ALIAS": "--alias",
        "LLAMA_ARG_HF_REPO": "--hf-repo",
        "LLAMA_ARG_HF_FILE": "--hf-file",
        "LLAMA_ARG_MODEL_URL": "--model-url",
        "LLAMA_ARG_DOCKER_REPO": "--docker-repo",
        "LLAMA_ARG_MODELS_PRESET": "--models-preset",
        "LLAMA_ARG_MODELS_DIR": "--models-dir",
    },
    images=("llama.cpp", "llama-cpp", "llama-server", "llamafile"),
)

_VLLM_EMBEDDING: Final = ("--task=embed", "--task=embedding", "--runner=pooling", "--convert=embed")
_VLLM_ADAPTERS: Final = ("--lora-modules",)
_SERVED_AS: Final = ("--served-model-name",)

ENGINE_PROGRAMS: Final = (
    LLAMA_CPP,
    EngineProgram(
        name="vLLM",
        programs=("vllm",),
        verbs=("serve",),
        positional="first",
        context=("--max-model-len",),
        embedding=_VLLM_EMBEDDING,
        names=_SERVED_AS,
        names_are="words",
        adapters=_VLLM_ADAPTERS,
        images=("vllm",),
        is_strict=True,
    ),
    EngineProgram(
        name="vLLM",
        programs=("vllm.entrypoints.openai.api_server",),
        context=("--max-model-len",),
        embedding=_VLLM_EMBEDDING,
        names=_SERVED_AS,
        names_are="words",
        adapters=_VLLM_ADAPTERS,
        is_strict=True,
    ),
    EngineProgram(
        name="SGLang",
        programs=("sglang.launch_server",),
        model=("--model-path", "--model"),
        context=("--context-length",),
        embedding=("--is-embedding",),
        names=_SERVED_AS,
        is_strict=True,
    ),
    EngineProgram(
        name="SGLang",
        programs=("sglang",),
        verbs=("serve",),
        model=("--model-path", "--model"),
        context=("--context-length",),
        embedding=("--is-embedding",),
        names=_SERVED_AS,
        is_strict=True,
    ),
    EngineProgram(
        name="KoboldCpp",
        programs=("koboldcpp",),
        positional="first",
        context=("--contextsize",),
        # Newer versions serve 8192. Clients that are told too little lose less than those that are told too much.
        default_context=4096,
        vision=("--mmproj",),
        images=("koboldcpp",),
        prefix="koboldcpp/",
    ),
    EngineProgram(
        name="llama-cpp-python",
        programs=("llama_cpp.server",),
        context=("--n_ctx",),
        default_context=2048,
        vision=("--clip_model_path",),
        embedding=("--embedding",),
        names=("--model_alias",),
        repository=("--hf_model_repo_id",),
        variables={"MODEL": "--model", "MODEL_ALIAS": "--model_alias", "HF_MODEL_REPO_ID": "--hf_model_repo_id"},
        images=("llama-cpp-python",),
    ),
    EngineProgram(
        name="MLX", programs=("mlx_lm.server", "mlx_vlm.server"), is_strict=True, lists_others=True
    ),
    EngineProgram(
        name="MLX", programs=("mlx_lm", "mlx_vlm"), verbs=("server",), is_strict=True, lists_others=True
    ),
    EngineProgram(
        name="oMLX", programs=("omlx",), verbs=("serve",), model=(), is_strict=True, lists_others=True
    ),
    EngineProgram(
        name="MAX",
        programs=("max", "max-pipelines"),
        verbs=("serve",),
        model=("--model", "--model-path"),
        context=("--max-length",),
        embedding=("--task=embeddings_generation",),
        names=_SERVED_AS,
        images=("modular/max",),
        is_strict=True,
    ),
    EngineProgram(
        name="transformers",
        programs=("transformers",),
        verbs=("serve",),
        model=("--force-model", "--force_model"),
        positional="first",
        is_strict=True,
    ),
    EngineProgram(
        name="infinity",
        programs=("infinity_emb",),
        verbs=("v2",),
        model=("--model-id",),
        only_embeds=True,
        names=_SERVED_AS,
        images=("/infinity",),
        is_strict=True,
        serves_several=True,
    ),
    EngineProgram(
        name="text-embeddings-inference",
        programs=("text-embeddings-router",),
        model=("--model-id",),
        only_embeds=True,
        names=_SERVED_AS,
        variables={"MODEL_ID": "--model-id", "SERVED_MODEL_NAME": "--served-model-name"},
        images=("text-embeddings-inference",),
    ),
    EngineProgram(
        name="text-generation-inference",
        programs=("text-generation-launcher",),
        model=("--model-id",),
        variables={"MODEL_ID": "--model-id"},
        images=("text-generation-inference",),
    ),
    EngineProgram(
        name="ramalama",
        programs=("ramalama",),
        verbs=("serve",),
        model=(),
        positional="last",
        context=("-c", "--ctx-size"),
    ),
    EngineProgram(
        name="LocalAI",
        programs=("local-ai", "localai"),
        verbs=("run",),
        model=(),
        positional="first",
        context=("--context-size",),
        images=("localai/", "/localai"),
        is_strict=True,
    ),
)  # fmt: skip

# What a program that is none of these may have: a script of one's own, a container.
UNKNOWN: Final = EngineProgram(
    name="",
    model=("-m", "--model", "--model-path", "--model-id"),
    context=("-c", "--ctx-size", "--max-model-len", "--context-length", "--contextsize", "--n_ctx"),
    vision=("--mmproj", "-mm"),
    embedding=("--embedding", "--embeddings", "--is-embedding"),
    names=("--served-model-name", "--alias", "--model-alias", "--model-name"),
    repository=("-hf", "--hf-repo"),
    variables={"MODEL_ID": "--model-id"},
)
