"""A proposed configuration: what a detection found, as tables of `engines.toml` with comments that explain them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from attrs import frozen

from engine_router.config.values import expanded
from engine_router.guards.foreign_text import shown
from engine_router.guards.masking import masked_argv
from engine_router.models.scan.places import CACHES
from engine_router.models.served_names import served_models
from engine_router.setup.detection import Detection
from engine_router.setup.hardware import Hardware, find_hardware
from engine_router.setup.listeners import Listener
from engine_router.setup.programs import find_programs

_NAMES: Final[Mapping[str, str]] = {
    "llamacpp": "llama.cpp", "llamacpp-router": "llama.cpp (router mode)", "vllm": "vLLM", "sglang": "SGLang",
    "ollama": "Ollama", "lmstudio": "LM Studio", "tabbyapi": "TabbyAPI", "koboldcpp": "KoboldCpp", "mlx": "MLX",
    "localai": "LocalAI", "max": "MAX", "infinity": "infinity", "openai": "an OpenAI server",
    "engine-router": "an engine-router",
}  # fmt: skip
# Engines that load and unload when told, and so go on running.
_LOADING: Final[Mapping[str, Sequence[str]]] = {
    "lmstudio": (
        'load = { path = "/api/v1/models/load", body = { model = "{model}" } }',
        'unload = { path = "/api/v1/models/unload", body = { instance_id = "{instance}" } }',
        'loaded = { path = "/api/v1/models", key = "models", id = "key", instances = "loaded_instances" }',
    ),
    "llamacpp-router": (
        'load = { path = "/models/load", body = { model = "{model}" } }',
        'unload = { path = "/models/unload", body = { model = "{model}" } }',
        'loaded = { path = "/models", key = "data", filter = { "status.value" = "loaded" } }',
    ),
    "tabbyapi": (
        "# Put in TabbyAPI's keys (api_tokens.yml), and list its models: models = [...].",
        'headers = { x-api-key = "YOUR-KEY" }',
        'load = { path = "/v1/model/load", headers = { x-admin-key = "YOUR-ADMIN-KEY" }, body = { model_name = "{model}" } }',
        'unload = { path = "/v1/model/unload", headers = { x-admin-key = "YOUR-ADMIN-KEY" } }',
        'loaded = { path = "/v1/model" }',
    ),
}
# What the start of an engine needs to be told of it, beyond its command.
_STARTING: Final[Mapping[str, Sequence[str]]] = {
    "vllm": ("start_timeout_s = 600", 'ready_path = "/v1/models"  # /health says yes too early'),
    "sglang": ("start_timeout_s = 900",),
    "koboldcpp": ('ready_path = "/api/extra/version"',),
    "mlx": ("start_timeout_s = 180", "discover = false  # it lists the whole download cache"),
    "localai": ('ready_path = "/readyz"',),
    "max": ("start_timeout_s = 600", 'ready_path = "/v1/health"'),
    "transformers": ("start_timeout_s = 300",),
}
_DEFAULT_CONTEXT: Final = 8192


@frozen
class Block:
    """A table that is proposed, or the reason why none is.

    Attributes:
        name: the engine's name.
        summary: what it is, in a line.
        text: the table, with comments; empty where there is none.
    """

    name: str
    summary: str
    text: str


@frozen
class Proposal:
    """A proposed configuration.

    Attributes:
        memory: what is proposed for the memory, in a line.
        pools: its tables.
        blocks: the engines.
        left_out: what runs here and is not proposed, and why.
    """

    memory: str
    pools: str
    blocks: tuple[Block, ...]
    left_out: tuple[str, ...]

    def text(self, wanted: Sequence[Block], *, host: str, port: int, key: str | None) -> str:
        """Return the whole file.

        Args:
            wanted: the blocks that are to be in it.
            host, port: where the router listens.
            key: what clients have to send; None for nothing.
        """
        keys = (
            []
            if key is None
            else ["# Clients send it as Bearer token or X-API-Key.", f"api_keys = [{_string(key)}]"]
        )
        server = [
            "[server]",
            f"host = {_string(host)}",
            f"port = {port}",
            *keys,
            "# Take over changes of this file, and of folders with models, as they happen.",
            "watch_config = true",
        ]
        parts = [_HEAD, "\n".join(server) + "\n", self.pools, *(block.text for block in wanted)]
        return "\n".join(part for part in parts if part)


_HEAD: Final = """\
# Made by `engine-router init` from what it found on this machine. Change it as you like: `engine-router check` tells
# what is wrong with it, and engines.toml.example (`engine-router init --example`) shows all that can be said.
"""


def propose(detection: Detection) -> Proposal:
    """Return a configuration for what was found."""
    memory, pools = _memory(detection.hardware)
    names = _Names()
    blocks = [*_scanning(detection, names)]
    left_out: list[str] = []
    for listener in detection.listeners.engines:
        found = _running(listener, names)
        if isinstance(found, Block):
            blocks.append(found)
        else:
            left_out.append(found)
    blocks += _idle(detection, names)
    return Proposal(memory, pools, tuple(blocks), tuple(left_out))


class _Names:
    """The names of engines: the first of a kind has the plain one."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def new(self, kind: str) -> str:
        """Return a name for another engine of a kind."""
        base = re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-") or "engine"
        self._counts[base] += 1
        return base if self._counts[base] == 1 else f"{base}-{self._counts[base]}"


