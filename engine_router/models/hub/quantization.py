"""Quantisations in the names of GGUF files: labels, order of preference, and the split of a name into its parts."""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

from engine_router.models.gguf import SPLIT
from engine_router.models.scan.naming import name_stem, split_name

DEFAULT: Final = "Q4_K_M"

_COMPANION: Final = re.compile(
    r"mmproj|imatrix|^ggml-vocab|^(?:mtp|eagle\d+|dflash|dspark|draft)-|-(?:eagle\d+|dflash|dspark|draft)[-.]",
    re.IGNORECASE,
)
# What is nearest to the default: more bits are preferred to fewer, and what no GPU has memory for comes last.
_BITS: Final = (4, 5, 6, 8, 3, 16, 2, 32, 1)
_KINDS: Final = ("_K_M", "_K_XL", "_K_L", "_K_S", "_NL", "_XS", "_K", "_1", "_0")


@frozen
class GgufName:
    """The parts of a GGUF file's name.

    Attributes:
        stem: the path without the ending and the number of the part.
        label: such as `Q4_K_M` or `UD-Q4_K_XL`, in capitals; empty where there is none.
        base: what the model is called without its quantisation.
        part: from 1 on.
        parts: how many files the model is split into.
    """

    stem: str
    label: str
    base: str
    part: int = 1
    parts: int = 1

    @classmethod
    def of(cls, path: str) -> GgufName:
        """Return the parts of the name of a file, given by its path in a repository."""
        folder, slash, name = path.rpartition("/")
        split = SPLIT.fullmatch(name)
        base, label = split_name(name)
        if not label:  # of a folder for one quantization
            label = split_name(folder.rpartition("/")[2])[1]
        return cls(
            stem=folder + slash + name_stem(name),
            label=_plain(label),
            base=base,
            part=1 if split is None else int(split["part"]),
            parts=1 if split is None else int(split["parts"]),
        )


def _plain(label: str) -> str:
    """Return a label as it is compared."""
    return re.sub("^FP(?=16|32)", "F", label.upper().replace("UD_", "UD-"))


def is_companion(path: str) -> bool:
    """Tell whether a GGUF file belongs to a model without being one: a projector, a draft, an imatrix, a vocabulary."""
    return _COMPANION.search(path.rpartition("/")[2]) is not None


def is_projector(path: str) -> bool:
    """Tell whether a GGUF file is a projector for images or sound."""
    return "mmproj" in path.rpartition("/")[2].lower() and "imatrix" not in path.lower()


def matches(label: str, wished: str) -> bool:
    """Tell whether a label is the wished one; `Q4_K_XL` also means Unsloth's `UD-Q4_K_XL`."""
    wished = _plain(wished)
    return label in (wished, f"UD-{wished}")


def distance(label: str) -> tuple[int, int, int, str]:
    """Return how far a label is from the default; the smallest is the one to take where nothing is wished.

    >>> sorted(["Q8_0", "IQ4_XS", "Q2_K", "Q4_K_S", "Q5_K_M"], key=distance)
    ['Q4_K_S', 'IQ4_XS', 'Q5_K_M', 'Q8_0', 'Q2_K']
    """
    bits = re.search(r"\d+", label)
    number = int(bits[0]) if bits else 0
    rank = _BITS.index(number) if number in _BITS else len(_BITS)
    kind = next((index for index, ending in enumerate(_KINDS) if label.endswith(ending)), len(_KINDS))
    return (label != DEFAULT, rank, kind, label)
