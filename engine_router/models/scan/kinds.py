"""What a GGUF file is: a model, or something that goes with one. Its header says so; its name only where that does not."""

from __future__ import annotations

import re
from typing import Final, Literal

from engine_router.models.gguf import GGUFHeader
from engine_router.models.scan.naming import name_stem

Kind = Literal[
    "model", "projector", "adapter", "draft", "imatrix", "vocabulary", "vocoder", "image model", "unknown"
]

REASONS: Final = {
    "adapter": "is an adapter, not a model: name it with --lora in its model's arguments",
    "draft": "is a draft model: name it with --model-draft in its model's arguments",
    "imatrix": "is an importance matrix, not a model",
    "vocabulary": "holds a vocabulary only, not a model",
    "vocoder": "is a vocoder, not a model: name it with --model-vocoder in its model's arguments",
    "image model": "is a model that makes images: llama.cpp does not run it",
    "unknown": "names no architecture in its header",
}

# `general.type`, by the present and by older converters.
_TYPES: Final[dict[str, Kind]] = {
    "mmproj": "projector",
    "projector": "projector",
    "clip-vision": "projector",
    "adapter": "adapter",
    "controlvector": "adapter",
    "imatrix": "imatrix",
    "vocab": "vocabulary",
}
_ARCHITECTURES: Final[dict[str, Kind]] = {
    "clip": "projector",
    "controlvector": "adapter",
    "imatrix": "imatrix",
    "wavtokenizer-dec": "vocoder",
    **dict.fromkeys(
        (
            *("aura", "auraflow", "chroma", "cosmos", "flux", "flux2", "hidream", "hyvid", "hunyuan_video", "ltxv"),
            *("lumina2", "mochi", "pixart", "qwen_image", "sd1", "sd3", "sdxl", "wan", "z_image"),
        ),
        "image model",
    ),
}  # fmt: skip
_DRAFT_ARCHITECTURE: Final = re.compile(r"(?:^|[-_])(?:eagle\d?|dflash|mtp|medusa)(?:$|[-_])")
_TOKEN: Final = re.compile(r"[a-z0-9]+")
# Words of a name, not letters within one. The first say it of a whole model too; the others are names of methods,
# of families (RWKV's Eagle), and of models that hold such layers beside all their own.
_DRAFT_WORDS: Final = frozenset(("draft", "drafter"))
_HEAD_WORDS: Final = frozenset(("eagle", "eagle2", "eagle3", "dflash", "mtp", "nextn", "medusa"))
# Heads have up to 8 layers, the smallest models 12; and each layer of a model has at least 6 tensors.
_MOST_HEAD_LAYERS: Final = 8
_FEWEST_TENSORS: Final = 3
_PROJECTOR_WORD: Final = "mmproj"


def kind_of(name: str, header: GGUFHeader) -> Kind:
    """Return what a file is.

    Args:
        name: the file's.
        header: its header; of a model in several files, that of all of them together.
    """
    if (said := _said(header)) is not None:
        return said
    words = _TOKEN.findall(name_stem(name).lower())
    if not header.architecture:
        return "imatrix" if "imatrix" in words else "unknown"
    if not header.tensor_count:
        return "vocabulary"
    if _is_draft(words, header):
        return "draft"
    return "projector" if _PROJECTOR_WORD in words and not header.block_count else "model"


def _said(header: GGUFHeader) -> Kind | None:
    """Return what a header says outright that its file is."""
    found = _TYPES.get(header.text("general.type").lower()) or _ARCHITECTURES.get(header.architecture.lower())
    if found is None and ("adapter.type" in header.metadata or "adapter.lora.alpha" in header.metadata):
        return "adapter"
    if found is None and not header.architecture and "imatrix.datasets" in header.array_lengths:
        return "imatrix"
    return found


def _is_draft(words: list[str], header: GGUFHeader) -> bool:
    if _DRAFT_ARCHITECTURE.search(header.architecture.lower()) or _DRAFT_WORDS.intersection(words):
        return True
    layers = header.block_count or 0
    # The layers that predict further tokens, without those of the model that they are to speed up.
    is_head = header.tensor_count < _FEWEST_TENSORS * layers
    if header.number("nextn_predict_layers") and is_head:
        return True
    return bool(_HEAD_WORDS.intersection(words)) and (layers <= _MOST_HEAD_LAYERS or is_head)