def _memory(hardware: Hardware | None) -> tuple[str, str]:
    """Return what is done about memory, in a line, and the pools' tables."""
    if hardware is None:
        return "unknown: as the system tells it", ""
    if hardware.is_cuda_unified:
        pools = '# The GPU uses the main memory, and counts the page cache as used.\n[pools.default]\ngauge = "memfree"\n'
        return f"{_gigabytes(hardware.memory_bytes)}, shared by GPU and CPU", pools
    if hardware.is_unified:
        return f"{_gigabytes(hardware.memory_bytes)}, shared by GPU and CPU", ""
    cards = [gpu for gpu in hardware.gpus if gpu.index is not None and gpu.memory_bytes]
    if not cards:
        return f"{_gigabytes(hardware.memory_bytes)} of main memory", ""
    lines: list[str] = [
        "# One memory holds one heavy model at a time; this one is the GPU's.",
        "[pools.default]",
        'gauge = "nvml"',
        "gpu = 0",
    ]
    for card in cards[1:]:
        lines += [
            f'# {card.name}, {_gigabytes(card.memory_bytes or 0)}: for engines with `pool = "gpu{card.index}"` and',
            f'# `env = {{ CUDA_VISIBLE_DEVICES = "{card.index}" }}`.',
            f"#[pools.gpu{card.index}]",
            '#gauge = "nvml"',
            f"#gpu = {card.index}",
        ]
    said = ", ".join(f"{card.name} with {_gigabytes(card.memory_bytes or 0)}" for card in cards)
    return said, "\n".join(lines) + "\n"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.0f} GB"


# Folders of models


def _scanning(detection: Detection, names: _Names) -> Iterator[Block]:
    """Yield a template for each format of which there are models, and a program that reads it."""
    program = detection.has("llamacpp")
    if program is not None and (places := detection.places_with("gguf")):
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
    return sum(model.format == model_format for model in detection.models)


def scan_block(
    name: str, program: Sequence[str], places: Sequence[str], count: int, hardware: Hardware | None = None
) -> Block:
    """Return a template of llama.cpp for the models in some folders."""
    gpu = ["-ngl", "99"] if hardware is not None and hardware.gpus else []
    mapped = ["--no-mmap"] if hardware is not None and hardware.is_cuda_unified else []
    argv = [
        *program, "-m", "{path}", "--mmproj", "{mmproj}", "--alias", "{model}", "-c", "{ctx}", *gpu, *mapped,
        "--host", "127.0.0.1", "--port", "{port}",
    ]  # fmt: skip
    lines = [
        "# Every model in these folders, each in a llama.cpp server of its own while it is wanted.",
        f"[engines.{name}]",
        'type = "process"',
        f"argv = {_strings(argv)}",
        f"scan = {_strings(places)}",
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
        "sglang": (*program, "serve", "--model-path", "{path}", "--served-model-name", "{model}"),
        "mlx": (*program, "--model", "{path}"),
    }
    argv = [*commands[kind], "--host", "127.0.0.1", "--port", "{port}"]
    ready = ['ready_check = "model:{model}"'] if kind == "vllm" else []
    lines = [
        f"# Every folder of safetensors in these places, each in a {_NAMES[kind]} server of its own while it is wanted.",
        f"[engines.{name}]",
        'type = "process"',
        f"argv = {_strings(argv)}",
        f"scan = {_strings(places)}",
        *_STARTING.get(kind, ()),
        *ready,
    ]
    return Block(name, f"{_NAMES[kind]}: {count} models in {', '.join(places)}", "\n".join(lines) + "\n")


