"""Quantisations in the names of GGUF files: labels, order of preference, and the split of a name into its parts."""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

DEFAULT: Final = "Q4_K_M"

_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})", re.IGNORECASE)
_LABEL: Final = re.compile(
    r"(?<![A-Z0-9])(?P<dynamic>UD[-_])?(?P<label>I?Q\d(?:_[A-Z0-9]+)*|TQ\d(?:_\d)?|I2_S|BF16|F[PO]?(?:16|32)|MXFP4(?:_MOE)?|NVFP4)"
    r"(?![A-Z0-9])",
    re.IGNORECASE,
)
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
        base: the stem without the label.
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
        stem = path[: -len(".gguf")]
        part = parts = 1
        if (shard := _SHARD.fullmatch(stem)) is not None:
            stem, part, parts = shard["stem"], int(shard["part"]), int(shard["parts"])
        folder, _, name = stem.rpartition("/")
        label, base = _label_of(name)
        if not label:
            label = _label_of(folder.rpartition("/")[2])[0]
        return cls(stem, label, base.strip("-._ ").lower(), part, parts)


def _label_of(name: str) -> tuple[str, str]:
    """Return the last label in a name, and the name without it."""
    found = None
    for found in _LABEL.finditer(name):  # noqa: B007 - the last one is wanted
        pass
    if found is None:
        return "", name
    label = re.sub("^F[PO]", "F", found["label"].upper())
    return ("UD-" if found["dynamic"] else "") + label, name[: found.start()] + name[found.end() :]


def is_companion(path: str) -> bool:
    """Tell whether a GGUF file belongs to a model without being one: a projector, a draft, an imatrix, a vocabulary."""
    return _COMPANION.search(path.rpartition("/")[2]) is not None


def is_projector(path: str) -> bool:
    """Tell whether a GGUF file is a projector for images or sound."""
    return "mmproj" in path.rpartition("/")[2].lower() and "imatrix" not in path.lower()


def matches(label: str, wished: str) -> bool:
    """Tell whether a label is the wished one; `Q4_K_XL` also means Unsloth's `UD-Q4_K_XL`."""
    label, wished = label.replace("UD_", "UD-"), re.sub("^FP", "F", wished.upper().replace("UD_", "UD-"))
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
