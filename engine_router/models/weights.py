"""The files of a model's weights, and the facts in them and in its engine's command line."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import evolve, frozen

from engine_router.config import Config, ContainerConfig, ModelConfig, OllamaConfig, ProcessConfig
from engine_router.config.container import path_outside
from engine_router.config.template import NO_ARGUMENTS, ModelArguments, model_command
from engine_router.config.values import expanded
from engine_router.engines.command_options import model_options, value_of
from engine_router.guards.limits import MAX_CONFIG_BYTES, MAX_WEIGHT_FILES
from engine_router.models.gguf import GGUFHeader, read_gguf, split_parts
from engine_router.models.target import Target

# What a chat template that knows of tools, or of thinking, has in it.
_TOOL_MARKS: Final = ("tools", "tool_calls", "tool_call")
_THINKING_MARKS: Final = ("<think>", "enable_thinking", "reasoning_content", "reasoning_effort", "thinking")

# llama.cpp's words for reading around the page cache.
_LOAD_MODE: Final = ("-lm", "--load-mode")
_DIRECT_IO: Final = frozenset(("-dio", "--direct-io"))

_TEMPLATE: Final = "tokenizer.chat_template"
_LONGEST_SHOWN: Final = 5  # numbers of an array; Ollama's own limit


@frozen(kw_only=True, repr=False)
class Weights:
    """The facts in a model's files.

    Attributes:
        format: "gguf" or "safetensors".
        architecture: such as "llama"; empty where it is not known.
        parameters: number of weights; 0 where it is not known.
        quantization: label such as "Q4_K_M"; empty where it is not known.
        context_length: tokens that the model was made for.
        capabilities: in Ollama's words.
        template: its chat template.
        license: such as "apache-2.0", or its text.
        size_bytes: size of its files.
        modified_at: when one of them was written last, in seconds since the epoch.
        info: all that its header says, in the form in which Ollama shows it.
    """

    format: str
    architecture: str
    parameters: int
    quantization: str
    context_length: int | None
    capabilities: tuple[str, ...]
    template: str
    license: str
    size_bytes: int
    modified_at: float
    info: Mapping[str, object]

    @property
    def parameter_size(self) -> str:
        """Number of weights as Ollama writes it, such as "7.6B"; empty where it is not known."""
        return human_number(self.parameters) if self.parameters else ""


def human_number(number: int) -> str:
    """Return a number of parameters as Ollama writes it.

    >>> [human_number(number) for number in (494_030_000, 7_600_000_000, 10**12)]
    ['494.03M', '7.6B', '1T']
    """
    for unit, letter, digits in ((10**12, "T", 1), (10**9, "B", 1), (10**6, "M", 2)):
        if number >= unit:
            return f"{number / unit:.{0 if number % unit == 0 else digits}f}{letter}"
    return f"{number / 1000:.0f}K" if number >= 1000 else str(number)


@frozen(kw_only=True)
class Launch:
    """The facts in the command line of a model's engine.

    Attributes:
        path: where its weights are.
        context_length: tokens of context that it is started with.
        vision: it gets a projector for images.
        embedding: it is started to embed.
        direct_io: its files are read around the page cache.
    """

    path: Path | None = None
    context_length: int | None = None
    vision: bool = False
    embedding: bool = False
    direct_io: bool = False


def model_config(config: Config, engine: str, upstream: str) -> ModelConfig | None:
    """Return what is configured for a model, given by the name that its engine knows."""
    return config.models_by_upstream.get((engine, upstream))


def launch_of(config: Config, engine: str, upstream: str) -> Launch:
    """Return how a model is started, as far as the configuration tells.

    Args:
        engine: its engine.
        upstream: the name that the engine knows it by.
    """
    settings = config.engines[engine]
    model = model_config(config, engine, upstream)
    path = model.path if model is not None else None
    if not isinstance(settings, (ProcessConfig, ContainerConfig)):
        return Launch(path=None if path is None else expanded(path))
    arguments = NO_ARGUMENTS if model is None else ModelArguments.of(model)
    values = arguments.values(upstream)
    command = model_command(settings.argv, arguments, values)
    options = model_options(command)
    if isinstance(settings, ContainerConfig):
        place = None if options.model is None else path_outside(settings, options.model, values)
        place = place if path is None else expanded(path)
    else:
        path = options.model if path is None else path
        place = None if path is None else expanded(settings.cwd or "") / expanded(path)
    return Launch(
        path=place,
        context_length=options.context_length,
        vision=options.vision,
        embedding=options.embedding,
        direct_io=value_of(command, _LOAD_MODE) == "dio" or not _DIRECT_IO.isdisjoint(command),
    )


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold a model's weights: all parts of a split GGUF file, or a folder's safetensors.

    In the order in which they are read. Blocks: call it in a thread.

    Raises:
        ValueError: a folder has more files than any model.
        OSError: it cannot be read.
    """
    if stat.S_ISDIR(path.stat().st_mode):
        return tuple(sorted(_safetensors(path)))
    return split_parts(path)


