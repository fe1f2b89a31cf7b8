"""Templates that are proposed for the models in folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from engine_router.config.values import expanded
from engine_router.models.scan.places import CACHES, HUGGING_FACE
from engine_router.setup.blocks import KIND_NAMES, Block, EngineNames, start_options, toml_strings
from engine_router.setup.detection import Detection
from engine_router.setup.hardware import Hardware, find_hardware
from engine_router.setup.programs import find_programs

_DEFAULT_CONTEXT: Final = 8192


def blocks_for_models(detection: Detection, names: EngineNames) -> Iterator[Block]:
    """Yield a template for each format of which there are models, and a program that reads it."""
    program = detection.has("llamacpp")
    if program is not None and (places := detection.places_with("gguf")):
        if HUGGING_FACE not in places:
            places = (*places, HUGGING_FACE)  # that is where `engine-router pull` puts models
        yield scan_block(
            names.new("llama"), program.argv, places, _count(detection, "gguf"), detection.hardware
        )
    for kind in ("vllm", "sglang", "mlx"):
        reader = detection.has(kind)
        if reader is not None and (places := detection.places_with("safetensors")):
            yield _safetensors_block(
                names.new(kind), kind, reader.argv, places, _count(detection, "safetensors")
            )
            return


def _count(detection: Detection, model_format: str) -> int:
    places, running = detection.places_with(model_format), detection.running_models()
    return sum(
        model.format == model_format and model.place in places and not running.have(model)
        for model in detection.models
    )


def scan_block(
    name: str, program: Sequence[str], places: Sequence[str], count: int, hardware: Hardware | None = None
) -> Block:
    """Return a template of llama.cpp for the models in some folders."""
    gpu = ["-ngl", "99"] if hardware is not None and hardware.gpus else []
    mapped = ["--no-mmap"] if hardware is not None and hardware.is_cuda_unified else []
    argv = [
        *program, "-m", "{path}", "--mmproj", "{mmproj}", "--alias", "{model}", "-c", "{ctx}", *gpu, *mapped,
        "--host", "127.0.0.1", "--port", "{port}", "--metrics",
    ]  # fmt: skip
    lines = [
        "# Every model in these folders, each in a llama.cpp server of its own while it is wanted.",
        f"[engines.{name}]",
        'type = "process"',
        f"argv = {toml_strings(argv)}",
        f"scan = {toml_strings(places)}",
        "",
        "# Settings for models by their names. What {ctx} becomes: more takes more memory.",
        "[families.all]",
        'match = "*"',
        f"context_length = {_DEFAULT_CONTEXT}",
    ]
    summary = f"llama.cpp: {count or 'the'} model{'' if count == 1 else 's'} in {', '.join(places)}"
    return Block(name, summary, "\n".join(lines) + "\n")


def scan_config(folders: Sequence[str]) -> str:
    """Return a configuration that serves the models in some folders with the llama.cpp that is installed.

    Raises:
        ValueError: none is.
    """
    program = next((each for each in find_programs() if each.kind == "llamacpp"), None)
    if program is None:
        raise ValueError(
            "no llama-server is installed; one comes with: pip install 'engine-router[llamacpp]'"
        )
    places = [folder if folder in CACHES else str(expanded(folder).absolute()) for folder in folders]
    return (
        f"[server]\nwatch_config = true\n{scan_block('llama', program.argv, places, 0, find_hardware()).text}"
    )


def _safetensors_block(
    name: str, kind: str, program: Sequence[str], places: Sequence[str], count: int
) -> Block:
    commands: Mapping[str, Sequence[str]] = {
        "vllm": (*program, "serve", "{path}", "--served-model-name", "{model}"),
        "sglang": (
            *program,
            "serve",
            "--model-path",
            "{path}",
            "--served-model-name",
            "{model}",
            "--enable-metrics",
        ),
        "mlx": (*program, "--model", "{path}"),
    }
    argv = [*commands[kind], "--host", "127.0.0.1", "--port", "{port}"]
    ready = ['ready_check = "model:{model}"'] if kind == "vllm" else []
    lines = [
        f"# Every folder of safetensors in these places, each in a {KIND_NAMES[kind]} server of its own while it is wanted.",
        f"[engines.{name}]",
        'type = "process"',
        f"argv = {toml_strings(argv)}",
        f"scan = {toml_strings(places)}",
        *start_options(kind),
        *ready,
    ]
    return Block(name, f"{KIND_NAMES[kind]}: {count} models in {', '.join(places)}", "\n".join(lines) + "\n")
