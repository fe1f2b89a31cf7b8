"""Blocks of a proposed configuration: a table for an engine, and what each kind of engine needs to be told of."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import tomli
from attrs import frozen

from engine_router.setup.presets import NO_KEYS, PresetError, find_preset
from engine_router.setup.toml_text import toml_value

KIND_NAMES: Final[Mapping[str, str]] = {
    "llamacpp": "llama.cpp", "llamacpp-router": "llama.cpp (router mode)", "vllm": "vLLM", "sglang": "SGLang",
    "ollama": "Ollama", "lmstudio": "LM Studio", "tabbyapi": "TabbyAPI", "koboldcpp": "KoboldCpp", "mlx": "MLX",
    "localai": "LocalAI", "max": "MAX", "infinity": "infinity", "openai": "an OpenAI server",
    "engine-router": "an engine-router",
}  # fmt: skip
# What a preset says of its kind of engine, and not of one model or of the command that the router starts.
_OF_KIND: Final = (
    "start_timeout_s",
    "stop_timeout_s",
    "ready_path",
    "discover",
    "endpoints",
    "stream_upstream",
    "metrics_path",
)
# How it says that an engine is called.
_CALLS: Final = ("headers", "metrics_path", "load", "unload", "loaded")


def start_options(kind: str) -> list[str]:
    """Return what an engine needs to be told of its kind, beyond its command, as its preset says it."""
    return _of_preset(kind, _OF_KIND)


def call_options(kind: str) -> list[str]:
    """Return how an engine is told to load and unload models, as its preset says it."""
    return _of_preset(kind, _CALLS)


def _of_preset(kind: str, keys: Sequence[str]) -> list[str]:
    try:
        text = find_preset(kind).block
    except PresetError:
        return []
    for name, word in NO_KEYS.items():
        text = text.replace(f"<{name}>", word)
    (table,) = tomli.loads(text)["engines"].values()
    found = {key: toml_value(table[key]) for key in keys if key in table}
    return [f"{key} = {value}" for key, value in found.items() if "<" not in value]


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


class EngineNames:
    """The names of engines: the first of a kind has the plain one. The ids of their models, each of one engine only."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._models: set[str] = set()

    def new(self, kind: str) -> str:
        """Return a name for another engine of a kind."""
        base = re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-") or "engine"
        self._counts[base] += 1
        return base if self._counts[base] == 1 else f"{base}-{self._counts[base]}"

    def new_models(self, ids: Sequence[str]) -> list[str]:
        """Return the ids that no engine has so far; they are the next one's."""
        found = [name for name in ids if name not in self._models]
        self._models.update(found)
        return found


def commented(comment: str, lines: Sequence[str]) -> str:
    """Return the lines of a table below a comment."""
    return "\n".join([f"# {comment}", *lines]) + "\n"


def toml_string(text: str) -> str:
    """Return a string of TOML; one of JSON is one."""
    return json.dumps(text, ensure_ascii=False)


def toml_strings(texts: Sequence[str]) -> str:
    """Return a list of strings of TOML."""
    return f"[{', '.join(map(toml_string, texts))}]"
