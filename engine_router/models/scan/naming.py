"""The names of found models: short, stable, unique.

The rule. A model is called by its file, without the suffix, the number of its part and its quantization; by its
repository or folder where the file's name says nothing (`model.gguf`, `Q4_K_M.gguf`); a folder of safetensors by
its repository or itself. `-GGUF` at the end goes, all is in lower case, and what is neither letter nor digit nor one
of `._-+` becomes `-`. The quantization is its tag, by the file's name, else by the header:
`Qwen3-8B-Q4_K_M.gguf` is `qwen3-8b:q4_k_m`.

Where two would be called alike, or a name is taken, each of them gets the next longer form, and no other model's
name changes:

1. `qwen3-8b:q4_k_m`
2. `unsloth/qwen3-8b:q4_k_m`, with the owner of its repository, or the folder in which it lies
3. `unsloth/qwen3-8b-5f0c3a1e:q4_k_m`, with a digest of its path

A file that is found for a second engine as well has that engine's name and `/` in front there.

Aliases are `unsloth/Qwen3-8B-GGUF:Q4_K_M`, the same behind `hf.co/` as Ollama has it, both without the tag, the file
with and without its suffix (or the folder of safetensors), and the name without its tag; of
`bartowski/Qwen_Qwen3-8B-GGUF` also what stands behind the author. Each where it means one model only, and is no other
model's name.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from engine_router.guards.limits import MODEL_NAME_CHARS
from engine_router.models.gguf import SPLIT
from engine_router.models.pace import Pace
from engine_router.models.scan.results import Format, FoundModel, Skipped

_HUB: Final = "hf.co/"
_LATEST: Final = ":latest"
_SUFFIX: Final = ".gguf"
_QUANTIZATION: Final = re.compile(
    r"(?:^|(?<=[-._ ]))"
    r"(?:UD[-_])?"
    r"(?:I?Q[1-8](?:_(?:[01]|K|KS|KT|KSS|XXS|XS|S|M|L|XL|XXL|NL|P|R[48]|[48]))*|TQ[12]_0"
    r"|BF16|F16|F32|FP16|FP32|FP8|MXFP4(?:_MOE)?|NVFP4)"
    r"(?=$|[-._ ])",
    re.IGNORECASE,
)
_FORMAT_SUFFIX: Final = re.compile(r"(?:[-_. ]+gguf)+$", re.IGNORECASE)
# What a file may be called when nobody gave it a name.
_SAYS_NOTHING: Final = frozenset(("", "model", "ggml-model", "ggml", "gguf", "unsloth", "weights", "output"))
_NEAR: Final = 3  # folders further out say where it is, not what
_UNFIT: Final = re.compile(r"[^\w.+-]+|_(?=_)")
_ENDS: Final = "-._+ "


class Candidate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A sound model before it has a name.

    There may be thousands, none of them in a cycle: Python's search for cycles, which holds everything up, is not to
    go through them.

    Attributes:
        path: its file, of a model in several files the first; or its folder.
        format: the format of its weights.
        size_bytes: size of all its files.
        mmproj: its projector.
        repository: `user/repo`, where that is known.
        base: what it is called without its quantization.
        quantization: such as `Q4_K_M`, as its file's name or its header says; empty where neither does.
        file_name: what its file is called in its repository; empty for a folder.
        identity: of its first file, the same under each name of that.
    """

    path: Path
    format: Format
    size_bytes: int
    base: str
    quantization: str = ""
    mmproj: Path | None = None
    repository: str = ""
    file_name: str = ""
    identity: tuple[int, int] | None = None


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """A candidate that is to get a name: for which engine, and under which place it was found."""

    engine: str
    place: str
    candidate: Candidate
    is_repeated: bool = False
    """An engine further up has the same file."""


def split_name(name: str) -> tuple[str, str]:
    """Return what a file is called without its suffix, part number and quantization, and the quantization.

    >>> split_name("Qwen3-8B-Q4_K_M.gguf"), split_name("Mistral-7B.IQ2_XXS-00001-of-00002.gguf")
    (('Qwen3-8B', 'Q4_K_M'), ('Mistral-7B', 'IQ2_XXS'))
    """
    stem = name_stem(name)
    found = list(_QUANTIZATION.finditer(stem))
    quantization = found[-1].group() if found else ""
    if found:
        before, after = stem[: found[-1].start()].rstrip(_ENDS), stem[found[-1].end() :].lstrip(_ENDS)
        stem = "-".join(part for part in (before, after) if part)
    return _FORMAT_SUFFIX.sub("", stem).strip(_ENDS), quantization


def name_stem(name: str) -> str:
    """Return the name of a GGUF file without its suffix, and without the number of its part."""
    split = SPLIT.fullmatch(name)
    if split is not None:
        return split["stem"]
    return name[: -len(_SUFFIX)] if name.lower().endswith(_SUFFIX) else name


def base_name(base: str, repository: str, path: Path) -> str:
    """Return what a model is called without its quantization.

    Args:
        base: what its file, or folder, is called without that.
        repository: `user/repo`, or empty.
        path: where it is; the folders in which it lies may say what it is.
    """
    if base.lower() not in _SAYS_NOTHING:
        return base
    for name in (repository.rpartition("/")[2], *(parent.name for parent in path.parents[:_NEAR])):
        found, quantization = split_name(name)
        if found.lower() not in _SAYS_NOTHING and (found or not quantization):
            return found
    return name_stem(path.name)


