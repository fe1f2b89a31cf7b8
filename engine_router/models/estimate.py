"""Estimate of a llama.cpp server's memory before its first run, from its command line and the headers of its files.

The formula is llama.cpp's own arithmetic, as its log prints it when it loads a model:

- weights: the tensors as they are in the file, of the model and of a draft model; a projector's file;
- KV cache and states: see `kv_cache.py`;
- compute buffer: the logits and the activations of one micro-batch, and a quarter of a GiB for the rest.

The estimate counts until the first start was measured, and never after. It decides when a model starts, never
whether: only the weights are certain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from engine_router.config import ContainerConfig, ProcessConfig, StartedConfig
from engine_router.config.container import path_outside
from engine_router.config.values import expanded
from engine_router.engines.command_options import number_of, value_of
from engine_router.engines.engine_programs import LLAMA_CPP
from engine_router.models.gguf import GGUFHeader, read_gguf
from engine_router.models.kv_cache import Context, cache_bytes

# Bytes for each element of the cache; the quantized ones are blocks of 32.
_CACHE_TYPES: Final[Mapping[str, float]] = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
    "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32,
}  # fmt: skip

_MICRO_BATCH: Final = 512
_ACTIVATIONS: Final = 16  # vectors of the width of an embedding that live at once
_OTHER_BYTES: Final = 2**28

_DRAFT: Final = ("-md", "--model-draft", "--spec-draft-model")
_SLOTS: Final = ("-np", "--parallel")
_MICRO: Final = ("-ub", "--ubatch-size")
_KEYS: Final = ("-ctk", "--cache-type-k")
_VALUES: Final = ("-ctv", "--cache-type-v")
_FULL_WINDOWS: Final = "--swa-full"


@frozen
class Estimate:
    """The memory that a command will need.

    Attributes:
        need_bytes: all of it, as far as is known; rather too much than too little.
        weights_bytes: what no setting can change: the weights alone.
    """

    need_bytes: int
    weights_bytes: int


def estimate(
    argv: Sequence[str], folder: Path = Path(), read: Callable[[Path], GGUFHeader] = read_gguf
) -> Estimate | None:
    """Estimate what a command will need; None where it names no GGUF file.

    Blocks, for milliseconds: call it in a thread.

    Args:
        argv: the command, its placeholders filled in.
        folder: what its paths are relative to.
        read: reads the header of a GGUF file.

    Raises:
        ValueError: the file is damaged, or not a GGUF file.
        OSError: it cannot be read.
    """
    model = value_of(argv, LLAMA_CPP.model)
    if model is None:
        return None
    header = read(folder / model)
    weights = header.tensor_bytes
    if (draft := value_of(argv, _DRAFT)) is not None:
        weights += read(folder / draft).tensor_bytes
    if (projector := value_of(argv, LLAMA_CPP.vision)) is not None:
        weights += (folder / projector).stat().st_size
    need = weights + cache_bytes(header, context_of(header, argv)) + _compute_bytes(header, argv)
    return Estimate(need, weights)


def estimate_of(
    settings: StartedConfig,
    argv: Sequence[str],
    values: Mapping[str, str],
    read: Callable[[Path], GGUFHeader],
) -> Estimate | None:
    """Estimate what a server will need that the router starts, its files found where they are on this machine.

    Blocks, as `estimate` does.

    Args:
        argv: its command, the placeholders filled in.
        values: of the placeholders, for what is mounted into a container.
        read: reads the header of a GGUF file.

    Raises:
        ValueError: as `estimate`; or a file in a container is none of this machine.
        OSError: as `estimate`.
    """
    if isinstance(settings, ProcessConfig):
        return estimate(argv, expanded(settings.cwd or ""), read)
    if not isinstance(settings, ContainerConfig):
        return None
    container = settings

    def read_outside(path: Path) -> GGUFHeader:
        outside = path_outside(container, path.as_posix(), values)
        if outside is None:
            raise ValueError(f"{path.as_posix()} is in the container only: no folder of volumes has it")
        return read(outside)

    return estimate(argv, Path(), read_outside)


def context_of(header: GGUFHeader, argv: Sequence[str]) -> Context:
    """Return how a command divides a model's context."""
    return Context(
        tokens=number_of(argv, LLAMA_CPP.context) or header.context_length or 0,
        slots=max(1, number_of(argv, _SLOTS) or 1),
        micro_batch=number_of(argv, _MICRO) or _MICRO_BATCH,
        key_bytes=_CACHE_TYPES.get(value_of(argv, _KEYS) or "f16", 2.0),
        value_bytes=_CACHE_TYPES.get(value_of(argv, _VALUES) or "f16", 2.0),
        is_full=_FULL_WINDOWS in argv,
    )


def _compute_bytes(header: GGUFHeader, argv: Sequence[str]) -> int:
    vocabulary = header.array_lengths.get("tokenizer.ggml.tokens", 0)
    width = header.embedding_length or 0
    batch = number_of(argv, _MICRO) or _MICRO_BATCH
    return batch * (vocabulary + _ACTIVATIONS * width) * 4 + _OTHER_BYTES