def read_weights(path: Path) -> Weights:
    """Read what a GGUF file, or a folder with safetensors, says about its model.

    Blocks: call it in a thread.

    Raises:
        ValueError: it is neither, or damaged; the text names the file and the fault.
        OSError: it cannot be read.
    """
    if stat.S_ISDIR(path.stat().st_mode):
        return _of_folder(path)
    header = read_gguf(path)
    return evolve(
        gguf_weights(header, gguf_capabilities(header)),
        template=header.text(_TEMPLATE),
        info={"general.parameter_count": header.parameters, **_shown(header)},
    )


def gguf_weights(header: GGUFHeader, capabilities: Sequence[str]) -> Weights:
    """Return the facts in a header, without its template and the whole of what it says."""
    return Weights(
        format="gguf",
        architecture=header.architecture,
        parameters=header.parameters,
        quantization=header.quantization,
        context_length=header.context_length,
        capabilities=tuple(capabilities),
        template="",
        license=header.text("general.license"),
        size_bytes=header.file_bytes,
        modified_at=header.modified_at,
        info={},
    )


def gguf_capabilities(header: GGUFHeader) -> tuple[str, ...]:
    """Return what a model can do, in Ollama's words, by its header and the chat templates in it."""
    template = "".join(str(text) for key, text in header.metadata.items() if key.startswith(_TEMPLATE))
    # A pooling type of 0 says that nothing is pooled; the BERTs embed, whatever else they say.
    if header.number("pooling_type") or "bert" in header.architecture:
        return ("embedding",)
    sees = ("vision",) if header.number("vision.block_count") else ()
    return ("completion", *template_capabilities(template), *sees)


def template_capabilities(template: str) -> tuple[str, ...]:
    """Return what a chat template shows that its model can do beside completing: tools, thinking."""
    found = []
    if any(mark in template for mark in _TOOL_MARKS):
        found.append("tools")
    if any(mark in template for mark in _THINKING_MARKS):
        found.append("thinking")
    return tuple(found)


def _shown(header: GGUFHeader) -> dict[str, object]:
    """Return the metadata as Ollama shows them: long arrays as null, the template elsewhere."""
    shown: dict[str, object] = {
        key: value
        for key, value in header.metadata.items()
        if not key.startswith(_TEMPLATE) and not (isinstance(value, float) and not math.isfinite(value))
    }
    for key in header.array_lengths:
        values = header.arrays.get(key, ())
        is_short = 0 < len(values) <= _LONGEST_SHOWN and all(math.isfinite(value) for value in values)
        shown[key] = list(values) if is_short else None
    return shown


def _of_folder(folder: Path) -> Weights:
    data = _json_object(folder / "config.json")
    # Of a model that also sees, the part that speaks.
    text = data["text_config"] if isinstance(data.get("text_config"), dict) else data
    architecture = _text(text, "model_type") or _text(data, "model_type")
    context = text.get("max_position_embeddings")
    quantization = data.get("quantization_config")
    files = [file.stat() for file in _safetensors(folder)]
    template = _template_of(folder)
    is_encoder = "bert" in architecture
    sees = "vision_config" in data
    return Weights(
        format="safetensors",
        architecture=architecture,
        parameters=0,
        quantization=_text(quantization, "quant_method") if isinstance(quantization, dict) else "",
        context_length=context if isinstance(context, int) and context > 0 else None,
        capabilities=("embedding",)
        if is_encoder
        else ("completion", *template_capabilities(template), *(("vision",) if sees else ())),
        template=template,
        license="",
        size_bytes=sum(file.st_size for file in files),
        modified_at=max((file.st_mtime for file in files), default=folder.stat().st_mtime),
        info={"general.architecture": architecture} if architecture else {},
    )


def _safetensors(folder: Path) -> list[Path]:
    found = []
    for number, file in enumerate(folder.iterdir()):
        if number >= MAX_WEIGHT_FILES:
            raise ValueError(f"{folder}: has more files than any model")
        if file.suffix == ".safetensors":
            found.append(file)
    return found


def _template_of(folder: Path) -> str:
    try:
        return _read_text(folder / "chat_template.jinja")
    except (OSError, ValueError):
        pass
    try:
        return _text(_json_object(folder / "tokenizer_config.json"), "chat_template")
    except (OSError, ValueError):
        return ""


def _json_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: not a JSON object")  # noqa: TRY004 - it is the value that is wrong
    return data


def _read_text(path: Path) -> str:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path}: not a file of at most {MAX_CONFIG_BYTES} bytes")
    return path.read_text("utf-8")


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) else ""


def weights_file_names(config: Config, targets: Iterable[Target]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the configured models by engine and by what an engine may call the file of their weights."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for target in targets:
        entry = config.models.get(target.variant_of or target.model)
        if isinstance(config.engines[target.engine], OllamaConfig) or (entry is not None and entry.found):
            continue  # what was found has the names that it has
        path = launch_of(config, target.engine, target.upstream).path
        for name in () if path is None else dict.fromkeys((str(path), path.name)):
            found[target.engine, name] = (*found.get((target.engine, name), ()), target.model)
    return found