def plain(text: str) -> str:
    """Return a text as it may stand in a name.

    >>> plain("Größe (v2) Test__x"), plain("../..")
    ('größe-v2-test_x', 'model')
    """
    lower = unicodedata.normalize("NFC", text).lower()
    return _UNFIT.sub(lambda found: "" if found[0] == "_" else "-", lower).strip(_ENDS) or "model"


def name_models(
    wanted: Sequence[Wanted],
    taken: Collection[str] = (),
    rest: Callable[[], None] | None = None,
    is_served: Callable[[FoundModel], bool] = lambda _: False,
) -> tuple[list[FoundModel], list[Skipped]]:
    """Name models, by the rule above; in the order in which they come. Those without a name that can be used are skipped.

    Args:
        taken: names that are no found model's.
        is_served: tells of which models nothing will be listed, since the file of the configuration has them already: an
            alias that one of those could have as well means one model only.
        rest: called about every millisecond of work.
    """
    rest = rest or Pace().rest
    reserved = {name.casefold().removesuffix(_LATEST) for name in taken}
    entries = []
    for each in wanted:
        rest()
        entries.append(_Named(each, _forms(each)))
    while True:
        counts = Counter(entry.name for entry in entries)
        alike = [
            entry
            for entry in entries
            if (counts[entry.name] > 1 or entry.name.casefold() in reserved)
            and entry.form + 1 < len(entry.forms)
        ]
        if not alike:
            break
        for entry in alike:
            entry.form += 1
    sound, skipped = [], []
    for entry in entries:
        rest()
        if counts[entry.name] > 1 or entry.name.casefold() in reserved or len(entry.name) > MODEL_NAME_CHARS:
            reason = "no name can be made of its own: give it one in [models]"
            skipped.append(Skipped(entry.wanted.candidate.path, reason, is_fault=True))
        else:
            sound.append(entry)
    models = _with_aliases(sound, entries, reserved, rest)
    listed = [entry for entry, model in zip(sound, models, strict=True) if not is_served(model)]
    if len(listed) < len(models):
        others = {model.name: model for model in _with_aliases(listed, listed, reserved, rest)}
        models = [others.get(model.name, model) for model in models]
    return models, skipped


def _with_aliases(
    sound: Sequence[_Named], claiming: Sequence[_Named], reserved: Collection[str], rest: Callable[[], None]
) -> list[FoundModel]:
    """Return models with those aliases that mean one of them only.

    Args:
        claiming: whoever could have an alias.
    """
    owners = {entry.name.casefold(): entry.name for entry in claiming}
    claims: Counter[str] = Counter()
    for entry in claiming:
        rest()
        claims.update({alias.casefold() for alias in _aliases(entry.wanted)})
    models = []
    for entry in sound:
        rest()
        aliases = tuple(
            alias
            for alias in dict.fromkeys(_aliases(entry.wanted))
            if alias != entry.name
            and (owners.get(alias.casefold()) or (entry.name if claims[alias.casefold()] == 1 else ""))
            == entry.name
            and _is_usable(alias, reserved)
        )
        models.append(_model(entry, aliases))
    return models


class _Named(msgspec.Struct, gc=False):
    """A candidate and the form of its name that it has so far."""

    wanted: Wanted
    forms: tuple[str, ...]
    form: int = 0

    @property
    def name(self) -> str:
        return self.forms[self.form]


def _forms(wanted: Wanted) -> tuple[str, ...]:
    """Return the forms of a model's name, the shortest first."""
    candidate = wanted.candidate
    base = plain(candidate.base)
    tag = f":{candidate.quantization.lower()}" if candidate.quantization else ""
    owner = (
        candidate.repository.partition("/")[0] if "/" in candidate.repository else candidate.path.parent.name
    )
    digest = hashlib.blake2s(candidate.path.as_posix().encode("utf-8", "replace"), digest_size=4).hexdigest()
    in_front = f"{plain(wanted.engine)}/" if wanted.is_repeated else ""
    longer = f"{plain(owner)}/{base}"
    return tuple(
        dict.fromkeys(
            in_front + form for form in (f"{base}{tag}", f"{longer}{tag}", f"{longer}-{digest}{tag}")
        )
    )


def _aliases(wanted: Wanted) -> Iterator[str]:
    candidate = wanted.candidate
    if wanted.is_repeated:
        return
    if candidate.repository:
        tagged = candidate.repository
        if candidate.quantization:
            tagged = f"{candidate.repository}:{candidate.quantization}"
        yield tagged
        if candidate.format == "gguf":
            yield _HUB + tagged
            yield candidate.repository
            yield _HUB + candidate.repository
    if candidate.file_name:
        yield candidate.file_name
        yield name_stem(candidate.file_name)
    else:
        yield candidate.base
    yield plain(candidate.base)
    author, _, name = candidate.base.partition("_")
    if name[:1].isalpha() and candidate.repository.rpartition("/")[2].startswith(f"{author}_"):
        if candidate.quantization:
            yield f"{plain(name)}:{candidate.quantization.lower()}"
        yield plain(name)


def _is_usable(alias: str, reserved: Collection[str]) -> bool:
    return (
        len(alias) <= MODEL_NAME_CHARS
        and alias.isprintable()
        and alias.casefold().removesuffix(_LATEST) not in reserved
    )


def _model(entry: _Named, aliases: tuple[str, ...]) -> FoundModel:
    candidate = entry.wanted.candidate
    return FoundModel(
        engine=entry.wanted.engine,
        name=entry.name,
        aliases=aliases,
        path=candidate.path,
        format=candidate.format,
        mmproj=candidate.mmproj,
        size_bytes=candidate.size_bytes,
        place=entry.wanted.place,
    )
