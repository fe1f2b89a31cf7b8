"""The names of the models that a command serves, told from its words: so a stopped engine's models are known, too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile, zip_longest
from typing import Final

from attrs import frozen

from engine_router.engines.command_options import model_word, value_of, values_of, words_of
from engine_router.engines.engine_programs import UNKNOWN, EngineProgram
from engine_router.engines.server_command import ServerCommand, server_command
from engine_router.guards.limits import MODEL_NAME_CHARS, SERVED_NAMES
from engine_router.models.scan.naming import plain as plain_name
from engine_router.models.scan.naming import split_name

_SCHEME: Final = re.compile(
    r"(?:hf|huggingface|ollama|oci|docker|file|https?|ms|modelscope)://(?:(?:hf\.co|huggingface\.co)/)?"
)
_WEIGHTS: Final = re.compile(r"\.(?:gguf|ggml|bin|safetensors|llamafile)$", re.IGNORECASE)
_SHARD: Final = re.compile(r"-\d{5}-of-\d{5}$")
_BEGINS_AS_PATH: Final = re.compile(r"[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]")
# The folder of one version of a repository, in the hub's cache.
_SNAPSHOT: Final = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\][^/\\]+[/\\]?$")
_PLACEHOLDER: Final = re.compile(r"\{\w+\}|\$")


@frozen(kw_only=True)
class ServedModel:
    """A model that a command serves.

    Attributes:
        name: the id under which the router lists it: the first name that the command gives, or a short one made of
            the file's or the repository's.
        upstream: a name that the running engine accepts in a request.
        aliases: other names that the command gives.
        spellings: what else it may be called, by its engine or by people: its path, its file. Too many to be listed.
    """

    name: str
    upstream: str
    aliases: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name."""
        return (self.name, *self.aliases, self.upstream, *self.spellings)


@frozen(kw_only=True)
class ServedModels:
    """The models that a command serves, as far as its words tell.

    Attributes:
        models: the models; each name belongs to the first that has it.
        is_strict: it refuses a request that calls a model something else.
        lists_others: the running engine lists more than it serves.
        presets: an .ini file whose sections are further models.
        folder: a folder whose files are further models.
    """

    models: tuple[ServedModel, ...] = ()
    is_strict: bool = False
    lists_others: bool = False
    presets: str | None = None
    folder: str | None = None

    @property
    def in_files(self) -> bool:
        """True if its models stand in files that the command names."""
        return self.presets is not None or self.folder is not None

    def are_in_files_of(self, other: ServedModels) -> bool:
        """Tell whether these are the models of the same files."""
        return self.in_files and (self.presets, self.folder) == (other.presets, other.folder)


def served_models(argv: Sequence[str], env: Mapping[str, str]) -> ServedModels:
    """Tell which models a command serves. Reads no file.

    Args:
        env: the variables that the engine gets besides the router's own.
    """
    command = server_command(argv, env)
    if command is None:
        return ServedModels()
    kind, words = command.kind, _with_variables(command)
    models = tuple(_models(kind, words))[:SERVED_NAMES]
    # With a model of its own, llama.cpp looks at neither; in a container they lie elsewhere.
    has_files = not models and not command.is_contained
    return ServedModels(
        models=models,
        is_strict=kind.is_strict,
        lists_others=kind.lists_others,
        presets=value_of(words, kind.presets) if has_files else None,
        folder=value_of(words, kind.folder) if has_files else None,
    )


def _with_variables(command: ServerCommand) -> list[str]:
    """Return the words of a command behind those that its environment stands for: what it says itself counts more."""
    words: list[str] = []
    for variable, option in command.kind.variables.items():
        if value := command.variables.get(variable):
            words += (option, value)
    return [*words, *command.words]


