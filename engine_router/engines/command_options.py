"""Engines' command lines: which engine a command starts, and what its options say about the model.

One table for each kind of engine, by its documentation. What a command does not say has the engine's own default.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from attrs import frozen

_SUFFIX: Final = re.compile(r"(\.exe|\.py)$", re.IGNORECASE)
_AMOUNT: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([kKmM]?)")
_FACTORS: Final = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}
_NO: Final = frozenset(("false", "0", "no", "off"))


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


LLAMA_CPP: Final = EngineProgram(
    name="llama.cpp",
    programs=("llama-server", "llamafile", "engine_router.llamacpp"),
    model=("-m", "--model"),
    context=("-c", "--ctx-size"),
    vision=("-mm", "--mmproj"),
    embedding=("--embedding", "--embeddings"),
)

ENGINE_PROGRAMS: Final = (
    LLAMA_CPP,
    EngineProgram(
        name="vLLM",
        programs=("vllm",),
        verbs=("serve",),
        positional="first",
        context=("--max-model-len",),
        embedding=("--task=embed", "--task=embedding", "--runner=pooling", "--convert=embed"),
    ),
    EngineProgram(
        name="vLLM",
        programs=("vllm.entrypoints.openai.api_server",),
        context=("--max-model-len",),
        embedding=("--task=embed", "--task=embedding", "--runner=pooling", "--convert=embed"),
    ),
    EngineProgram(
        name="SGLang",
        programs=("sglang.launch_server",),
        model=("--model-path", "--model"),
        context=("--context-length",),
        embedding=("--is-embedding",),
    ),
    EngineProgram(
        name="SGLang",
        programs=("sglang",),
        verbs=("serve",),
        model=("--model-path", "--model"),
        context=("--context-length",),
        embedding=("--is-embedding",),
    ),
    EngineProgram(
        name="KoboldCpp",
        programs=("koboldcpp",),
        positional="first",
        context=("--contextsize",),
        # Newer versions serve 8192. Clients that are told too little lose less than those that are told too much.
        default_context=4096,
        vision=("--mmproj",),
    ),
    EngineProgram(
        name="llama-cpp-python",
        programs=("llama_cpp.server",),
        context=("--n_ctx",),
        default_context=2048,
        vision=("--clip_model_path",),
        embedding=("--embedding",),
    ),
    EngineProgram(name="MLX", programs=("mlx_lm.server", "mlx_vlm.server"), model=("--model",)),
    EngineProgram(name="MLX", programs=("mlx_lm", "mlx_vlm"), verbs=("server",), model=("--model",)),
    EngineProgram(
        name="MAX",
        programs=("max", "max-pipelines"),
        verbs=("serve",),
        model=("--model", "--model-path"),
        context=("--max-length",),
        embedding=("--task=embeddings_generation",),
    ),
    EngineProgram(
        name="transformers",
        programs=("transformers",),
        verbs=("serve",),
        model=("--force-model", "--force_model"),
        positional="first",
    ),
    EngineProgram(
        name="infinity",
        programs=("infinity_emb",),
        verbs=("v2",),
        model=("--model-id",),
        only_embeds=True,
    ),
    EngineProgram(
        name="text-embeddings-inference",
        programs=("text-embeddings-router",),
        model=("--model-id",),
        only_embeds=True,
    ),
    EngineProgram(
        name="ramalama",
        programs=("ramalama",),
        verbs=("serve",),
        model=(),
        positional="last",
        context=("-c", "--ctx-size"),
    ),
    EngineProgram(name="LocalAI", programs=("local-ai", "localai"), verbs=("run",), model=(), context=("--context-size",)),
)  # fmt: skip

# What a program that is none of these may have: a script of one's own, a container.
_UNKNOWN: Final = EngineProgram(
    name="",
    model=("-m", "--model", "--model-path", "--model-id"),
    context=("-c", "--ctx-size", "--max-model-len", "--context-length", "--contextsize", "--n_ctx"),
    vision=("--mmproj", "-mm"),
    embedding=("--embedding", "--embeddings", "--is-embedding"),
)


@frozen(kw_only=True)
class ModelOptions:
    """The options of a command that concern the model that it serves.

    Attributes:
        kind: the kind of engine; without a name where it is not known.
        model: the file or folder of its weights, or the name of a repository.
        context_length: tokens of context; None for what the model was made for.
        vision: it gets a projector for images.
        embedding: it is started to embed.
    """

    kind: EngineProgram
    model: str | None
    context_length: int | None
    vision: bool
    embedding: bool


def model_options(argv: Sequence[str]) -> ModelOptions:
    """Read a command."""
    kind, words = _own_words(argv)
    model = value_of(words, kind.model)
    if model is None and kind.positional:
        model = _positional(words, kind)
    if model is not None and model.startswith("file://"):
        model = model.removeprefix("file://")
    context = amount(value_of(words, kind.context))
    if context is None and value_of(words, kind.context) is None:
        context = kind.default_context
    return ModelOptions(
        kind=kind,
        model=model,
        context_length=context,
        vision=value_of(words, kind.vision) is not None,
        embedding=kind.only_embeds or any(_has(words, name) for name in kind.embedding),
    )


def value_of(argv: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the value that an option has in a command: `--name value` or `--name=value`.

    Of several the last one, as servers do. `_` in a name means `-`, as Python's servers have it.
    """
    found = None
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if not _is_one_of(name, names):
            continue
        if equals:
            found = value
        elif index + 1 < len(argv):
            found = argv[index + 1]
    return found


