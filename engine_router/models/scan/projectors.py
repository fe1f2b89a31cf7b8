"""Projectors: which of them belongs to which model.

Of those that lie with a model (in its folder, or its repository), by the name, then the quantization of the model,
then BF16 before F16 before F32. Where the headers tell that a projector is for another model, it is none. Where two
fit equally, none is taken: a wrong one makes the engine fail, or see nonsense.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from engine_router.models.gguf import GGUFHeader
from engine_router.models.scan.naming import split_name

_PRECISIONS: Final = ("bf16", "f16", "fp16", "f32", "fp32", "q8_0")
# Words that say that it is a projector, not of which model.
_PLAIN_WORDS: Final = frozenset(
    ("mmproj", "model", "ggml", "gguf", "vision", "projector", "clip", "vit", "encoder")
)
_WORD: Final = re.compile(r"[^\W_]+(?:\.\d+[^\W_]*)*")
# The architectures of the models that go with a projector's type, where there are but a few.
_PARTNERS: Final[dict[str, tuple[str, ...]]] = {
    "gemma3": ("gemma3",),
    "gemma3nv": ("gemma3n",),
    "llama4": ("llama4",),
    "qwen2vl_merger": ("qwen2vl",),
    "qwen2.5vl_merger": ("qwen2vl",),
    "qwen3vl_merger": ("qwen3vl", "qwen3vlmoe"),
}
# The types whose `projection_dim` is the width of the model's embeddings. That of older ones is CLIP's own.
_WITH_WIDTH: Final = frozenset(
    (*_PARTNERS, "idefics3", "internvl", "kimivl", "lfm2", "pixtral", "qwen2.5o", "ultravox", "voxtral")
)
_EXACT, _PREFIX, _PLAIN, _OTHER = 3, 2, 1, 0


@frozen(kw_only=True)
class Projector:
    """A projector's file.

    Attributes:
        path: where it is.
        header: its header.
    """

    path: Path
    header: GGUFHeader

    @property
    def precision(self) -> str:
        """Its quantization, by its name, else by its header, in lower case."""
        return (split_name(self.path.name)[1] or self.header.quantization).lower()

    @property
    def words(self) -> tuple[str, ...]:
        """The words of its name that say of which model it is; none for `mmproj-BF16.gguf`."""
        return tuple(word for word in words_of(split_name(self.path.name)[0]) if word not in _PLAIN_WORDS)

    def fits(self, header: GGUFHeader) -> bool:
        """Tell whether the headers allow that it belongs to a model."""
        kind = self.header.text("clip.projector_type").lower()
        if kind in _PARTNERS and header.architecture not in _PARTNERS[kind]:
            return False
        widths = [
            width
            for key in ("clip.vision.projection_dim", "clip.audio.projection_dim")
            if isinstance(width := self.header.metadata.get(key), int) and width > 0
        ]
        return kind not in _WITH_WIDTH or not widths or header.embedding_length in (None, *widths)


@frozen(kw_only=True)
class Partner:
    """A model that may get a projector.

    Attributes:
        base: what it is called without its quantization.
        quantization: such as `Q4_K_M`; empty where it is not known.
        header: its header.
    """

    base: str
    quantization: str
    header: GGUFHeader


@frozen
class Pairing:
    """The projectors of models.

    Attributes:
        chosen: for each model, in order, its projector; where several fit equally, all of these, and none is its own.
        unclear: projectors that may belong to models of several families.
    """

    chosen: list[tuple[Path, ...]]
    unclear: list[Path]


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name, in lower case: `Qwen2.5-VL-7B` has three."""
    return tuple(_WORD.findall(name.lower()))


def pair(models: Sequence[Partner], projectors: Sequence[Projector], *, is_repository: bool) -> Pairing:
    """Pair models with the projectors that lie with them.

    Args:
        is_repository: they are of one repository, so that a name need not tell to which models a projector belongs.
    """
    bases = {words_of(model.base) for model in models}
    unclear = []
    if not is_repository:
        for projector in projectors:
            fitting = {words_of(model.base) for model in models if projector.fits(model.header)}
            if not projector.words and _families(fitting) > 1:
                unclear.append(projector.path)
    usable = [projector for projector in projectors if projector.path not in unclear]
    chosen = []
    for model in models:
        ranked: dict[tuple[int, bool, int], list[Path]] = {}
        for projector in usable:
            if not projector.fits(model.header):
                continue
            likeness = _likeness(words_of(model.base), projector.words, bases)
            if likeness == _OTHER and is_repository and len(bases) == 1:
                likeness = _PLAIN
            if likeness != _OTHER:
                rank = (
                    likeness,
                    projector.precision == model.quantization.lower(),
                    -_order(projector.precision),
                )
                ranked.setdefault(rank, []).append(projector.path)
        chosen.append(tuple(sorted(ranked[max(ranked)])) if ranked else ())
    return Pairing(chosen, unclear)


def _families(bases: set[tuple[str, ...]]) -> int:
    """Return how many families these are; a name that goes on from another's is of the same."""
    return sum(not any(base != other and base[: len(other)] == other for other in bases) for base in bases)


def _likeness(model: tuple[str, ...], projector: tuple[str, ...], bases: set[tuple[str, ...]]) -> int:
    """Return how well a projector's name agrees with a model's."""
    if not projector:
        return _PLAIN
    if model == projector:
        return _EXACT
    if projector in bases:  # it is another one's
        return _OTHER
    shorter = min(len(model), len(projector))
    return _PREFIX if model[:shorter] == projector[:shorter] else _OTHER


def _order(precision: str) -> int:
    return _PRECISIONS.index(precision) if precision in _PRECISIONS else len(_PRECISIONS)
