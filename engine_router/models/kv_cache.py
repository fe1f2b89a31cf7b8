"""Size of a model's KV cache, by the header of its GGUF file, as llama.cpp lays it out.

- Full attention: keys and values of every KV head, for each cell of the context (`llama_kv_cache`).
- Sliding window: as many cells as the window and one micro-batch, unless `--swa-full` is given
  (`llama_kv_cache_iswa`). Which layers have a window is in the header, or part of the architecture.
- Hybrid models (linear attention, state spaces): most layers have no cells, but a state of fixed size for each
  slot (`llama_memory_recurrent`).
- MLA: one compressed head; its widths are those that the header gives for keys and values.

Where a header leaves a choice, the larger number is taken. It is an estimate all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from engine_router.models.gguf import GGUFHeader

_CELLS: Final = 256

# One layer in so many has full attention, where the header has a window but does not say which layers have it:
# it is written into llama.cpp for these architectures. (Its phi3 has a window in the header and uses none.)
_SWA_PERIODS: Final[Mapping[str, int]] = {
    "afmoe": 4, "cohere2": 4, "exaone-moe": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6, "gemma3n": 5,
    "gpt-oss": 2, "gptoss": 2, "llama4": 4, "olmo2": 4, "smallthinker": 4,
}  # fmt: skip
# The same for linear attention.
_ATTENTION_INTERVALS: Final[Mapping[str, int]] = {"qwen35": 4, "qwen35moe": 4, "qwen3next": 4}
# Llama 4 attends to chunks of so many tokens.
_CHUNK: Final = 8192
_MOST_LAYERS: Final = 4096
_STATE_BYTES: Final = 4


@frozen(kw_only=True)
class Context:
    """The context of a server, and its division into slots.

    Attributes:
        tokens: of all slots together.
        slots: how many requests it serves at once.
        micro_batch: tokens that it processes at once.
        key_bytes, value_bytes: for each element of the cache.
        is_full: layers with a window have cells for the whole context all the same.
    """

    tokens: int
    slots: int = 1
    micro_batch: int = 512
    key_bytes: float = 2.0
    value_bytes: float = 2.0
    is_full: bool = False

    def cells(self, window: int | None = None) -> int:
        """Return the cells of a layer, with or without a window."""
        each = -(-self.tokens // self.slots)
        if window is not None and not self.is_full:
            each = min(each, window + self.micro_batch)
        return -(-each // _CELLS) * _CELLS * self.slots


def cache_bytes(header: GGUFHeader, context: Context) -> int:
    """Return the size of a model's cache and states, in bytes; 0 for a model without any."""
    if header.metadata.get(f"{header.architecture}.attention.causal") is False:
        return 0  # an encoder sees everything at once, and keeps nothing
    layers = min(header.block_count or 0, _MOST_LAYERS)
    kv_heads = _kv_heads(header, layers)
    windows = _windows(header, layers)
    total = 0.0
    for heads, window in zip(kv_heads, windows, strict=True):
        total += context.cells(window) * heads * _cell_bytes(header, context, has_window=window is not None)
    return int(total) + _state_bytes(header, layers, sum(not heads for heads in kv_heads)) * context.slots


def _cell_bytes(header: GGUFHeader, context: Context, *, has_window: bool) -> float:
    """Return what one KV head of one layer takes for one token."""
    heads = _heads(header)
    width = 0 if not heads else (header.embedding_length or 0) // heads
    keys = header.number("attention.key_length") or width
    values = header.number("attention.value_length") or width
    if has_window:
        keys = header.number("attention.key_length_swa") or keys
        values = header.number("attention.value_length_swa") or values
    return keys * context.key_bytes + values * context.value_bytes


def _heads(header: GGUFHeader) -> int:
    each = header.arrays.get(f"{header.architecture}.attention.head_count", ())
    return header.number("attention.head_count") or int(max(each, default=0))


def _kv_heads(header: GGUFHeader, layers: int) -> list[int]:
    """Return the KV heads of each layer; 0 for layers that keep a state instead, or use another layer's cells."""
    each = header.arrays.get(f"{header.architecture}.attention.head_count_kv")
    if each is not None:
        found = [int(number) for number in each][:layers]
        found += [0] * (layers - len(found))
    else:
        found = [header.number("attention.head_count_kv") or _heads(header)] * layers
    interval = header.number("full_attention_interval") or _ATTENTION_INTERVALS.get(header.architecture)
    if interval is not None:
        found = [heads if (index + 1) % interval == 0 else 0 for index, heads in enumerate(found)]
    shared = min(header.number("attention.shared_kv_layers") or 0, layers)
    return found[: layers - shared] + [0] * shared


def _windows(header: GGUFHeader, layers: int) -> list[int | None]:
    """Return the window of each layer; None for full attention."""
    window = header.number("attention.sliding_window")
    if header.architecture == "llama4":
        window = window or header.number("attention.chunk_size") or _CHUNK
    if window is None:
        return [None] * layers
    each = header.arrays.get(f"{header.architecture}.attention.sliding_window_pattern")
    if each is not None:
        has_window = [bool(flag) for flag in each][:layers]
        has_window += [False] * (layers - len(has_window))
    else:
        period = header.number("attention.sliding_window_pattern") or _SWA_PERIODS.get(header.architecture)
        if period is None:
            return [None] * layers
        # In SmallThinker the first layer of each period has full attention, elsewhere the last.
        dense = 0 if header.architecture == "smallthinker" else period - 1
        has_window = [index % period != dense for index in range(layers)]
    return [window if flag else None for flag in has_window]


def _state_bytes(header: GGUFHeader, layers: int, without_cells: int) -> int:
    """Return the size of the recurrent states of one slot."""
    inner = header.number("ssm.inner_size") or 0
    state = header.number("ssm.state_size") or 0
    if not inner:
        return 0
    kernel = header.number("ssm.conv_kernel") or 1
    groups = header.number("ssm.group_count") or 0
    each = (kernel - 1) * (inner + 2 * groups * state) + state * inner
    # Where every layer has cells, every layer has a state as well (Falcon H1).
    return each * (without_cells or layers) * _STATE_BYTES