def _models(kind: EngineProgram, words: Sequence[str]) -> Iterator[ServedModel]:
    given = _given_names(kind, words)
    if kind.serves_several and len(models := values_of(words, kind.model)) > 1:
        named = values_of(words, kind.names)
        for model, name in zip_longest(models, named[: len(models)]):
            yield from _model(kind, model, [name] if name else [])
    elif (repository := value_of(words, kind.repository)) and is_name(repository):
        file = value_of(words, kind.file)
        yield from _model(kind, repository if file is None else f"{repository}/{file}", given)
    else:
        yield from _model(kind, _word(kind, words) or value_of(words, kind.file) or "", given)
    for following in words_of(words, kind.adapters):
        for adapter in takewhile(lambda word: not word.startswith("-"), following):
            name = adapter.partition("=")[0]
            if "=" in adapter and is_name(name):
                yield ServedModel(name=name, upstream=name)


def _given_names(kind: EngineProgram, words: Sequence[str]) -> list[str]:
    """Return the names that a command gives its model, the first one first."""
    found = words_of(words, kind.names)
    if not found or not found[-1]:
        return []
    if kind.names_are == "words":
        names: Sequence[str] = list(takewhile(lambda word: not word.startswith("-"), found[-1]))
    elif kind.names_are == "commas":
        names = [name.strip() for name in found[-1][0].split(",")]
    else:
        names = found[-1][:1]
    return [name for name in dict.fromkeys(names) if is_name(name)]


def _word(kind: EngineProgram, words: Sequence[str]) -> str | None:
    word = model_word(kind, words)
    if word is None or word.startswith("-"):
        return None
    if kind is UNKNOWN and word == value_of(words, ("-m",)) and not _is_path(word):
        return value_of(words, kind.model[1:])  # `python -m server` names no model
    return word


def _model(kind: EngineProgram, word: str, given: Sequence[str]) -> Iterator[ServedModel]:
    """Yield the model, by the names that its command gives it, or by its file, folder or repository."""
    derived = [name for name in dict.fromkeys(_derived(word)) if is_name(name)]
    own = kind.prefix + _stem(word) if kind.prefix and word else word
    names = [*given, *derived]
    if not names:
        return
    name = names[0]
    upstream = given[0] if given else own if is_name(own) and (kind.is_strict or kind.prefix) else name
    spellings = dict.fromkeys(spelling for spelling in (*derived, own) if is_name(spelling))
    yield ServedModel(
        name=name,
        upstream=upstream,
        aliases=tuple(given[1:]),
        spellings=tuple(spelling for spelling in spellings if spelling not in (name, *given)),
    )


def _derived(word: str) -> Iterator[str]:
    """Yield what a model may be called that a command gives as a path, a repository or an address; the best first."""
    if not word:
        return
    plain = _SCHEME.sub("", word, count=1)
    if plain != word:
        plain = re.split(r"[?#]", plain)[0]
    if (found := _SNAPSHOT.search(plain)) is not None:
        yield f"{found[1]}/{found[2]}"
        yield found[2]
    elif _is_path(plain):
        yield from _file_names(plain)
    else:
        yield plain
        if "/" in plain:
            yield plain.rpartition("/")[2]
            yield f"hf.co/{plain}"
    yield word


def file_names(path: str) -> tuple[str, ...]:
    """Return what a model may be called by its file, or its folder: the short name first."""
    return tuple(name for name in dict.fromkeys((*_file_names(path), path)) if is_name(name))


def _file_names(path: str) -> Iterator[str]:
    """Yield what a file or a folder is called, and what it would be called if it were found in a folder of models."""
    yield _stem(path)
    yield _base(path)
    base, quantization = split_name(_base(path))
    if base and path.lower().endswith(".gguf"):
        yield f"{plain_name(base)}:{plain_name(quantization)}" if quantization else plain_name(base)


def _is_path(word: str) -> bool:
    return bool(_BEGINS_AS_PATH.match(word) or _WEIGHTS.search(word)) or word.count("/") > 1


def _base(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _stem(path: str) -> str:
    return _SHARD.sub("", _WEIGHTS.sub("", _base(path)))


def is_name(name: str) -> bool:
    """Tell whether a word of a command can be a model's name: not empty, not filled in later, fit to be printed."""
    return (
        0 < len(name) <= MODEL_NAME_CHARS
        and name.isprintable()
        and name == name.strip()
        and not name.startswith("-")
        and _PLACEHOLDER.search(name) is None
    )
