"""The files to fetch of a repository: those of one quantisation and its projector, or a whole safetensors model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Final

from attrs import frozen

from engine_router.errors import BadRequest, NotOnHub
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MAX_PULLED_FILES
from engine_router.models.hub.names import HubName
from engine_router.models.hub.quantization import GgufName, distance, is_companion, is_projector, matches
from engine_router.models.scan.naming import split_name
from engine_router.models.scan.projectors import Part, pair

_NAMED: Final = 12
# Folders with the same weights in another form, and files of the training.
_OTHER_FORMS: Final = re.compile(
    r"(^|/)(original|onnx|openvino|metal|coreml|tf|flax|runs|checkpoint-\d+|\.[^/]*)/", re.IGNORECASE
)
_KEPT: Final = (".safetensors", ".json", ".model", ".txt", ".tiktoken", ".jinja", ".py")


@frozen
class RepoFile:
    """A file of a repository.

    Attributes:
        path: in the repository.
        sha256: of its bytes; empty where the file is kept in Git itself.
        blob_id: Git's own hash of it.
    """

    path: str
    size_bytes: int
    sha256: str = ""
    blob_id: str = ""

    @property
    def etag(self) -> str:
        """The name under which its bytes are in the cache."""
        return self.sha256 or self.blob_id


@frozen
class Choice:
    """The files to fetch.

    Attributes:
        files: in the order in which they are fetched: the model's own first.
        main: the path by which the model is started; empty for a folder of safetensors.
        projector: the path of its projector; empty where it has none.
        label: its quantisation; empty where it has none.
        notes: what the person should know about the choice.
    """

    files: tuple[RepoFile, ...]
    main: str = ""
    projector: str = ""
    label: str = ""
    notes: tuple[str, ...] = ()


def choose(name: HubName, files: Sequence[RepoFile], *, with_projector: bool = True) -> Choice:
    """Return the files that a name means.

    Raises:
        NotOnHub: there is no such file or quantisation; those that look like it are named.
        BadRequest: the name means more than one model.
    """
    ggufs = [file for file in files if file.path.lower().endswith(".gguf")]
    if name.file:
        chosen = _named_file(name, files)
        if not chosen.path.lower().endswith(".gguf") or is_companion(chosen.path):
            return Choice((chosen,), chosen.path)
        return _gguf(name, chosen, ggufs, with_projector=with_projector)
    if not ggufs:
        return _safetensors(name, files)
    first = _first_of_quant(name, [file for file in ggufs if not is_companion(file.path)])
    return _gguf(name, first, ggufs, with_projector=with_projector)


def _named_file(name: HubName, files: Sequence[RepoFile]) -> RepoFile:
    """Return the file that is named; its folder, and the difference of small and capital letters, may be left out."""
    wished = name.file.lower()
    ways: tuple[Callable[[str], bool], ...] = (
        lambda path: path == name.file,
        lambda path: path.lower() == wished,
        lambda path: path.lower().endswith(f"/{wished}"),
    )
    for is_meant in ways:
        found = [file for file in files if is_meant(file.path)]
        if len(found) == 1:
            return found[0]
        if found:
            raise BadRequest(
                f"hf:{name.repo} has more than one file '{shown(name.file)}': {_listed([f.path for f in found])}"
            )
    paths = [file.path for file in files]
    near = get_close_matches(name.file, paths, n=3, cutoff=0.5)
    ggufs = [path for path in paths if path.lower().endswith(".gguf")]
    hint = f"did you mean {' or '.join(map(shown, near))}?" if near else f"it has {_listed(ggufs or paths)}"
    raise NotOnHub(f"hf:{name.repo} has no file '{shown(name.file)}'; {hint}")


def _first_of_quant(name: HubName, models: Sequence[RepoFile]) -> RepoFile:
    """Return the first file of the wished quantisation, or of the one nearest to the default where none is wished."""
    by_label: dict[str, list[RepoFile]] = defaultdict(list)
    for file in models:
        by_label[GgufName.of(file.path).label].append(file)
    if not by_label:
        raise NotOnHub(
            f"the GGUF files of hf:{name.repo} are companions of a model (projectors, drafts); name one: hf:{name.repo}/FILE"
        )
    labels = sorted(by_label, key=distance)
    if name.quant:
        exact = [label for label in labels if label == name.quant.upper()]
        fitting = exact or [label for label in labels if matches(label, name.quant)]
        if not fitting:
            has = ", ".join(label or "one without a quantisation in its name" for label in labels)
            raise NotOnHub(f"hf:{name.repo} has no {shown(name.quant)}; it has {shown(has, 600)}")
        labels = fitting
    candidates = sorted(by_label[labels[0]], key=lambda file: file.path)
    stems = {GgufName.of(file.path).stem for file in candidates}
    if len(stems) > 1:
        firsts = [file.path for file in candidates if GgufName.of(file.path).part == 1]
        raise BadRequest(
            f"hf:{name.repo} has more than one model of {labels[0] or 'this kind'}: {_listed(firsts)}; name one: hf:{name.repo}/FILE"
        )
    return candidates[0]


def _gguf(name: HubName, first: RepoFile, ggufs: Sequence[RepoFile], *, with_projector: bool) -> Choice:
    """Return a GGUF model: all its parts and its projector."""
    wanted = GgufName.of(first.path)
    parts = {
        parsed.part: file
        for file in ggufs
        if (parsed := GgufName.of(file.path)).stem == wanted.stem and parsed.parts == wanted.parts
    }
    missing = next((part for part in range(1, wanted.parts + 1) if part not in parts), None)
    if missing is not None:
        raise NotOnHub(
            f"hf:{name.repo} has not all parts of {shown(first.path)}: part {missing} of {wanted.parts} is missing"
        )
    files = [parts[part] for part in sorted(parts)]
    projector, notes = _projector(files[0], ggufs) if with_projector else (None, ())
    return Choice(
        files=(*files, *([] if projector is None else [projector])),
        main=files[0].path,
        projector="" if projector is None else projector.path,
        label=wanted.label,
        notes=notes,
    )


def _projector(model: RepoFile, ggufs: Sequence[RepoFile]) -> tuple[RepoFile | None, tuple[str, ...]]:
    """Return the projector of a model, and what there is to say about it: the one that a scan of the folder will take.

    Those of the nearest folder count. Their headers are not known yet, so that their names alone tell.
    """
    folder = model.path.rpartition("/")[0]
    own = GgufName.of(model.path)
    partner = _part(model.path, own.base, own.label)
    while True:
        found = {
            PurePosixPath(file.path): file
            for file in ggufs
            if is_projector(file.path) and file.path.rpartition("/")[0] == folder
        }
        projectors = [_part(str(path), *split_name(path.name)) for path in found]
        chosen = pair([partner], projectors, is_repository=True).chosen[0]
        if len(chosen) == 1:
            return found[PurePosixPath(chosen[0].as_posix())], ()
        if chosen:
            names = _listed([path.as_posix() for path in chosen])
            return None, (f"no projector was taken, since these fit equally well: {names}",)
        if not folder:
            return None, ()
        folder = folder.rpartition("/")[0]


def _part(path: str, base: str, quantization: str) -> Part:
    return Part(path=Path(path), base=base, quantization=quantization, kind="", widths=())


def _safetensors(name: HubName, files: Sequence[RepoFile]) -> Choice:
    """Return a safetensors model: its weights, settings and tokenizer, and nothing that has the same weights again."""
    kept = [
        file for file in files if file.path.lower().endswith(_KEPT) and not _OTHER_FORMS.search(file.path)
    ]
    weights = [file for file in kept if file.path.lower().endswith(".safetensors")]
    if not weights:
        raise NotOnHub(
            f"hf:{name.repo} has no GGUF and no safetensors files, so no engine here could serve it"
        )
    if name.quant:
        raise NotOnHub(
            f"hf:{name.repo} has no GGUF files, so no {shown(name.quant)}; hf:{name.repo} takes its safetensors"
        )
    doubled = [file for file in weights if file.path.startswith("consolidated")]
    if len(doubled) < len(weights):
        kept = [file for file in kept if not file.path.startswith("consolidated")]
    if len(kept) > MAX_PULLED_FILES:
        raise NotOnHub(
            f"hf:{name.repo} has {len(kept)} files for a model, more than {MAX_PULLED_FILES}; name one: hf:{name.repo}/FILE"
        )
    kept.sort(key=lambda file: (file.path.lower().endswith(".safetensors"), file.path))
    return Choice(tuple(kept))


def _listed(paths: Sequence[str]) -> str:
    """Return the names of files as they may stand in a sentence."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(shown(path) for path in paths[:_NAMED]) + more if paths else "none"
