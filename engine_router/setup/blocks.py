"""Blocks of a proposed configuration: a table for an engine, and what each kind of engine needs to be told of."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen

KIND_NAMES: Final[Mapping[str, str]] = {
    "llamacpp": "llama.cpp", "llamacpp-router": "llama.cpp (router mode)", "vllm": "vLLM", "sglang": "SGLang",
    "ollama": "Ollama", "lmstudio": "LM Studio", "tabbyapi": "TabbyAPI", "koboldcpp": "KoboldCpp", "mlx": "MLX",
    "localai": "LocalAI", "max": "MAX", "infinity": "infinity", "openai": "an OpenAI server",
    "engine-router": "an engine-router",
}  # fmt: skip
# What the start of an engine needs to be told of it, beyond its command.
START_OPTIONS: Final[Mapping[str, Sequence[str]]] = {
    "vllm": ("start_timeout_s = 600", 'ready_path = "/v1/models"  # /health says yes too early'),
    "sglang": ("start_timeout_s = 900",),
    "koboldcpp": ('ready_path = "/api/extra/version"',),
    "mlx": ("start_timeout_s = 180", "discover = false  # it lists the whole download cache"),
    "localai": ('ready_path = "/readyz"',),
    "max": ("start_timeout_s = 600", 'ready_path = "/v1/health"'),
    "transformers": ("start_timeout_s = 300",),
}


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
    """The names of engines: the first of a kind has the plain one."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def new(self, kind: str) -> str:
        """Return a name for another engine of a kind."""
        base = re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-") or "engine"
        self._counts[base] += 1
        return base if self._counts[base] == 1 else f"{base}-{self._counts[base]}"


def commented(comment: str, lines: Sequence[str]) -> str:
    """Return the lines of a table below a comment."""
    return "\n".join([f"# {comment}", *lines]) + "\n"


def toml_string(text: str) -> str:
    """Return a string of TOML; one of JSON is one."""
    return json.dumps(text, ensure_ascii=False)


def toml_strings(texts: Sequence[str]) -> str:
    """Return a list of strings of TOML."""
    return f"[{', '.join(map(toml_string, texts))}]"
