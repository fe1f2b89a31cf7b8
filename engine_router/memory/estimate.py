"""What a llama.cpp server will need, before it ever ran: from its command line and the headers of its files.

The formula is llama.cpp's own arithmetic, as its log prints it when it loads a model:

- weights: the tensors as they are in the file, of the model and of a draft model; a projector's file;
- KV cache: for each token of context and each layer, the keys and values of its KV heads, in the types of the
  cache (`llama_kv_cache`: `n_embd_k_gqa` and `n_embd_v_gqa` elements for each cell). Each slot's share of the
  context is rounded up to 256 cells. Layers with a sliding window count as if they had none: too much is safe;
- compute buffer: the logits and the activations of one micro-batch, and a quarter of a GiB for the rest.

It is what counts until the first start was measured, and never after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from engine_router.gguf import GGUFHeader, read_gguf

# Bytes for each element of the cache; the quantized ones are blocks of 32.
_CACHE_TYPES: Final[Mapping[str, float]] = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
    "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32,
}  # fmt: skip

_CELLS: Final = 256
_MICRO_BATCH: Final = 512
_ACTIVATIONS: Final = 16  # vectors of the width of an embedding that live at once
_OTHER_BYTES: Final = 2**28

_MODEL: Final = ("-m", "--model")
_DRAFT: Final = ("-md", "--model-draft", "--spec-draft-model")
_PROJECTOR: Final = ("-mm", "--mmproj")
_CONTEXT: Final = ("-c", "--ctx-size")
_SLOTS: Final = ("-np", "--parallel")
_MICRO: Final = ("-ub", "--ubatch-size")
_KEYS: Final = ("-ctk", "--cache-type-k")
_VALUES: Final = ("-ctv", "--cache-type-v")


def estimate_bytes(argv: Sequence[str], folder: Path = Path()) -> int | None:
    """Estimate what a command will need, in bytes; None where it names no GGUF file.

    Blocks, for milliseconds: call it in a thread.

    Args:
        argv: the command, its placeholders filled in.
        folder: what its paths are relative to.

    Raises:
        ValueError: the file is damaged, or not a GGUF file.
        OSError: it cannot be read.
    """
    model = _value(argv, _MODEL)
    if model is None:
        return None
    header = read_gguf(folder / model)
    need = header.tensor_bytes + kv_cache_bytes(header, argv) + _compute_bytes(header, argv)
    if (draft := _value(argv, _DRAFT)) is not None:
        need += read_gguf(folder / draft).tensor_bytes
    if (projector := _value(argv, _PROJECTOR)) is not None:
        need += (folder / projector).stat().st_size
    return need


def kv_cache_bytes(header: GGUFHeader, argv: Sequence[str]) -> int:
    """Return the size of the KV cache of a model under a command, in bytes; 0 for a model without one."""
    heads = header.number("attention.head_count") or _first(header.arrays, "attention.head_count", header)
    layers = header.block_count or 0
    width = 0 if not heads else (header.embedding_length or 0) // heads
    key_width = header.number("attention.key_length") or width
    value_width = header.number("attention.value_length") or width
    key_bytes = _CACHE_TYPES.get(_value(argv, _KEYS) or "f16", 2.0)
    value_bytes = _CACHE_TYPES.get(_value(argv, _VALUES) or "f16", 2.0)
    for_each_head = key_width * key_bytes + value_width * value_bytes
    return int(_cells(header, argv) * _kv_heads(header, layers, heads or 0) * for_each_head)


def _kv_heads(header: GGUFHeader, layers: int, heads: int) -> int:
    """Return the KV heads of all layers together: a number for all, or one for each."""
    each = header.arrays.get(f"{header.architecture}.attention.head_count_kv")
    if each is not None:
        return int(sum(each))
    return layers * (header.number("attention.head_count_kv") or heads)


def _first(arrays: Mapping[str, tuple[float, ...]], key: str, header: GGUFHeader) -> int:
    return int(max(arrays.get(f"{header.architecture}.{key}", (0,))))


def _cells(header: GGUFHeader, argv: Sequence[str]) -> int:
    context = _number(argv, _CONTEXT) or header.context_length or 0
    slots = max(1, _number(argv, _SLOTS) or 1)
    for_each_slot = -(-context // slots)
    return -(-for_each_slot // _CELLS) * _CELLS * slots


def _compute_bytes(header: GGUFHeader, argv: Sequence[str]) -> int:
    vocabulary = header.array_lengths.get("tokenizer.ggml.tokens", 0)
    width = header.embedding_length or 0
    batch = _number(argv, _MICRO) or _MICRO_BATCH
    return batch * (vocabulary + _ACTIVATIONS * width) * 4 + _OTHER_BYTES


def _value(argv: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the value that an option has in a command, the last one where it is given twice."""
    found = None
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in names and equals:
            found = value
        elif word in names and index + 1 < len(argv):
            found = argv[index + 1]
    return found


def _number(argv: Sequence[str], names: Sequence[str]) -> int | None:
    text = _value(argv, names)
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
