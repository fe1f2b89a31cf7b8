"""Projectors: which of them belongs to which model.

Of those that lie with a model (in its folder, or its repository), by the name, then the quantization of the model,
then BF16 before F16 before F32. Where the headers tell that a projector is for another model, it is none. Where two
fit equally, none is taken: a wrong one makes the engine fail, or see nonsense.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from attrs import frozen

from engine_router.models.gguf import GGUFHeader

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
_WIDTHS: Final = ("clip.vision.projection_dim", "clip.audio.projection_dim")
_EXACT, _PREFIX, _PLAIN, _OTHER = 3, 2, 1, 0


class Part(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A model, or a projector, as far as that matters here.

    Attributes:
        path: where it is.
        base: what its file is called without its quantization.
        quantization: such as `Q4_K_M`; empty where it is not known.
        kind: a model's architecture; a projector's type.
        widths: of the embeddings that a model takes, or a projector makes; empty where the header does not say.
    """

    path: Path
    base: str
    quantization: str
    kind: str
    widths: tuple[int, ...]

    @property
    def precision(self) -> str:
        """Its quantization in lower case."""
        return self.quantization.lower()

    @property
    def words(self) -> tuple[str, ...]:
        """The words of its name that say of which model it is; none for `mmproj-BF16.gguf`."""
        return tuple(word for word in _WORD.findall(self.base.lower()) if word not in _PLAIN_WORDS)


def as_model(path: Path, base: str, quantization: str, header: GGUFHeader) -> Part:
    """Return a model that may get a projector."""
    width = header.embedding_length
    return Part(
        path=path,
        base=base,
        quantization=quantization,
        kind=header.architecture,
        widths=() if width is None else (width,),
    )


def as_projector(path: Path, base: str, quantization: str, header: GGUFHeader) -> Part:
    """Return a projector."""
    kind = header.text("clip.projector_type").lower()
    widths = (header.metadata.get(key) for key in _WIDTHS) if kind in _WITH_WIDTH else ()
    known = tuple(width for width in widths if isinstance(width, int) and width > 0)
    return Part(path=path, base=base, quantization=quantization, kind=kind, widths=known)


def fits(projector: Part, model: Part) -> bool:
    """Tell whether the headers allow that a projector belongs to a model."""
    partners = _PARTNERS.get(projector.kind)
    if partners is not None and model.kind not in partners:
        return False
    return not projector.widths or not model.widths or model.widths[0] in projector.widths


@frozen
class Pairing:
    """The projectors of models.

    Attributes:
        chosen: for each model, in order, its projector; where several fit equally, all of these, and none is its own.
        unclear: projectors that may belong to models of several families.
    """

    chosen: list[tuple[Path, ...]]
    unclear: list[Path]


def pair(models: Sequence[Part], projectors: Sequence[Part], *, is_repository: bool) -> Pairing:
    """Pair models with the projectors that lie with them.

    Args:
        is_repository: they are of one repository, so that a name need not tell to which models a projector belongs.
    """
    words = [model.words for model in models]
    bases = set(words)
    unclear = []
    if not is_repository:
        for projector in projectors:
            if not projector.words:
                fitting = {own for own, model in zip(words, models, strict=True) if fits(projector, model)}
                if _families(fitting) > 1:
                    unclear.append(projector.path)
    usable = [projector for projector in projectors if projector.path not in unclear]
    candidates = _Candidates(usable, is_family=is_repository and len(bases) == 1)
    chosen = []
    for own, model in zip(words, models, strict=True):
        ranked: dict[tuple[int, bool, int], list[Path]] = {}
        for projector in candidates.of(own):
            likeness = _likeness(own, projector.words, bases)
            if likeness == _OTHER and candidates.is_family:
                likeness = _PLAIN
            if likeness != _OTHER and fits(projector, model):
                rank = (likeness, projector.precision == model.precision, -_order(projector.precision))
                ranked.setdefault(rank, []).append(projector.path)
        chosen.append(tuple(sorted(ranked[max(ranked)])) if ranked else ())
    return Pairing(chosen, unclear)


class _Candidates:
    """Projectors by their words, so that not each is compared with each model: a folder may hold thousands of both.

    Attributes:
        is_family: all models are of one family, and all projectors meant for it.
    """

    def __init__(self, projectors: Sequence[Part], *, is_family: bool) -> None:
        self.is_family = is_family
        self._all = projectors
        self._by_words: defaultdict[tuple[str, ...], list[Part]] = defaultdict(list)
        self._by_beginning: defaultdict[tuple[str, ...], list[Part]] = defaultdict(list)
        for projector in projectors:
            words = projector.words
            self._by_words[words].append(projector)
            for end in range(len(words)):
                self._by_beginning[words[:end]].append(projector)

    def of(self, model: tuple[str, ...]) -> Sequence[Part]:
        """Return those of which one name begins with the other."""
        if self.is_family:
            return self._all
        shorter = [part for end in range(len(model) + 1) for part in self._by_words.get(model[:end], ())]
        return [*shorter, *self._by_beginning.get(model, ())]


def _families(bases: set[tuple[str, ...]]) -> int:
    """Return how many families these are; a name that goes on from another's is of the same."""
    return sum(not any(base[:end] in bases for end in range(1, len(base))) for base in bases)


def _likeness(model: tuple[str, ...], projector: tuple[str, ...], bases: set[tuple[str, ...]]) -> int:
    """Return how well a projector's name agrees with a model's."""
    if not projector:
        return _PLAIN
    if model == projector:
        return _EXACT
    if model[: len(projector)] == projector:  # a variant of the model that it is named for
        return _PREFIX
    # Named for a variant of this model: unless that is here as well, which may be the one that sees.
    return _PREFIX if projector[: len(model)] == model and projector not in bases else _OTHER


def _order(precision: str) -> int:
    return _PRECISIONS.index(precision) if precision in _PRECISIONS else len(_PRECISIONS)