# Engines that run


def _running(listener: Listener, names: _Names) -> Block | str:
    """Return the table of an engine that runs; why there is none, where there is none."""
    kind = listener.kind or "openai"
    said = f"{_NAMES.get(kind, kind)} at {listener.base_url}"
    if (obstacle := _obstacle(listener, kind)) is not None:
        return f"{said} {obstacle}"
    if kind == "ollama":
        return _as_ollama(listener, names, said)
    if kind in _LOADING:
        return _as_loading(listener, names, kind, said)
    make = _as_process if listener.unit is None else _as_unit
    return make(listener, names, kind, said)


def _obstacle(listener: Listener, kind: str) -> str | None:
    """Return why an engine that runs is not proposed."""
    if kind == "engine-router":
        return "serves its own models, and shall have a port of its own"
    if kind == "ollama" or kind in _LOADING:
        return None
    if listener.container is not None:
        return f"runs in container {listener.container}: the router cannot start and stop that yet"
    if listener.unit is None and not listener.argv:
        return "belongs to another user, so its command is not known"
    if kind == "openai":
        return f"is of no kind that is known, so how it is started is not (its command: {_command(listener)})"
    return None


def _as_loading(listener: Listener, names: _Names, kind: str, said: str) -> Block:
    name = names.new(kind)
    lines = [
        f"[engines.{name}]",
        'type = "http"',
        f"base_url = {_string(listener.base_url)}",
        *_LOADING[kind],
    ]
    return Block(
        name, f"{said}: told what to load", _commented(f"{said}, which loads and unloads when told.", lines)
    )


def _as_ollama(listener: Listener, names: _Names, said: str) -> Block:
    name = names.new("ollama")
    lines = [f"[engines.{name}]", 'type = "ollama"', f"base_url = {_string(listener.base_url)}"]
    return Block(
        name,
        f"{said}: all of its models",
        _commented(f"{said}: the router loads and unloads its models.", lines),
    )


def _as_unit(listener: Listener, names: _Names, kind: str, said: str) -> Block:
    name = names.new(kind)
    scope = "user" if listener.is_user_unit else "system"
    lines = [
        f"[engines.{name}]",
        'type = "systemd"',
        f"unit = {_string(listener.unit or '')}",
        f"scope = {_string(scope)}",
        *(
            []
            if listener.is_user_unit
            else [
                "# Where your user may not start and stop it, and sudo asks for no password:",
                '#prefix = ["sudo", "-n"]',
            ]
        ),
        f"base_url = {_string(listener.base_url)}",
        *(line for line in _STARTING.get(kind, ())),
    ]
    return Block(
        name, f"{said}: unit {listener.unit}", _commented(f"{said}. The unit is started and stopped.", lines)
    )


def _as_process(listener: Listener, names: _Names, kind: str, said: str) -> Block:
    name = names.new(kind)
    ids = [model.name for model in served_models(listener.argv, {}).models]
    lines = [
        f"[engines.{name}]",
        'type = "process"',
        f"argv = {_strings(listener.argv)}",
        f"base_url = {_string(listener.base_url)}",
        *([f"cwd = {_string(listener.cwd)}"] if listener.cwd else []),
        *([f"models = {_strings(ids)}"] if ids else []),
        *_STARTING.get(kind, ()),
    ]
    what = (
        f"{said}. It is taken over as it runs, stopped to make room, and started again by the same command."
    )
    return Block(name, f"{said}: {', '.join(ids) or 'its model'}", _commented(what, lines))


def _command(listener: Listener) -> str:
    return shown(" ".join(masked_argv(listener.argv)), 60)


# Engines that are installed


def _idle(detection: Detection, names: _Names) -> Iterator[Block]:
    """Yield what is installed, does not run, and needs no more than to be named."""
    running = {listener.kind for listener in detection.listeners.engines}
    if detection.has("ollama") is not None and "ollama" not in running:
        name = names.new("ollama")
        lines = [f"[engines.{name}]", 'type = "ollama"']
        yield Block(
            name,
            "Ollama: installed, does not run now",
            _commented("Ollama, once it runs (ollama serve).", lines),
        )


def _commented(comment: str, lines: Sequence[str]) -> str:
    return "\n".join([f"# {comment}", *lines]) + "\n"


def _string(text: str) -> str:
    """Return a string of TOML; one of JSON is one."""
    return json.dumps(text, ensure_ascii=False)


def _strings(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(_string, texts))}]"
