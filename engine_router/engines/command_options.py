"""Engines' command lines: which engine a command starts, and what its options say about the model.

What a command does not say has the engine's own default.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from attrs import frozen

from engine_router.engines.engine_programs import ENGINE_PROGRAMS, LLAMA_CPP, UNKNOWN, EngineProgram

_SUFFIX: Final = re.compile(r"(\.exe|\.py)$", re.IGNORECASE)
_AMOUNT: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([kKmM]?)")
_FACTORS: Final = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}
_NO: Final = frozenset(("false", "0", "no", "off"))


@frozen(kw_only=True)
class ModelOptions:
    """The options of a command that concern the model that it serves.

    Attributes:
        kind: the kind of engine; without a name where it is not known.
        model: the file or folder of its weights, or the name of a repository.
        context_length: tokens of context; None for what the model was made for.
        vision: it gets a projector for images.
        embedding: it is started to embed.
    """

    kind: EngineProgram
    model: str | None
    context_length: int | None
    vision: bool
    embedding: bool


def model_options(argv: Sequence[str]) -> ModelOptions:
    """Read a command."""
    kind, words = own_words(argv)
    model = model_word(kind, words)
    context = amount(value_of(words, kind.context))
    if context is None and value_of(words, kind.context) is None:
        context = kind.default_context
    return ModelOptions(
        kind=kind,
        model=model,
        context_length=context,
        vision=value_of(words, kind.vision) is not None,
        embedding=kind.only_embeds or any(_has(words, name) for name in kind.embedding),
    )


def model_word(kind: EngineProgram, words: Sequence[str]) -> str | None:
    """Return the model that a command names.

    Args:
        words: those behind the program.
    """
    model = value_of(words, kind.model)
    if model is None and kind.positional:
        model = _positional(words, kind)
    return None if model is None else model.removeprefix("file://")


def value_of(argv: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the value that an option has in a command: `--name value` or `--name=value`.

    Of several the last one, as servers do. `_` in a name means `-`, as Python's servers have it.
    """
    values = values_of(argv, names)
    return values[-1] if values else None


def values_of(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return every value that an option has in a command, in their order."""
    return [words[0] for words in words_of(argv, names) if words]


def words_of(argv: Sequence[str], names: Sequence[str]) -> list[Sequence[str]]:
    """Return the words behind each place where an option stands: its value, and whatever follows."""
    found: list[Sequence[str]] = []
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if _is_one_of(name, names):
            found.append([value, *argv[index + 1 :]] if equals else argv[index + 1 :])
    return found


def number_of(argv: Sequence[str], names: Sequence[str]) -> int | None:
    """Return the whole number that an option has in a command; None where it has none."""
    text = value_of(argv, names)
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None


def amount(text: str | None) -> int | None:
    """Read a number of tokens, such as `8192`, `32k` (thousands) or `32K` (times 1024); None for none, or 0."""
    found = _AMOUNT.fullmatch(text or "")
    return None if found is None else int(float(found[1]) * _FACTORS[found[2]]) or None


def own_words(argv: Sequence[str]) -> tuple[EngineProgram, Sequence[str]]:
    """Return the kind of engine that a command starts, and the words behind its program.

    Whatever runs the program may stand before it: Python, `env`, `nice`, `uv run`, a container's command.
    """
    for index in range(len(argv)):
        if (found := program_at(argv, index)) is not None:
            return found
    return UNKNOWN, argv[1:]


def may_keep_context(argv: Sequence[str]) -> bool:
    """Tell whether a command may be that of a server with slots to be saved: llama.cpp's, or a script of one's own."""
    return own_words(argv)[0] in (LLAMA_CPP, UNKNOWN)


def program_at(argv: Sequence[str], index: int) -> tuple[EngineProgram, Sequence[str]] | None:
    """Return the kind of engine whose program is one word of a command, and the words behind it; None if it is none."""
    name = program_name(argv[index])
    following = argv[index + 1] if index + 1 < len(argv) else ""
    for kind in ENGINE_PROGRAMS:
        if not any(_is_called(name, program) for program in kind.programs):
            continue
        if not kind.verbs:
            return kind, argv[index + 1 :]
        if following in kind.verbs:
            return kind, argv[index + 2 :]
    return None


def program_name(word: str) -> str:
    """Return what a program is called, without its folder, `.exe` and `.py`."""
    return _SUFFIX.sub("", re.split(r"[/\\]", word)[-1].lower())


def _is_called(name: str, program: str) -> bool:
    """Tell whether a file is a program, of whatever version or build: `koboldcpp-linux-x64`."""
    return name == program or name.startswith((f"{program}-", f"{program}_"))


def _positional(words: Sequence[str], kind: EngineProgram) -> str | None:
    """Return the model that stands without an option in front of it."""
    if not words:
        return None
    word = words[0] if kind.positional == "first" else words[-1]
    return None if word.startswith("-") else word


def _has(words: Sequence[str], option: str) -> bool:
    """Tell whether a command has an option, or one with a certain value; `--embedding false` is none."""
    name, equals, wanted = option.partition("=")
    if equals:
        return value_of(words, (name,)) == wanted
    for index, word in enumerate(words):
        given, has_value, value = word.partition("=")
        if _is_one_of(given, (name,)):
            following = words[index + 1] if index + 1 < len(words) else ""
            if (value if has_value else following).lower() not in _NO:
                return True
    return False


def _is_one_of(name: str, names: Sequence[str]) -> bool:
    if name in names:
        return True
    return name.startswith("--") and "_" in name and name.replace("_", "-") in names