def number_of(argv: Sequence[str], names: Sequence[str]) -> int | None:
    """Return the whole number that an option has in a command; None where it has none."""
    text = value_of(argv, names)
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None


def amount(text: str | None) -> int | None:
    """Read a number of tokens, such as `8192`, `32k` (thousands) or `32K` (times 1024); None for none, or 0."""
    found = _AMOUNT.fullmatch(text or "")
    return None if found is None else int(float(found[1]) * _FACTORS[found[2]]) or None


def _own_words(argv: Sequence[str]) -> tuple[EngineProgram, Sequence[str]]:
    """Return the kind of engine that a command starts, and the words behind its program.

    Whatever runs the program may stand before it: Python, `env`, `nice`, `uv run`, a container's command.
    """
    for index, word in enumerate(argv):
        name = _SUFFIX.sub("", re.split(r"[/\\]", word)[-1].lower())
        following = argv[index + 1] if index + 1 < len(argv) else ""
        for kind in ENGINE_PROGRAMS:
            if not any(_is_called(name, program) for program in kind.programs):
                continue
            if not kind.verbs:
                return kind, argv[index + 1 :]
            if following in kind.verbs:
                return kind, argv[index + 2 :]
    return _UNKNOWN, argv[1:]


def _is_called(name: str, program: str) -> bool:
    """Tell whether a file is a program, of whatever version or build: `koboldcpp-linux-x64`."""
    return name == program or name.startswith((f"{program}-", f"{program}_"))


def _positional(words: Sequence[str], kind: EngineProgram) -> str | None:
    """Return the model that stands without an option in front of it."""
    if not words:
        return None
    word = words[0] if kind.positional == "first" else words[-1]
    return None if word.startswith("-") else word


def _has(words: Sequence[str], option: str) -> bool:
    """Tell whether a command has an option, or one with a certain value; `--embedding false` is none."""
    name, equals, wanted = option.partition("=")
    if equals:
        return value_of(words, (name,)) == wanted
    for index, word in enumerate(words):
        given, has_value, value = word.partition("=")
        if _is_one_of(given, (name,)):
            following = words[index + 1] if index + 1 < len(words) else ""
            if (value if has_value else following).lower() not in _NO:
                return True
    return False


def _is_one_of(name: str, names: Sequence[str]) -> bool:
    if name in names:
        return True
    return name.startswith("--") and "_" in name and name.replace("_", "-") in names
